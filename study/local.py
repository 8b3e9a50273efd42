"""The commands of one machine: plan, run, fetch, report, cell."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from study import plan as planning
from study import power, totals, trainings
from study.causes import cause
from study.cells import Cell, prepare, read_manifest
from study.cores import default_jobs
from study.errors import UserError
from study.forecast import KEYS, compare, forecast, total
from study.inputs import previews, sources
from study.load import load_study
from study.log import log_to
from study.prune import again
from study.publish import publish
from study.references import ROOT
from study.run_cell import run_cell
from study.schema import Study
from study.sources import missing


def load(args: argparse.Namespace) -> tuple[Study, Path]:
    study = load_study(args.study, args.seeds, args.overrides)
    return study, args.runs.absolute() / study.study


def typed(args: argparse.Namespace) -> str:
    """What the user typed to name the study, for the next command."""
    words = [str(args.study)]
    words += ["--seeds", *map(str, args.seeds)] if args.seeds else []
    for override in args.overrides or []:
        words += ["--set", override]
    words += ["--runs", str(args.runs)] if args.runs != ROOT / "runs" else []
    return shlex.join(words)


def plan(args: argparse.Namespace) -> None:
    study, base = load(args)
    rows, cells = [], planning.in_order(planning.analysis(study))
    for cell in cells:
        row: dict[str, Any] = {
            "stage": cell.stage,
            "cell": cell.name,
            "state": state(cell, base),
            "folder": cell.place,
        }
        if counted := _updates(cell, base):
            row |= dict(zip(("updates", "tokens", "estimated"), counted, strict=True))
        rows.append(row)
    finished = {cell.identity for cell, row in zip(cells, rows, strict=True) if row["state"] == "done"}
    writing, written = forecast(cells, finished), compare(cells, base)
    profile = _profile(args.cluster)
    placed = layouts(profile)
    training = trainings.forecast(cells, base, placed)
    whole = totals.totals(cells, base, placed, profile)
    compared = totals.compare(cells, base, placed, profile)
    if args.json:
        data: dict[str, Any] = {"study": study.study, "cells": rows, "training": training}
        data |= {"writing": writing, "written": written}
        data |= {"totals": whole, "compared": compared}
        data |= {"power": power.rows(study)} if args.power else {}
        return print(json.dumps(data, indent=1))
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
    if training:
        print("\n" + trainings.show(training))
        guess = f"at {trainings.FLOPS / 1e12:.0f} TFLOP/s a GPU"
        print(f"GPU-hours with ~ are by the profile's tokens_per_second, or {guess} without it, else as measured")
    if writing:
        lines = [[row["corpus"], *(row[key] for key in KEYS)] for row in writing]
        lines += [["together", *(total(writing)[key] for key in KEYS)]] if len(writing) > 1 else []
        headers = ["corpus to write", "~calls", "~prompt tokens", "~completion tokens", "~cost", "~hours"]
        print("\n" + tabulate(lines, headers=headers, floatfmt=".2f", intfmt=","))
        print("before what gates reject; cost by the endpoints' prices, hours by their rates, in the study file")
    if written:
        lines = []
        for row in written:
            how = "estimated" if row["actual"]["calls_estimated"] else "actual"
            lines.append([row["corpus"], "forecast", *(row["forecast"][key] for key in KEYS)])
            lines.append(["", how, *(row["actual"][key] for key in KEYS)])
        headers = ["corpus written", "", *(key.replace("_", " ") for key in KEYS)]
        print("\n" + tabulate(lines, headers=headers, floatfmt=".2f", intfmt=","))
    if args.power:
        print("\n" + power.show(power.rows(study)))
    print("\n" + totals.show(whole, compared))
    for line in missing(sources(study)):
        print(f"warning: {line}")
    for line in trainings.grouped(training, "warnings"):
        print(f"warning: {line}")
    for line in trainings.grouped(training, "refused"):
        print(f"can't run: {line}")
    totals.check_budget(whole, totals.parse_budget(args.budget))


def _profile(cluster: Path | None) -> Any:
    if cluster is None:
        return None
    from slurm.profile import load_profile

    return load_profile(cluster)


def check_budget(args: argparse.Namespace, cells: list[Cell], base: Path, profile: Any = None) -> None:
    """Raise UserError where the study as a whole takes more than `--budget` allows."""
    if budget := totals.parse_budget(args.budget):
        totals.check_budget(totals.totals(cells, base, layouts(profile), profile), budget)


def layouts(profile: Any) -> dict[str, trainings.Layout]:
    """Where trainings run, by stage, as a cluster profile (slurm.profile) has it; none without one."""
    if profile is None:
        return {}
    found = {}
    for stage in ("midtrain", "sft"):
        shape = profile.shape(stage)
        found[stage] = trainings.Layout(
            shape.nodes * shape.tasks_per_node,
            shape.tasks_per_node,
            shape.minutes,
            profile.requeue,
            shape.gpu_memory_gb,
            shape.tokens_per_second,
        )
    return found


def _updates(cell: Cell, base: Path) -> tuple[int, int, bool] | None:
    """(updates, tokens, estimated?) of a training: counted where it is finished, else estimated."""
    estimate = trainings.updates(cell)
    if estimate is None:
        return None
    if manifest := read_manifest(base / cell.place):
        return manifest["counts"]["updates"], manifest["counts"]["tokens"], False
    return *estimate, cell.stage != "model"


def _about(number: int, estimated: bool) -> str:
    return f"{'~' if estimated else ''}{number:,}"


def state(cell: Cell, base: Path) -> str:
    folder = base / cell.place
    if read_manifest(folder):
        return "done"
    if (folder / "progress.json").exists() or (folder / "log.txt").exists():
        return "begun"
    return "ready" if all(read_manifest(base / i.place) for i in cell.inputs.values()) else "waiting"


def run(args: argparse.Namespace) -> int:
    from study import engine
    from study.progress import watching

    study, base = load(args)
    shown = previews(study)
    last = planning.analysis(study)
    cells = shown or planning.in_order(last)
    if todo := unfinished(cells, base):
        check_pruned(cells, base)
        check_keys(todo)
        check_fetched(study)
        check_budget(args, cells, base)
        done = len(cells) - len(todo)
        jobs = default_jobs() if args.jobs is None else max(1, args.jobs)
        print(
            f"study {study.study}: {len(cells)} cells, {done} done already, {jobs} at a time, in {base}",
            flush=True,
        )
        with watching(done, len(cells)) as tell:
            failures = engine.run(cells, base, jobs, tell)
        for failure in failures:
            print(f"\nfailed: {failure.folder}/log.txt ends with", file=sys.stderr)
            print("\n".join(f"  {line}" for line in failure.last_lines), file=sys.stderr)
            if known := cause("\n".join(failure.last_lines), failure.status):
                print(f"cause: {known.name}; {known.cure}", file=sys.stderr)
        if failures:
            print(f"\n{len(failures)} cells failed; mend the cause and run the same command again", file=sys.stderr)
            return 1
    if shown:
        _preview(shown, base, args)
    else:
        _show(publish(base / last.place), args)
    return 0


def _preview(cells: list[Cell], base: Path, args: argparse.Namespace) -> None:
    """Print the documents of corpora that are only looked at."""
    for cell in cells:
        text = (base / cell.place / "documents.jsonl").read_text(encoding="utf-8")
        if args.json:
            print(text, end="")
            continue
        for document in map(json.loads, text.splitlines()):
            forms = "".join(f"{name}: {question}\n" for name, question in document.get("forms", {}).items())
            print(f"--- {cell.name}, document {document['id']}\n{forms}{document['text']}\n")
        print(f"{cell.name}: what is shown here is not paid again by the whole corpus")


def unfinished(cells: list[Cell], base: Path) -> list[Cell]:
    return [cell for cell in cells if not read_manifest(base / cell.place)]


def check_keys(cells: list[Cell]) -> None:
    """Raise UserError for every API key that the cells will need and the environment lacks: now, not in hours."""
    named = {cell.resources.get("address", {}).get("key_env") for cell in cells}
    missing = sorted(name for name in named if name and not os.environ.get(name))
    if missing:
        raise UserError(
            *(f"{name} is not set; an endpoint reads its key from it; export {name}=..." for name in missing)
        )


def check_pruned(cells: list[Cell], base: Path) -> None:
    """Raise UserError for every pruned checkpoint that a cell to run would read: what to delete, to make it anew."""
    if lines := again(cells, base):
        raise UserError(*lines)


def check_fetched(study: Study) -> None:
    """Raise UserError for every model and data set that isn't here yet: compute nodes have no network to get it by."""
    if lines := missing(sources(study)):
        raise UserError(*lines)


