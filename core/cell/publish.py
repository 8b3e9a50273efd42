"""Copy a finished analysis to the folder where people look for results."""

import os
import shutil
from pathlib import Path
from shlex import quote

from core.cell.manifest import read_manifest
from core.errors import UserError
from core.files import locked, sha256


def results(base: Path) -> Path:
    """The results folder of the study in `base`, beside the runs folder.

    It is results/STUDY beside `runs`, and NAME-results/STUDY beside a runs folder of another name.
    """
    runs = base.parent
    return runs.with_name("results" if runs.name == "runs" else f"{runs.name}-results") / base.name


def publish(analysis: Path) -> Path:
    """Replace the study's results by a copy of the folder of a finished analysis.

    Returns:
        The study's results folder.

    Raises:
        UserError: Files of the analysis are missing or changed; the published results stay.
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
            fix=f"to make it anew: rm {quote(str(analysis))}/manifest.json and run the study again",
        )
    target = results(analysis.parents[1])
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    ignored = shutil.ignore_patterns("config.yaml", "log.txt", ".lock")
    with locked(analysis.parents[1] / ".publish.lock"):  # one at a time, from whatever process
        try:
            shutil.copytree(analysis, staged, ignore=ignored)
            shutil.rmtree(target, ignore_errors=True)
            staged.rename(target)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return target
