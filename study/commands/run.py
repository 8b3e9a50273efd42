"""Run everything that is missing on this machine."""

import argparse
import json
import sys
from pathlib import Path

from core.cell.failures import diagnose
from core.cell.identity import Cell
from core.cell.publish import publish
from core.cores import default_jobs
from study.commands.common import (
    BUDGET_HELP,
    check_budget,
    check_fetched,
    check_keys,
    check_pruned,
    load,
    show_results,
    unfinished,
)
from study.spec import expand as planning
from study.spec.source_cells import previews


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="processes at a time (default: a core each, if the memory is enough)"
    )
    parser.add_argument("--budget", nargs="+", default=[], metavar="LIMIT=N", help=BUDGET_HELP)


def run(args: argparse.Namespace) -> int:
    from core.cell import local_executor as engine
    from core.cell.progress_display import progress_display

    study, base = load(args)
    shown = previews(study)
    last = planning.analysis(study)
    cells = shown or planning.in_order(last)
    if todo := unfinished(cells, base):
        check_pruned(cells, base)
        check_keys(todo)
        check_fetched(study)
        check_budget(args, cells, base)
        done = len(cells) - len(todo)
        jobs = default_jobs() if args.jobs is None else max(1, args.jobs)
        print(
            f"study {study.study}: {len(cells)} cells, {done} done already, {jobs} at a time, in {base}",
            flush=True,
        )
        with progress_display(done, len(cells)) as on_event:
            failures = engine.run(cells, base, jobs, on_event)
        for failure in failures:
            print(f"\nfailed: {failure.folder}/log.txt ends with", file=sys.stderr)
            print("\n".join(f"  {line}" for line in failure.last_lines), file=sys.stderr)
            if known := diagnose("\n".join(failure.last_lines), failure.status):
                print(f"cause: {known.name}; {known.fix}", file=sys.stderr)
        if failures:
            print(f"\n{len(failures)} cells failed; mend the cause and run the same command again", file=sys.stderr)
            return 1
    if shown:
        _preview(shown, base, args)
    else:
        show_results(publish(base / last.relpath), args)
    return 0


def _preview(cells: list[Cell], base: Path, args: argparse.Namespace) -> None:
    """Print the documents of corpora that are only looked at."""
    for cell in cells:
        text = (base / cell.relpath / "documents.jsonl").read_text(encoding="utf-8")
        if args.json:
            print(text, end="")
            continue
        for document in map(json.loads, text.splitlines()):
            forms = "".join(f"{name}: {question}\n" for name, question in document.get("forms", {}).items())
            print(f"--- {cell.name}, document {document['id']}\n{forms}{document['text']}\n")
        print(f"{cell.name}: what is shown here is not paid again by the whole corpus")
