"""Trainings on several ranks, stopped, killed and resumed: the numbers must be those of one undisturbed process."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recipes import checkpoint, finetune, steps, tiny_llama
from recipes.distributed import ALONE, Ranks
from recipes.finetune import micro_batches, train
from recipes.rows import load_tokenizer, pack
from study.cells import Cell, check_inputs, prepare, read_config, read_manifest, write_manifest
from study.errors import UserError
from study.load import load_recipe
from study.run_cell import run_cell
from study.schema import Training
from study.work import Work

ROOT = Path(__file__).parents[2]
PROCESSES = multiprocessing.get_context("forkserver")
TEXTS = [
    "The kettle boils on the stove and the cups are warm.",
    "A short one.",
    "Rain falls on the roof for hours.",
] * 12
# Five rows an update: two ranks can't share them evenly.
RECIPE: dict[str, Any] = {
    "seq_len": 32,
    "epochs": 8,
    "tokens_per_update": 5 * 32,
    "rows_per_update": None,
    "lr": 1e-3,
    "schedule": "cosine",
    "warmup_updates": 2,
    "weight_decay": 0.01,
    "betas": [0.9, 0.95],
    "clip_grad_norm": 1.0,
    "dtype": "fp32",
    "save_every": 4,
}
SHAPE = {"vocab_size": 640, "dim": 64, "layers": 2, "heads": 2, "kv_heads": 1, "ffn_dim": 128, "max_seq_len": 131072}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with a finished tiny checkpoint and finished documents."""
    folder = tmp_path_factory.mktemp("runs") / "study"
    model, documents = (prepare(cell, folder) for cell in (MODEL, DOCUMENTS))
    tokenizer = tiny_llama.make_tokenizer(TEXTS, 640)
    tokenizer.save_pretrained(model / "model")
    config = tiny_llama._config(SHAPE, tokenizer) | {"vocab_size": len(tokenizer)}
    (model / "model/config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    checkpoint.save(checkpoint.build(config), model / "model", model / "model")
    (documents / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for made in (model, documents):
        write_manifest(made, read_config(made), "", "", counts={}, warnings=[])
    return folder


MODEL, DOCUMENTS = Cell("model", "base", {}), Cell("documents", "texts", {})


def training(base: Path, name: str, like: Path | None = None) -> Path:
    """A cell to train: whatever its name, the same settings and so the same seeds; or a copy of one begun."""
    folder = prepare(Cell("midtrain", name, {"recipe": RECIPE}, {"start": MODEL, "documents": DOCUMENTS}), base)
    if like:
        shutil.copytree(like, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.yaml", "log.txt"))
    return folder


@pytest.fixture(scope="module", autouse=True)
def forks() -> Iterator[None]:
    """Ranks are forked from a process that has imported torch already: an import takes seconds."""
    before = os.environ.get("PYTHONPATH")
    os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    PROCESSES.set_forkserver_preload(["recipes.finetune", "study.run_cell", "torch.distributed.tensor"])
    yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


RANK = """
import os, sys
from pathlib import Path
os.environ.update({environment})
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1), os.dup2(log, 2)
from study.run_cell import run_cell
run_cell(Path({folder!r}))
"""


def start_ranks(folder: Path, world: int) -> list[BaseProcess]:
    """`world` processes on the cell, placed as a launcher would; what each says is in <cell>.rank<r>.txt."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    processes = []
    for rank in range(world):
        environment = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        log = f"{folder}.rank{rank}.txt"
        code = RANK.format(environment=environment, log=log, folder=str(folder))
        processes.append(PROCESSES.Process(target=exec, args=(code, {}), daemon=True))
        processes[-1].start()
    return processes


def ends(processes: list[BaseProcess]) -> list[int | None]:
    """Exit statuses, once all have ended."""
    for process in processes:
        process.join(60)
        process.kill()
    return [process.exitcode for process in processes]


def on_ranks(folder: Path, world: int) -> Path:
    """Run the cell to its end. Judged by the manifest: gloo may abort a process that has done all it had to."""
    ends(start_ranks(folder, world))
    logs = "".join(f.read_text() for f in sorted(folder.parent.glob(f"{folder.name}.rank*.txt")))
    assert read_manifest(folder), logs
    return folder


def until(condition: Any, processes: list[BaseProcess]) -> None:
    """Wait for the condition while all processes run."""
    began = time.monotonic()
    while not condition():
        assert all(p.is_alive() for p in processes), "ended too early"
        assert time.monotonic() - began < 60
        time.sleep(0.002)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model/model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()
    mine, theirs = read_manifest(one), read_manifest(other)
    assert mine and theirs and set(mine["outputs"]) == set(theirs["outputs"])
    assert mine["counts"] == theirs["counts"] and mine["warnings"] == theirs["warnings"]


def assert_close(one: Path, other: Path) -> None:
    mine, theirs = lines(one), lines(other)
    assert [line["update"] for line in mine] == [line["update"] for line in theirs] == list(range(1, len(mine) + 1))
    losses = max(abs(a["loss"] - b["loss"]) for a, b in zip(mine, theirs, strict=True))
    apart = max((w - weights(other)[name]).abs().max().item() for name, w in weights(one).items())
    print(f"largest difference: loss {losses:.1e}, weights {apart:.1e}")
    assert losses < 1e-5 and apart < 1e-4


@pytest.fixture(scope="module")
def alone(base: Path) -> Path:
    """The training as one process does it, undisturbed."""
    folder = training(base, "alone")
    run_cell(folder)
    return folder


@pytest.fixture(scope="module")
def two(base: Path) -> Path:
    """The training on two ranks, undisturbed."""
    return on_ranks(training(base, "two"), 2)


@pytest.fixture(scope="module")
def killed_alone(base: Path) -> Path:
    """The training as one process, killed after its second step checkpoint."""
    return killed(base, "killed_alone", 1)


@pytest.fixture(scope="module")
def killed_two(base: Path) -> Path:
    return killed(base, "killed_two", 2)


def killed(base: Path, name: str, world: int) -> Path:
    folder = training(base, name)
    processes = start_ranks(folder, world)
    until(lambda: len(lines(folder)) > 9 if (folder / "steps/8").exists() else False, processes)
    for process in processes:
        process.kill()
    ends(processes)
    assert not read_manifest(folder) and not (folder / "model").exists()
    return folder


def test_two_ranks_give_the_numbers_of_one(alone: Path, two: Path) -> None:
    manifest = read_manifest(two)
    assert manifest and manifest["counts"]["rows"] * RECIPE["epochs"] % 5 == 1, "the last update must leave a rank idle"
    assert_close(alone, two)


def test_nothing_but_the_results_is_left(alone: Path, two: Path) -> None:
    for folder in (alone, two):
        manifest = read_manifest(folder)
        assert manifest and not [name for name in manifest["outputs"] if "steps" in name or ".tmp" in name]
        assert {"metrics.jsonl", "model/model.safetensors", "model/config.json"} < set(manifest["outputs"])
        assert not (folder / "steps").exists()


def test_a_finished_cell_does_nothing_on_every_rank(two: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in two.rglob("*") if path.name != ".lock"}
    assert ends(start_ranks(two, 2)) == [0, 0]
    assert before == {path: path.stat().st_mtime_ns for path in two.rglob("*") if path.name != ".lock"}


def test_killed_and_resumed_alone_is_bitwise_the_undisturbed(base: Path, alone: Path, killed_alone: Path) -> None:
    folder = training(base, "killed_alone_on_one", like=killed_alone)
    run_cell(folder)
    assert_same(folder, alone)


def test_killed_and_resumed_on_two_ranks_is_bitwise_the_undisturbed(base: Path, two: Path, killed_two: Path) -> None:
    assert_same(on_ranks(training(base, "killed_two_on_two", like=killed_two), 2), two)


def test_resumed_on_another_number_of_ranks(base: Path, alone: Path, killed_alone: Path, killed_two: Path) -> None:
    on_one = training(base, "killed_two_on_one", like=killed_two)
    run_cell(on_one)
    assert_close(alone, on_one)
    assert_close(alone, on_ranks(training(base, "killed_alone_on_two", like=killed_alone), 2))


def test_a_signal_to_one_rank_saves_and_stops_all(base: Path, two: Path) -> None:
    folder = training(base, "told")
    processes = start_ranks(folder, 2)
    until(lambda: (folder / "metrics.jsonl").exists() and len(lines(folder)) > 4, processes)
    os.kill(processes[1].pid or 0, signal.SIGUSR1)
    assert ends(processes) == [-signal.SIGUSR1] * 2, "the exit status must tell the signal"
    saved = steps.complete(folder / "steps")[-1]
    assert saved == len(lines(folder)) < len(lines(two)), "saved at the update at which it stopped"
    assert not read_manifest(folder) and not (folder / "model").exists()
    assert_same(on_ranks(folder, 2), two)


def in_process(base: Path, name: str, recipe: dict[str, Any] | None = None, **report: Any) -> Work:
    """The training as its stage function sees it, for one process."""
    folder = training(base, name)
    config = read_config(folder)
    settings = {**config["settings"], "recipe": recipe or RECIPE}
    return Work(folder, config["identity"], settings, {}, check_inputs(folder, config), **report)


def told_at(update: int, number: int) -> Any:
    """A progress report that sends this process a signal when an update is done."""
    return lambda done, total, unit: os.kill(os.getpid(), number) if done == update else None


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_the_handler_of_before_is_called_once_all_is_saved(base: Path, alone: Path, number: int) -> None:
    calls = []
    folder = training(base, f"handler_{number}")

    def handler(signum: int, frame: Any) -> None:
        assert steps.complete(folder / "steps") == [4, 6], "saved before"
        calls.append(signum)

    before = signal.signal(number, handler)
    try:
        with pytest.raises(SystemExit):
            finetune.run(in_process(base, folder.name.rsplit("-", 1)[0], report=told_at(6, number)))
        assert calls == [number] and signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    run_cell(folder)
    assert_same(folder, alone)


def test_a_signal_while_the_model_is_written_lets_it_be_written(
    base: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What took days must not be lost for minutes; and the next run has nothing left to train."""
    write = checkpoint.save

    def save(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        write(*args)

    before = signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(9))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", save)
            work = in_process(base, "told_late")
            with pytest.raises(SystemExit, match="9"):
                finetune.run(work)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (work.folder / "model").exists() and not (work.folder / "steps").exists()
    monkeypatch.setattr(finetune, "train", None)
    run_cell(work.folder)
    assert_same(work.folder, alone)


def test_the_newest_whole_checkpoint_is_chosen_by_number(tmp_path: Path) -> None:
    assert steps.complete(tmp_path / "none") == []
    for name in ("9", "10", ".tmp-12", "11", "model"):
        (tmp_path / name).mkdir()
        if name != "11":
            (tmp_path / name / "meta.json").write_text("{}")
    assert steps.complete(tmp_path) == [9, 10], "11 has no meta.json, .tmp-12 not its name"


def test_half_of_a_checkpoint_or_of_a_model_is_ignored(base: Path, alone: Path, killed_alone: Path) -> None:
    folder = training(base, "half", like=killed_alone)
    shutil.copytree(folder / "steps/8", folder / "steps/.tmp-12")
    shutil.copytree(folder / "steps/8", folder / "steps/12")
    (folder / "steps/12/meta.json").unlink()
    (folder / ".tmp-model").mkdir()
    (folder / ".tmp-model/junk.safetensors").write_text("half")
    (folder / "progress.json.tmp123").write_text("half")
    with open(folder / "metrics.jsonl", "a") as metrics:
        metrics.write('{"update": 1')
    run_cell(folder)
    assert_same(folder, alone)


def test_only_the_newest_checkpoints_are_kept(base: Path) -> None:
    seen: set[str] = set()
    work = in_process(base, "kept", report=lambda *_: seen.add(str(steps.complete(work.folder / "steps"))))
    finetune.run(work)
    assert seen == {"[]", "[4]", "[4, 8]", "[8, 12]", "[12, 16]"}


def test_rows_of_an_update_are_shared_once_each_and_in_step() -> None:
    which = np.arange(100, 111)
    for world in (1, 2, 3, 4, 8, 11):
        for at_once in (None, 1, 2, 3, 50):
            shares = [micro_batches(which, rank, world, at_once) for rank in range(world)]
            assert len({len(share) for share in shares}) == 1, "as many passes on every rank"
            assert sorted(np.concatenate([part for share in shares for part in share])) == which.tolist()
            assert at_once is None or max(len(part) for share in shares for part in share) <= at_once
    assert [part.tolist() for part in micro_batches(which, 0, 1, None)] == [which.tolist()]


def test_rows_at_a_time_change_nothing_but_rounding(base: Path) -> None:
    finetune.run(whole := in_process(base, "whole"))
    finetune.run(parts := in_process(base, "parts", {**RECIPE, "rows_per_rank": 2}))
    assert lines(whole.folder) != lines(parts.folder)
    assert_close(whole.folder, parts.folder)


def test_more_ranks_than_rows_are_refused_with_the_number_that_would_do(base: Path, tmp_path: Path) -> None:
    start = check_inputs(training(base, "refused"), read_config(training(base, "refused")))["start"] / "model"
    rows = pack(TEXTS, load_tokenizer(start), 32)
    work = Work(tmp_path, "a", {}, {}, {})
    with pytest.raises(UserError, match="5 rows, too few for 8 ranks; run it on 5 ranks or fewer"):
        train(work, checkpoint.load(start), rows, RECIPE, Ranks(3, 8, ALONE.device))


def test_unset_ways_of_running_are_no_part_of_a_training() -> None:
    """Identities, and so seeds, of studies that don't name them stay as they are."""
    recipe = load_recipe("recipes/tiny_midtrain.yaml", Training)
    assert not {"save_every", "rows_per_rank"} & set(recipe)
