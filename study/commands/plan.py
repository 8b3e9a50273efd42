"""List the cells of a study, what is done and what is left to do. Changes nothing."""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.model_size import start_model
from core.paths import resolve
from study.commands.common import BUDGET_HELP, load, parallel_plans
from study.forecast import study_cost as totals
from study.forecast import training_cost as trainings
from study.forecast.corpus_cost import KEYS, compare, forecast, total
from study.spec import expand as planning
from study.spec.benchmarks import num_questions
from study.spec.schema import Study
from study.spec.source_cells import sources
from study.spec.sources import missing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cluster", type=Path, metavar="NAME", help="trainings as on this cluster, by its profile")
    parser.add_argument("--power", action="store_true", help="what its primary contrasts could find")
    parser.add_argument(
        "--layout", type=int, nargs="+", metavar="GPUS", help="shards, memory and rows of the trainings on so many GPUs"
    )
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="for --layout")
    parser.add_argument("--budget", nargs="+", default=[], metavar="LIMIT=N", help=BUDGET_HELP)


def plan(args: argparse.Namespace) -> None:
    study, base = load(args)
    if args.layout:
        return print(layout_tables(planning.in_order(planning.analysis(study)), base, args.layout, args.gpus_per_node))
    rows, cells = [], planning.in_order(planning.analysis(study))
    for cell in cells:
        row: dict[str, Any] = {
            "stage": cell.stage,
            "cell": cell.name,
            "state": state(cell, base),
            "folder": cell.relpath,
        }
        if counted := _updates(cell, base):
            row |= dict(zip(("updates", "tokens", "estimated"), counted, strict=True))
        rows.append(row)
    finished = {cell.identity for cell, row in zip(cells, rows, strict=True) if row["state"] == "done"}
    writing, written = forecast(cells, finished), compare(cells, base)
    profile = _profile(args.cluster)
    placed = parallel_plans(profile)
    training = trainings.forecast(cells, base, placed)
    whole = totals.totals(cells, base, placed, profile)
    compared = totals.compare(cells, base, placed, profile)
    if args.json:
        data: dict[str, Any] = {"study": study.study, "cells": rows, "training": training}
        data |= {"writing": writing, "written": written}
        data |= {"totals": whole, "compared": compared}
        data |= {"power": power_rows(study)} if args.power else {}
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
        from analysis import power

        print("\n" + power.show(power_rows(study)))
    print("\n" + totals.show(whole, compared))
    for line in missing(sources(study)):
        print(f"warning: {line}")
    for line in trainings.grouped(training, "warnings"):
        print(f"warning: {line}")
    for line in trainings.grouped(training, "refused"):
        print(f"can't run: {line}")
    totals.check_budget(whole, totals.parse_budget(args.budget))


def layout_tables(cells: list[Cell], base: Path, gpus: list[int], gpus_per_node: int) -> str:
    """For each model and recipe of the study's trainings, how they lie on each number of GPUs (`recipes.layout`)."""
    layout = importlib.import_module("recipes.layout")  # torch takes seconds to import
    tables = {}
    for cell in cells:
        if cell.stage in ("midtrain", "sft") and "recipe" in cell.settings:
            start, recipe = start_model(cell), cell.settings["recipe"]
            folder = resolve(start.resources["path"]) if "path" in start.resources else base / start.relpath / "model"
            key = json.dumps([start.identity, recipe, cell.resources], sort_keys=True)
            if key not in tables:
                table = layout.table(folder, recipe, cell.resources, gpus, gpus_per_node)
                tables[key] = f"{cell.stage} {cell.name}\n{table}"
    return "\n\n".join(tables.values())


def power_rows(study: Study) -> list[dict[str, Any]]:
    """The power of the study's primary contrasts on judged benchmarks (`analysis.power`)."""
    from analysis import power  # scipy takes a second to import

    designs = [
        power.Design(contrast.name, name, len(study.seeds), questions, study.benchmarks[name].epochs)
        for contrast in study.contrasts
        if contrast.family == "primary"
        for name in contrast.on
        if (questions := num_questions(study.benchmarks[name])) is not None
    ]
    return power.rows(designs)


def _profile(cluster: Path | None) -> Any:
    if cluster is None:
        return None
    from slurm.profile import load_profile

    return load_profile(cluster)


def _updates(cell: Cell, base: Path) -> tuple[int, int, bool] | None:
    """(updates, tokens, estimated?) of a training: counted where it is finished, else estimated."""
    estimate = trainings.count_steps(cell)
    if estimate is None:
        return None
    if manifest := read_manifest(base / cell.relpath):
        return manifest["counts"]["updates"], manifest["counts"]["tokens"], False
    return *estimate, cell.stage != "model"


def _about(number: int, estimated: bool) -> str:
    return f"{'~' if estimated else ''}{number:,}"


def state(cell: Cell, base: Path) -> str:
    folder = base / cell.relpath
    if read_manifest(folder):
        return "done"
    if (folder / "progress.json").exists() or (folder / "log.txt").exists():
        return "begun"
    return "ready" if all(read_manifest(base / i.relpath) for i in cell.inputs.values()) else "waiting"
