"""The command line.

A user's mistake is a line on stderr and exit code 2; a failed cell is exit code 1.
"""

import argparse
import contextlib
import errno
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from core.errors import Problem, UserError, printable
from core.files import owner
from core.paths import ROOT
from study.stop_signals import Stopped

# Modules of study.commands.
COMMANDS = (
    "plan",
    "run",
    "submit",
    "cancel",
    "status",
    "doctor",
    "fetch",
    "label",
    "report",
    "review",
    "verify",
    "prune",
    "archive",
    "pool",
    "cards",
    "cell",
)
_WITHOUT_STUDY = ("doctor", "pool", "cell")  # they declare their own arguments, all of them
# Errors of a file that isn't what the study says.
_UNREADABLE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors of a folder that can't be written to.
_UNWRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    *_FULL,
)


def main(words: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if words is None else words
    args = _parser(import_commands(words)).parse_args(words)
    try:
        return args.command(args) or 0
    except UserError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (head, less) has what it wanted. Python must not complain again when it closes
        # stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        problem = _out_problem(error, getattr(args, "out", getattr(args, "path", None)))
        problem = problem or _file_problem(error, getattr(args, "runs", ROOT / "runs"))
        if problem is None:
            raise
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        stop = interrupt if isinstance(interrupt, Stopped) else Stopped(signal.SIGINT, [])
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(stop.line, file=sys.stderr)
        return 128 + stop.number


def _out_problem(error: OSError, out: Path | None) -> Problem | None:
    """What a user can do where a file or folder that was asked for can't be written; else None."""
    if out is None or error.filename is None or error.errno in _FULL:
        return None
    name = error.filename2 or error.filename  # of a renaming the new name
    file, named = Path(os.fsdecode(name)).absolute(), out.absolute()
    if not (file.is_relative_to(named) or named.is_relative_to(file)):
        return None
    return Problem(str(file), str(error.strerror), "choose another place for it")


def _file_problem(error: OSError, runs: Path) -> Problem | None:
    """What a user can do about a file that can't be read or written; None: nothing."""
    if error.errno not in (*_UNREADABLE, *_UNWRITABLE):
        return None
    if error.filename is None:
        return Problem("the output", str(error.strerror), "make room where it is written to")
    file = Path(os.fsdecode(error.filename))
    is_ours = file.absolute().is_relative_to(runs.absolute())
    if error.errno in _UNREADABLE and not is_ours:
        fix = "correct the path where the study names it"
    elif error.errno in _FULL:
        fix = "choose another folder with --runs, or make room"
    elif error.errno in _UNWRITABLE:
        fix = f"choose another folder with --runs; this one is of user {owner(file)}"
    else:
        return None
    return Problem(str(file), str(error.strerror), fix)


def import_commands(words: list[str]) -> list[ModuleType]:
    """The modules of the command that the words begin with, else of all commands.

    Importing the others would take longer than many a command.
    """
    names = words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS
    return [import_module("study.commands." + name) for name in names]


def _parser(modules: list[ModuleType]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m study", description="Plan, run and read a study."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in modules:
        _add_command(commands, module)
    return parser


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", module: ModuleType
) -> None:
    """One command: its name is the module's, its help the first line of the module's docstring."""
    name = module.__name__.rpartition(".")[2]
    text = (module.__doc__ or "").splitlines()[0]
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=getattr(module, name))
    if name not in _WITHOUT_STUDY:
        _add_study_arguments(parser)
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)


def _folder(text: str) -> Path:
    """A folder of the command line; it becomes a part of job scripts and of printed commands."""
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"{printable(text)!r} has control characters")
    return Path(text)


def _add_study_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study", type=Path, metavar="STUDY", help="a study file, such as studies/tiny.yaml"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="train these seeds instead of those of the study file",
    )
    parser.add_argument(
        "--set",
        action="append",
        dest="overrides",
        metavar="KEY.PATH=VALUE",
        help="override a setting of the study file, or by cluster.KEY=VALUE one of the cluster "
        "profile; may be repeated",
    )
    parser.add_argument(
        "--runs",
        type=_folder,
        default=ROOT / "runs",
        metavar="DIR",
        help="folder of the cells (default: runs); results are written beside it",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
