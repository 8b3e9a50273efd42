"""The long table: one row per score of every finished checkpoint.

Every statistic of the analysis is a function of this table and of the study's declarations.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.exclusion import excluded_ids
from analysis.settings import ScoreFile
from core.errors import Problem, UserError

CHECKPOINT = ["benchmark", "dose", "arm", "seed"]
MADE_BY = "checkpoint"  # the cell that made the weights
REPLICATE = "replicate"  # of the arm's corpus; a column where a corpus was written several times
COLUMNS = ["question", "scenario", "dimension", "epoch", "judge", "score", "missing", "response"]
TEXT = ["benchmark", "arm", MADE_BY, "question", "scenario", "dimension", "judge", "missing"]
OVERALL = "overall"


def checkpoint_name(row: Mapping[str, Any] | pd.Series) -> str:
    """`animal, seed 0, dose 200, on ahb` for anything that holds the four keys of a checkpoint."""
    seed = "no training seed" if pd.isna(row["seed"]) else f"seed {int(row['seed'])}"
    return f"{row['arm']}, {seed}, dose {row['dose']}, on {row['benchmark']}"


def long_table(
    files: Sequence[ScoreFile], inputs: dict[str, Path], labels: Mapping[str, str]
) -> pd.DataFrame:
    """Read `inputs[role]/scores.parquet` of each score file into one table.

    Args:
        files: each adds its arm, seed, dose, benchmark and checkpoint to the rows of its file.
        inputs: role -> folder of the finished cell.
        labels: role of a file with grades by people -> the benchmark. Such a file names the answers
            of each row, which may be of several checkpoints. Rows of answers that no checkpoint of
            `files` gave are left out (`unused_labels`).

    Returns:
        The columns `CHECKPOINT`, `MADE_BY`, then `COLUMNS`. `seed` is Int64, and <NA> for a
        checkpoint without a training seed. Where a corpus was written several times, there is a
        column `REPLICATE` too (Int64, <NA> for checkpoints on other corpora or none). The rows are
        sorted, so that neither the order of `files` nor that of the lines in them matters.

    Raises:
        UserError: there are no scores, or a file is absent or lacks columns.
    """
    parts = []
    problems = []
    made_by = _made_by(files)
    for file in files:
        path = inputs[file.role] / "scores.parquet"
        if not path.is_file():
            what = f"no scores of {checkpoint_name(vars(file))}"
            problems.append(Problem(str(path), what, "run its cell again"))
            continue
        part = pd.read_parquet(path)
        absent = [column for column in COLUMNS if column not in part.columns]
        if absent:
            what = f"columns {', '.join(absent)} are absent"
            problems.append(Problem(str(path), what, "run its cell again with this version"))
            continue
        keys = {key: getattr(file, key) for key in [*CHECKPOINT, *made_by]}
        parts.append(part[COLUMNS].assign(**keys))
    if problems:
        raise UserError.of(problems)
    parts += [_labels(inputs[role], files, benchmark) for role, benchmark in labels.items()]
    if not sum(map(len, parts)):
        raise UserError(
            what="there are no scores to analyze, as no checkpoint has finished its evaluation",
            fix="run the study first",
        )
    table = pd.concat(parts, ignore_index=True)
    types: dict[str, Any] = dict.fromkeys([*TEXT, "response"], "str")
    types |= {"seed": "Int64", "dose": "int64", "epoch": "int64", "score": float}
    types |= {REPLICATE: "Int64"} if REPLICATE in table else {}
    table = table.astype(types)
    unexplained = table["score"].isna() & table["missing"].isna()
    table.loc[unexplained, "missing"] = "no reason recorded"
    order = [*CHECKPOINT, "question", "epoch", "dimension", "judge"]
    table = table[[*CHECKPOINT, *made_by, *COLUMNS]]
    return table.sort_values(order, kind="stable", ignore_index=True)


def _made_by(files: Sequence[ScoreFile]) -> list[str]:
    """The columns that say what a checkpoint was made by and from."""
    return [MADE_BY, *([REPLICATE] if any(file.replicate is not None for file in files) else [])]


def _labels(folder: Path, files: Sequence[ScoreFile], benchmark: str) -> pd.DataFrame:
    """People's grades of answers on a benchmark, for each checkpoint that gave these answers."""
    labelled = pd.read_parquet(folder / "scores.parquet")
    parts = [
        labelled.loc[labelled["answers"] == file.answers, COLUMNS].assign(
            **{key: getattr(file, key) for key in [*CHECKPOINT, *_made_by(files)]}
        )
        for file in files
        if file.benchmark == benchmark and file.other_judge is None
    ]
    return pd.concat(parts, ignore_index=True) if parts else labelled.iloc[:0]


