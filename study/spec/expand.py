"""A study as cells: which there are, what each needs, in an order in which they can run."""

from collections.abc import Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import Problem, UserError
from core.stages import TRAINING_STAGES, in_stage_order
from study.spec import benchmarks, contrast_arms, source_cells, study_declaration
from study.spec.canary import canaries
from study.spec.chains import dose_step, replicates_of, steps_of
from study.spec.checkpoint import Checkpoint, prompts_of, run_of
from study.spec.doses import doses
from study.spec.expansion import Expansion
from study.spec.fingerprints import is_dummy, model_name
from study.spec.load import dump_study
from study.spec.rungs import rung
from study.spec.schema import Benchmark, Study, Tables
from study.spec.sources import Source, identities, paths

# What the analysis reads of the checkout beside the claims: the page of the report.
ANALYSIS_FILES: dict[str, Source] = {
    "page": {"path": "analysis/report.html.j2"},
    "style": {"path": "analysis/report.css"},
    "script": {"path": "analysis/report.js"},
}
PRESERVATION = "preservation"  # the family whose contrasts have a table (analysis.preservation)
# ... and, of a study that has one of them, further sections.
SECTIONS: dict[str, Source] = {"sections": {"path": "analysis/sections.html.j2"}}


def analysis(study: Study, base: Path | None = None, without: Set[str] = frozenset()) -> Cell:
    """The cell at the end, which every other cell serves.

    `base`: as of `Expansion`. `without`: identities of score cells to leave out (they are then
    listed as missing), for a report of an unfinished study. Raises UserError where a recipe or a
    benchmark does not fit, or the arms of a contrast differ in more than it varies.
    """
    expansion = Expansion(study, base)
    evaluated = sorted(expansion.checkpoints(), key=_row_order)
    audits = contrast_arms.audit(evaluated, study)
    contrast_arms.check(audits)
    _check_agents(study, evaluated)
    inputs: dict[str, Cell] = {}
    rows, missing, unfinished = _score_rows(expansion, evaluated, without, inputs)
    labels = {}
    for name, bench in sorted(study.benchmarks.items()):
        if not bench.labels:
            continue
        cell = expansion.with_folder(benchmarks.labels(name, bench.labels))
        if cell.identity not in without:
            inputs[f"labels-{name}"] = cell
            labels[f"labels-{name}"] = name
    for name, corpus in expansion.corpora().items():
        if corpus.identity not in without:
            inputs[f"corpus-{name}"] = corpus
            embedded = source_cells.embeddings(study, corpus)
            if embedded and embedded.identity not in without:
                inputs[f"embeddings-{name}"] = expansion.with_folder(embedded)
    canary = {}
    for planned in canaries(study):
        cell = expansion.with_folder(planned)
        if cell.identity not in without:
            items = cell.settings["files"]["questions"]
            canary[_add_input(cell, inputs)] = {
                "judge": cell.settings["judge"]["model"],
                "items": items,
            }
    files: dict[str, Source] = {"claims": {"path": study.claims}, **ANALYSIS_FILES}
    has_probe = any(bench.reference for bench in study.benchmarks.values())
    has_methods = any(contrast.family == PRESERVATION for contrast in study.contrasts)
    if canary or has_probe or has_methods:
        files |= SECTIONS
    declaration, declared = study_declaration.planned(study, base, expansion.cells)
    settings = {
        "study": study.study,
        # Those that were declared: what the file adds later was not planned.
        "seeds": declared["seeds"],
        "looks": declared["looks"],
        "declaration": declaration,
        "rows": rows,
        "missing": missing,
        "labels": labels,
        "claim_roles": study.claim_roles,
        "contrasts": [
            asdict(audit.contrast)
            | {
                "paired": contrast_arms.is_paired(evaluated, audit.contrast),
                "differences": audit.keys,
            }
            for audit in audits
        ],
        "costs": asdict(study.costs),
        "benchmarks": {
            name: _judges(study, bench) for name, bench in sorted(study.benchmarks.items())
        },
        "writers": [
            {
                "corpus": name,
                "model": model_name(study, corpus.writer),
                "dummy": is_dummy(study, corpus.writer),
                "matched_to": corpus.matched_to,
                # Not where it is 1, so that such an analysis stays the same.
                **({"replicates": corpus.replicates} if corpus.replicates > 1 else {}),
            }
            for name, corpus in sorted(study.corpora.items())
        ],
        **({"canary": canary} if canary else {}),
        **_prompted(study),
        **_rungs(study),
        "untrained": _untrained(study),
        # Not where it is the default, so that such an analysis stays the same.
        **({"tables": asdict(study.tables)} if study.tables != Tables() else {}),
        **identities(files),
    }
    resources = {
        "trainings": _trainings(evaluated),
        "unfinished": unfinished,
        "study_file": dump_study(study),  # kept with its results
        **paths(files),
    }
    return expansion.with_folder(Cell("analysis", study.study, settings, inputs, resources))


