"""Run cells, one after another, in this process."""

import argparse
import os
from pathlib import Path

from core.cell.fork_server import OF_RANKS
from core.cell.run import run_cells
from core.errors import Problem, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="CELL",
        help="a cell's folder, runs/STUDY/STAGE/CELL",
    )
    parser.add_argument("--log", action="store_true", help="print to the cell's log.txt only")


def cell(args: argparse.Namespace) -> int:
    """Run the cells of these folders; stops at the first that fails."""
    missing = [folder for folder in args.folders if not folder.is_dir()]
    if missing:
        fix = "python -m study plan lists the cells of a study file"
        raise UserError.of(Problem(str(folder), "no such cell", fix) for folder in missing)
    if not args.log:  # typed by a person, whose shell may have those of other ranks
        for name in OF_RANKS & os.environ.keys():
            del os.environ[name]
    return run_cells(args.folders, terminal=not args.log)
