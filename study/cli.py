"""The command line. A user's mistake is lines on stderr and exit code 2; a failed cell is exit code 1."""

import argparse
import errno
import os
import sys
from pathlib import Path
from typing import Any

from study import cluster, labelling, local, upkeep
from study.errors import UserError
from study.references import ROOT

_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT)


def main(words: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(words)
    try:
        return args.command(args) or 0
    except UserError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (head, less) has what it wanted; Python must not complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        print(
            f"error: {error.filename}: {error.strerror}; choose another folder with --runs, or make room",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped; what was finished is kept, and the same command continues", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m study", description="Plan, run and read a study.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("study", type=Path, metavar="STUDY", help="a study file, such as studies/tiny.yaml")
    common.add_argument("--seeds", type=int, nargs="+", metavar="N", help="these seeds instead of the file's")
    common.add_argument("--set", action="append", dest="overrides", metavar="KEY.PATH=VALUE", help="change one setting")
    common.add_argument(
        "--runs", type=Path, default=ROOT / "runs", metavar="DIR", help="folder of the cells; results go beside it"
    )
    common.add_argument("--json", action="store_true", help="print data instead of text")

    def command(name: str, function: Any, text: str, **options: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, **options)
        sub.set_defaults(command=function)
        return sub

    plan = command("plan", local.plan, "cells, what is done, what is left to do; changes nothing", parents=[common])
    plan.add_argument("--cluster", type=Path, metavar="NAME", help="trainings as on this cluster, by its profile")
    plan.add_argument("--power", action="store_true", help="what its primary contrasts could find")
    run = command("run", local.run, "run everything that is missing on this machine", parents=[common])
    run.add_argument(
        "--jobs", type=int, metavar="N", help="processes at a time (default: a core each, if the memory is enough)"
    )
    submit = command("submit", cluster.submit, "submit everything that is missing to Slurm, and end", parents=[common])
    submit.add_argument(
        "--cluster", type=Path, required=True, metavar="NAME", help="a profile of slurm/clusters, or a file"
    )
    for sub in (plan, run, submit):
        limits = "refuse what takes more, such as cost=200 gpu_hours=500 disk_gb=2000"
        sub.add_argument("--budget", nargs="+", default=[], metavar="LIMIT=N", help=limits)
    command("cancel", cluster.cancel, "cancel this study's Slurm jobs, and no others", parents=[common])
    status = command("status", cluster.status, "how far the study is, and what stands in its way", parents=[common])
    status.add_argument("--watch", type=float, nargs="?", const=15, metavar="SECONDS", help="look again until it ends")
    doctor = command("doctor", cluster.doctor, "check a cluster before the first submission, with a fix for each fault")
    doctor.add_argument("study", type=Path, nargs="?", metavar="STUDY", help="checks its endpoints and models too")
    doctor.add_argument("--cluster", type=Path, required=True, metavar="NAME", help="a profile, as for submit")
    doctor.add_argument("--runs", type=Path, default=ROOT / "runs", metavar="DIR", help="folder of the cells")
    doctor.add_argument("--wait", type=float, default=300, metavar="SECONDS", help="for the jobs that look at nodes")
    doctor.add_argument("--json", action="store_true", help="print data instead of text")
    fetch = command("fetch", local.fetch, "bring the study's models and data from the network, once", parents=[common])
    fetch.add_argument("--check", action="store_true", help="compare what is here by its sha256 too")
    label = command(
        "label", labelling.label, "write a blind sample of answers to a sheet, for people to grade", parents=[common]
    )
    label.add_argument("benchmark", metavar="BENCHMARK", help="a judged benchmark of the study")
    label.add_argument("sheet", type=Path, metavar="SHEET", help="the CSV file to write")
    label.add_argument("--n", type=int, default=100, help="graded dimensions of answers in it (100)")
    label.add_argument("--seed", type=int, default=0, help="of the sample")
    command("report", local.report, "tables and report from the cells that are finished", parents=[common])
    upkeep.commands(command, common)
    cell = command("cell", local.cell, "run cells, one after another, in this process")
    cell.add_argument("folders", type=Path, nargs="+", metavar="CELL", help="folders below runs/STUDY/STAGE")
    cell.add_argument("--log", action="store_true", help="print to the cell's log.txt only")
    return parser
