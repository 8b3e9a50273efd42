"""Follow the published results back through every file, by hash."""

import argparse
import json

from tabulate import tabulate

from core.cell.publish import results
from core.errors import UserError
from study.commands.common import load, study_args
from study.upkeep.provenance import SCORE, chain, faults, notes, published, trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    of = tuple(word.upper() for word in SCORE)
    parser.add_argument(
        "--trace",
        nargs=4,
        metavar=of,
        help="the way back of one score (SEED - of an untrained model)",
    )


def verify(args: argparse.Namespace) -> int:
    """Hash everything behind the published results, or show the way back of one score (`--trace`)."""
    _, base = load(args)
    if args.trace:
        steps = trace(results(base), base, *_score(args.trace))
        if args.json:
            print(json.dumps(steps, indent=1))
        else:
            shown = [
                [s["stage"], s["cell"], s["sha256"][:12], s["recorded"], s["facts"]] for s in steps
            ]
            headers = ["stage", "cell or file", "sha256", "as recorded", "facts"]
            print(tabulate(shown, headers=headers, maxcolwidths=[None, 60, None, None, 60]))
        return 0
    rows = chain(published(base), base)
    found, said = faults(rows, base), notes(rows, base)
    checked = sum(len(row["checks"]) for row in rows)
    if args.json:
        data = {
            "study": base.name,
            "cells": len(rows),
            "files": checked,
            "faults": found,
            "notes": said,
        }
        print(json.dumps(data, indent=1))
    else:
        for fault in found:
            print(f"{fault['cell']}: {fault['file']}: {fault['fault']}")
            print(
                f"  touches: {fault['consequence']}\n  cure: {fault['cure']}".replace(
                    "STUDY", study_args(args)
                )
            )
        for note in said:
            print(f"note: {note}".replace("STUDY", study_args(args)))
        print(f"{checked} files of {len(rows)} cells checked, {len(found)} faults")
    return 1 if found else 0


def _score(words: list[str]) -> tuple[str, str, int | None, int]:
    """BENCHMARK ARM SEED DOSE as study_args; `-` is the seed of an untrained model."""
    benchmark, arm, *numbers = words
    try:
        seed, dose = (None if word in ("-", "None") else int(word) for word in numbers)
    except ValueError:
        raise UserError(
            f"--trace {' '.join(words)}: SEED and DOSE are numbers (SEED - of an untrained model)"
        ) from None
    return benchmark, arm, seed, dose or 0
