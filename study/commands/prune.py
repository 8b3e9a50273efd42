"""List what can be deleted to free disk space; --delete deletes it."""

import argparse
import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.errors import UserError
from study.commands.common import load, study_args
from study.spec import expand
from study.upkeep import prune as pruning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--delete", action="store_true", help="delete what is listed, and record it"
    )
    parser.add_argument(
        "--orphans",
        action="store_true",
        help="also list cells that the study file does not name",
    )


def prune(args: argparse.Namespace) -> int:
    """Print what may go and what must stay; remove it with `--delete`."""
    study, base = load(args)
    typed = study_args(args)
    cells = expand.in_order(expand.analysis(study, base))
    rows = pruning.plan(cells, base, typed)
    if not rows and not args.json:
        raise UserError(
            where=str(base), what="nothing is there yet", fix=f"python -m study run {typed}"
        )
    refused = []
    if args.delete:
        refused = pruning.prune(rows, cells, base, typed, args.orphans, queue_of(base))
    totals = pruning.total(rows, args.orphans)
    if args.json:
        data = {"deleted": args.delete, "rows": rows, "totals": totals, "left": refused}
        print(json.dumps(data, indent=1))
        return 1 if refused else 0
    _show(rows, totals)
    for line in refused:
        print(f"not removed: {line}")
    lost = sum(row["go"] and row["kind"] == "weights" for row in rows)
    if lost:
        print(
            f"\nweights of {lost} checkpoints {'are gone' if args.delete else 'would go'}. "
            "Their scores, samples and tables stay.\nAnother benchmark or dose on them would train "
            "them again (the same bytes on the same machine)."
        )
    if not args.delete:
        orphans = " --orphans" if args.orphans else ""
        print(f"nothing was removed; python -m study prune {typed}{orphans} --delete does it")
    return 1 if refused else 0


def queue_of(base: Path) -> pruning.Queue:
    """What Slurm answers about the jobs of the study in the folder `base`.

    Nothing is asked where none was submitted.
    """
    if not (base / "slurm" / "jobs.jsonl").exists():
        return pruning.Queue()
    from slurm.status import ask

    answer = ask(base)
    return pruning.Queue(bool(answer.queued or answer.submits), answer.trouble)


def _show(rows: list[dict[str, Any]], totals: list[dict[str, Any]]) -> None:
    lines = [
        [row["kind"], row["cell"], _gb(row["bytes"]), "goes" if row["go"] else "stays", row["why"]]
        for row in rows
        if row["kind"] != "records"
    ]
    if lines:
        headers = ["what", "of", "GB", "", "why"]
        print(tabulate(lines, headers=headers, colalign=("left", "left", "right")), end="\n\n")
    sums = [[row["kind"], _gb(row["goes"]), _gb(row["stays"])] for row in totals]
    print(tabulate(sums, headers=["", "GB go", "GB stay"]))


def _gb(count: int) -> str:
    return f"{count / 1e9:.3f}"
