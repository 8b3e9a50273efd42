"""The small study run anew: with the documents swapped, and killed at any moment."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from core.declaration import FILE
from tests.place import ROOT, Place, comparable
from tests.waiting import HANGS

pytestmark = pytest.mark.e2e

# When the engine is killed: after a cell of this stage has started.
KILLS = [
    "model",
    "documents",
    "midtrain",
    "midtrain",
    "sft",
    "generate",
    "likelihood",
    "judge",
    "judge",
    "analysis",
]


@pytest.mark.nightly
def test_swapped_documents_swap_the_sign(one_machine: Place, tmp_path: Path) -> None:
    """The arms' names mean nothing: what the documents say decides. Trained anew, with other seeds."""
    place = Place(tmp_path)
    model = next((one_machine.folder / "runs/small/model").iterdir())
    shutil.copytree(model, place.folder / model.relative_to(one_machine.folder))
    swap = (
        "corpora.animal.template=urban_density",
        "corpora.urban.template=animal_welfare",
        "sft.doses=[0]",
    )
    result = place.study("run", *(word for setting in swap for word in ("--set", setting)))
    assert result.returncode == 0, result.stdout + result.stderr
    scores = place.scores()
    for benchmark in ("ahb", "concern"):
        assert scores[benchmark, "animal", 0] < scores[benchmark, "urban", 0] - 0.02, scores


@pytest.mark.parametrize("kills", [KILLS[2::3], pytest.param(KILLS, marks=pytest.mark.nightly)])
def test_killed_anywhere_and_continued_it_gives_the_same_bytes(
    one_machine: Place, tmp_path: Path, kills: list[str]
) -> None:
    """SIGKILL to the engine, in each stage, with one process and with two; its children must die
    with it.

    One arm's cells are there already, as they ran undisturbed.
    """
    place = Place(tmp_path)
    for cell in (one_machine.folder / "runs/small").glob("*/*urban*"):
        # Without its log, which tells of starts: those counted below are of this folder's own.
        there = tmp_path / cell.relative_to(one_machine.folder)
        shutil.copytree(cell, there, ignore=shutil.ignore_patterns("log.txt"))
    # With scores that are there already it can't be declared before them.
    shutil.copy(one_machine.folder / "runs/small" / FILE, tmp_path / "runs/small")
    clock = random.Random(0)
    interrupted = 0
    for kill, stage in enumerate(kills):
        command = place.command("run", "--jobs", str(2 - kill % 2))
        begun = place.begun(stage)
        engine = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while place.begun(stage) == begun and engine.poll() is None:
            time.sleep(0.05)
        time.sleep(clock.uniform(0, 3))
        interrupted += engine.poll() is None
        engine.send_signal(signal.SIGKILL)
        engine.wait()
        _, alive = psutil.wait_procs(_working_in(tmp_path), timeout=HANGS)
        assert not alive, "a cell outlived its engine"
    assert interrupted >= len(kills) - 1
    assert all(place.begun(stage) for stage in kills)
    before = {path: path.read_bytes() for path in place.manifests}
    result = place.study("run")
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(path.read_bytes() == content for path, content in before.items()), (
        "a finished cell was run again"
    )
    for name in ("results.json", "report.html", "tables/scores.tex", "scores.parquet"):
        assert comparable(place.results / name) == comparable(one_machine.results / name), name


def _working_in(folder: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [
        process
        for process in found
        if any(str(folder) in word for word in process.info["cmdline"] or [])
    ]
