"""Write a blind sample of answers to a sheet, for people to grade."""

import argparse
import importlib
from pathlib import Path

from core.cell.manifest import read_manifest
from core.errors import UserError
from study.commands.common import load, study_args
from study.spec import benchmarks
from study.spec import expand as planning
from study.spec.sources import locate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("benchmark", metavar="BENCHMARK", help="a judged benchmark of the study")
    parser.add_argument("sheet", type=Path, metavar="SHEET", help="the CSV file to write")
    parser.add_argument(
        "--n", type=int, default=100, help="graded dimensions of answers in it (100)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")


def label(args: argparse.Namespace) -> None:
    """Write answers of a finished benchmark to a sheet, for people to grade."""
    study, base = load(args)
    if (bench := study.benchmarks.get(args.benchmark)) is None or not bench.judge:
        judged = [name for name, b in study.benchmarks.items() if b.judge]
        raise UserError(
            f"{args.benchmark}: no judged benchmark of the study; valid: {', '.join(judged) or 'none'}"
        )
    scored = []
    for c in planning.checkpoints(study):
        cell = next(iter(benchmarks.scores(study, args.benchmark, c.cell, c.chat).values()))
        if read_manifest(base / cell.relpath):
            facts = {"benchmark": args.benchmark, "dose": c.dose, "arm": c.arm, "seed": c.seed}
            scored.append((facts, base / cell.relpath))
    if not scored:
        raise UserError(
            f"no answers of {args.benchmark} are graded yet; python -m study run {study_args(args)}"
        )
    dimensions = benchmarks.sources(bench).get("dimensions")
    write_out = importlib.import_module(
        "eval.labels"
    ).write_out  # a room is imported only where it works
    key = write_out(
        scored, args.n, args.seed, args.sheet, locate(dimensions) if dimensions else None
    )
    print(f"{args.sheet}: fill in its last column (1 or 0); keep {key.name} beside it, unread")
    print(f"then set benchmarks.{args.benchmark}.labels to its path and run the study again")
