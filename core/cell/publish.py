"""Copy a finished analysis to the folder where people look for results.

Jobs of an earlier version of the study file may end after those of the present one. `run` and
`submit` record the analysis that they start, and only the one that was started last is published
when it ends.
"""

import glob
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from core import utc
from core.cell.manifest import read_manifest
from core.declaration import lock_of
from core.errors import UserError
from core.files import locked, read_record, sha256, write_atomically

LAST_START = "last_start.json"


def results(base: Path) -> Path:
    """The results folder of the study in `base`, beside the runs folder.

    It is results/STUDY beside `runs`, and NAME-results/STUDY beside a runs folder of another name.
    """
    runs = base.parent
    return runs.with_name("results" if runs.name == "runs" else f"{runs.name}-results") / base.name


def record_start(base: Path, analysis: str) -> None:
    """Record in the study's folder `base` that its cells are started up to this analysis.

    `analysis`: its identity.
    """
    if read_start(base).get("analysis") == analysis:
        return
    base.mkdir(parents=True, exist_ok=True)
    started = utc.text()
    text = json.dumps({"analysis": analysis, "time": started}) + "\n"
    with locked(lock_of(base, "results")):
        write_atomically(base / LAST_START, text)


def read_start(base: Path) -> dict[str, Any]:
    """What was started last of the study in `base`: `analysis` (its identity) and `time` (UTC).

    Empty where that is not on record.
    """
    return read_record(base / LAST_START, analysis=str, time=str) or {}


def publish(analysis: Path, last_only: bool = False) -> Path:
    """Replace the study's results by a copy of the folder of a finished analysis.

    Args:
        analysis: Its folder.
        last_only: Refuse an analysis that is not the one that was started last.

    Returns:
        The study's results folder.

    Raises:
        UserError: Files of the analysis are missing or changed, the disk is full, or the study was
            started otherwise since; the published results stay.
    """
    outputs = (read_manifest(analysis) or {"outputs": {}})["outputs"]
    damaged = [
        name
        for name, output in outputs.items()
        if not (analysis / name).is_file() or sha256(analysis / name) != output["sha256"]
    ]
    if damaged:
        raise UserError(
            where=str(analysis / damaged[0]),
            what=f"{len(damaged)} files of the finished analysis are missing or changed; nothing "
            "was published",
            fix=f"to make it anew: rm {shlex.quote(str(analysis))}/manifest.json and run the study "
            "again",
        )
    base = analysis.parents[1]
    with locked(lock_of(base, "results")):
        if last_only:
            _check_last(analysis, base)
        _replace(results(base), analysis)
    return results(base)


def _check_last(analysis: Path, base: Path) -> None:
    identity = (read_manifest(analysis) or {}).get("identity")
    started = read_start(base)
    if started.get("analysis", identity) != identity:
        command = ["python", "-m", "study", "run", str(analysis / "study.yaml")]
        raise UserError(
            where=str(analysis),
            what=f"is not published: what was started last, at {started['time']}, ends in another "
            f"analysis ({started['analysis'][:8]})",
            fix=f"to publish this one: {shlex.join([*command, '--runs', str(base.parent)])}",
        )


def _replace(target: Path, analysis: Path) -> None:
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*"):  # of one that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    ignored = shutil.ignore_patterns("config.yaml", "log.txt", ".lock")
    try:
        shutil.copytree(analysis, staged, ignore=ignored)
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(error, shutil.Error):  # of several files, as on a full disk
            _, file, reason = error.args[0][0]
            fix = "make room, and the same command again"
            raise UserError(where=str(file), what=f"is not published: {reason}", fix=fix) from None
        raise
    shutil.rmtree(target, ignore_errors=True)
    staged.rename(target)
