"""Run all missing cells on this machine."""

import argparse
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from core.cell import local_executor
from core.cell.failures import diagnose
from core.cell.identity import Cell
from core.cell.local_executor import Gpus
from core.cell.manifest import read_manifest
from core.cell.publish import publish, record_start
from core.cell.status_page import update
from core.cores import default_jobs
from core.files import read_rows
from core.stages import STAGES
from study.commands.common import (
    add_stages_argument,
    add_start_arguments,
    check_before_start,
    load,
    needed_first,
    positive,
    prepare_folders,
    show_declaration,
    show_results,
    startable,
    unfinished,
)
from study.commands.status_plan import start_page
from study.forecast.priority import ranks
from study.local_gpus import local_gpus
from study.spec import expand
from study.spec.schema import Study
from study.spec.study_declaration import EVALUATIONS, declare
from study.stop_signals import Stopped, stop_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="processes at a time (default: one per core, as far as the memory allows)",
    )
    parser.add_argument(
        "--gpus",
        type=positive,
        metavar="N",
        help="GPUs to use, each for one cell at a time (default: all visible GPUs)",
    )
    parser.add_argument(
        "--ranks",
        type=positive,
        metavar="N",
        help="GPUs of one training (default: as few as its memory needs)",
    )
    add_stages_argument(parser)
    add_start_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the missing cells, inputs before users, and show the results."""
    study, base = load(args)
    preview_cells = expand.previews(study, base)
    last = expand.analysis(study, base)
    cells = preview_cells or expand.in_order(last)
    unfinished_before = prepare_folders(cells, base, args)
    todo = startable(unfinished_before, args.stages)
    if todo:
        check_before_start(args, study, base, cells, todo)
        gpus = local_gpus(todo, args.gpus, args.ranks)
        jobs = args.jobs or max(default_jobs(), len(gpus.ids))
        done = len(cells) - len(unfinished_before)
        if not preview_cells:
            record_start(base, last.identity)
            start_page(cells, base)
        counts = f"{len(cells)} cells, {done} done already, {jobs} at a time{_shown(gpus)}"
        print(f"study {study.study}: {counts}, in {base}", flush=True)
        failed = _run_cells(study, todo, cells, base, done, jobs, gpus, ranks(last))
        if not args.json:
            show_declaration(base)
        if failed:
            return 1
    if preview_cells:
        _preview(preview_cells, base, args)
    elif args.stages != STAGES and not read_manifest(base / last.relpath):
        _show_rest(unfinished(cells, base), args, started=bool(todo))
    else:
        if not unfinished_before:
            record_start(base, last.identity)
        show_results(publish(base / last.relpath, last_only=True), args)
    return 0


def _shown(gpus: Gpus) -> str:
    if not gpus.ids:
        return ""
    if not gpus.ids[0]:
        return f", no GPU is visible: {len(gpus.ids)} processes on the CPU take their place"
    return f", GPUs {', '.join(gpus.ids)}"


def _show_rest(rest: list[Cell], args: argparse.Namespace, started: bool) -> None:
    """Print what `--stages` leaves to other machines, by stage, and what they wait for.

    `started`: whether any cell was.
    """
    counts = Counter(cell.stage for cell in rest)
    if args.json:
        return print(json.dumps({"remaining": counts}))
    stages = ", ".join(f"{stage} {count}" for stage, count in counts.items())
    print(f"{len(rest)} cells are left to others or wait for them: {stages}")
    missing = needed_first(rest, args.stages)
    if not started and missing:
        print(f"nothing could start: {', '.join(args.stages)} need {', '.join(missing)} first")


def _run_cells(
    study: Study,
    todo: list[Cell],
    cells: list[Cell],
    base: Path,
    done: int,
    jobs: int,
    gpus: Gpus,
    ranks: dict[str, int],
) -> int:
    """Run the cells `todo` and report those that fail on stderr; returns how many.

    The study, of all `cells`, is declared when its first evaluation starts. `ranks`: the order in
    which cells that are ready start.
    """
    from core.cell.progress_display import progress_display

    running: dict[str, Cell] = {}
    with progress_display(done, len(cells)) as show, stop_signals():

        def on_event(event: str, cell: Cell, facts: dict[str, Any]) -> None:
            if event == "started":
                running[cell.identity] = cell
                if cell.stage in EVALUATIONS:
                    declare(study, base, cells)
                update(base)
            elif event != "progress":
                running.pop(cell.identity, None)
            show(event, cell, facts)

        try:
            failures = local_executor.run(todo, base, jobs, on_event, gpus, ranks)
        except KeyboardInterrupt as interrupt:
            number = interrupt.number if isinstance(interrupt, Stopped) else signal.SIGINT
            names = [f"{cell.stage} {cell.name}" for cell in running.values()]
            raise Stopped(number, names) from None
    for failure in failures:
        print(f"\nfailed: {failure.folder}/log.txt ends with", file=sys.stderr)
        print("\n".join(f"  {line}" for line in failure.last_lines), file=sys.stderr)
        if cause := diagnose("\n".join(failure.last_lines), failure.status):
            print(f"cause: {cause.name}; {cause.fix}", file=sys.stderr)
    if failures:
        advice = "correct the cause and run the same command again"
        print(f"\n{len(failures)} cells failed; {advice}", file=sys.stderr)
    return len(failures)


def _preview(cells: list[Cell], base: Path, args: argparse.Namespace) -> None:
    """Print the documents of corpora that are only looked at."""
    for cell in cells:
        path = base / cell.relpath / "documents.jsonl"
        if args.json:
            print(path.read_text(encoding="utf-8"), end="")
            continue
        for _, document in read_rows(path):
            questions = document.get("forms", {}).items()
            forms = "".join(f"{name}: {question}\n" for name, question in questions)
            print(f"--- {cell.name}, document {document['id']}\n{forms}{document['text']}\n")
        print(f"{cell.name}: the complete corpus will not pay for these documents again")