def fetch(args: argparse.Namespace) -> None:
    from study.fetch import fetch

    study, base = load(args)
    entries = fetch(sources(study), base / "fetched.json", args.check)
    if args.json:
        return print(json.dumps(entries, indent=1))
    lines = [(e.get("hub") or e["url"], e.get("revision", "")[:8], e["bytes"] / 1e9) for e in entries]
    headers = ["here, with its hashes", "revision", "GB"]
    print(tabulate(lines, headers=headers, floatfmt=".3f") if lines else "the study names nothing on a network")


def report(args: argparse.Namespace) -> None:
    study, base = load(args)
    complete = planning.analysis(study)
    missing = {cell.identity for cell in complete.inputs.values() if not read_manifest(base / cell.place)}
    scores = {cell.identity for cell in complete.inputs.values() if cell.stage != "documents"}
    if scores <= missing:
        raise UserError(f"{base}: no checkpoint has been scored yet; python -m study run {typed(args)}")
    partial = planning.analysis(study, without=missing)
    folder = prepare(partial, base)
    if not read_manifest(folder):
        subprocess.run([sys.executable, "-m", "study", "cell", "--log", str(folder)], cwd=ROOT, check=True)
    if missing and not args.json:
        print(f"{len(missing & scores)} of {len(scores)} scores are missing and listed in the report\n")
    _show(publish(folder), args)


def _show(results: Path, args: argparse.Namespace) -> None:
    """Print the headline of the results, and where all of them are."""
    if args.json:
        return print((results / "results.json").read_text())
    print((results / "headline.txt").read_text())
    for what, name in (("report", "report.html"), ("tables", "tables"), ("data", "results.json")):
        print(f"{what:<7} {short(results / name)}")


def short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def cell(args: argparse.Namespace) -> int:
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
