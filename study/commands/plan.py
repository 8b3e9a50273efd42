"""List the cells of a study, what is done and what is left to do. Changes nothing."""

import argparse
import importlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.gpu_specs import GPUS
from core.model_size import start_model
from core.paths import resolve
from core.stages import TRAINING_STAGES
from study.commands import plan_addition, plan_deadline
from study.commands.common import (
    BUDGET_HELP,
    load,
    load_cluster,
    parallel_plans,
    positive,
    shown_names,
    study_args,
    unfinished,
)
from study.forecast import (
    corpus_cost,
    fewer_gpus,
    inference_gpus,
    marginal_cost,
    study_cost,
    training_cost,
    training_size,
)
from study.forecast.assumptions import ASSUMED_GPU, BATCH_HOURS
from study.forecast.budget import check_budget, parse_budget
from study.forecast.gpu_rates import unnamed_gpus
from study.spec import contrast_arms, expand
from study.spec.doses import unreachable
from study.spec.expansion import Expansion
from study.spec.schema import Study
from study.spec.source_cells import corpus_name, sources
from study.spec.sources import missing
from study.spec.start_models import model_problems
from study.spec.value_checks import study_warnings
from study.upkeep import replaced
from study.upkeep.prune import needed_again

MOST_LISTED = 200  # cells; of more, the table has a line for each stage
STATES = ("done", "begun", "ready", "waiting")  # of `state`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster",
        type=Path,
        metavar="NAME",
        help="forecast for this cluster: a profile of slurm/clusters, or a file",
    )
    parser.add_argument(
        "--power",
        action="store_true",
        help="print the power of the contrasts on judged benchmarks",
    )
    parser.add_argument(
        "--variances",
        type=Path,
        metavar="RESULTS",
        help="--power with the variances that another study measured, such as "
        "results/pilot/results.json",
    )
    parser.add_argument(
        "--contrasts",
        action="store_true",
        help="print only in which settings the two arms of each contrast differ",
    )
    parser.add_argument(
        "--layout",
        type=positive,
        nargs="+",
        metavar="GPUS",
        help="print only shards, memory and rows of each training on these numbers of GPUs",
    )
    parser.add_argument(
        "--gpus-per-node",
        type=positive,
        default=8,
        metavar="N",
        help="GPUs of a node, for --layout (default: 8)",
    )
    parser.add_argument(
        "--costs",
        action="store_true",
        help="print only what one more seed, question and answer cost (`costs:` of the study file)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"list the cells of a study of more than {MOST_LISTED} too",
    )
    plan_addition.add_arguments(parser)
    plan_deadline.add_arguments(parser)
    parser.add_argument("--budget", nargs="+", default=[], metavar="LIMIT=N", help=BUDGET_HELP)


