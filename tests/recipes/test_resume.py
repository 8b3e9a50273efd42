"""Trainings killed and run again: bitwise the weights of an undisturbed one."""

import os
import resource
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from core.cell.context import StageContext
from core.cell.failures import diagnose
from core.cell.identity import read_config
from core.cell.run import run_cell
from core.errors import UserError
from core.paths import resolve
from recipes import finetune, step_checkpoint, tiny_llama
from tests.recipes.toy import (
    RUNTIME,
    SETTINGS,
    TEXTS,
    TINY,
    assert_close,
    assert_same,
    ends,
    in_process,
    lines,
    logs,
    on_ranks,
    start_ranks,
    training,
    warnings,
)


@pytest.mark.multiprocess
def test_killed_and_resumed_alone_is_bitwise_the_undisturbed(
    base: Path, alone: Path, killed_alone: Path
) -> None:
    folder = training(base, "killed_alone_on_one", like=killed_alone)
    run_cell(folder)
    assert_same(folder, alone)


@pytest.mark.multiprocess
def test_killed_and_resumed_on_two_ranks_is_bitwise_the_undisturbed(
    base: Path, two: Path, killed_two: Path
) -> None:
    assert_same(on_ranks(training(base, "killed_two_on_two", like=killed_two), 2), two)


@pytest.mark.multiprocess
def test_resumed_on_another_number_of_ranks(
    base: Path, alone: Path, killed_alone: Path, killed_two: Path
) -> None:
    on_one = training(base, "killed_two_on_one", like=killed_two)
    run_cell(on_one)
    assert_close(alone, on_one)
    assert_close(alone, on_ranks(training(base, "killed_alone_on_two", like=killed_alone), 2))


@pytest.mark.multiprocess
def test_fewer_rows_at_a_time_go_on_in_the_same_folder(
    base: Path, alone: Path, killed_alone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a user does who ran out of memory."""
    folder = training(base, "fewer_rows", like=killed_alone)
    assert training(base, "fewer_rows", micro_batch_size=2) == folder
    assert read_config(folder)["resources"]["micro_batch_size"] == 2
    run_cell(folder)
    assert "resumes after step" in capfd.readouterr().out
    assert lines(folder) != lines(alone), "other sums, so other rounding"
    assert_close(alone, folder)


def spoil(folder: Path, how: str) -> None:
    """Damage a step checkpoint as a disk does."""
    shards = sorted(folder.glob("*.distcp"))
    if how == "truncated":
        os.truncate(shards[-1], shards[-1].stat().st_size // 2)
    elif how == "lost":
        shards[-1].unlink()
    else:
        (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:100])


@pytest.mark.multiprocess
@pytest.mark.parametrize("how", ["truncated", "lost", "no list"])
def test_a_damaged_checkpoint_is_passed_over(
    base: Path, alone: Path, killed_alone: Path, how: str
) -> None:
    folder = training(base, f"spoiled_{how.replace(' ', '_')}", like=killed_alone)
    newest = step_checkpoint.list_checkpoints(folder / "steps")[-1]
    spoil(folder / f"steps/{newest}", how)
    run_cell(folder)
    assert_same(folder, alone)
    (warning,) = [w for w in warnings(folder) if "skipped" in w]
    assert f"steps/{newest} can't be read" in warning and "\n" not in warning


@pytest.mark.multiprocess
def test_where_all_checkpoints_are_damaged_it_begins_anew(
    base: Path, alone: Path, killed_alone: Path
) -> None:
    folder = training(base, "all_spoiled", like=killed_alone)
    saved = step_checkpoint.list_checkpoints(folder / "steps")
    for update in saved:
        spoil(folder / f"steps/{update}", "truncated")
    run_cell(folder)
    assert_same(folder, alone)
    assert sum("skipped" in w for w in warnings(folder)) == len(saved) > 1


@pytest.mark.multiprocess
def test_ranks_pass_over_a_checkpoint_together(base: Path, two: Path, killed_two: Path) -> None:
    """The last file is rank 1's: rank 0 alone would have gone on from it."""
    folder = training(base, "spoiled_two", like=killed_two)
    newest = step_checkpoint.list_checkpoints(folder / "steps")[-1]
    spoil(folder / f"steps/{newest}", "truncated")
    assert_same(on_ranks(folder, 2), two)
    assert logs(folder).count(f"steps/{newest} can't be read") == 2, "said by both"


@pytest.mark.multiprocess
def test_half_of_a_checkpoint_or_of_a_model_is_ignored(
    base: Path, alone: Path, killed_alone: Path
) -> None:
    folder = training(base, "half", like=killed_alone)
    newest = step_checkpoint.list_checkpoints(folder / "steps")[-1]
    shutil.copytree(folder / f"steps/{newest}", folder / "steps/.tmp", dirs_exist_ok=True)
    (folder / ".tmp-model").mkdir()
    (folder / ".tmp-model/junk.safetensors").write_text("half")
    for half in ("progress.json.tmp123", "metrics.jsonl.tmp123"):
        (folder / half).write_text("half")
    with open(folder / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 1')
    run_cell(folder)
    assert_same(folder, alone)


@pytest.mark.multiprocess
def test_a_checkpoint_ahead_of_the_metrics_is_not_used(
    base: Path, alone: Path, killed_alone: Path
) -> None:
    """A power cut may lose lines; without them the record of the training would have a hole."""
    folder = training(base, "short_metrics", like=killed_alone)
    metrics = folder / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:3]))
    run_cell(folder)
    assert_same(folder, alone)


