"""`plan --gpus N --hours H`: the part of a study that fits, and the order of its cells."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.errors import Problem, UserError
from core.files import write_atomically
from study.commands.common import load, load_cluster, parallel_plans, positive
from study.forecast.budget import parse_budget
from study.spec.load import dump_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus",
        type=positive,
        metavar="N",
        help="with --hours: print only the part of the study that finds most of the primary "
        "contrasts on so many GPUs in that time, within --budget",
    )
    parser.add_argument(
        "--hours", type=float, metavar="H", help="hours on the GPUs of --gpus, from now on"
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="write that part as a study file, named as the file",
    )


def plan_deadline(args: argparse.Namespace) -> None:
    """Print what fits, what is given up and the order of the results; write the study file."""
    _check(args)
    from analysis.power import read_pilot  # scipy takes a second to import
    from study.forecast import given_up
    from study.forecast.deadline import Planner
    from study.forecast.limits import Limits
    from study.forecast.milestones import milestones

    study, base = load(args)
    profile = load_cluster(args)
    layouts = parallel_plans(profile)
    pilot = read_pilot(args.variances) if args.variances else None
    planner = Planner(study, base, layouts, profile, pilot)
    limits = Limits(args.gpus, args.hours, parse_budget(args.budget))
    plan = planner.plan(limits)
    lines = given_up.given_up(planner, plan)
    order = milestones(plan.study, base, layouts, profile, args.gpus)
    if args.write:
        header = _header(args, given_up.keeps(plan, study), lines)
        named = replace(plan.study, study=args.write.stem)
        write_atomically(args.write, header + dump_study(named))
    if args.json:
        facts: dict[str, Any] = {
            "study": study.study,
            "keeps": given_up.keeps(plan, study),
            "detects": given_up.detects(plan, pilot),
            "given_up": lines,
            "power": plan.power,
            "whole_power": plan.whole_power,
            "amounts": plan.amounts,
            "order": order,
            "written": args.write and str(args.write),
        }
        return print(json.dumps(facts, indent=1))
    print(f"keeps: {given_up.keeps(plan, study)}")
    print(given_up.detects(plan, pilot))
    print(_takes(plan.amounts, args.gpus))
    print("gives up:" if lines else "gives up nothing: the whole study fits")
    for line in lines:
        print(f"  {line}")
    table = [
        [row["result"], row["cells"], row["gpu_hours"], row["hours"], row["cost"]] for row in order
    ]
    headers = ["the cells run in this order", "cells", "GPU-hours by then", "hours", "cost"]
    print("\n" + tabulate(table, headers=headers, floatfmt=("", "", ",.1f", ",.1f", ",.2f")))
    if args.write:
        print(f"\nwritten: {args.write}; python -m study plan {args.write} lists its cells")


def _check(args: argparse.Namespace) -> None:
    problems = []
    if not args.gpus or args.hours is None:
        given = "--gpus" if args.gpus else "--hours" if args.hours is not None else "--write"
        what = "needs both --gpus and --hours"
        problems.append(Problem(given, what, "such as --gpus 4 --hours 60"))
    if args.hours is not None and not 0 < args.hours < float("inf"):
        problems.append(Problem(f"--hours {args.hours:g}", "is no time", "such as 60"))
    if args.write and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]{0,39}", args.write.stem):
        what = "its name is that of the study, which has letters, digits and _"
        problems.append(Problem(f"--write {args.write}", what, "such as paper_60h.yaml"))
    if args.write and args.write.exists():
        problems.append(Problem(f"--write {args.write}", "is there already", "give another name"))
    if args.write and not args.write.absolute().parent.is_dir():
        problems.append(Problem(f"--write {args.write}", "its folder is not there", "make it"))
    if problems:
        raise UserError.of(problems)


def _takes(amounts: dict[str, float], gpus: int) -> str:
    return (
        f"takes {amounts['gpu_hours']:,.1f} GPU-hours, {amounts['hours']:,.1f} h on {gpus} GPUs, "
        f"{amounts['cost']:,.2f} for {amounts['calls']:,.0f} API calls, "
        f"{amounts['disk_gb']:,.0f} GB of disk at most"
    )


def _header(args: argparse.Namespace, keeps: str, lines: list[str]) -> str:
    budget = f" --budget {' '.join(args.budget)}" if args.budget else ""
    given_up = "".join(f"#   {line}\n" for line in lines) or "#   nothing\n"
    return (
        f"# Part of {args.study}, by plan --gpus {args.gpus} --hours {args.hours:g}{budget}\n"
        f"# Keeps {keeps}\n# Gives up:\n{given_up}"
    )
