"""Submit everything that is missing to Slurm, and end."""

import argparse
import json
import sys
from pathlib import Path

from tabulate import tabulate

from core.cell.publish import results
from core.errors import UserError
from study.commands.common import (
    BUDGET_HELP,
    check_budget,
    check_fetched,
    check_keys,
    check_pruned,
    load,
    parallel_plans,
    relative_to_cwd,
    study_args,
    unfinished,
)
from study.forecast.training_cost import forecast, grouped
from study.spec import expand as planning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster", type=Path, required=True, metavar="NAME", help="a profile of slurm/clusters, or a file"
    )
    parser.add_argument("--budget", nargs="+", default=[], metavar="LIMIT=N", help=BUDGET_HELP)


def submit(args: argparse.Namespace) -> None:
    from slurm.profile import load_profile
    from slurm.submit import submit

    study, base = load(args)
    profile = load_profile(args.cluster)
    cells = planning.in_order(planning.analysis(study))
    todo = unfinished(cells, base)
    check_pruned(cells, base)
    check_keys(todo)
    check_fetched(study, study_args(args))
    check_budget(args, cells, base, profile)
    left = [row for row in forecast(cells, base, parallel_plans(profile)) if row["left"]]
    if lines := grouped(left, "refused"):
        raise UserError(*(f"{line}; change the cluster profile or the recipe" for line in lines))
    facts = submit(cells, base, profile)
    for line in grouped(left, "warnings"):
        print(f"warning: {line}", file=sys.stderr)
    if args.json:
        return print(json.dumps(facts, indent=1))
    if facts["jobs"]:
        print(tabulate(facts["jobs"], headers="keys"), end="\n\n")
    print(
        f"{facts['cells']} cells: {facts['finished']} finished, {facts['queued']} in the queue already, "
        f"{facts['submitted']} submitted now"
    )
    if facts["left"]:
        who = f"job {facts['continues']} submits them" if facts["continues"] else "submit again"
        print(f"{facts['left']} are left over by the limit on jobs; {who} when others have ended")
    if facts["held"]:
        print(f"Slurm holds jobs back: scontrol release {' '.join(facts['held'])}")
    place = relative_to_cwd(results(base))
    if facts["finished"] == facts["cells"]:
        print(f"nothing is missing; the results are in {place}")
    else:
        print(f"python -m study status {study_args(args)} tells how far they are; the results will be in {place}")
