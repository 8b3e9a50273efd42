"""The analysis stage: scores of every finished checkpoint in; results.json, tables, figures and report.html out."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import evidence_tables, figures, tables
from analysis.bounds import contrast_bounds, missing_bounds
from analysis.claims import arithmetic, claim_rows
from analysis.contrasts import arm_rows, contrast_rows, score_rows
from analysis.corpora import corpora
from analysis.curves import read_losses
from analysis.erosion import erosion_rows
from analysis.examples import examples
from analysis.headline import headline, missing_lines, stand_in_note
from analysis.judges import agreement, differential_bias
from analysis.macros import macros
from analysis.opinions import dimension_rows, opinion_rows
from analysis.report import report
from analysis.robustness import grid
from analysis.table import (
    OVERALL,
    check,
    checkpoint_name,
    decisive,
    dimension_means,
    long_table,
    question_means,
    without,
)
from analysis.variance import purchase_rows
from core.cell.context import StageContext
from core.errors import UserError

METHOD = (
    "Means over questions of means over seeds and epochs. Intervals and tests are for new training seeds and new "
    "questions: two-way (seed and question scenario) variance as in Cameron, Gelbach and Miller (2011), Student's t "
    "with Satterthwaite's degrees of freedom, Holm within each declared family at .05. With one training seed per arm "
    "no verdict is given. Missing grades are left out, never counted as wrong."
)

# Tables that are written where there is something to put into them.
OPTIONAL = (
    *("erosion", "opinions", "dimension_tests", "variance", "corpora", "judges", "bounds", "robustness", "claims"),
    "arithmetic",
)


def run(work: StageContext) -> dict[str, int | float]:
    """Write every output of the analysis into `work.folder`; returns the counts for the manifest.

    Settings: `study`; `rows` (role, arm, seed or None, dose, benchmark, checkpoint; `work.inputs[role]` holds
    scores.parquet, `work.inputs["corpus-NAME"]` card.json); `labels` (roles of what people graded); `missing` (planned
    checkpoints without scores); `contrasts` (name, of, against, on, family, margin, paired); `benchmarks` (name ->
    task, judge or None, other_judges, stand_in, exclude); `costs` (study.spec.schema.Costs); `roles` (analysis.claims;
    empty: none); `writers` (corpus, model, stand_in). Resources: `trainings` (stage, arm, seed, cell).
    Raises UserError when the scores can't be analyzed as they are (see analysis.table.check).
    """
    settings = work.settings
    excluded = {name: benchmark["exclude"] for name, benchmark in settings["benchmarks"].items()}
    table = without(long_table(settings["rows"], work.inputs, settings["labels"]), excluded)
    main = decisive(table, {name: benchmark["other_judges"] for name, benchmark in settings["benchmarks"].items()})
    check(main, {name: benchmark["judge"] for name, benchmark in settings["benchmarks"].items()})
    results = analyze(main, settings)
    judging = {name: benchmark["judge"] for name, benchmark in results["benchmarks"].items()}
    results |= {
        "variance": plain(purchase_rows(table, results["contrasts"], judging, settings["costs"])),
        "examples": examples(settings["rows"], results["contrasts"], work.inputs),
        "corpora": plain(corpora(work.inputs)),
        "judges": plain(judges(table, settings)),
    }
    claims = claim_rows(results, settings["roles"]) if settings["roles"] else []
    results |= {"claims": plain(claims), "arithmetic": plain(arithmetic()) if claims else []}
    results["robustness"] = plain(grid(table, settings["contrasts"], settings))
    work.log(f"{len(table)} scores of {len(results['scores'])} checkpoints")
    for row in results["missing"]:
        work.warn(f"not finished: {checkpoint_name(row)}")
    for note in results["notes"]:
        work.warn(note)

    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    (work.folder / "results.json").write_text(text + "\n", encoding="utf-8")
    # pandas keeps attrs in the file, so the long table also says what it lacks
    table.attrs["missing"] = results["missing"]
    table.to_parquet(work.folder / "scores.parquet", index=False)
    (work.folder / "tables").mkdir(exist_ok=True)
    for name in ("scores", "contrasts", "dimensions", *(name for name in OPTIONAL if results[name])):
        make = getattr(tables, f"{name}_table", None) or getattr(evidence_tables, f"{name}_table")
        (work.folder / "tables" / f"{name}.tex").write_text(make(results), encoding="utf-8")
    try:
        notes = [note for note in [stand_in_note(results), *missing_lines(results)] if note]
        text = "".join(f"% {note}\n" for note in notes) + macros(results)
        (work.folder / "macros.tex").write_text(text, encoding="utf-8")
    except UserError as error:  # two names that come to the same letters
        for line in error.lines:
            work.warn(f"no macros.tex: {line}")
    texts = {row["name"]: documents(work.inputs[f"corpus-{row['name']}"]) for row in results["corpora"]}
    drawn = figures.draw(results, question_means(main), losses(work), texts)
    for name, one in drawn.items():
        if one.error:
            work.warn(f"figures/{name}: {one.error}")
    svgs = figures.save(drawn, work.folder / "figures")
    (work.folder / "report.html").write_text(report(results, drawn, svgs), encoding="utf-8")
    (work.folder / "headline.txt").write_text(headline(results) + "\n", encoding="utf-8")
    return {
        "checkpoints": len(results["scores"]),
        "checkpoints_missing": len(results["missing"]),
        "scores": len(table),
        "grades_missing": sum(row["missing"] for row in results["scores"]),
        "contrasts": len(results["contrasts"]),
        "verdicts": sum(row["verdict"] != "none" for row in results["contrasts"]),
    }


def analyze(table: pd.DataFrame, settings: dict[str, Any]) -> dict[str, Any]:
    """The contents of results.json: a pure function of the long table and of what the study declared."""
    means = question_means(table)
    planned = [*settings["rows"], *settings["missing"]]
    benchmarks = {}
    for name, benchmark in settings["benchmarks"].items():
        part = table[(table["benchmark"] == name) & (table["dimension"] == OVERALL)]
        counts = {"questions": part["question"].nunique(), "scenarios": part["scenario"].nunique()}
        benchmarks[name] = {
            **benchmark,
            **counts,
            "epochs": 0 if part.empty else part["epoch"].nunique(),
            "judge": benchmark["judge"] if part.empty else part["judge"].iloc[0],
        }
    declared = settings["contrasts"]
    contrasts = contrast_rows(table, means, declared, settings["missing"])
    margins = {contrast["name"]: contrast["margin"] for contrast in declared if contrast.get("margin")}
    results = {
        "study": settings["study"],
        "method": METHOD,
        "declared": declared_hash(settings),
        "scores": score_rows(means),
        "contrasts": contrasts,
        "erosion": [row for row in erosion_rows(means, declared) if len(row["doses"]) > 1],
        "opinions": opinion_rows(table, means, contrasts, margins),
        "dimension_tests": dimension_rows(table, contrasts),
        "arms": arm_rows(means),
        "dimensions": dimension_means(table).to_dict("records"),
        "bounds": bounds(table, settings["contrasts"]),
        "missing": sorted(
            settings["missing"], key=lambda row: (row["benchmark"], row["dose"], row["arm"], row["seed"] or 0)
        ),
        "notes": [*left_out(settings["benchmarks"]), *uneven(means)],
        "arm_order": list(dict.fromkeys(row["arm"] for row in planned)),
        "benchmarks": benchmarks,
        "writers": settings["writers"],
    }
    return plain(results)


def losses(work: StageContext) -> list[dict[str, Any]]:
    """Losses of the trainings behind the scores, as far as their folders are there."""
    base = work.folder.parents[1]
    rows = [row | read_losses(base / row["cell"]) for row in work.resources.get("trainings", [])]
    return [row for row in rows if row["points"] or row["held_out"]]


def documents(corpus: Path) -> list[str]:
    """The texts that a corpus trains on."""
    with open(corpus / "documents.jsonl", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def declared_hash(settings: dict[str, Any]) -> str:
    """sha256 of what was declared before any data: contrasts with families and margins, questions left out, roles."""
    keys = ("name", "of", "against", "on", "family", "of_dose", "against_dose", "margin")
    contrasts = [{key: contrast.get(key) for key in keys} for contrast in settings["contrasts"]]
    excluded = {name: benchmark["exclude"] for name, benchmark in settings["benchmarks"].items()}
    text = json.dumps([contrasts, excluded, settings["roles"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def left_out(benchmarks: dict[str, Any]) -> list[str]:
    """A line per benchmark some of whose questions the study file excludes."""
    found = [(name, benchmark["exclude"]) for name, benchmark in benchmarks.items() if benchmark["exclude"]]
    return [f"{name}: the study file leaves out {len(ids)} questions: {', '.join(ids)}" for name, ids in found]


def judges(table: pd.DataFrame, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """How judges agree where a benchmark has several, and whom they favour: see analysis.judges."""
    primary = {name: benchmark["judge"] for name, benchmark in settings["benchmarks"].items() if benchmark["judge"]}
    bias = differential_bias(table, primary, settings["contrasts"])
    return [
        {**row, "bias": [b for b in bias if b["benchmark"] == row["benchmark"] and row["arm"] is None]}
        for row in agreement(table, primary)
    ]


def bounds(table: pd.DataFrame, contrasts: list[dict[str, Any]]) -> dict[str, Any]:
    """What missing grades could change, where there are any: see analysis.bounds."""
    lacking = set(table.loc[table["score"].isna(), "benchmark"])
    part = table[table["benchmark"].isin(lacking)]
    return {"arms": missing_bounds(part), "contrasts": contrast_bounds(part, contrasts)} if lacking else {}


def uneven(means: pd.DataFrame) -> list[str]:
    """A line per checkpoint that holds other questions than the rest of its benchmark: rows lost on the way."""
    notes = []
    for benchmark, part in means.groupby("benchmark"):
        everything = part["question"].nunique()
        for keys, found in part.groupby(["benchmark", "dose", "arm", "seed"], dropna=False):
            if len(found) != everything:
                name = checkpoint_name(dict(zip(["benchmark", "dose", "arm", "seed"], keys, strict=True)))
                notes.append(f"{len(found)} of the {everything} questions of {benchmark} were answered: {name}")
    return notes


def plain(value: Any) -> Any:
    """JSON's own types: floats to six significant digits (the last bits may differ between machines), NaN to None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(f"{value:.6g}") + 0.0
    return int(value) if isinstance(value, np.integer) else value
