"""Cancel this study's Slurm jobs, and no others."""

import argparse
import json

from study.commands.common import load


def cancel(args: argparse.Namespace) -> None:
    from slurm.cancel import cancel

    _, base = load(args)
    facts = cancel(base)
    if args.json:
        print(json.dumps(facts))
        return
    jobs = facts["cancelled"]
    ids = f": {' '.join(jobs)}" if jobs else ""
    print(f"{len(jobs)} jobs cancelled{ids}")