def unused_labels(
    files: Sequence[ScoreFile], inputs: dict[str, Path], labels: Mapping[str, str]
) -> list[str]:
    """A note for each benchmark where people graded answers that no checkpoint of `files` gave."""
    notes = []
    for role, benchmark in labels.items():
        answers = pd.read_parquet(inputs[role] / "scores.parquet")["answers"]
        used = answers.isin([file.answers for file in files if file.benchmark == benchmark])
        if not used.all():
            notes.append(
                f"{benchmark}: {(~used).sum()} of {len(used)} grades by people are of answers that "
                "this analysis doesn't have, such as those of an arm that was removed or of other "
                "sampling settings; they are left out"
            )
    return notes


def primary_judge_rows(
    table: pd.DataFrame, other_judges: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """The rows that statistics are computed from: those of each benchmark's deciding judge.

    `other_judges` maps a benchmark to the judges whose rows are removed.
    """
    removed = pd.Series(False, index=table.index)
    for benchmark, judges in other_judges.items():
        removed |= (table["benchmark"] == benchmark) & table["judge"].isin(judges)
    return table[~removed].reset_index(drop=True)


def drop_excluded(table: pd.DataFrame, excluded: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Remove the questions that a study leaves out of a benchmark (`excluded_ids`).

    Raises UserError for ids and patterns of which the table has no question.
    """
    problems = []
    for benchmark, patterns in excluded.items():
        of_benchmark = table["benchmark"] == benchmark
        questions = set(table.loc[of_benchmark, "question"])
        problems += [
            Problem(f"{benchmark}: exclude", f"no question {pattern}")
            for pattern in patterns
            if not excluded_ids(questions, [pattern])
        ]
        ids = excluded_ids(questions, patterns)
        table = table[~(of_benchmark & table["question"].isin(ids))]
    if problems:
        raise UserError.of(problems)
    return table.reset_index(drop=True)


def check_table(table: pd.DataFrame, judges: Mapping[str, str | None]) -> None:
    """Refuse a table that would give a wrong number.

    `judges` maps a benchmark to its declared judge, if any. Raises UserError with every problem:
    duplicate rows, scores outside 0..1, a score that is also marked missing, several judges or an
    undeclared one, questions that change scenario, checkpoints without an overall score, and an
    arm that has checkpoints with and without a training seed.
    """
    problems = []

    def refuse(what: str, rows: pd.DataFrame, fix: str) -> None:
        if len(rows):
            first = checkpoint_name(rows.iloc[0])
            problems.append(Problem("", f"{what} ({len(rows)} rows); first: {first}", fix))

    key = [*CHECKPOINT, "question", "epoch", "dimension", "judge"]
    scored = table["score"].notna()
    refuse(
        "the same score twice",
        table[table.duplicated(key)],
        "give each checkpoint one role, each answer one score",
    )
    refuse(
        "a score outside 0..1",
        table[scored & ~table["score"].between(0, 1)],
        "scale the scorer's values to 0..1",
    )
    refuse(
        "a score that is also marked missing",
        table[scored & table["missing"].notna()],
        "a missing grade has no score",
    )
    for name, part in table.groupby("benchmark"):
        problems += _benchmark_problems(str(name), part, judges.get(str(name)))
    if problems:
        raise UserError.of(problems)


def _benchmark_problems(name: str, part: pd.DataFrame, declared: str | None) -> list[Problem]:
    """The problems of one benchmark's rows; `declared` is its judge."""
    problems = []
    location = f"benchmark {name}"
    judges = sorted(part["judge"].dropna().unique())
    if len(judges) != 1:
        what = f"{len(judges)} judges ({', '.join(judges)})"
        problems.append(Problem(location, what, "grade all its arms with one judge"))
    elif declared is not None and judges != [declared]:
        what = f"graded by {judges[0]} but {declared} is declared"
        problems.append(Problem(location, what, "judge it again"))

    scenarios = part.groupby("question")["scenario"].nunique()
    if (scenarios != 1).any():
        moved = ", ".join(map(str, scenarios.index[scenarios != 1][:3]))
        what = f"questions without exactly one scenario ({moved})"
        problems.append(Problem(location, what, "use one question file"))

    with_overall = part.loc[part["dimension"] == OVERALL, CHECKPOINT].drop_duplicates()
    checkpoints = part[CHECKPOINT].drop_duplicates()
    checkpoints = checkpoints.merge(with_overall, how="left", indicator=True)
    for _, row in checkpoints[checkpoints["_merge"] == "left_only"].iterrows():
        problems.append(Problem(checkpoint_name(row), f"no '{OVERALL}' score", "judge it again"))

    for (dose, arm), seeds in part.groupby(["dose", "arm"])["seed"]:
        if seeds.isna().any() and seeds.notna().any():
            what = "checkpoints with and without a training seed"
            problems.append(
                Problem(f"arm {arm}, dose {dose}, on {name}", what, "name them as two arms")
            )
    return problems


def question_means(table: pd.DataFrame) -> pd.DataFrame:
    """One row per checkpoint and question.

    Columns: `CHECKPOINT`, `REPLICATE` where `table` has it, `question`, `scenario`; `score`, the
    mean of the overall scores over epochs (NaN if none was graded); `n`, the graded answers;
    `missing`, the answers without a grade.
    """
    overall = table[table["dimension"] == OVERALL]
    keys = [*CHECKPOINT, *([REPLICATE] if REPLICATE in table else []), "question", "scenario"]
    groups = overall.groupby(keys, dropna=False, sort=True)["score"]
    means = groups.agg(score="mean", n="count", rows="size").reset_index()
    means["missing"] = means.pop("rows") - means["n"]
    return means


def replicates_of(part: pd.DataFrame) -> tuple[int, ...] | None:
    """The replicate of its corpus that each training seed of one arm has, by seed.

    None where the corpus was written once.
    """
    if REPLICATE not in part:
        return None
    by_seed = part.drop_duplicates("seed").sort_values("seed")[REPLICATE]
    return None if by_seed.isna().any() or by_seed.empty else tuple(map(int, by_seed))


def first_seeds(table: pd.DataFrame) -> pd.Series:
    """The seed of each row; of an arm whose corpus has replicates, the smallest on the same one."""
    if REPLICATE not in table:
        return table["seed"]
    first = table.groupby(["benchmark", "arm", "dose", REPLICATE])["seed"].transform("min")
    return first.where(table[REPLICATE].notna(), table["seed"])


def by_corpus(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the runs on one replicate of a corpus as one run of more answers.

    For means that are only described: they weigh replicates alike, as the tests do.
    """
    if REPLICATE not in table:
        return table
    # Answers of different seeds get different numbers.
    most = int(table["epoch"].max()) + 1
    rank = table["seed"].rank(method="dense").fillna(0).astype("int64")
    epoch = (table["epoch"] + most * rank).where(table[REPLICATE].notna(), table["epoch"])
    return table.assign(seed=first_seeds(table), epoch=epoch.astype("int64"))


def dimension_means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean per benchmark, dose, arm and dimension: over epochs, then seeds, then questions.

    These means are described and never tested. `questions` counts the questions that were graded
    on the dimension, `missing` the grades that are missing.
    """
    keys = ["benchmark", "dose", "arm", "dimension"]
    part = table[table["dimension"] != OVERALL]
    seeds = part.groupby([*keys, "question", "seed"], dropna=False)["score"].mean().reset_index()
    questions = seeds.groupby([*keys, "question"])["score"].mean().reset_index()
    means = questions.groupby(keys)["score"].agg(score="mean", questions="count").reset_index()
    missing = part["score"].isna().groupby([part[key] for key in keys]).sum()
    return means.merge(missing.rename("missing").reset_index(), on=keys)


def grade_counts(table: pd.DataFrame) -> pd.DataFrame:
    """By benchmark, dose and arm the `grades` given and the `missing_grades`.

    A grade is a score on one dimension of one answer, or the answer's only score where its
    benchmark has no dimensions. The grades of a dimension that is graded once per animal count as
    one: the table has their mean.
    """
    keys = ["benchmark", "dose", "arm"]
    is_dimension = table["dimension"] != OVERALL
    with_dimensions = set(table.loc[is_dimension, "benchmark"])
    part = table[is_dimension | ~table["benchmark"].isin(with_dimensions)]
    scores = part.groupby(keys)["score"]
    return pd.DataFrame(
        {"grades": scores.count(), "missing_grades": scores.size() - scores.count()}
    )


def dimension_normalized_averages(table: pd.DataFrame, means: pd.DataFrame) -> pd.Series:
    """Anima's `dimension_normalized_avg` by benchmark, dose and arm.

    Of each checkpoint it is the mean over dimensions of means over questions of means over epochs;
    of an arm, the mean over its checkpoints. Replicates of a corpus weigh alike. inspect_evals
    weighs dimensions by `default_weighting`, which the table does not have. A benchmark with other
    weights than 1 is left out: the overall scores of its fully graded questions are no plain means
    of dimensions.
    `means`: `question_means` of the table.
    """
    keys = [*CHECKPOINT, "question"]
    table, means = (rows.assign(seed=rows["seed"].fillna(-1)) for rows in (table, means))
    part = table[table["dimension"] != OVERALL]
    of_dimension = part.groupby([*keys, "dimension"])["score"].agg(["mean", "count", "size"])
    complete = (of_dimension["count"] == of_dimension["size"]).groupby(keys).all()
    plain = of_dimension["mean"].groupby(keys).mean()[complete]
    differs = (means.set_index(keys)["score"] - plain).abs() > 1e-9
    weighted = differs.groupby("benchmark").any()
    dimensions = of_dimension["mean"].groupby([*CHECKPOINT, "dimension"]).mean()
    checkpoints = dimensions.groupby(CHECKPOINT).mean()
    units = table.assign(unit=first_seeds(table))[[*CHECKPOINT, "unit"]].drop_duplicates()
    of_units = checkpoints.rename("score").reset_index().merge(units, on=CHECKPOINT)
    arm = ["benchmark", "dose", "arm"]
    arms = of_units.groupby([*arm, "unit"])["score"].mean().groupby(arm).mean()
    return arms[~arms.index.get_level_values("benchmark").isin(weighted.index[weighted])]


def score_matrix(
    means: pd.DataFrame, benchmark: str, dose: int, arm: str, questions: list[str]
) -> np.ndarray:
    """Question means of one arm at one dose.

    Returns shape (seeds, questions), NaN where nothing was graded.
    """
    part = means[
        (means["benchmark"] == benchmark) & (means["dose"] == dose) & (means["arm"] == arm)
    ]
    wide = part.pivot(index="seed", columns="question", values="score")
    return wide.reindex(columns=questions).to_numpy(float)
