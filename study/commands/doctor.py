"""Check a cluster before the first submission, with a fix for each fault."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from core.paths import ROOT
from study.spec import expand as planning
from study.spec.load import load_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, nargs="?", metavar="STUDY", help="checks its endpoints and models too")
    parser.add_argument("--cluster", type=Path, required=True, metavar="NAME", help="a profile, as for submit")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", metavar="DIR", help="folder of the cells")
    parser.add_argument("--wait", type=float, default=300, metavar="SECONDS", help="for the jobs that look at nodes")
    parser.add_argument("--json", action="store_true", help="print data instead of text")


def doctor(args: argparse.Namespace) -> int:
    from slurm.doctor import doctor, show

    cells = planning.in_order(planning.analysis(load_study(args.study))) if args.study else None
    checks = doctor(args.cluster, args.runs.absolute(), cells, args.wait)
    print(json.dumps([asdict(check) for check in checks], indent=1) if args.json else show(checks))
    return 1 if any(check.state == "failed" for check in checks) else 0
