"""The commands for a Slurm cluster: submit, cancel, status."""

import argparse
import json

from tabulate import tabulate

from study import plan as planning
from study.causes import cause, last_lines
from study.local import check_keys, load, short, state, typed, unfinished
from study.publish import results


def submit(args: argparse.Namespace) -> None:
    from slurm.profile import load_profile
    from slurm.submit import submit

    study, base = load(args)
    profile = load_profile(args.cluster)
    cells = planning.in_order(planning.analysis(study))
    check_keys(unfinished(cells, base))
    facts = submit(cells, base, profile)
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
    print(f"python -m study status {typed(args)} tells how far they are; the results will be in {short(results(base))}")


def cancel(args: argparse.Namespace) -> None:
    from slurm.cancel import cancel

    _, base = load(args)
    done = cancel(base)
    jobs = done["cancelled"]
    print(json.dumps(done) if args.json else f"{len(jobs)} jobs cancelled{': ' * bool(jobs)}{' '.join(jobs)}")


def status(args: argparse.Namespace) -> None:
    study, base = load(args)
    cells = planning.in_order(planning.analysis(study))
    states = {cell.identity: state(cell, base) for cell in cells}
    stages = list(dict.fromkeys(cell.stage for cell in cells))
    table = [
        {"stage": stage, **{s: sum(c.stage == stage and states[c.identity] == s for c in cells) for s in _STATES}}
        for stage in stages
    ]
    begun = [c for c in cells if states[c.identity] == "begun"]
    if args.json:
        cells_data = [{"stage": c.stage, "cell": c.name, "folder": c.place, "state": states[c.identity]} for c in cells]
        return print(json.dumps({"study": study.study, "stages": table, "cells": cells_data}, indent=1))
    print(tabulate(table, headers="keys"))
    for cell in begun:
        lines = last_lines(base / cell.place)
        known = cause("\n".join(lines))
        told = f"{known.name}; {known.cure}" if known else " ".join(lines[-1:])
        print(f"begun, not finished: {base / cell.place}: {told}")
    if all(state == "done" for state in states.values()):
        print(f"\nfinished; the report is {short(results(base) / 'report.html')}")
    else:
        print(f"\npython -m study run {args.study} continues")


_STATES = ("done", "begun", "ready", "waiting")
