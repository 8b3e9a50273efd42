"""Check a cluster before the first submission, with a fix for each problem."""

import argparse
import json
from pathlib import Path

from core.paths import ROOT
from study.forecast.training_cost import is_training, step_checkpoint_bytes
from study.spec import expand
from study.spec.load import load_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study",
        type=Path,
        nargs="?",
        metavar="STUDY",
        help="check the study's endpoints and models too",
    )
    parser.add_argument(
        "--cluster", type=Path, required=True, metavar="NAME", help="a profile, as for submit"
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs", metavar="DIR", help="folder of the cells"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=300,
        metavar="SECONDS",
        help="time limit for the jobs that inspect nodes",
    )
    parser.add_argument("--json", action="store_true", help="print data instead of text")


def doctor(args: argparse.Namespace) -> int:
    """Print the report. Returns 1 where a check failed."""
    from slurm.doctor import doctor, show

    cells = expand.in_order(expand.analysis(load_study(args.study))) if args.study else None
    checkpoints: dict[str, int] = {}
    for cell in filter(is_training, cells or []):
        checkpoints[cell.stage] = max(checkpoints.get(cell.stage, 0), step_checkpoint_bytes(cell))
    report = doctor(args.cluster, args.runs.absolute(), cells, args.wait, checkpoints)
    if args.json:
        rows = [
            {"name": c.name, "state": c.state, "found": c.finding, "fix": c.fix} for c in report
        ]
        print(json.dumps(rows, indent=1))
    else:
        print(show(report))
    return 1 if any(check.state == "failed" for check in report) else 0
