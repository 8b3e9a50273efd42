"""What several commands share: the study as study_args, checks before anything runs, the results that are shown."""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.paths import ROOT
from core.stages import TRAINING_STAGES
from study.forecast import study_cost as totals
from study.forecast import training_cost as trainings
from study.spec.load import load_study
from study.spec.schema import Study
from study.spec.source_cells import sources
from study.spec.sources import missing
from study.upkeep.prune import again

BUDGET_HELP = "refuse what takes more, such as cost=200 gpu_hours=500 disk_gb=2000"


def load(args: argparse.Namespace) -> tuple[Study, Path]:
    study = load_study(args.study, args.seeds, args.overrides)
    return study, args.runs.absolute() / study.study


def study_args(args: argparse.Namespace) -> str:
    """What the user study_args to name the study, for the next command."""
    words = [str(args.study)]
    words += ["--seeds", *map(str, args.seeds)] if args.seeds else []
    for override in args.overrides or []:
        words += ["--set", override]
    words += ["--runs", str(args.runs)] if args.runs != ROOT / "runs" else []
    return shlex.join(words)


def check_budget(args: argparse.Namespace, cells: list[Cell], base: Path, profile: Any = None) -> None:
    """Raise UserError where the study as a whole takes more than `--budget` allows."""
    if budget := totals.parse_budget(args.budget):
        totals.check_budget(totals.totals(cells, base, parallel_plans(profile), profile), budget)


def parallel_plans(profile: Any) -> dict[str, trainings.Layout]:
    """Where trainings run, by stage, as a cluster profile (slurm.profile) has it; none without one."""
    if profile is None:
        return {}
    found = {}
    for stage in TRAINING_STAGES:
        shape = profile.resources(stage)
        found[stage] = trainings.Layout(
            shape.nodes * shape.tasks_per_node,
            shape.tasks_per_node,
            shape.minutes,
            profile.requeue,
            shape.gpu_memory_gb,
            shape.tokens_per_second,
        )
    return found


def unfinished(cells: list[Cell], base: Path) -> list[Cell]:
    return [cell for cell in cells if not read_manifest(base / cell.relpath)]


def check_keys(cells: list[Cell]) -> None:
    """Raise UserError for every API key that the cells will need and the environment lacks: now, not in hours."""
    named = {cell.resources.get("address", {}).get("key_env") for cell in cells}
    missing = sorted(name for name in named if name and not os.environ.get(name))
    if missing:
        raise UserError(
            *(f"{name} is not set; an endpoint reads its key from it; export {name}=..." for name in missing)
        )


def check_pruned(cells: list[Cell], base: Path) -> None:
    """Raise UserError for every pruned checkpoint that a cell to run would read: what to delete, to make it anew."""
    if lines := again(cells, base):
        raise UserError(*lines)


def check_fetched(study: Study) -> None:
    """Raise UserError for every model and data set that isn't here yet: compute nodes have no network to get it by."""
    if lines := missing(sources(study)):
        raise UserError(*lines)


def show_results(results: Path, args: argparse.Namespace) -> None:
    """Print the headline of the results, and where all of them are."""
    if args.json:
        return print((results / "results.json").read_text())
    print((results / "headline.txt").read_text())
    for what, name in (("report", "report.html"), ("tables", "tables"), ("data", "results.json")):
        print(f"{what:<7} {relative_to_cwd(results / name)}")


def relative_to_cwd(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
