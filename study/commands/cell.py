"""Run cells, one after another, in this process."""

import argparse
from pathlib import Path

from core.cell.log import log_to
from core.cell.run import run_cell
from core.errors import Problem, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="CELL", help="folders below runs/STUDY/STAGE"
    )
    parser.add_argument("--log", action="store_true", help="print to the cell's log.txt only")


def cell(args: argparse.Namespace) -> int:
    """Run the cells of these folders; stops at the first that fails."""
    missing = [folder for folder in args.folders if not folder.is_dir()]
    if missing:
        fix = "python -m study plan lists the cells of a study file"
        raise UserError.of(Problem(str(folder), "no such cell", fix) for folder in missing)
    for folder in args.folders:
        try:
            with log_to(folder, terminal=not args.log):
                run_cell(folder)
        except UserError:
            return 2
        except Exception:
            return 1
    return 0
