"""The commands for a Slurm cluster: submit, cancel, status, doctor."""

import argparse
import json
import sys
from dataclasses import asdict

from tabulate import tabulate

from study import plan as planning
from study.errors import UserError
from study.load import load_study
from study.local import check_budget, check_fetched, check_keys, check_pruned, layouts, load, short, typed, unfinished
from study.publish import results
from study.trainings import forecast, grouped


def submit(args: argparse.Namespace) -> None:
    from slurm.profile import load_profile
    from slurm.submit import submit

    study, base = load(args)
    profile = load_profile(args.cluster)
    cells = planning.in_order(planning.analysis(study))
    todo = unfinished(cells, base)
    check_pruned(cells, base)
    check_keys(todo)
    check_fetched(study)
    check_budget(args, cells, base, profile)
    left = [row for row in forecast(cells, base, layouts(profile)) if row["left"]]
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
    place = short(results(base))
    if facts["finished"] == facts["cells"]:
        print(f"nothing is missing; the results are in {place}")
    else:
        print(f"python -m study status {typed(args)} tells how far they are; the results will be in {place}")


def cancel(args: argparse.Namespace) -> None:
    from slurm.cancel import cancel

    _, base = load(args)
    done = cancel(base)
    jobs = done["cancelled"]
    print(json.dumps(done) if args.json else f"{len(jobs)} jobs cancelled{': ' * bool(jobs)}{' '.join(jobs)}")


def status(args: argparse.Namespace) -> None:
    from study.status import status

    study, base = load(args)
    status(planning.in_order(planning.analysis(study)), base, typed(args), args.watch, args.json)


def doctor(args: argparse.Namespace) -> int:
    from slurm.doctor import doctor, show

    study = load_study(args.study, None, None) if args.study else None
    checks = doctor(args.cluster, args.runs.absolute(), study, args.wait)
    print(json.dumps([asdict(check) for check in checks], indent=1) if args.json else show(checks))
    return 1 if any(check.state == "failed" for check in checks) else 0
