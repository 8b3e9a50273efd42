"""On a real Slurm: weights go while a study runs in little room, and kills do not change that."""

import os
import random
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from slurm.disk_limit import DiskLimit
from slurm.profile import Profile, Resources
from slurm.until_done import until_done
from tests.slurm.places import Lab
from tests.slurm.test_survival import rank_of
from tests.waiting import until

pytestmark = [pytest.mark.slurm, pytest.mark.nightly]

toy = pytest.importorskip("tests.recipes.toy")
PROFILE = Profile(
    stages={"default": Resources(minutes=10, cpus=4, mem_gb=4.0)}, partition="cpu", retries=5
)
KILLS = 3


def pair(seed: int) -> list[Cell]:
    """A training whose weights go, and the one that starts from it."""
    settings = {"recipe": toy.SETTINGS, "seed": seed}
    inputs = {"start": toy.MODEL, "documents": toy.DOCUMENTS}
    first = Cell("midtrain", f"s{seed}", settings, inputs, toy.RUNTIME)
    then = replace(first, name=f"s{seed}-then", inputs=inputs | {"start": first})
    return [first, replace(then, resources=toy.RUNTIME | {"release": ["start"]})]


def weights_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model/*") if path.exists())


def test_the_peak_stays_under_the_limit_though_jobs_are_killed(lab: Lab, tmp_path: Path) -> None:
    base, chance = tmp_path / "runs/s", random.Random(0)
    toy.make_inputs(base)
    pairs = [pair(seed) for seed in range(4)]
    cells = [toy.MODEL, toy.DOCUMENTS, *(cell for each in pairs for cell in each)]
    trees = {cell.identity: first.identity for first, then in pairs for cell in (first, then)}
    # Room for two; sizes are those of the toy's weights.
    limit = DiskLimit(2.0, {first.identity: 1.0 for first, _ in pairs}, trees)
    stop = threading.Event()
    most, kills = 0, 0

    def watch() -> None:
        nonlocal most, kills
        while not stop.wait(0.2):
            held = [first for first, _ in pairs if weights_of(base / first.relpath)]
            most = max(most, len(held))
            running = [job for job, state in lab.jobs().items() if state == "RUNNING"]
            if kills < KILLS and running and chance.random() < 0.1:
                shown = lab.ask("scontrol", "show", "job", chance.choice(running))
                with suppress(AssertionError, OSError):  # it has not begun, or has ended
                    os.kill(rank_of(shown.split()[0].removeprefix("JobId=")), 9)
                    kills += 1

    environment = dict(os.environ)
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        facts = until_done(cells, base, PROFILE, "lab", print, pause=0.5, disk=limit)
    finally:
        stop.set()
        thread.join()
        os.environ.update(environment)
    until(lambda: not lab.jobs())
    assert facts["finished"] == len(cells) and kills == KILLS
    assert 1 <= most <= 2, "the weights of two at most were on the disk"
    for first, then in pairs:
        assert read_manifest(base / first.relpath) and not weights_of(base / first.relpath)
        assert weights_of(base / then.relpath), "its weights are kept"
