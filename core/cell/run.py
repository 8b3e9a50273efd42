"""Run exactly one cell: the local executor, a Slurm job and a person debugging all call this."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from core import shell_limits, utc
from core.cell import status_page, waiting
from core.cell.context import StageContext
from core.cell.external_files import Record, check_planned, check_unchanged
from core.cell.identity import read_config
from core.cell.log import log_to
from core.cell.lookup import RunsIndex
from core.cell.manifest import READERS, REQUESTS, check_inputs, read_manifest, write_manifest
from core.cell.publish import publish
from core.cell.release import release_inputs
from core.cell.restarts import start_text
from core.cell.stage import Stage, distributed_hooks, import_stage, is_resumable
from core.cell.waiting import Waiting
from core.errors import UserError
from core.files import locked, write_atomically

HALF_WRITTEN = re.compile(r"\.tmp\d+$")  # left by files.write_atomically when it was killed
NEVER_REMOVED = {"config.yaml", "log.txt", ".lock", READERS}
JOB_WAIT_SECONDS = 300
"""How long a job waits for another process that runs the same cell."""
LEDGER = "calls.jsonl"  # paid for, and its answers are found by what was asked


def run_cells(folders: Sequence[Path], terminal: bool = False) -> int:
    """Run the cells one after another, each with its own log.txt; stop at the first that fails.

    terminal: print to the terminal too.

    Those after a cell that waits are run. Returns the exit status: 0, `waiting.STATUS` where a cell
    waits, 2 after another UserError, 1 after another exception.
    """
    status = 0
    for folder in folders:
        try:
            with log_to(folder, terminal):
                run_cell(folder)
        except Waiting:
            status = waiting.STATUS
        except UserError:
            return 2
        except Exception:
            return 1
        finally:
            if os.environ.get("RANK", "0") == "0":
                status_page.update(folder.resolve().parents[1])
    return status


def run_cell(folder: Path) -> None:
    """Run the cell in `folder`; do nothing where it is finished, here or in another study.

    Of several ranks (RANK and WORLD_SIZE in the environment) rank 0 runs the cell. The others call
    the stage too where it defines DISTRIBUTED, and do nothing otherwise.

    Raises:
        Waiting: It waits for longer than a job may; `waiting.json` in its folder says for what.
        UserError: An input is not finished, or a file from outside has changed since the study was
            planned or while the cell ran. Exceptions of the stage are passed on.
    """
    folder = folder.resolve()
    shell_limits.lift()
    config = read_config(folder)
    multi_process = int(os.environ.get("WORLD_SIZE", 1)) > 1
    hooks = distributed_hooks(_import_stage(config)) if multi_process else None
    if multi_process and os.environ["RANK"] != "0":
        if hooks and hooks.sync(None) == "go":
            _import_stage(config).run(_context(folder, config))
        return
    if hooks:
        # The others must notice when this process ends, however long it waits for the lock.
        hooks.rendezvous()
    with _cell_lock(folder, config):
        manifest = read_manifest(folder)
        # Another cell's, copied here, is no proof.
        if manifest and manifest["identity"] == config["identity"]:
            if hooks:
                hooks.sync("finished")
            release_inputs(folder, config)  # a kill may have come before it
            return
        if elsewhere := RunsIndex(folder.parents[1], [config["stage"]]).finished(
            config["stage"], config["identity"]
        ):
            print(f"this cell is finished already: {elsewhere}", flush=True)
            if hooks:
                hooks.sync("finished")
            return
        context = _context(folder, config, _progress_file(folder / "progress.json"))
        files = check_planned(folder, config)
        stage = _import_stage(config)
        starts = start_text(folder, os.getpid())
        _remove_leftovers(folder, resumable=is_resumable(stage))
        context.log(f"{config['stage']} {config['name']} {starts}")
        started = utc.text()
        if hooks:
            hooks.sync("go")
        waiting.clear_waiting(folder)
        try:
            counts = stage.run(context)
        except Waiting as reason:
            waiting.write_waiting(folder, reason)
            raise
        (folder / "progress.json").unlink(missing_ok=True)
        _check_again(folder, config, files)
        facts = {**context.facts, "counts": counts, "warnings": context.warnings, "files": files}
        write_manifest(folder, config, started, utc.text(), **facts)
        (folder / REQUESTS).unlink(missing_ok=True)  # not before: a kill here would lose them all
        if config["stage"] == "analysis":
            _publish(context)
        release_inputs(folder, config)
        context.log("finished: " + ", ".join(f"{key} {value}" for key, value in counts.items()))


def _publish(context: StageContext) -> None:
    """Publish an analysis: when a study runs as jobs, no command is there to do it later.

    It is finished whether or not it can be published.
    """
    try:
        publish(context.folder, last_only=True)
    except UserError as error:
        for line in error.lines:
            context.log(line)


def _import_stage(config: dict[str, Any]) -> Stage:
    return import_stage(config["stage"])


def _context(
    folder: Path,
    config: dict[str, Any],
    report: Callable[[int, int, str], None] | None = None,
) -> StageContext:
    return StageContext(
        folder=folder,
        identity=config["identity"],
        settings=config["settings"],
        resources=config["resources"],
        inputs=check_inputs(folder, config),
        report=report,
    )


def _check_again(folder: Path, config: dict[str, Any], files: Record) -> None:
    """Compare what the cell has read with what it was at the start.

    Outputs made from something else are removed: a later run must not continue from them.
    """
    try:
        check_unchanged(files, folder.parents[1], "the cell started")
        check_inputs(folder, config)
    except UserError:
        for path in folder.iterdir():
            if path.name not in {*NEVER_REMOVED, LEDGER}:
                _remove(path)
        raise


def _remove_leftovers(folder: Path, resumable: bool) -> None:
    """Remove what a killed run left: leftovers must never be taken for outputs.

    Of a resumable stage only half-written files are removed.
    """
    for path in folder.iterdir():
        removable = not resumable or HALF_WRITTEN.search(path.name)
        if path.name not in NEVER_REMOVED and removable:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _cell_lock(folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """Hold the cell's locks, waiting for their holders.

    Two processes must never write one folder, nor two studies make one cell at the same time.

    Raises UserError in a job of Slurm where the holder needs long: the job's GPUs would be idle.
    """
    of_all_studies = folder.parents[2] / ".locks" / f"{config['stage']}-{config['identity'][:16]}"
    of_all_studies.parent.mkdir(exist_ok=True)
    with ExitStack() as stack:
        for lock in (folder / ".lock", of_all_studies):
            if not stack.enter_context(locked(lock, wait=False)):
                print(f"{folder} is being run by another process; waiting for it", flush=True)
                wait = JOB_WAIT_SECONDS if "SLURM_JOB_ID" in os.environ else True
                if not stack.enter_context(locked(lock, wait=wait)):
                    raise UserError(
                        where=str(folder),
                        what="another process is running this cell",
                        fix="nothing to do: that one keeps the result; this job frees its GPUs",
                    )
        yield


def _progress_file(path: Path, every: float = 0.5) -> Callable[[int, int, str], None]:
    """A reporter that updates `path` for whoever watches, at most once in `every` seconds."""
    written = 0.0

    def report(done: int, total: int, unit: str) -> None:
        nonlocal written
        if time.monotonic() - written >= every or done == total:
            write_atomically(path, json.dumps({"done": done, "total": total, "unit": unit}))
            written = time.monotonic()

    return report
