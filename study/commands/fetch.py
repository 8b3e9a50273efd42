"""Download the study's models and data."""

import argparse
import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.files import sha256, write_atomically
from core.paths import resolve
from study.commands.common import load
from study.spec.schema import Study
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
    prompts = _record_prompt_files(study, base / "fetched.json")
    if args.json:
        return print(json.dumps(entries, indent=1))
    for path, digest in prompts.items():
        print(f"prompt_file {path}: sha256 {digest}")
    if not entries:
        return print("the study names nothing on a network")
    lines = [
        (entry.get("hub") or entry["url"], entry.get("revision", "")[:8], entry["bytes"] / 1e9)
        for entry in entries
    ]
    headers = ["here, with its hashes", "revision", "GB"]
    print(tabulate(lines, headers=headers, floatfmt=".3f"))


def _record_prompt_files(study: Study, record: Path) -> dict[str, str]:
    """Add the SHA-256 of each prompt that is a file of the user's to the record of `fetch`."""
    paths = sorted({corpus.prompt_file for corpus in study.corpora.values() if corpus.prompt_file})
    prompts = {path: sha256(resolve(path)) for path in paths}
    if prompts:
        content: dict[str, Any] = {"sources": []}
        if record.exists():
            content = json.loads(record.read_text(encoding="utf-8"))
        record.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content | {"prompt_files": prompts}, indent=1)
        write_atomically(record, text + "\n")
    return prompts
