"""Cancel this study's Slurm jobs, and no others."""

import argparse
import json

from study.commands.common import load, study_args, submit_command
from study.spec import expand


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--orphans",
        action="store_true",
        help="only the jobs of cells that the study file does not name now",
    )


def cancel(args: argparse.Namespace) -> None:
    from slurm.cancel import cancel

    study, base = load(args)
    keep = expand.in_order(expand.analysis(study, base)) if args.orphans else None
    facts = cancel(base, keep)
    if args.json:
        print(json.dumps(facts))
        return
    jobs = facts["cancelled"]
    ids = f": {' '.join(jobs)}" if jobs else ""
    print(f"{len(jobs)} jobs cancelled{ids}")
    if waiting := facts["waiting"]:
        again = submit_command(base, study_args(args))
        print(f"{len(waiting)} jobs waited for them and never start; to replace them: {again}")
