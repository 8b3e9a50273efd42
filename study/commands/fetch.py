"""Download the study's models and data."""

import argparse
import json

from tabulate import tabulate

from study.commands.common import load
from study.spec.source_cells import sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check", action="store_true", help="also compare files that are here with their SHA-256"
    )


def fetch(args: argparse.Namespace) -> None:
    """Download the study's models and data."""
    from study.upkeep.fetch import fetch

    study, base = load(args)
    entries = fetch(sources(study), base / "fetched.json", args.check)
    if args.json:
        return print(json.dumps(entries, indent=1))
    if not entries:
        return print("the study names nothing on a network")
    lines = [
        (entry.get("hub") or entry["url"], entry.get("revision", "")[:8], entry["bytes"] / 1e9)
        for entry in entries
    ]
    headers = ["here, with its hashes", "revision", "GB"]
    print(tabulate(lines, headers=headers, floatfmt=".3f"))