def plan(args: argparse.Namespace) -> None:
    """Print the cells, the forecasts and what prevents the study from running."""
    if args.gpus or args.hours is not None or args.write:
        return plan_deadline.plan_deadline(args)
    if args.add or args.contrast:
        return plan_addition.plan_addition(args)
    study, base = load(args)
    if args.contrasts:
        return show_contrasts(study, args.json)
    cells = expand.in_order(expand.analysis(study, base))
    if args.layout:
        unmade = f"python -m study run {study_args(args)} --stages model"
        return print(layout_tables(cells, base, args.layout, args.gpus_per_node, unmade))
    names = shown_names(cells)
    rows = [_cell_row(cell, names[cell.identity], base) for cell in cells]
    finished = {
        cell.identity for cell, row in zip(cells, rows, strict=True) if row["state"] == "done"
    }
    profile = load_cluster(args)
    layouts = parallel_plans(profile)
    if args.costs:
        costs = marginal_cost.costs(cells[-1], cells, layouts, profile)
        return print(json.dumps(asdict(costs)) if args.json else marginal_cost.show(costs))
    training = training_cost.forecast(cells, base, layouts)
    cheaper = fewer_gpus.fewer_gpus(cells, base, layouts)
    to_write = corpus_cost.forecast(cells, finished)
    written = corpus_cost.compare(cells, base)
    budget = parse_budget(args.budget)
    limit_gb = budget.get("disk_gb") if profile else None  # only `submit` keeps to it
    totals = study_cost.totals(cells, base, layouts, profile, limit_gb)
    compared = study_cost.compare(cells, base, layouts, profile)
    contaminated = _contaminated(cells, base)
    remade = replaced.replaced(cells, base, profile)
    back = needed_again(cells, base)
    vllm_gpus = inference_gpus.compare(unfinished(cells, base), profile)
    refused = [str(p) for p in (*unreachable(study), *model_problems(unfinished(cells, base)))]
    if args.power or args.variances:
        power, power_tables = power_of(study, cells[-1], args.variances)
    if args.json:
        data: dict[str, Any] = {
            "study": study.study,
            "cells": rows,
            "training": training,
            "fewer_gpus": cheaper,
            "writing": to_write,
            "written": written,
            "totals": totals,
            "compared": compared,
            "contaminated": contaminated,
            "vllm_gpus": vllm_gpus,
            "refused": refused,
            "needed_again": [problem.where for problem in back],
            "replaced": [row.as_json() for row in remade],
        }
        data |= {"power": power} if args.power or args.variances else {}
        return print(json.dumps(data, indent=1))
    print(_cell_table(rows) if args.all or len(rows) <= MOST_LISTED else _stage_table(rows))
    print(f"\n{len(rows)} cells, {len(finished)} done, in {base}. ~: estimated until it has run.")
    if remade:
        print("\n" + replaced.show(remade))
        print("These finished cells are kept, and are used again when the change is undone.")
    for pruned in back:
        print(f"comes back, with --yes of run or submit: {pruned.where} {pruned.what}")
    if training:
        print("\n" + training_cost.show(training))
        print(training_cost.summary(training))
        for row in cheaper:
            print(f"cheaper: {fewer_gpus.show(row)}")
    if to_write:
        print("\n" + _writing_table(to_write))
        print(
            "Rejected and rewritten documents are not included. Cost uses the endpoint prices in "
            "the study file, hours the rate limits."
        )
    by_batch = [c for c in cells if "batch" in c.resources.get("address", {})]
    if batched := sum(cell.identity not in finished for cell in by_batch):
        print(f"\n{batched} cells send their requests as batches. {BATCH_HOURS}")
    if written:
        print("\n" + _written_table(written))
    if args.power or args.variances:
        print("\n" + power_tables)
    print("\n" + study_cost.show(totals, compared))
    for problem in [*missing(sources(study), study_args(args)), *study_warnings(study)]:
        print(f"warning: {problem}")
    if profile and (stages := unnamed_gpus(profile)):
        print(
            f"warning: no known GPU type in the profile for {', '.join(stages)}: "
            f"{ASSUMED_GPU.name} is assumed; set gpu_type in it to one of "
            f"{', '.join(gpu.name.replace(' ', '_') for gpu in GPUS)}"
        )
    for line in training_cost.grouped(training, "warnings") + vllm_gpus["warnings"]:
        print(f"warning: {line}")
    for row in contaminated:
        print(
            f"can't run: evaluations on {row['benchmark']} after training on corpus "
            f"{row['corpus']}: {row['documents']} documents hold text of it ({row['hits']}); "
            f"set corpora.{row['corpus']}.exclude to a file with the ids in {row['exclude']}"
        )
    for line in training_cost.grouped(training, "refused") + vllm_gpus["refused"] + refused:
        print(f"can't run: {line}")
    check_budget(totals, budget)


def show_contrasts(study: Study, as_json: bool) -> None:
    """Print what each contrast varies. Raises UserError where it is more than it declares."""
    audits = contrast_arms.audit(Expansion(study).checkpoints(), study)
    if as_json:
        rows = [
            {
                "contrast": audit.contrast.name,
                "differences": [asdict(row) for row in audit.differences],
                "confounded": [row.key for row in audit.undeclared],
                "text": str(audit),
            }
            for audit in audits
        ]
        return print(json.dumps(rows, indent=1))
    for audit in audits:
        print(f"{audit.contrast.name}\n  {audit}{': CONFOUNDED' if audit.undeclared else ''}")
    contrast_arms.check(audits)


def layout_tables(
    cells: list[Cell], base: Path, gpus: list[int], gpus_per_node: int, make_command: str
) -> str:
    """How the study's trainings lie on each number of GPUs (`recipes.layout`).

    One table for each model and recipe. `make_command` makes the models that the kit makes.
    """
    layout = importlib.import_module("recipes.layout")  # torch takes seconds to import
    tables = {}
    for cell in cells:
        if cell.stage not in TRAINING_STAGES or "recipe" not in cell.settings:
            continue
        start = start_model(cell)
        recipe = cell.settings["recipe"]
        key = json.dumps([start.identity, recipe, cell.resources], sort_keys=True)
        if key in tables:
            continue
        path = start.resources.get("files", {}).get("model")
        folder = resolve(path) if path else base / start.relpath / "model"
        if not path and not folder.exists():
            raise UserError(where=str(folder), what="is not made yet", fix=make_command)
        table = layout.table(folder, recipe, cell.resources, gpus, gpus_per_node)
        tables[key] = f"{cell.stage} {cell.name}\n{table}"
    return "\n\n".join(tables.values())


