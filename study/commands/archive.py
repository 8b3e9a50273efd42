"""Pack everything to replicate the numbers from into one file."""

import argparse
import json
from pathlib import Path

from core.cell.publish import results
from study.commands.common import load
from study.upkeep.archive import archive as pack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="FILE", help="a .tar.gz or .zip to write")
    parser.add_argument(
        "--samples",
        action="store_true",
        help="with questions and answers in full (mind their licences)",
    )


def archive(args: argparse.Namespace) -> None:
    """Write the replication archive."""
    _, base = load(args)
    facts = pack(args.study, base, results(base), args.path, args.samples)
    if args.json:
        return print(json.dumps(facts, indent=1))
    counts = f"{facts['files']} files of {facts['cells']} cells"
    print(f"{facts['path']}: {counts}, sha256 {facts['sha256']}")
