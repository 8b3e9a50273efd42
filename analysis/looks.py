"""Looks at a study whose seeds are added in steps, and the level that each look may spend."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy import stats

from analysis.estimates import ALPHA
from analysis.rows import Row
from analysis.settings import ScoreFile
from analysis.verdicts import DECIDED, INTERIM
from core.declaration import lock_of
from core.errors import UserError
from core.files import locked, sha256, write_atomically

FILE = "looks.json"
KEY = ("name", "treatment", "control", "benchmark", "dose", "control_dose")
SEEDS = ("treatment_seeds", "control_seeds")
RECORDED = (*DECIDED, "inconclusive")  # verdicts that looks.json keeps
# `contrast_rows` of the seeds given (None: all that are finished), at a level.
RowsOf = Callable[[set[int] | None, float], list[Row]]


def levels(looks: Sequence[int]) -> list[float]:
    """The level of each look at `looks` seeds, the last of which are all that are planned.

    Lan and DeMets (Biometrika 70, 1983) with a spending function of O'Brien and Fleming's kind,
    2 - 2 Phi(z / sqrt(share of the seeds)): each look gets what is spent since the one before, as a
    level of its own. These add up to .05, so that the error over all looks is at most that,
    whatever the joint distribution of the tests in small samples. [3, 5] gives .0114 and .0386.
    """
    z = stats.norm.isf(ALPHA / 2)
    spent = [2 * float(stats.norm.sf(z / (n / looks[-1]) ** 0.5)) for n in looks]
    return [now - before for before, now in zip([0.0, *spent], spent, strict=False)]


@dataclass(frozen=True)
class Look:
    """The contrasts after the first of the planned seeds."""

    seeds: list[int]
    rows: list[Row]  # see `take_looks`


def take_looks(rows_of: RowsOf, looks: Sequence[int], seeds: Sequence[int]) -> list[Look]:
    """The looks at a study, by today's scores.

    Each row gets `look`, its number of seeds, `level`, that of its test and interval, and what
    `keep_recorded` sets.

    Args:
        rows_of: the rows of contrasts of some seeds.
        looks: numbers of seeds; empty: one look at all that are planned.
        seeds: the planned training seeds, in the order in which they are run.
    """
    looks = looks or [len(seeds)]
    return [
        Look([*seeds[:n]], [_of_look(row, n, level) for row in rows_of(set(seeds[:n]), level)])
        for n, level in zip(looks, levels(looks), strict=True)
    ]


def _of_look(row: Row, look: int | None, level: float) -> Row:
    return row | {"look": look, "level": level, "recorded": False, "recomputed": None}


def look_records(looks: Sequence[Look], files: Sequence[ScoreFile]) -> list[Row]:
    """What looks.json is to hold of the looks of which every contrast is finished.

    A row for each contrast that has a test; `checkpoints` is a hash of the models on both sides.
    """
    return [
        {
            **{name: row[name] for name in (*KEY, "family", "estimate", "p_holm", "verdict")},
            "seeds": look.seeds,
            "level": row["level"],
            "checkpoints": _checkpoints(row, look.seeds, files),
        }
        for look in looks
        if all(map(_is_finished, look.rows))
        for row in look.rows
        if row["verdict"] in RECORDED
    ]


def keep_recorded(
    looks: Sequence[Look], files: Sequence[ScoreFile], records: Sequence[Row]
) -> list[Look]:
    """The looks with the verdicts that looks.json has of them.

    A look is judged once: grades that change later change no verdict. A record counts for the
    models that it was made with. `recorded` tells whether a row's verdict is from there, and
    `recomputed` is the verdict by today's scores where that is another.
    """
    by_key = {_record_key(record): record["verdict"] for record in records}

    def with_record(row: Row, seeds: list[int]) -> Row:
        about = {"seeds": seeds, "checkpoints": _checkpoints(row, seeds, files)}
        verdict = by_key.get(_record_key(row | about))
        if verdict is None:
            return row
        recomputed = row["verdict"] if row["verdict"] != verdict else None
        return row | {"verdict": verdict, "recorded": True, "recomputed": recomputed}

    return [Look(look.seeds, [with_record(row, look.seeds) for row in look.rows]) for look in looks]


def judged_at_looks(looks: Sequence[Look], rows_of: RowsOf, finished: Set[int]) -> list[Row]:
    """The rows of contrasts of a study that is looked at after some of its seeds.

    A look counts for a row once both its sides are finished with all of the look's seeds. A
    difference that a look finds stands, with the numbers of that look. Before the last look, and
    with seeds that are of no look, what is not found is "interim".

    Args:
        looks: of `take_looks`, or of `keep_recorded`.
        rows_of: the rows of contrasts of some seeds.
        finished: the training seeds that have scores.
    """
    planned = [len(look.seeds) for look in looks]
    everything = looks[-1].rows
    if not finished <= set(looks[-1].seeds) or len(looks) > 1:
        everything = [_of_look(row, None, ALPHA) for row in rows_of(None, ALPHA)]
    judged = []
    for row in everything:
        key = [row[name] for name in KEY]
        of_row = [
            at_look
            for look in looks
            for at_look in look.rows
            if [at_look[name] for name in KEY] == key
            and (_is_finished(at_look) or at_look["recorded"])
        ]
        decided = [at_look for at_look in of_row if at_look["verdict"] in DECIDED]
        if decided:
            judged.append(decided[0])
        elif of_row and all(of_row[-1][name] == row[name] for name in SEEDS):
            is_last = of_row[-1]["look"] == planned[-1]
            is_told = is_last or of_row[-1]["verdict"] == INTERIM
            judged.append(of_row[-1] if is_told else _interim(of_row[-1], planned))
        else:
            judged.append(_interim(row, planned) | {"look": None})
    return judged


def of_seeds(table: pd.DataFrame, seeds: set[int] | None) -> pd.DataFrame:
    """The rows of a table with these training seeds, or without one; None: all."""
    if seeds is None:
        return table
    chosen = table["seed"].isna() | table["seed"].isin(seeds)
    return table if chosen.all() else table[chosen]


def tables_of_looks(
    table: pd.DataFrame, contrasts: Sequence[Row], seeds: Sequence[int]
) -> dict[int | None, pd.DataFrame]:
    """`look` of the rows of contrasts -> the part of a table that such rows rest on.

    `seeds`: the planned training seeds, in the order in which they are run.
    """
    return {
        look: of_seeds(table, None if look is None else set(seeds[:look]))
        for look in {row["look"] for row in contrasts}
    }


def seeds_of_curves(
    contrasts: Sequence[Row], seeds: Sequence[int]
) -> dict[tuple[str, str], set[int] | None]:
    """(name, benchmark) -> the seeds that its rows of contrasts rest on; None: all.

    Where doses are judged at different looks, those of the last look.

    Args:
        contrasts: rows with `look`.
        seeds: the planned training seeds, in the order in which they are run.
    """
    looks: dict[tuple[str, str], list[int | None]] = {}
    for row in contrasts:
        looks.setdefault((row["name"], row["benchmark"]), []).append(row["look"])
    return {
        key: None if None in of_rows else set(seeds[: max(look or 0 for look in of_rows)])
        for key, of_rows in looks.items()
    }


def read_looks(base: Path) -> list[Row]:
    """The records of the study in `base`; none where no look was taken.

    Raises UserError where the file is damaged: a look that was taken can't be forgotten.
    """
    path = base / FILE
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:
        records = None
    if not isinstance(records, list) or not all(isinstance(row, dict) for row in records):
        raise UserError(
            where=str(path),
            what="is cut short or edited",
            fix=f"bring it back from a copy, such as the {FILE} of the results",
        )
    return records


def record_looks(
    base: Path, records: Sequence[Row], files: Sequence[ScoreFile], scores: Mapping[str, Path]
) -> None:
    """Add to looks.json of the study in `base` the records that are not in it.

    Each gets `scores_sha256`, a hash of the score files (`scores`: their folders by role) that it
    rests on.
    """
    with locked(lock_of(base, FILE)):
        before = read_looks(base)
        recorded = {_record_key(record) for record in before}
        added = []
        for record in records:
            if _record_key(record) not in recorded:
                rests_on = _files_of(record, record["seeds"], files)
                digests = (sha256(scores[file.role] / "scores.parquet") for file in rests_on)
                added.append(record | {"scores_sha256": _hash(digests)})
        if added or not before:
            text = json.dumps([*before, *added], indent=1, ensure_ascii=False)
            write_atomically(base / FILE, text + "\n")


def _record_key(record: Row) -> str:
    return json.dumps([record[name] for name in (*KEY, "seeds", "checkpoints")])


def _files_of(row: Row, seeds: Sequence[int], files: Sequence[ScoreFile]) -> list[ScoreFile]:
    """The deciding judge's files on both sides of a contrast, with these training seeds."""
    sides = [(row["treatment"], row["dose"]), (row["control"], row["control_dose"])]
    return [
        file
        for file in files
        if file.benchmark == row["benchmark"]
        and file.other_judge is None
        and (file.arm, file.dose) in sides
        and (file.seed is None or file.seed in seeds)
    ]


def _checkpoints(row: Row, seeds: Sequence[int], files: Sequence[ScoreFile]) -> str:
    return _hash(file.checkpoint for file in _files_of(row, seeds, files))


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def _is_finished(row: Row) -> bool:
    """Whether both sides of a look's row are finished with all of the look's seeds."""
    return not row["unfinished"] and row["seeds"] in (0, row["look"])


def _interim(row: Row, looks: Sequence[int]) -> Row:
    """A row with verdict interim and the reason; as it is where it has no test."""
    if row["verdict"] == "none":
        return row
    if row["unfinished"]:
        reason = f"{row['unfinished']} of its checkpoints are not finished"
    elif row["seeds"] in looks[:-1]:
        following = next(n for n in looks if n > row["seeds"])
        reason = f"not found at the look at {row['seeds']} seeds; the next is at {following}"
    elif row["seeds"] > looks[-1]:
        reason = f"{row['seeds']} seeds, {looks[-1]} were planned"
    else:
        reason = f"{row['seeds']} of {looks[-1]} planned seeds"
    return row | {"verdict": INTERIM, "reason": reason}
