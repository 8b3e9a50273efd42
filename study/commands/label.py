"""Write a blind sample of answers to a sheet for people to grade."""

import argparse
import importlib
from pathlib import Path

from core.cell.manifest import read_manifest
from core.errors import UserError
from study.commands.common import load, study_args
from study.spec import benchmarks
from study.spec.expansion import Expansion
from study.spec.sources import locate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("benchmark", metavar="BENCHMARK", help="a judged benchmark of the study")
    parser.add_argument("sheet", type=Path, metavar="SHEET", help="the CSV file to write")
    parser.add_argument(
        "--n", type=int, default=100, help="number of graded dimensions in the sheet (default: 100)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default: 0)")


def label(args: argparse.Namespace) -> None:
    """Write answers of a finished benchmark to a sheet, for people to grade."""
    study, base = load(args)
    bench = study.benchmarks.get(args.benchmark)
    if bench is None or not bench.judge:
        judged = [name for name, bench in study.benchmarks.items() if bench.judge]
        raise UserError(
            where=args.benchmark,
            what="no judged benchmark of the study",
            fix=f"valid: {', '.join(judged) or 'none'}",
        )
    scored = []
    expansion = Expansion(study, base)
    for row in expansion.checkpoints():
        scores = next(iter(expansion.scores(row, args.benchmark).values()))
        folder = base / scores.relpath
        if read_manifest(folder):
            facts = {
                "benchmark": args.benchmark,
                "dose": row.dose,
                "arm": row.arm,
                "seed": row.seed,
                "answers": scores.inputs["samples"].identity,
            }
            scored.append((facts, folder))
    if not scored:
        raise UserError(
            what=f"no answers of {args.benchmark} are graded yet",
            fix=f"python -m study run {study_args(args)}",
        )
    dimensions = benchmarks.sources(bench).get("dimensions")
    rubrics = locate(dimensions) if dimensions else None
    labels = importlib.import_module("eval.labels")  # a room is imported only where it works
    key = labels.write_out(scored, args.n, args.seed, args.sheet, rubrics)
    print(f"{args.sheet}: fill in its last column (1 or 0); keep {key.name} beside it, unread")
    print(f"then set benchmarks.{args.benchmark}.labels to its path and run the study again")
