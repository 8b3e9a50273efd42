"""results.json from the long table: pure functions of the scores and of what the study declared."""

from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.bounds import contrast_bounds, missing_bounds
from analysis.contrasts import arm_rows, contrast_rows, score_rows
from analysis.erosion import erosion_rows
from analysis.headline import scope_note
from analysis.judges import agreement, differential_bias
from analysis.looks import (
    judged_at_looks,
    keep_recorded,
    look_records,
    of_seeds,
    seeds_of_curves,
    tables_of_looks,
    take_looks,
)
from analysis.rows import Results, Row, to_jsonable
from analysis.sensitivity import dimension_rows, sensitivity_rows
from analysis.settings import AnalysisSettings, Benchmark
from analysis.table import (
    CHECKPOINT,
    OVERALL,
    by_corpus,
    checkpoint_name,
    dimension_means,
    question_means,
)

METHOD = (
    "Means over questions of means over seeds and epochs. Intervals and tests are for new "
    "training seeds and new questions: two-way (seed and question scenario) variance as in "
    "Cameron, Gelbach and Miller (2011), Student's t with Satterthwaite's degrees of freedom "
    "(Cochran and Cox's quantile where one side alone has seeds), Holm within each declared family "
    "at .05. {scope} With one training seed per arm no verdict is given. Missing grades are left "
    "out, never counted as wrong."
)
# Tasks of eval/benchmarks whose official scorer has a dimension_normalized_avg.
NORMALIZED_TASKS = ("ahb_original", "anima")


def analyze(
    table: pd.DataFrame, settings: AnalysisSettings, recorded_looks: Sequence[Row] | None = None
) -> Results:
    """The part of results.json that rests on the deciding judge's scores and on nothing else.

    `table` holds the rows of the deciding judges (see `table.primary_judge_rows`),
    `recorded_looks` is the content of looks.json, None where no look is recorded. The looks that
    are taken now count as recorded, so that another analysis of the same scores has the same rows.
    """
    means = question_means(table)

    def of_look(seeds: set[int] | None, level: float) -> list[Row]:
        unfinished = [
            row for row in settings.missing if seeds is None or row["seed"] in {None, *seeds}
        ]
        parts = of_seeds(table, seeds), of_seeds(means, seeds)
        return contrast_rows(*parts, settings.contrasts, unfinished, level)

    finished = set(means["seed"].dropna().astype(int))
    looks = take_looks(of_look, settings.looks, settings.seeds)
    files = settings.score_files
    taken = look_records(looks, files)
    records = [] if recorded_looks is None else [*taken, *recorded_looks]  # the earlier one counts
    contrasts = judged_at_looks(keep_recorded(looks, files, records), of_look, finished)
    margins = {contrast.name: contrast.margin for contrast in settings.contrasts if contrast.margin}
    seeds = seeds_of_curves(contrasts, settings.seeds)
    erosion = erosion_rows(means, settings.contrasts, seeds)
    normalized = {name for name, row in settings.benchmarks.items() if row.task in NORMALIZED_TASKS}
    planned = [file.arm for file in files]
    planned += [row["arm"] for row in settings.missing]
    results = {
        "study": settings.study,
        "method": METHOD.format(scope=scope_note(settings.writers)),
        "declaration": settings.declaration,
        "scores": score_rows(means),
        "contrasts": contrasts,
        "looks": taken,
        "erosion": [row for row in erosion if len(row["doses"]) > 1],
        "sensitivity": sensitivity_rows(table, means, contrasts, margins, settings.seeds),
        "dimension_tests": dimension_rows(table, contrasts, settings.seeds),
        "arms": arm_rows(table, means, normalized),
        "dimensions": dimension_means(by_corpus(table)).to_dict("records"),
        "bounds": bounds(table, settings, contrasts),
        "missing": sorted(settings.missing, key=_missing_order),
        "notes": [*exclusion_notes(settings.benchmarks), *lost_question_notes(means)],
        "arm_order": list(dict.fromkeys(planned)),
        "benchmarks": {
            name: benchmark_row(benchmark, table[table["benchmark"] == name])
            for name, benchmark in settings.benchmarks.items()
        },
        "writers": settings.writers,
        "rungs": settings.rungs,
    }
    jsonable: Results = to_jsonable(results)
    return jsonable


def _missing_order(row: Row) -> tuple[str, int, str, int]:
    return row["benchmark"], row["dose"], row["arm"], row["seed"] or 0


def benchmark_row(benchmark: Benchmark, table: pd.DataFrame) -> Row:
    """The declaration of a benchmark with the counts of what was asked."""
    part = table[table["dimension"] == OVERALL]
    return benchmark.row() | {
        "questions": part["question"].nunique(),
        "scenarios": part["scenario"].nunique(),
        "epochs": 0 if part.empty else part["epoch"].nunique(),
        "judge": benchmark.judge if part.empty else part["judge"].iloc[0],
    }


def exclusion_notes(benchmarks: Mapping[str, Benchmark]) -> list[str]:
    """A line per benchmark some of whose questions the study file excludes."""
    return [
        f"{name}: the study file leaves out the questions {', '.join(ids)}"
        for name, ids in ((name, benchmark.exclude) for name, benchmark in benchmarks.items())
        if ids
    ]


def lost_question_notes(means: pd.DataFrame) -> list[str]:
    """A line per checkpoint that lacks some of the questions of its benchmark."""
    notes = []
    for benchmark, part in means.groupby("benchmark"):
        total = part["question"].nunique()
        for keys, rows in part.groupby(CHECKPOINT, dropna=False):
            if len(rows) != total:
                name = checkpoint_name(dict(zip(CHECKPOINT, keys, strict=True)))
                notes.append(
                    f"{len(rows)} of the {total} questions of {benchmark} were answered: {name}"
                )
    return notes


def bounds(table: pd.DataFrame, settings: AnalysisSettings, contrasts: Sequence[Row]) -> Results:
    """What missing grades could change: see analysis.bounds. Empty where no grade is missing.

    Those of contrasts rest on the seeds that the rows of `contrasts` rest on.
    """
    benchmarks = set(table.loc[table["score"].isna(), "benchmark"])
    if not benchmarks:
        return {}
    part = table[table["benchmark"].isin(benchmarks)]
    keys = ("name", "benchmark", "dose", "control_dose")
    looks = {tuple(row[key] for key in keys): row["look"] for row in contrasts}
    rows = [
        row
        for look, of_look in tables_of_looks(part, contrasts, settings.seeds).items()
        for row in contrast_bounds(by_corpus(of_look), settings.contrasts)
        if looks[tuple(row[key] for key in keys)] == look
    ]
    names = [contrast.name for contrast in settings.contrasts]
    rows.sort(key=lambda row: (names.index(row["name"]), row["benchmark"], row["dose"]))
    return {"arms": missing_bounds(by_corpus(part)), "contrasts": rows}


def judge_rows(table: pd.DataFrame, settings: AnalysisSettings) -> list[Row]:
    """The agreement of judges where a benchmark has several, each row with the judges' `bias`.

    `table` is the long table with the rows of every judge. See analysis.judges.
    """
    primary = {name: judge for name, judge in settings.judges.items() if judge}
    bias = differential_bias(by_corpus(table), primary, settings.contrasts)
    rows = []
    for row in agreement(table, primary):
        of_row = [b for b in bias if b["benchmark"] == row["benchmark"] and row["arm"] is None]
        rows.append({**row, "bias": of_row})
    return rows
