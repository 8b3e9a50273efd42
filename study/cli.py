"""The command line. A user's mistake is lines on stderr and exit code 2; a failed cell is exit code 1."""

import argparse
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from study import plan as planning
from study.causes import cause, last_lines
from study.cells import Cell, prepare, read_manifest
from study.errors import UserError
from study.load import load_study
from study.log import log_to
from study.references import ROOT
from study.run_cell import run_cell
from study.schema import Study
from study.verify import verify

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
    except BrokenPipeError:
        # The reader (head, less) has what it wanted; Python must not complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


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

    command("plan", _plan, "cells, order, what is done, updates and tokens; changes nothing", parents=[common])
    run = command("run", _run, "run everything that is missing on this machine", parents=[common])
    run.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes at a time (cores)")
    submit = command("submit", _submit, "submit everything that is missing to Slurm, and end", parents=[common])
    submit.add_argument(
        "--cluster", type=Path, required=True, metavar="NAME", help="a profile of slurm/clusters, or a file"
    )
    command("cancel", _cancel, "cancel this study's Slurm jobs, and no others", parents=[common])
    command("status", _status, "how far the study is, and what stands in its way", parents=[common])
    command("report", _report, "tables and report from the cells that are finished", parents=[common])
    command("verify", _verify, "check every finished cell's files against its manifest", parents=[common])
    cell = command("cell", _cell, "run cells, one after another, in this process")
    cell.add_argument("folders", type=Path, nargs="+", metavar="CELL", help="folders below runs/STUDY/STAGE")
    cell.add_argument("--log", action="store_true", help="print to the cell's log.txt only")
    return parser


def _load(args: argparse.Namespace) -> tuple[Study, Path]:
    study = load_study(args.study, args.seeds, args.overrides)
    return study, args.runs.absolute() / study.study


def _plan(args: argparse.Namespace) -> None:
    study, base = _load(args)
    rows = []
    for cell in planning.in_order(planning.analysis(study)):
        row: dict[str, Any] = {
            "stage": cell.stage,
            "cell": cell.name,
            "state": _state(cell, base),
            "folder": cell.place,
        }
        if counted := _updates(cell, base):
            row |= dict(zip(("updates", "tokens", "estimated"), counted, strict=True))
        rows.append(row)
    few = [r for r in rows if 0 < r.get("updates", 100) < 100 or r.get("updates") == 0]
    if args.json:
        return print(json.dumps({"study": study.study, "cells": rows}, indent=1))
    shown = [
        (
            r["stage"],
            r["cell"],
            r["state"],
            *(_about(r[k], r["estimated"]) if k in r else "" for k in ("updates", "tokens")),
        )
        for r in rows
    ]
    print(
        tabulate(
            shown, headers=["stage", "cell", "state", "updates", "tokens"], colalign=("left",) * 3 + ("right",) * 2
        )
    )
    done = sum(r["state"] == "done" for r in rows)
    print(f"\n{len(rows)} cells, {done} done, in {base}. ~: estimated until it has run.")
    for row in few:
        print(f"warning: {row['stage']} {row['cell']}: {row['updates']} updates; under 100 hardly moves a model")


def _updates(cell: Cell, base: Path) -> tuple[int, int, bool] | None:
    """(updates, tokens, estimated?) of a training: counted where it is finished, else estimated."""
    estimate = planning.updates(cell)
    if estimate is None:
        return None
    if manifest := read_manifest(base / cell.place):
        return manifest["counts"]["updates"], manifest["counts"]["tokens"], False
    return *estimate, cell.stage != "model"


def _about(number: int, estimated: bool) -> str:
    return f"{'~' if estimated else ''}{number:,}"


def _state(cell: Cell, base: Path) -> str:
    folder = base / cell.place
    if read_manifest(folder):
        return "done"
    if (folder / "progress.json").exists() or (folder / "log.txt").exists():
        return "begun"
    return "ready" if all(read_manifest(base / i.place) for i in cell.inputs.values()) else "waiting"


def _run(args: argparse.Namespace) -> int:
    from study import engine
    from study.progress import watching

    study, base = _load(args)
    last = planning.analysis(study)
    cells = planning.in_order(last)
    if todo := _unfinished(cells, base):
        _check_keys(todo)
        done = len(cells) - len(todo)
        print(
            f"study {study.study}: {len(cells)} cells, {done} done already, {args.jobs} at a time, in {base}",
            flush=True,
        )
        with watching(done, len(cells)) as tell:
            failures = engine.run(cells, base, max(1, args.jobs), tell)
        for failure in failures:
            print(f"\nfailed: {failure.folder}/log.txt ends with", file=sys.stderr)
            print("\n".join(f"  {line}" for line in failure.last_lines), file=sys.stderr)
            if known := cause("\n".join(failure.last_lines), failure.status):
                print(f"cause: {known.name}; {known.cure}", file=sys.stderr)
        if failures:
            print(f"\n{len(failures)} cells failed; mend the cause and run the same command again", file=sys.stderr)
            return 1
    _publish(last, base, args)
    return 0


