"""Cancel this study's Slurm jobs, and no others."""

import argparse
import json

from study.commands.common import (
    load,
)


def cancel(args: argparse.Namespace) -> None:
    from slurm.cancel import cancel

    _, base = load(args)
    done = cancel(base)
    jobs = done["cancelled"]
    print(json.dumps(done) if args.json else f"{len(jobs)} jobs cancelled{': ' * bool(jobs)}{' '.join(jobs)}")