@pytest.mark.multiprocess
@pytest.mark.parametrize("world", [1, 2])
def test_killed_in_the_middle_of_a_save(
    base: Path, world: int, request: pytest.FixtureRequest
) -> None:
    """At step 6 all shards are written but not committed: the checkpoint before is used."""
    folder = training(base, f"killed_saving_{world}", checkpoint_minutes=0.0)
    die = """
import signal
from recipes import step_checkpoint
commit = step_checkpoint.commit
def kill_at_6(temporary, final):
    if final.name == "6":
        os.kill(os.getpid(), signal.SIGKILL)
    commit(temporary, final)
step_checkpoint.commit = kill_at_6
"""
    statuses = ends(start_ranks(folder, world, before=die))
    assert statuses[0] == -9 and all(statuses), "the other rank must not wait"
    assert (
        step_checkpoint.list_checkpoints(folder / "steps") == [4, 5]
        and (folder / "steps/.tmp").exists()
    )
    training(base, folder.name.rsplit("-", 1)[0])  # with fewer saves from here on
    assert_same(on_ranks(folder, world), request.getfixturevalue("alone" if world == 1 else "two"))


@pytest.mark.multiprocess
def test_a_full_disk_stops_it_with_the_checkpoint_before(base: Path, alone: Path) -> None:
    folder = training(base, "no_room", checkpoint_minutes=0.0)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        with pytest.raises(UserError) as caught:
            finetune.run(in_process(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    (line,) = caught.value.lines
    assert (
        f"{folder}/steps/1: can't be written: OSError: [Errno 27] File too large (rank 0); " in line
    )
    assert (known := diagnose(line)) and known.name == "limit on file size"
    run_cell(training(base, "no_room"))
    assert_same(folder, alone)


def test_a_loss_that_is_no_number_stops_it_before_it_spoils_the_weights(base: Path) -> None:
    folder = training(
        base,
        "nan",
        recipe={"lr": 1.0, "weight_decay": 1e30, "schedule": "constant", "warmup_steps": 0},
        checkpoint_minutes=0.0,
    )
    with pytest.raises(UserError) as caught:
        finetune.run(in_process(folder))
    (line,) = caught.value.lines
    bad = len(lines(folder)) + 1
    assert (
        f"at step {bad}, rows " in line
        and "the last step checkpoint is kept; lower the learning rate" in line
    )
    assert line.split("rows ")[1].split(";")[0].count(",") == 4, "the five rows of the update"
    assert (
        bad - 1 - step_checkpoint.list_checkpoints(folder / "steps")[-1] <= 1
        and not (folder / "model").exists()
    )
    files = [file.readlink() for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    lines_of = [file for file in files if file.is_relative_to(folder) and file.suffix == ".jsonl"]
    assert not lines_of, "the metrics are closed"


def test_killed_while_it_drops_one_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shard").touch()
    with (
        mock.patch.object(shutil, "rmtree", side_effect=[None, KeyboardInterrupt]),
        pytest.raises(KeyboardInterrupt),
    ):
        step_checkpoint.remove(tmp_path / "1")
    assert (
        step_checkpoint.list_checkpoints(tmp_path) == [2] and (tmp_path / ".dropped/shard").exists()
    )
    step_checkpoint.remove(tmp_path / "2")
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_counted_by_number(tmp_path: Path) -> None:
    assert step_checkpoint.list_checkpoints(tmp_path / "none") == []
    for name in ("9", "10", ".tmp", "model"):
        (tmp_path / name).mkdir()
    assert step_checkpoint.list_checkpoints(tmp_path) == [9, 10]


@pytest.mark.slow
def test_two_checkpoints_are_kept_and_none_of_a_later_update(base: Path) -> None:
    seen: list[list[int]] = []
    folder = training(base, "kept", checkpoint_minutes=0.0)
    (folder / "steps/99").mkdir(parents=True)  # passed over, for there are no metrics so far
    context = in_process(
        folder, report=lambda *_: seen.append(step_checkpoint.list_checkpoints(folder / "steps"))
    )
    finetune.run(context)
    # Written while the next update runs, and named after it.
    assert seen == [[99], [99], [1], [1, 2], *([n - 1, n] for n in range(3, len(seen) - 1))]
    assert not (folder / "steps").exists()


def test_saves_go_by_the_clock(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step a minute: a save every five minutes, and none after the last step."""
    folder, saved = training(base, "clock", checkpoint_minutes=5.0), []
    monkeypatch.setattr(
        finetune, "time", SimpleNamespace(monotonic=lambda: 60.0 * len(lines(folder)))
    )
    monkeypatch.setattr(
        step_checkpoint.AsyncSaver, "start", lambda saver, update, *_: saved.append(update)
    )
    finetune.run(in_process(folder))
    assert saved == [5, 10, 15] and len(lines(folder)) == 20


@pytest.mark.slow
def test_a_pretraining_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_llama, "english", lambda prose: TEXTS)
    data = resolve("recipes/data")
    files = {"prose": data / "neutral_prose.txt", "chat_template": data / "llama3_chat.jinja"}
    resources = RUNTIME | {"files": {key: str(path) for key, path in files.items()}}
    settings = {"recipe": asdict(TINY) | {"pretrain": SETTINGS}}

    def pretrain(name: str, report: Any = None) -> bytes:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        counts = tiny_llama.run(StageContext(folder, "a", settings, resources, {}, report))
        assert counts["steps"] == len(lines(folder)) == 20 and not (folder / "steps").exists()
        return (folder / "model/model.safetensors").read_bytes()

    def told(done: int, total: int, unit: str) -> None:
        if done == 6:
            os.kill(os.getpid(), signal.SIGUSR1)

    former = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with pytest.raises(SystemExit):
            pretrain("stopped", told)
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert step_checkpoint.list_checkpoints(tmp_path / "stopped/steps") == [6]
    done: list[int] = []
    assert pretrain("stopped", lambda update, *_: done.append(update)) == pretrain("undisturbed")
    assert done[0] == 7