def _submit(args: argparse.Namespace) -> None:
    from slurm.submit import submit

    study, base = _load(args)
    cells = planning.in_order(planning.analysis(study))
    _check_keys(_unfinished(cells, base))
    done = submit(cells, base, args.cluster)
    if args.json:
        return print(json.dumps(done, indent=1))
    if done["jobs"]:
        print(
            tabulate(
                [{k: job[k] for k in ("job", "stage", "tasks", "cells", "after")} for job in done["jobs"]],
                headers="keys",
            )
        )
        print()
    print(
        f"{done['cells']} cells: {done['finished']} finished, {done['queued']} in the queue already, "
        f"{done['submitted']} submitted now"
    )
    if done["left"]:
        print(f"{done['left']} are left, for the limit on jobs in the profile; submit again when some have ended")
    if done["held"]:
        print(f"Slurm holds jobs back: scontrol release {' '.join(done['held'])}")
    words = f"{args.study} --runs {args.runs}" if args.runs != ROOT / "runs" else str(args.study)
    print(f"python -m study status {words} tells how far they are; python -m study report {words} makes the tables")


def _cancel(args: argparse.Namespace) -> None:
    from slurm.cancel import cancel

    _, base = _load(args)
    done = cancel(base)
    jobs = done["cancelled"]
    print(json.dumps(done) if args.json else f"{len(jobs)} jobs cancelled{': ' * bool(jobs)}{' '.join(jobs)}")


def _unfinished(cells: list[Cell], base: Path) -> list[Cell]:
    return [cell for cell in cells if not read_manifest(base / cell.place)]


def _check_keys(cells: list[Cell]) -> None:
    """Raise UserError for every API key that the cells will need and the environment lacks: now, not in hours."""
    named = {cell.resources.get("address", {}).get("key_env") for cell in cells}
    missing = sorted(name for name in named if name and not os.environ.get(name))
    if missing:
        raise UserError(
            *(f"{name} is not set; an endpoint reads its key from it; export {name}=..." for name in missing)
        )


def _report(args: argparse.Namespace) -> None:
    study, base = _load(args)
    complete = planning.analysis(study)
    missing = {cell.identity for cell in complete.inputs.values() if not read_manifest(base / cell.place)}
    if len(missing) == len(complete.inputs):
        raise UserError(f"{base}: no checkpoint has been scored yet; python -m study run {args.study}")
    partial = planning.analysis(study, without=missing)
    folder = prepare(partial, base)
    if not read_manifest(folder):
        subprocess.run([sys.executable, "-m", "study", "cell", "--log", str(folder)], cwd=ROOT, check=True)
    if missing and not args.json:
        print(f"{len(missing)} of {len(complete.inputs)} scores are missing and listed in the report\n")
    _publish(partial, base, args)


def _publish(last: Cell, base: Path, args: argparse.Namespace) -> None:
    """Copy the analysis to results/<study>, beside the runs folder, and print the headline and where it all is."""
    source, results = base / last.place, base.parent.with_name("results") / base.name
    staged = results.with_name(f".{results.name}.{os.getpid()}")
    shutil.copytree(source, staged, ignore=shutil.ignore_patterns("config.yaml", "log.txt", ".lock"))
    shutil.rmtree(results, ignore_errors=True)
    staged.rename(results)
    if args.json:
        return print((results / "results.json").read_text())
    print((results / "headline.txt").read_text())
    for what, name in (("report", "report.html"), ("tables", "tables"), ("data", "results.json")):
        print(f"{what:<7} {_short(results / name)}")


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _status(args: argparse.Namespace) -> None:
    study, base = _load(args)
    cells = planning.in_order(planning.analysis(study))
    states = {cell.identity: _state(cell, base) for cell in cells}
    stages = list(dict.fromkeys(cell.stage for cell in cells))
    table = [
        {"stage": stage, **{s: sum(c.stage == stage and states[c.identity] == s for c in cells) for s in _STATES}}
        for stage in stages
    ]
    begun = [c for c in cells if states[c.identity] == "begun"]
    if args.json:
        cells_data = [{"stage": c.stage, "cell": c.name, "folder": c.place, "state": states[c.identity]} for c in cells]
        return print(json.dumps({"study": study.study, "stages": table, "cells": cells_data}, indent=1))
    print(tabulate(table, headers="keys"))
    for cell in begun:
        lines = last_lines(base / cell.place)
        known = cause("\n".join(lines))
        told = f"{known.name}; {known.cure}" if known else " ".join(lines[-1:])
        print(f"begun, not finished: {base / cell.place}: {told}")
    if all(state == "done" for state in states.values()):
        print(f"\nfinished; the report is {_short(base.parent.with_name('results') / base.name / 'report.html')}")
    else:
        print(f"\npython -m study run {args.study} continues")


_STATES = ("done", "begun", "ready", "waiting")


def _verify(args: argparse.Namespace) -> int:
    study, base = _load(args)
    checked, faults = verify(planning.in_order(planning.analysis(study)), base)
    if args.json:
        print(json.dumps({"study": study.study, "files": checked, "faults": faults}, indent=1))
    else:
        for fault in faults:
            print(f"{fault['cell']}: {fault['file']}: {fault['fault']}")
        print(f"{checked} files checked, {len(faults)} faults")
    return 1 if faults else 0


def _cell(args: argparse.Namespace) -> int:
    missing = [folder for folder in args.folders if not folder.is_dir()]
    if missing:
        raise UserError(*(f"{f}: no such cell; `python -m study plan STUDY` lists the cells" for f in missing))
    for folder in args.folders:
        try:
            with log_to(folder, terminal=not args.log):
                run_cell(folder)
        except UserError:
            return 2
        except Exception:
            return 1
    return 0
