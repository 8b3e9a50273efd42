"""Check the published results against every file behind them, by hash."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.cell.publish import results
from core.errors import UserError
from study.commands.common import (
    check_archive_options,
    has_toys_alone,
    load,
    start_command,
    study_args,
)
from study.upkeep.changes import find_changes, notes
from study.upkeep.provenance import SCORE, lineage, published, trace
from study.upkeep.study_file import find_differences
from study.upkeep.unpacked import (
    archive_changes,
    archive_lineage,
    archive_notes,
    is_archive,
    unpack,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trace",
        nargs=4,
        metavar=tuple(word.upper() for word in SCORE),
        help="list the cells and files behind one score (SEED is - for an untrained model)",
    )


def verify(args: argparse.Namespace) -> int:
    """Hash everything behind the published results, or list what is behind one (`--trace`)."""
    if is_archive(args.study):
        return _verify_archive(args)
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
    data = {"study": base.name, "cells": len(rows), "files": checked}
    return _show(data | {"problems": changes, "notes": remarks}, args.json)


def _verify_archive(args: argparse.Namespace) -> int:
    """Check an archive by what is in it alone."""
    check_archive_options(args)
    with tempfile.TemporaryDirectory() as folder:
        unpacked = unpack(args.study, Path(folder))
        rows = archive_lineage(unpacked)
        changes = archive_changes(unpacked, rows)
        data = {"study": unpacked.base.name, "cells": len(rows), "files": len(unpacked.digests)}
    return _show(data | {"problems": changes, "notes": archive_notes(rows)}, args.json)


def _show(data: dict[str, Any], as_json: bool) -> int:
    """Print what was checked; returns the exit code."""
    changes = data["problems"]
    if as_json:
        print(json.dumps(data, indent=1))
    else:
        for change in changes:
            print(f"{change['cell']}: {change['file']}: {change['problem']}")
            print(f"  affects: {change['consequence']}\n  fix: {change['fix']}")
        for remark in data["notes"]:
            print(f"note: {remark}")
        counts = f"{data['files']} files of {data['cells']} cells"
        print(f"{counts} checked, {len(changes)} changes")
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
