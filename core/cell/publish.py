"""Copy a finished analysis to the folder where people look for results."""

import os
import shutil
from pathlib import Path


def results(base: Path) -> Path:
    """The results folder of the study in `base`: results/STUDY beside the runs folder."""
    return base.parent.with_name("results") / base.name


def publish(analysis: Path) -> Path:
    """Replace the study's results by a copy of the folder of a finished analysis.

    Returns:
        The study's results folder.
    """
    target = results(analysis.parents[1])
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    ignored = shutil.ignore_patterns("config.yaml", "log.txt", ".lock")
    shutil.copytree(analysis, staged, ignore=ignored)
    shutil.rmtree(target, ignore_errors=True)
    staged.rename(target)
    return target
