"""Write tables and report from the cells that are finished."""

import argparse
import subprocess
import sys

from core.cell.identity import create_cell_dir
from core.cell.manifest import read_manifest
from core.cell.publish import publish
from core.errors import UserError
from core.paths import ROOT
from study.commands.common import load, show_results, study_args
from study.spec import expand as planning


def report(args: argparse.Namespace) -> None:
    study, base = load(args)
    complete = planning.analysis(study)
    missing = {
        cell.identity for cell in complete.inputs.values() if not read_manifest(base / cell.relpath)
    }
    scores = {cell.identity for cell in complete.inputs.values() if cell.stage != "documents"}
    if scores <= missing:
        raise UserError(
            f"{base}: no checkpoint has been scored yet; python -m study run {study_args(args)}"
        )
    partial = planning.analysis(study, without=missing)
    folder = create_cell_dir(partial, base)
    if not read_manifest(folder):
        subprocess.run(
            [sys.executable, "-m", "study", "cell", "--log", str(folder)], cwd=ROOT, check=True
        )
    if missing and not args.json:
        print(
            f"{len(missing & scores)} of {len(scores)} scores are missing and listed in the report\n"
        )
    show_results(publish(folder), args)
