"""Run cells, one after another, in this process."""

import argparse
from pathlib import Path

from core.cell.log import log_to
from core.cell.run import run_cell
from core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="CELL", help="folders below runs/STUDY/STAGE"
    )
    parser.add_argument("--log", action="store_true", help="print to the cell's log.txt only")


def cell(args: argparse.Namespace) -> int:
    missing = [folder for folder in args.folders if not folder.is_dir()]
    if missing:
        raise UserError(
            *(f"{f}: no such cell; `python -m study plan STUDY` lists the cells" for f in missing)
        )
    for folder in args.folders:
        try:
            with log_to(folder, terminal=not args.log):
                run_cell(folder)
        except UserError:
            return 2
        except Exception:
            return 1
    return 0