def previews(study: Study, base: Path) -> list[Cell]:
    """The cells of `source_cells.previews`, with their folders."""
    expansion = Expansion(study, base)
    return [expansion.with_folder(cell) for cell in source_cells.previews(study)]


def in_order(last: Cell) -> list[Cell]:
    """Every cell that `last` needs, none twice, stage by stage.

    Inputs come before their users, and `last` is at the end. A training that starts from one of a
    later stage comes after that.
    """
    cells: dict[str, Cell] = {}

    def walk(cell: Cell) -> None:
        if cell.identity not in cells:
            for needed in cell.inputs.values():
                walk(needed)
            cells[cell.identity] = cell

    walk(last)
    stages = {identity: cell.stage for identity, cell in cells.items()}
    inputs = {
        identity: [needed.identity for needed in cell.inputs.values()]
        for identity, cell in cells.items()
    }
    return [cells[identity] for identity in in_stage_order(stages, inputs)]


def _score_rows(
    expansion: Expansion,
    evaluated: list[Checkpoint],
    without: Set[str],
    inputs: dict[str, Cell],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the table of scores, those whose cell is left out, and what these need.

    Adds the cells to `inputs`. What a row needs is where the cells of its weights and answers lie.
    """
    study = expansion.study
    rows = []
    missing = []
    unfinished = []
    for checkpoint in evaluated:
        for name, bench in sorted(study.benchmarks.items()):
            if not _is_asked(bench, checkpoint):
                continue
            for judge, cell in expansion.scores(checkpoint, name).items():
                row: dict[str, Any] = {
                    "arm": checkpoint.arm,
                    "seed": checkpoint.seed,
                    "dose": checkpoint.dose,
                    "benchmark": name,
                    "checkpoint": checkpoint.cell.identity,
                }
                if bench.labels:
                    row["answers"] = cell.inputs["samples"].identity
                if judge != (bench.judge or ""):
                    row["judge"] = model_name(study, judge)
                replicates = replicates_of(study, study.arms[checkpoint.arm])
                if checkpoint.seed is not None and replicates > 1:
                    row["replicate"] = checkpoint.replicate
                if cell.identity in without:
                    missing.append(row)
                    needed = {
                        "weights": checkpoint.cell,
                        "answers": cell.inputs.get("samples", cell),
                    }
                    unfinished.append({name: _source(of_row) for name, of_row in needed.items()})
                    continue
                rows.append({"role": _add_input(cell, inputs), **row})
    for arm, seed, dose, name, cell in expansion.existing_scores():
        row = {"arm": arm, "seed": seed, "dose": dose, "benchmark": name}
        row["checkpoint"] = cell.identity
        if cell.identity in without:
            missing.append(row)
            unfinished.append({"weights": _source(cell), "answers": _source(cell)})
        else:
            rows.append({"role": _add_input(cell, inputs), **row})
    return rows, missing, unfinished


def _add_input(cell: Cell, inputs: dict[str, Cell]) -> str:
    """Add a cell with scores to the inputs of the analysis. Returns its role."""
    role = f"{cell.stage}-{cell.identity[:16]}"  # two cells may have one name
    inputs[role] = cell
    return role


def _source(cell: Cell) -> dict[str, str]:
    """Where a cell lies, as an analysis looks for it."""
    return {"cell": cell.relpath, "identity": cell.identity}


def _row_order(checkpoint: Checkpoint) -> tuple[Any, ...]:
    """The order of arms in the results: those on no corpus first, then by name.

    It does not depend on the order in the study file, which is in no identity.
    """
    seed = -1 if checkpoint.seed is None else checkpoint.seed
    return bool(checkpoint.corpora), checkpoint.arm, checkpoint.dose, seed


def _check_agents(study: Study, evaluated: list[Checkpoint]) -> None:
    """Raise UserError where checkpoints that no chat template prompts are asked for tool calls."""
    problems = []
    for name, bench in sorted(study.benchmarks.items()):
        rows = [row for row in evaluated if _is_asked(bench, row) and not row.chat]
        if rows and benchmarks.declaration(bench)["scorer"] == "agent":
            listed = dict.fromkeys(f"{row.arm} at dose {row.dose}" for row in rows)
            what = "tool calls need a chat template, and without one are prompted: "
            what += ", ".join(listed)
            fix = f"leave these out by benchmarks.{name}.arms or benchmarks.{name}.doses"
            problems.append(Problem(f"benchmarks.{name}", what, fix))
    if problems:
        raise UserError.of(problems)


def _judges(study: Study, bench: Benchmark) -> dict[str, Any]:
    """What the analysis has to know of a benchmark."""
    declared = benchmarks.declaration(bench)
    others = [model_name(study, judge) for judge in bench.other_judges]
    return {
        "task": bench.task,
        "title": bench.title or declared["title"],
        "direction": declared["direction"],
        "judge": model_name(study, bench.judge),
        "dummy": is_dummy(study, bench.judge),
        "other_judges": others + ["human"] * bool(bench.labels),
        "exclude": bench.exclude,
        **({"reference": bench.reference} if bench.reference else {}),
    }


def _prompted(study: Study) -> dict[str, Any]:
    """The arms under a prompt with the names of its files; {} where there are none."""
    names = {
        arm: ", ".join(f"{key} {Path(path).stem}" for key, path in prompts_of(settings))
        for arm, settings in sorted(study.arms.items())
        if prompts_of(settings)
    }
    return {"prompts": names} if names else {}


def _rungs(study: Study) -> dict[str, Any]:
    """The rung of each arm; {} where the study makes everything itself."""
    rungs = {arm: rung(study, arm) for arm in sorted(study.arms)}
    if {*rungs.values()} == {"anew"}:
        return {}
    return {"rungs": rungs, **({"ladder": study.ladder} if study.ladder else {})}


def _untrained(study: Study) -> dict[str, str]:
    """Arm -> the arm with its start model and nothing else, where there is one."""
    alone: dict[str, str] = {}
    for name, arm in sorted(study.arms.items()):
        others = [n for n in range(len(steps_of(arm))) if n != dose_step(arm)]
        if arm.start and not others and not prompts_of(arm) and 0 in doses(study, name):
            alone.setdefault(arm.start, name)
    return {
        name: alone[arm.start]
        for name, arm in sorted(study.arms.items())
        if arm.start and arm.start in alone
    }


def _trainings(evaluated: list[Checkpoint]) -> list[dict[str, Any]]:
    """Where the losses of the arms' trainings lie; of arms that share one, the first is named."""
    rows: dict[str, dict[str, Any]] = {}
    for row in evaluated:
        runs = [cell and run_of(cell) for cell in row.steps]
        for number, cell in enumerate(runs, 1):
            if cell is None or cell.stage not in TRAINING_STAGES:
                continue
            stage = cell.stage
            if stage == "sft":
                stage = f"SFT on {cell.settings['dose']} rows"
            if sum(run is not None and run.stage == cell.stage for run in runs) > 1:
                stage = f"step {number}: {stage}"
            facts = {"stage": stage, "arm": row.arm, "seed": row.seed}
            rows.setdefault(cell.identity, facts | _source(cell))
    return list(rows.values())


def _is_asked(bench: Benchmark, checkpoint: Checkpoint) -> bool:
    """Whether a benchmark is for this checkpoint."""
    of_arm = bench.arms is None or checkpoint.arm in bench.arms
    if checkpoint.prompts and not benchmarks.is_prompted(bench):
        return False
    return of_arm and (bench.doses is None or checkpoint.dose in bench.doses)
