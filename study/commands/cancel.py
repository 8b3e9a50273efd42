"""Cancel this study's Slurm jobs, and no others; say which batches are still out."""

import argparse
import json

from study.commands.common import load, study_args, submit_command
from study.commands.open_batches import cancel_batches, open_batches
from study.spec import expand


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--orphans",
        action="store_true",
        help="only the jobs of cells that the study file does not name now",
    )
    parser.add_argument(
        "--batches",
        action="store_true",
        help="also the batches at endpoints (`batch: true`); what they have answered is paid",
    )


def cancel(args: argparse.Namespace) -> None:
    from slurm.cancel import cancel

    study, base = load(args)
    cells = expand.in_order(expand.analysis(study, base))
    facts = cancel(base, cells if args.orphans else None)
    batches = open_batches(cells, base)
    if args.batches:
        cancel_batches(batches)
    facts |= {"batches": [row.as_json() for row in batches], "batches_cancelled": args.batches}
    if args.json:
        print(json.dumps(facts))
        return
    jobs = facts["cancelled"]
    ids = f": {' '.join(jobs)}" if jobs else ""
    print(f"{len(jobs)} jobs cancelled{ids}")
    if waiting := facts["waiting"]:
        again = submit_command(base, study_args(args))
        print(f"{len(waiting)} jobs waited for them and never start; to replace them: {again}")
    for row in batches:
        print(f"{'cancelled' if args.batches else 'goes on, and is paid'}: {row}")
    if batches and not args.batches:
        print(f"to cancel them: python -m study cancel {study_args(args)} --batches")