def power_of(
    study: Study, analysis: Cell, variances: Path | None
) -> tuple[list[dict[str, Any]], str]:
    """The power of the study's contrasts on judged benchmarks (`analysis.power`), and its tables.

    `analysis` is the study's last cell, `variances` the results.json of a former study.
    """
    from analysis import power  # scipy takes a second to import
    from study.forecast.planned_contrasts import planned_contrasts

    pilot = power.read_pilot(variances) if variances else None
    rows = power.rows(planned_contrasts(study, analysis), pilot)
    return rows, power.show(rows, pilot)


def state(cell: Cell, base: Path) -> str:
    """done, begun, ready (its inputs are done) or waiting."""
    folder = base / cell.relpath
    if read_manifest(folder):
        return "done"
    if (folder / "progress.json").exists() or (folder / "log.txt").exists():
        return "begun"
    inputs_done = all(read_manifest(base / needed.relpath) for needed in cell.inputs.values())
    return "ready" if inputs_done else "waiting"


def _cell_row(cell: Cell, name: str, base: Path) -> dict[str, Any]:
    row: dict[str, Any] = {
        "stage": cell.stage,
        "cell": name,
        "state": state(cell, base),
        "folder": cell.relpath,
    }
    if counted := _steps(cell, base):
        row |= dict(zip(("steps", "tokens", "estimated"), counted, strict=True))
    return row


def _steps(cell: Cell, base: Path) -> tuple[int, int, bool] | None:
    """(optimizer steps, tokens, estimated?) of a training; None for any other cell.

    They are counted where the training is finished, else estimated.
    """
    estimate = training_size.count_steps(cell)
    if estimate is None:
        return None
    if manifest := read_manifest(base / cell.relpath):
        return manifest["counts"]["steps"], manifest["counts"]["tokens"], False
    return *estimate, cell.stage != "model"


def _contaminated(cells: list[Cell], base: Path) -> list[dict[str, Any]]:
    """The finished checks of a corpus that found texts of a benchmark in it."""
    rows = []
    for cell in (cell for cell in cells if cell.stage == "contamination"):
        folder = base / cell.relpath
        count = (read_manifest(folder) or {"counts": {}})["counts"].get("documents_hit", 0)
        if count:
            documents = cell.inputs["documents"]
            rows.append(
                {
                    "corpus": corpus_name(documents),
                    "benchmark": cell.name.removeprefix(f"{documents.name}-"),
                    "documents": count,
                    "hits": str(folder / "hits.jsonl"),
                    "exclude": str(folder / "exclude.txt"),
                }
            )
    return rows


def _cell_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        counts = [_about(row[k], row["estimated"]) if k in row else "" for k in ("steps", "tokens")]
        lines.append([row["stage"], row["cell"], row["state"], *counts])
    headers = ["stage", "cell", "state", "steps", "tokens"]
    alignment = ("left", "left", "left", "right", "right")
    return tabulate(lines, headers=headers, colalign=alignment)


def _stage_table(rows: list[dict[str, Any]]) -> str:
    """How many cells of each stage are in which state; `--all` lists the cells."""
    counts = Counter((row["stage"], row["state"]) for row in rows)
    stages = dict.fromkeys(row["stage"] for row in rows)
    lines = [
        [stage, *(counts[stage, name] or "" for name in STATES), counts_of]
        for stage in stages
        if (counts_of := sum(counts[stage, name] for name in STATES))
    ]
    headers = ["stage", *STATES, "cells"]
    return tabulate(lines, headers=headers) + "\n(--all lists the cells)"


def _about(number: int, estimated: bool) -> str:
    return f"{'~' if estimated else ''}{number:,}"


def _writing_table(rows: list[dict[str, Any]]) -> str:
    keys = corpus_cost.KEYS
    lines = [[row["corpus"], *(row[key] for key in keys)] for row in rows]
    if len(rows) > 1:
        total = corpus_cost.total(rows)
        lines.append(["total", *(total[key] for key in keys)])
    headers = ["corpus to write", *(f"~{key.replace('_', ' ')}" for key in keys)]
    return tabulate(lines, headers=headers, floatfmt=".2f", intfmt=",")


def _written_table(rows: list[dict[str, Any]]) -> str:
    keys = corpus_cost.KEYS
    lines = []
    for row in rows:
        label = "estimated" if row["actual"]["calls_estimated"] else "actual"
        lines.append([row["corpus"], "forecast", *(row["forecast"][key] for key in keys)])
        lines.append(["", label, *(row["actual"][key] for key in keys)])
    headers = ["corpus written", "", *(key.replace("_", " ") for key in keys)]
    return tabulate(lines, headers=headers, floatfmt=".2f", intfmt=",")
