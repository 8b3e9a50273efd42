"""Pack everything that is needed to check the numbers into one file."""

import argparse
import json
import shlex
from pathlib import Path

from core.cell.publish import results
from core.errors import Problem, UserError
from core.paths import ROOT
from study.commands.common import load, study_args
from study.spec.load import dump_study
from study.spec.schema import Study
from study.upkeep.archive import archive as pack
from study.upkeep.changes import published_changes
from study.upkeep.provenance import lineage, published
from study.upkeep.study_file import find_differences


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="FILE", help="the .tar.gz or .zip file to write")
    parser.add_argument(
        "--samples",
        action="store_true",
        help="include all questions and answers (check their licences first)",
    )


def archive(args: argparse.Namespace) -> None:
    """Write the replication archive."""
    study, base = load(args)
    typed = study_args(args)
    rows = lineage(published(base, typed), base, hashes=False)
    if differences := find_differences(study, base, rows):
        raise UserError(
            where=str(args.study),
            what=f"the published results are of another version of it: {'; '.join(differences)}",
            fix=_fix(args, study, results(base) / "study.yaml"),
        )
    if changes := [*published_changes(rows[-1], results(base), f"python -m study run {typed}")]:
        raise UserError.of(Problem(file, what, fix) for _, file, what, fix, _ in changes)
    facts = pack(args.study, base, results(base), args.path, args.samples)
    if args.json:
        return print(json.dumps(facts, indent=1))
    counts = f"{facts['files']} files of {facts['cells']} cells"
    print(f"{facts['path']}: {counts}, sha256 {facts['sha256']}")


def _fix(args: argparse.Namespace, study: Study, published: Path) -> str:
    fix = f"python -m study run {study_args(args)}, or restore what was edited"
    if not published.is_file() or published.read_text(encoding="utf-8") == dump_study(study):
        return fix  # what was edited is another file
    runs = ["--runs", str(args.runs)] if args.runs != ROOT / "runs" else []
    command = ["python", "-m", "study", "archive", str(published), str(args.path), *runs]
    return f"{fix}, or pack the results as they are: {shlex.join(command)}"
