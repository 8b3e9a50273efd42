"""Results where people look for them: beside the folder of the cells, as soon as there are any."""

import os
import shutil
from pathlib import Path


def results(base: Path) -> Path:
    """Where the results of the study in the folder `base` go: results/STUDY beside the runs folder."""
    return base.parent.with_name("results") / base.name


def publish(analysis: Path) -> Path:
    """Copy the folder of a finished analysis to the study's results, in place of the former ones; returns that path."""
    place = results(analysis.parents[1])
    staged = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.copytree(
        analysis, staged, ignore=shutil.ignore_patterns("config.yaml", "log.txt", ".lock")
    )
    shutil.rmtree(place, ignore_errors=True)
    staged.rename(place)
    return place
