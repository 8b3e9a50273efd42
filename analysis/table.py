"""The long table: one row per score of every finished checkpoint. Every statistic is a function of it alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError

CHECKPOINT = ["benchmark", "dose", "arm", "seed"]
MADE_BY = "checkpoint"  # the cell that made the weights
COLUMNS = ["question", "scenario", "dimension", "epoch", "judge", "score", "missing", "response"]
OVERALL = "overall"


def checkpoint_name(row: Any) -> str:
    """`animal, seed 0, dose 200, on ahb` for anything that holds the four keys of a checkpoint."""
    seed = "no training seed" if pd.isna(row["seed"]) else f"seed {int(row['seed'])}"
    return f"{row['arm']}, {seed}, dose {row['dose']}, on {row['benchmark']}"


def long_table(rows: Iterable[dict[str, Any]], inputs: dict[str, Path], labels: Iterable[str] = ()) -> pd.DataFrame:
    """Read `inputs[role]/scores.parquet` of each row and add its arm, seed, dose, benchmark and checkpoint (a cell).

    The files of the roles `labels`, which people graded, hold several checkpoints and name them themselves.
    Columns: `CHECKPOINT`, `MADE_BY`, then `COLUMNS`; `seed` is Int64 and <NA> for a checkpoint without a training seed.
    Sorted, so neither the order of rows nor that of lines in the files matters.
    Raises UserError when there is nothing to read or a file is absent or lacks columns.
    """
    parts, problems = [], []
    for row in rows:
        path = inputs[row["role"]] / "scores.parquet"
        if not path.is_file():
            problems.append(f"no scores of {checkpoint_name(row)}; {path}; run its cell again")
            continue
        part = pd.read_parquet(path)
        absent = [column for column in COLUMNS if column not in part.columns]
        if absent:
            problems.append(f"columns {', '.join(absent)} are absent; {path}; run its cell again with this version")
            continue
        parts.append(part[COLUMNS].assign(**{key: row[key] for key in [*CHECKPOINT, MADE_BY]}))
    made_by = {tuple(row.get(key) for key in CHECKPOINT): row[MADE_BY] for row in rows}
    for role in labels:
        part = pd.read_parquet(inputs[role] / "scores.parquet")
        keys = part[CHECKPOINT].astype(object).where(part[CHECKPOINT].notna(), None).itertuples(index=False)
        part[MADE_BY] = [made_by.get(tuple(key)) for key in keys]
        parts.append(part[part[MADE_BY].notna()])
    if problems:
        raise UserError(*problems)
    if not parts or not sum(map(len, parts)):
        raise UserError(
            "there are no scores to analyze; no checkpoint has finished its evaluation; run the study first"
        )
    table = pd.concat(parts, ignore_index=True)
    text = ["benchmark", "arm", MADE_BY, "question", "scenario", "dimension", "judge", "missing", "response"]
    table = table.astype(
        dict.fromkeys(text, "str") | {"seed": "Int64", "dose": "int64", "epoch": "int64", "score": float}
    )
    unexplained = table["score"].isna() & table["missing"].isna()
    table.loc[unexplained, "missing"] = "no reason recorded"
    order = [*CHECKPOINT, "question", "epoch", "dimension", "judge"]
    return table[[*CHECKPOINT, MADE_BY, *COLUMNS]].sort_values(order, kind="stable", ignore_index=True)


def decisive(table: pd.DataFrame, others: dict[str, list[str]]) -> pd.DataFrame:
    """The rows that statistics are made of: without those of a benchmark's other judges, who only grade beside."""
    beside = pd.Series(False, index=table.index)
    for benchmark, judges in others.items():
        beside |= (table["benchmark"] == benchmark) & table["judge"].isin(judges)
    return table[~beside].reset_index(drop=True)


def without(table: pd.DataFrame, excluded: dict[str, list[str]]) -> pd.DataFrame:
    """The table without the questions (by id) that a study leaves out of a benchmark; UserError for unknown ids."""
    unknown = []
    for benchmark, ids in excluded.items():
        part = table["benchmark"] == benchmark
        unknown += [
            f"{benchmark}: exclude: no question {one}" for one in ids if one not in set(table[part]["question"])
        ]
        table = table[~(part & table["question"].isin(ids))]
    if unknown:
        raise UserError(*unknown)
    return table.reset_index(drop=True)


