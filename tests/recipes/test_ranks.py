"""Trainings on several ranks: the numbers of one process, and no rank that waits for the dead."""

import fcntl
import re
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from core.cell.identity import read_config
from core.cell.manifest import check_inputs, read_manifest
from core.cell.run import run_cell
from core.errors import UserError
from recipes import tokenization
from recipes.distributed import Ranks
from recipes.finetune import check_size
from recipes.schedule import micro_batches
from tests.recipes.toy import (
    RECIPE,
    TEXTS,
    assert_close,
    assert_same,
    ends,
    in_process,
    lines,
    logs,
    on_ranks,
    start_ranks,
    training,
    until,
)


@pytest.mark.multiprocess
def test_two_ranks_give_the_numbers_of_one(alone: Path, two: Path) -> None:
    manifest = read_manifest(two)
    assert manifest and manifest["counts"]["rows"] * RECIPE.epochs % 5 == 1, (
        "the last update must leave a rank idle"
    )
    assert_close(alone, two)


@pytest.mark.multiprocess
def test_two_nodes_of_two_give_the_numbers_of_one(base: Path) -> None:
    """Shards within a node, copies across nodes, as `hybrid` has it; and shards over all four."""
    longer, four = {"epochs": 13}, "os.environ['LOCAL_WORLD_SIZE'] = '2'"
    run_cell(one := training(base, "longer", recipe=longer))
    assert len(lines(one)) == 32
    for sharding in ("full", "hybrid"):
        folder = training(base, f"four_{sharding}", recipe=longer, sharding=sharding)
        assert_close(one, on_ranks(folder, 4, before=four))


@pytest.mark.multiprocess
def test_nothing_but_the_results_is_left(alone: Path, two: Path) -> None:
    for folder in (alone, two):
        manifest = read_manifest(folder)
        assert manifest and not [
            name for name in manifest["outputs"] if re.search(r"steps|\.tmp|^ranks", name)
        ]
        assert {"metrics.jsonl", "model/model.safetensors", "model/config.json"} < set(
            manifest["outputs"]
        )
        assert not (folder / "steps").exists()


def test_a_finished_cell_does_nothing_on_every_rank(two: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in two.rglob("*") if path.name != ".lock"}
    assert ends(start_ranks(two, 2)) == [0, 0]
    assert before == {
        path: path.stat().st_mtime_ns for path in two.rglob("*") if path.name != ".lock"
    }


def test_the_others_end_when_rank_0_dies_before_it_begins(base: Path) -> None:
    folder = training(base, "dead_before")
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # so that rank 0 waits
        processes = start_ranks(folder, 2)
        until(lambda: "waiting for it" in logs(folder), processes)
        time.sleep(0.5)  # for rank 1 to be there too
        assert killed(processes, 0) == 1
    assert "rank 0 ended before this cell began" in logs(folder)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("where", "rank"),
    [("prepare.prepare_rows", 0), ("prepare.prepare_rows", 1), ("Trainer.train", 0)],
)
def test_the_other_ends_when_a_rank_dies_at_work(base: Path, where: str, rank: int) -> None:
    folder = training(base, f"dead_in_{where.replace('.', '_')}_{rank}")
    # It never comes to what all ranks do together, and the other waits for it there.
    stuck = f"""
import time
def stick():
    print("stuck", flush=True)
    time.sleep(600)
from recipes import finetune
if os.environ["RANK"] == "{rank}":
    finetune.{where} = lambda *_, **__: stick()
"""
    processes = start_ranks(folder, 2, before=stuck)
    until(lambda: "stuck" in logs(folder), processes)
    time.sleep(0.5)
    assert killed(processes, rank) == 1
    assert not lines(folder)


def killed(processes: list[BaseProcess], rank: int) -> int | None:
    """Kill one of two ranks as a dying node does. Returns the exit status of the other."""
    assert all(p.is_alive() for p in processes)
    processes[rank].kill()
    began = time.monotonic()
    statuses = ends(processes)
    print(f"the other rank ended after {time.monotonic() - began:.1f} s")
    assert statuses[rank] == -signal.SIGKILL
    return statuses[1 - rank]


@pytest.mark.multiprocess
def test_one_ranks_clock_is_enough_for_all_to_save(base: Path, two: Path) -> None:
    folder = training(base, "clocks")
    ahead = """
from types import SimpleNamespace
from recipes import finetune
if os.environ["RANK"] == "1":
    hours = iter(range(10**6))
    finetune.time = SimpleNamespace(monotonic=lambda: 3600.0 * next(hours))
"""
    assert_same(on_ranks(folder, 2, before=ahead), two)
    assert logs(folder).count("is being saved") == 2 * 19, "after every update but the last"


def test_rows_of_an_update_are_shared_once_each_and_in_step() -> None:
    which = np.arange(100, 111)
    for world in (1, 2, 3, 4, 8, 11):
        for at_once in (None, 1, 2, 3, 50):
            shares = [micro_batches(which, rank, world, at_once) for rank in range(world)]
            assert len({len(share) for share in shares}) == 1, "as many passes on every rank"
            assert (
                sorted(np.concatenate([part for share in shares for part in share]))
                == which.tolist()
            )
            assert (
                at_once is None or max(len(part) for share in shares for part in share) <= at_once
            )
    assert [part.tolist() for part in micro_batches(which, 0, 1, None)] == [which.tolist()]


def test_more_ranks_than_rows_are_refused_with_the_number_that_would_do(
    base: Path, tmp_path: Path
) -> None:
    folder = training(base, "refused")
    start = check_inputs(folder, read_config(folder))["start"] / "model"
    rows = tokenization.pack_documents(
        tmp_path / "rows", TEXTS, tokenization.load_tokenizer(start), 32
    )
    with pytest.raises(UserError) as error:
        check_size(in_process(folder), rows, RECIPE, Ranks(3, 8))
    (problem,) = error.value.problems
    assert "5 rows, too few for 8 ranks" in problem.what and "5 ranks or fewer" in problem.fix
