"""Follow the published results back through every file, by hash."""

import argparse
import json

from tabulate import tabulate

from core.cell.publish import results
from core.errors import UserError
from study.commands.common import has_toys_alone, load, start_command, study_args
from study.upkeep.changes import find_changes, notes
from study.upkeep.provenance import SCORE, lineage, published, trace
from study.upkeep.study_file import find_differences


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trace",
        nargs=4,
        metavar=tuple(word.upper() for word in SCORE),
        help="the cells and files behind one score (SEED - of an untrained model)",
    )


def verify(args: argparse.Namespace) -> int:
    """Hash everything behind the published results, or list what is behind one (`--trace`)."""
    study, base = load(args)
    typed_study = study_args(args)
    if args.trace:
        _show_trace(trace(results(base), base, typed_study, *_score(args.trace)), args.json)
        return 0
    rows = lineage(published(base, typed_study), base)
    changes = find_changes(rows, base, typed_study)
    if differences := find_differences(study, base, rows):
        again = start_command(base, typed_study, has_toys_alone(study))
        what = f"the published results are of another version of it: {'; '.join(differences)}"
        changes.append(
            {
                "cell": rows[-1]["cell"],
                "file": str(args.study),
                "problem": what,
                "consequence": "all of the published results",
                "fix": f"{again}, or restore what was edited",
            }
        )
    remarks = notes(rows, base)
    checked = sum(len(row["checks"]) for row in rows)
    if args.json:
        data = {
            "study": base.name,
            "cells": len(rows),
            "files": checked,
            "problems": changes,
            "notes": remarks,
        }
        print(json.dumps(data, indent=1))
    else:
        for change in changes:
            print(f"{change['cell']}: {change['file']}: {change['problem']}")
            print(f"  affects: {change['consequence']}\n  fix: {change['fix']}")
        for remark in remarks:
            print(f"note: {remark}")
        print(f"{checked} files of {len(rows)} cells checked, {len(changes)} changes")
    return 1 if changes else 0


def _show_trace(steps: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        return print(json.dumps(steps, indent=1))
    lines = [[s["stage"], s["cell"], s["sha256"][:12], s["recorded"], s["facts"]] for s in steps]
    headers = ["stage", "cell or file", "sha256", "as recorded", "facts"]
    print(tabulate(lines, headers=headers, maxcolwidths=[None, 60, None, None, 60]))


def _score(words: list[str]) -> tuple[str, str, int | None, int]:
    """BENCHMARK ARM SEED DOSE as typed; `-` is the seed of an untrained model."""
    benchmark, arm, *numbers = words
    try:
        seed, dose = (None if word in ("-", "None") else int(word) for word in numbers)
    except ValueError:
        raise UserError(
            where=f"--trace {' '.join(words)}",
            what="SEED and DOSE are numbers (SEED - of an untrained model)",
        ) from None
    return benchmark, arm, seed, dose or 0