def check(table: pd.DataFrame, judges: dict[str, str | None]) -> None:
    """Refuse a table that would give a wrong number; `judges` maps a benchmark to its declared judge, if any.

    Raises UserError with every problem found: duplicate rows, scores outside 0..1, a score beside a reason for
    missing, mixed or undeclared judges, questions that change scenario, seeds beside a seedless checkpoint.
    """
    problems = []

    def report(what: str, where: pd.DataFrame, todo: str) -> None:
        if len(where):
            problems.append(f"{what} ({len(where)} rows); first: {checkpoint_name(where.iloc[0])}; {todo}")

    key = [*CHECKPOINT, "question", "epoch", "dimension", "judge"]
    report("the same score twice", table[table.duplicated(key)], "give each checkpoint one role, each answer one score")
    outside = table["score"].notna() & ~table["score"].between(0, 1)
    report("a score outside 0..1", table[outside], "scale the scorer's values to 0..1")
    both = table["score"].notna() & table["missing"].notna()
    report("a score that is also marked missing", table[both], "a missing grade has no score")

    for benchmark, part in table.groupby("benchmark"):
        name = str(benchmark)
        found = sorted(part["judge"].dropna().unique())
        declared = judges.get(name)
        if len(found) != 1:
            problems.append(
                f"{len(found)} judges ({', '.join(found)}); benchmark {name}; grade all its arms with one judge"
            )
        elif declared is not None and found != [declared]:
            problems.append(f"graded by {found[0]} but {declared} is declared; benchmark {name}; judge it again")
        scenarios = part.groupby("question")["scenario"].nunique()
        if (scenarios != 1).any():
            moved = ", ".join(map(str, scenarios.index[scenarios != 1][:3]))
            problems.append(
                f"questions without exactly one scenario ({moved}); benchmark {name}; use one question file"
            )
        graded = part.loc[part["dimension"] == OVERALL, CHECKPOINT].drop_duplicates()
        lost = part[CHECKPOINT].drop_duplicates().merge(graded, how="left", indicator=True)
        lost = lost[lost["_merge"] == "left_only"]
        problems += [f"no '{OVERALL}' score; {checkpoint_name(row)}; judge it again" for _, row in lost.iterrows()]
        for (dose, arm), seeds in part.groupby(["dose", "arm"])["seed"]:
            if seeds.isna().any() and seeds.notna().any():
                problems.append(
                    f"checkpoints with and without a training seed; arm {arm}, dose {dose}; name them as two arms"
                )
    if problems:
        raise UserError(*problems)


def question_means(table: pd.DataFrame) -> pd.DataFrame:
    """One row per checkpoint and question: `score` (mean of the overall scores over epochs; NaN if none was graded),
    `n` (graded answers), `missing` (answers without a grade) and `scenario`."""
    overall = table[table["dimension"] == OVERALL]
    groups = overall.groupby([*CHECKPOINT, "question", "scenario"], dropna=False, sort=True)["score"]
    means = groups.agg(score="mean", n="count", rows="size").reset_index()
    means["missing"] = means.pop("rows") - means["n"]
    return means


def dimension_means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean per benchmark, dose, arm and dimension: over epochs, then seeds, then questions; described, never tested.

    `questions` counts the questions that were graded on the dimension, `missing` the grades that are missing.
    """
    arm = ["benchmark", "dose", "arm", "dimension"]
    part = table[table["dimension"] != OVERALL]
    seeds = part.groupby([*arm, "question", "seed"], dropna=False)["score"].mean().reset_index()
    questions = seeds.groupby([*arm, "question"])["score"].mean().reset_index()
    means = questions.groupby(arm)["score"].agg(score="mean", questions="count").reset_index()
    missing = part["score"].isna().groupby([part[key] for key in arm]).sum().rename("missing").reset_index()
    return means.merge(missing, on=arm)


def matrix(means: pd.DataFrame, benchmark: str, dose: int, arm: str, questions: list[str]) -> np.ndarray:
    """Question means of one arm at one dose, shape (seeds, questions), NaN where nothing was graded."""
    part = means[(means["benchmark"] == benchmark) & (means["dose"] == dose) & (means["arm"] == arm)]
    return part.pivot(index="seed", columns="question", values="score").reindex(columns=questions).to_numpy(float)
