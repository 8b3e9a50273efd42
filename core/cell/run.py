"""Run exactly one cell: what the local engine, a Slurm job and a person debugging all call."""

import fcntl
import importlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.cell.context import StageContext
from core.cell.identity import read_config
from core.cell.manifest import check_inputs, read_manifest, write_manifest
from core.cell.publish import publish
from core.files import write_atomically
from core.garbage import gc_disabled
from core.stages import STAGE_MODULES

HALF_WRITTEN = re.compile(r"\.tmp\d+$")  # by files.write_atomically, when it was killed
KEPT = {"config.yaml", "log.txt", ".lock"}


def run_cell(folder: Path) -> None:
    """Run the cell in `folder`; do nothing where it is finished.

    Of several ranks (RANK, WORLD_SIZE) the first runs the cell; the others help where the stage can use them.
    Raises UserError where an input is not finished, and whatever the stage raises.
    """
    folder = folder.resolve()
    config = read_config(folder)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    meet, word_of_first = _stage(config).RANKS if several and hasattr(_stage(config), "RANKS") else (None, None)
    if several and os.environ["RANK"] != "0":
        if word_of_first and word_of_first() == "go":
            _stage(config).run(_work(folder, config))
        return
    if meet:
        meet()  # the others must be able to see this process end, however long it waits for the lock
    with _only_one(folder):
        if read_manifest(folder):
            if word_of_first:
                word_of_first("finished")
            return
        work = _work(folder, config, _progress_file(folder / "progress.json"))
        stage = _stage(config)
        _empty(folder, getattr(stage, "CONTINUES", False))
        work.log(f"{config['stage']} {config['name']} starts (process {os.getpid()})")
        started = _now()
        if word_of_first:
            word_of_first("go")
        counts = stage.run(work)
        (folder / "progress.json").unlink(missing_ok=True)
        write_manifest(folder, config, started, _now(), counts=counts, warnings=work.warnings)
        if config["stage"] == "analysis":
            publish(folder)  # a study that runs as jobs ends with nobody there to ask for it
        work.log("finished: " + ", ".join(f"{key} {value}" for key, value in counts.items()))


def _stage(config: dict[str, Any]) -> Any:
    with gc_disabled():  # a fifth of a training's start
        return importlib.import_module(STAGE_MODULES[config["stage"]])


def _work(folder: Path, config: dict[str, Any], report: Callable[[int, int, str], None] | None = None) -> StageContext:
    return StageContext(
        folder=folder,
        identity=config["identity"],
        settings=config["settings"],
        resources=config["resources"],
        inputs=check_inputs(folder, config),
        report=report,
    )


def _empty(folder: Path, continues: bool) -> None:
    """Remove what a killed run left: leftovers must never pass for outputs. A stage that continues keeps its own."""
    for path in folder.iterdir():
        if path.name not in KEPT and (not continues or HALF_WRITTEN.search(path.name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the cell's lock, waiting for whoever has it: two processes must never write one folder.

    The kernel drops the lock when its holder dies, however it dies.
    """
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder} is being run by another process; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _progress_file(path: Path, every: float = 0.5):  # type: ignore[no-untyped-def]
    """A reporter that keeps `path` current for whoever watches, at most once in `every` seconds."""
    last = 0.0

    def report(done: int, total: int, unit: str) -> None:
        nonlocal last
        if time.monotonic() - last >= every or done == total:
            write_atomically(path, json.dumps({"done": done, "total": total, "unit": unit}))
            last = time.monotonic()

    return report


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
