"""Write the tables and the report from the finished cells."""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from core.cell.identity import create_cell_dir
from core.cell.manifest import read_manifest
from core.cell.publish import publish
from core.errors import UserError
from core.files import write_atomically
from core.paths import ROOT
from study.commands.common import (
    check_archive_options,
    has_toys_alone,
    load,
    relative_to_cwd,
    show_results,
    start_command,
    study_args,
)
from study.spec import expand
from study.upkeep.archive_report import analyze_again
from study.upkeep.unpacked import beside, is_archive, unpack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="with an archive as STUDY: the folder for results that are computed again from it "
        "alone (default: NAME-report beside it)",
    )
    parser.add_argument(
        "--lesson",
        action="store_true",
        help="also write lesson.html beside the report: a lesson on training seeds for a course",
    )


def report(args: argparse.Namespace) -> int:
    """Publish the results of an unfinished study; what is missing is listed in them.

    Of an archive: compute the results again. Returns 1 where they are not those of the archive.
    """
    if is_archive(args.study):
        return _of_archive(args)
    if args.out:
        raise UserError(
            where=f"--out {args.out}", what="is for an archive", fix="leave it out: see --runs"
        )
    study, base = load(args)
    complete = expand.analysis(study, base)
    inputs = complete.inputs.values()
    missing = {cell.identity for cell in inputs if not read_manifest(base / cell.relpath)}
    scores = {cell.identity for cell in inputs if cell.stage != "documents"}
    if scores <= missing:
        raise UserError(
            where=str(base),
            what="no checkpoint has been scored yet",
            fix=start_command(base, study_args(args), has_toys_alone(study)),
        )
    partial = expand.analysis(study, base, without=missing)
    folder = base / partial.relpath
    if not read_manifest(folder):
        create_cell_dir(partial, base)
        command = [sys.executable, "-m", "study", "cell", "--log", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True)
    if missing and not args.json:
        count = f"{len(missing & scores)} of {len(scores)} scores"
        print(f"{count} are missing and listed in the report\n")
    published = publish(folder)
    show_results(published, args)
    if args.lesson:
        write_lesson(published, args)
    return 0


def write_lesson(published: Path, args: argparse.Namespace) -> None:
    """Write the page of a lesson into the folder of results."""
    import pandas as pd

    from analysis.lesson import FILE, lesson_page, make_lesson

    results = json.loads((published / "results.json").read_text(encoding="utf-8"))
    lesson = make_lesson(results, pd.read_parquet(published / "scores.parquet"))
    write_atomically(published / FILE, lesson_page(results, lesson))
    if not args.json:
        print(f"lesson  {relative_to_cwd(published / FILE)}")


def _of_archive(args: argparse.Namespace) -> int:
    check_archive_options(args)
    out = args.out or beside(args.study, "-report")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        again = analyze_again(args.study, unpack(args.study, Path(folder)), out)
    if args.json:
        print(json.dumps({"folder": str(out), "same": again.same, "other": again.other}, indent=1))
    else:
        for name in again.other:
            print(f"not as published: {name}")
        print(f"{len(again.same)} of {len(again.same) + len(again.other)} files are as published")
        print(f"report  {out / 'report.html'}")
    return int(bool(again.other))
