"""Tell what may go to make room; remove it with --delete only."""

import argparse
import json
from pathlib import Path

from tabulate import tabulate

from core.errors import UserError
from study.commands.common import load, study_args
from study.spec import expand as planning
from study.upkeep import prune as pruning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delete", action="store_true", help="remove what may go, on record")
    parser.add_argument(
        "--others", action="store_true", help="cells that the study file does not name may go too"
    )


def prune(args: argparse.Namespace) -> int:
    """Say what may go and what must stay; remove it with `--delete`."""
    study, base = load(args)
    cells = planning.in_order(planning.analysis(study))
    rows = pruning.plan(cells, base)
    if not rows and not args.json:
        raise UserError(f"{base}: nothing is there yet; python -m study run {study_args(args)}")
    left = pruning.prune(rows, cells, base, args.others, queue_of(base)) if args.delete else []
    totals = pruning.total(rows, args.others)
    if args.json:
        print(
            json.dumps(
                {"deleted": args.delete, "rows": rows, "totals": totals, "left": left}, indent=1
            )
        )
        return 1 if left else 0
    shown = [
        [r["kind"], r["cell"], _size(r["bytes"]), "goes" if r["go"] else "stays", r["why"]]
        for r in rows
    ]
    shown = [row for row in shown if row[0] != "records"]
    if shown:
        print(
            tabulate(
                shown, headers=["what", "of", "GB", "", "why"], colalign=("left", "left", "right")
            ),
            end="\n\n",
        )
    print(
        tabulate(
            [[t["kind"], _size(t["goes"]), _size(t["stays"])] for t in totals],
            headers=["", "GB go", "GB stay"],
        )
    )
    for line in left:
        print(f"left: {line}")
    lost = sum(row["go"] and row["kind"] == "weights" for row in rows)
    if lost:
        print(
            f"\nweights of {lost} checkpoints {'are gone' if args.delete else 'would go'}: their scores, samples and"
        )
        print(
            "tables stay; another benchmark or dose on them would train them anew (the same bytes on the same machine)"
        )
    if not args.delete:
        print(f"nothing was removed; python -m study prune {study_args(args)} --delete does it")
    return 1 if left else 0


def queue_of(base: Path) -> pruning.Queue:
    """What Slurm says of the jobs of the study in the folder `base`; nothing is asked where none was submitted."""
    if not (base / "slurm" / "jobs.jsonl").exists():
        return pruning.Queue()
    from slurm.status import ask

    answer = ask(base)
    return pruning.Queue(bool(answer.queued or answer.submits), answer.trouble)


def _size(count: int) -> str:
    return f"{count / 1e9:.3f}"
