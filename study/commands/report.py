"""Write tables and report from the cells that are finished."""

import argparse
import subprocess
import sys

from core.cell.identity import create_cell_dir
from core.cell.manifest import read_manifest
from core.cell.publish import publish
from core.errors import UserError
from core.paths import ROOT
from study.commands.common import has_toys_alone, load, show_results, start_command, study_args
from study.spec import expand


def report(args: argparse.Namespace) -> None:
    """Publish the results of an unfinished study; what is missing is listed in them."""
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
    show_results(publish(folder), args)
