"""Check a cluster before the first submission, with a fix for each problem."""

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cell.identity import Cell
from core.errors import UserError
from core.model_size import shape, trained
from core.paths import ROOT, as_seen_on_nodes
from core.recipe import Training
from core.stages import STAGE_INFO
from study.commands import shakedown, shakedown_page, shakedown_rates
from study.commands.endpoint_calls import check_endpoints
from study.spec import expand
from study.spec.load import load_study
from study.spec.start_models import model_problems

if TYPE_CHECKING:
    from slurm.checks import Check

SHAKEDOWN = ROOT / "studies/shakedown.yaml"
SHAKEDOWN_WAITS = 6  # it takes twenty minutes or so, beside the queue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study",
        type=Path,
        nargs="?",
        metavar="STUDY",
        help="also check this study's endpoints and models",
    )
    profile = parser.add_mutually_exclusive_group(required=True)
    profile.add_argument(
        "--cluster",
        type=Path,
        metavar="NAME",
        help="a profile of slurm/clusters, or a file",
    )
    profile.add_argument(
        "--draft",
        type=Path,
        metavar="FILE",
        help="write a profile of this cluster by what Slurm says of it, and check nothing",
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs", metavar="DIR", help="folder of the cells"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=300,
        metavar="SECONDS",
        help="time limit of the jobs that inspect nodes; six times that with --shakedown",
    )
    parser.add_argument(
        "--shakedown",
        action="store_true",
        help="then run every GPU path once, with studies/shakedown.yaml or STUDY",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="with --shakedown: write the measured values into the profile (`measured`)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def step_checkpoint_bytes(cell: Cell) -> int:
    """Size of one step checkpoint of a training: what it trains and the optimizer's moments."""
    recipe = Training.from_settings(cell.settings["recipe"], cell.resources)
    weight_bytes = 2 if recipe.dtype == "bf16" else 4
    tensors = 2 if recipe.optimizer == "adamw_8bit" else 3  # the weight and its moments
    return trained(shape(cell), recipe) * weight_bytes * tensors


def doctor(args: argparse.Namespace) -> int:
    """Print the report. Returns 1 where a check failed."""
    if args.write and not args.shakedown:
        what = "is for what --shakedown measures"
        raise UserError(where="--write", what=what, fix="add --shakedown")
    if args.draft:
        return _draft(args)
    from slurm.checks import of_error
    from slurm.doctor import doctor, show
    from slurm.profile import FOLDER

    profile = args.cluster if args.cluster.exists() else FOLDER / f"{args.cluster}.yaml"
    if args.write and profile.exists():  # else the report says what profiles there are
        shakedown_rates.with_measured(profile, {})
    study_file = args.study or (SHAKEDOWN if args.shakedown else None)
    study = load_study(study_file) if study_file else None
    cells = expand.in_order(expand.analysis(study)) if study else None
    checkpoints: dict[str, int] = {}
    for cell in cells or []:
        if STAGE_INFO[cell.stage].trains:
            size = step_checkpoint_bytes(cell)
            checkpoints[cell.stage] = max(checkpoints.get(cell.stage, 0), size)
    runs = as_seen_on_nodes(args.runs.absolute())
    report = doctor(args.cluster, runs, cells, args.wait, checkpoints)
    if cells:
        problems = model_problems(cells)
        report += [of_error("start models", UserError.of([problem])) for problem in problems]
    report += check_endpoints(study) if study else []
    rows: list[dict[str, Any]] = []
    rates: dict[str, float] = {}
    failed = any(check.state == "failed" for check in report)
    if not args.json:
        print(show(report))
    if args.shakedown and study_file:
        rows, rates = _shakedown(args, study_file, runs, report)
        well = (shakedown_page.WORKS, shakedown_page.LEFT_OUT)
        failed = any(row["state"] not in well for row in rows)
    if args.json:
        checks = [
            {"name": c.name, "state": c.state, "found": c.finding, "fix": c.fix} for c in report
        ]
        page = {"checks": checks, "shakedown": rows, "measured": rates}
        print(json.dumps(page if args.shakedown else checks, indent=1))
    if args.write and rates:
        shakedown_rates.write_measured(profile, rates)
    return 1 if failed else 0


def _draft(args: argparse.Namespace) -> int:
    """Write a profile, and print what is left to a person."""
    from slurm.draft import draft

    choices = draft(args.draft)
    if args.json:
        print(json.dumps({"profile": str(args.draft), "choices": choices}, indent=1))
        return 0
    print(f"{args.draft} is drafted; {len(choices)} lines of it are marked <-:")
    for line in choices:
        print(f"  {line}")
    words = ["--cluster", str(args.draft), *([str(args.study)] if args.study else [])]
    print(f"next: python -m study doctor {shlex.join(words)}")
    return 0


def _shakedown(
    args: argparse.Namespace, study_file: Path, runs: Path, report: list["Check"]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Run the shakedown and print its page. Returns its rows and rates."""
    wait = SHAKEDOWN_WAITS * args.wait
    rows = shakedown.shakedown(study_file, args.cluster, runs, wait, report)
    rates = shakedown_rates.measured(rows, report)
    if not args.json:
        print(f"\n{shakedown_page.show(rows, rates)}")
    return rows, rates
