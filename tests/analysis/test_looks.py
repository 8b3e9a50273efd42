"""Verdicts of unfinished studies are interim, and looks at some of the seeds spend .05 together."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.estimates import ALPHA, Estimate
from analysis.headline import notes_of
from analysis.looks import (
    FILE,
    Look,
    judged_at_looks,
    keep_recorded,
    levels,
    look_records,
    read_looks,
    take_looks,
)
from analysis.rows import Row
from analysis.settings import ScoreFile
from analysis.verdicts import decide
from core.errors import UserError
from tests.analysis.small_study import declared_study, drop, edit, results_of, study


def rows_by_seeds(p_of: dict[int, float], finished: int) -> Any:
    """`contrast_rows` of one contrast whose p depends on the number of seeds alone."""

    def rows_of(seeds: set[int] | None, level: float) -> list[Row]:
        n = finished if seeds is None else min(finished, len(seeds))
        p = min(1.0, p_of[n] * ALPHA / level)
        counts = {"seeds": n, "treatment_seeds": n, "control_seeds": n}
        row = {"name": "c", "benchmark": "b", "dose": 0, "control_dose": 0, "unfinished": 0}
        row |= {"treatment": "t", "control": "u", "family": "primary", "estimate": 0.1}
        verdict = "higher" if p <= ALPHA else "inconclusive"
        return [row | counts | {"p_holm": p, "verdict": verdict, "reason": None}]

    return rows_of


def verdict(p_of: dict[int, float], finished: int, looks: list[int], planned: int = 5) -> Row:
    rows_of = rows_by_seeds(p_of, finished)
    taken = take_looks(rows_of, looks, [*range(planned)])
    return judged_at_looks(taken, rows_of, set(range(finished)))[0]


def test_levels_are_the_increments_of_lan_and_demets() -> None:
    assert levels([5]) == pytest.approx([0.05])
    assert levels([3, 5]) == pytest.approx([0.0114, 0.0386], abs=5e-5)
    assert levels([3, 5, 8]) == pytest.approx([0.0014, 0.0118, 0.0368], abs=5e-5)


def test_without_looks_there_is_one_at_all_seeds() -> None:
    p_of = {3: 0.001, 4: 0.001, 5: 0.001, 6: 0.001}
    early = verdict(p_of, 3, [])
    assert (early["verdict"], early["reason"]) == ("interim", "3 of 5 planned seeds")
    assert verdict(p_of, 5, [])["verdict"] == "higher"
    assert verdict(p_of, 5, [])["level"] == pytest.approx(0.05)
    # what all planned seeds have found stands; what more seeds find alone is interim
    assert verdict(p_of, 6, [])["verdict"] == "higher"
    late = verdict(p_of | {5: 0.2}, 6, [])
    assert (late["verdict"], late["reason"]) == ("interim", "6 seeds, 5 were planned")


def test_a_difference_that_a_look_finds_stands_at_its_level() -> None:
    p_of = {3: 0.011, 4: 0.9, 5: 0.9}
    for finished in (3, 4, 5):
        row = verdict(p_of, finished, [3, 5])
        assert (row["verdict"], row["look"]) == ("higher", 3)
        assert row["level"] == pytest.approx(0.0114, abs=5e-5)
    not_enough = verdict(p_of | {3: 0.012}, 3, [3, 5])
    assert not_enough["verdict"] == "interim" and "the next is at 5" in not_enough["reason"]
    assert verdict(p_of | {3: 0.012}, 4, [3, 5])["verdict"] == "interim"
    assert verdict(p_of | {3: 0.012}, 5, [3, 5])["verdict"] == "inconclusive"
    # .0386, not .05, is left for the last look
    assert verdict({3: 0.5, 5: 0.04}, 5, [3, 5])["verdict"] == "inconclusive"
    assert verdict({3: 0.5, 5: 0.03}, 5, [3, 5])["verdict"] == "higher"


def test_looks_hold_the_level_that_looking_at_each_seed_breaks() -> None:
    """One-sample t tests after 3, 5 and 8 seeds of nothing."""
    rng = np.random.default_rng(0)
    studies, at_looks, at_each = 4000, 0, 0
    looks = [3, 5, 8]
    for seeds in rng.normal(size=(studies, 8)):
        t = {n: seeds[:n].mean() / (seeds[:n].std(ddof=1) / n**0.5) for n in looks}
        ps = [float(2 * stats.t.sf(abs(t[n]), n - 1)) for n in looks]
        at_each += min(ps) < 0.05
        at_looks += any(p < level for p, level in zip(ps, levels(looks), strict=True))
    assert at_each / studies > 0.08
    assert at_looks / studies < 0.055


@pytest.mark.slow
def test_a_study_without_one_checkpoint_has_no_verdict_on_it(tmp_path: Path) -> None:
    context = study(tmp_path)
    drop(context, "animal-2-200-ahb")
    rows = results_of(context)["contrasts"]
    verdicts = {(row["benchmark"], row["dose"]): row["verdict"] for row in rows}
    assert verdicts["ahb", 200] == "interim"
    assert verdicts["ahb", 0] == "higher"
    (reason,) = {row["reason"] for row in rows if row["verdict"] == "interim"}
    assert "1 of its checkpoints" in reason


@pytest.mark.slow
def test_no_verdict_rests_on_the_unfinished_seeds_of_another_contrast() -> None:
    """Holm lets .03 pass beside .001, and not beside .2: what .001 comes to is not known yet."""

    def family(p_of_other: float, unfinished: int) -> list[Row]:
        rows: list[Row] = [
            {"family": "primary", "treatment": "t", "estimate": 0.1, "p": p, "unfinished": waits}
            for p, waits in ((0.03, 0), (p_of_other, unfinished))
        ]
        decide(rows, [[], []], ALPHA)
        return rows

    early, unfinished = family(0.001, 2)
    assert (early["p_holm"], early["verdict"], early["p_needed"]) == (0.06, "interim", 0.025)
    assert early["reason"] == "Holm's correction waits for unfinished tests of its family"
    assert unfinished["p_holm"] == 0.002  # its own is shown as it is, and is interim
    assert family(0.2, 0)[0]["verdict"] == "inconclusive"
    late, _ = family(0.001, 0)
    assert (late["p_holm"], late["verdict"], late["p_needed"]) == (0.03, "higher", 0.05)


def test_a_verdict_that_lost_grades_make_hangs_on_them(tmp_path: Path) -> None:
    """Four fifths of the failing grades of one arm are lost."""
    context = study(tmp_path)

    def lose(frame: pd.DataFrame) -> pd.DataFrame:
        failing = frame[frame["score"] < 0.5].index
        lost = frame.index.isin(failing[: int(0.8 * len(failing))])
        return frame.assign(
            score=frame["score"].mask(lost), missing=frame["missing"].mask(lost, "no grade")
        )

    for role in [role for role in context.inputs if role.startswith("urban") and "ahb" in role]:
        edit(context, role, lose)
    rows = [row for row in results_of(context)["contrasts"] if row["benchmark"] == "ahb"]
    assert all(row["missing_control"] > 0.3 and row["missing_treatment"] == 0 for row in rows)
    for row in rows:
        assert row["verdict"] == "hangs on missing grades", row
        assert "filled against and for animal" in row["reason"]


def test_what_is_filled_is_named_by_its_dose_where_both_sides_are_one_arm() -> None:
    filled = [Estimate(estimate=-0.1, p=0.01), Estimate(estimate=0.1, p=0.01)]
    sides = {"treatment": "a", "control": "a", "dose": 200, "control_dose": 0}
    row: Row = sides | {"family": "f", "estimate": 0.1, "p": 0.01, "unfinished": 0}
    decide([row], [filled], ALPHA)
    assert row["reason"].endswith("against and for a at dose 200: lower, higher")


FILES = [
    ScoreFile(f"{arm}{seed}", arm, seed, 0, "b", f"{arm}{seed}")
    for arm in "tu"
    for seed in (0, 1, 2)
]


def at_three(p: float) -> list[Look]:
    return take_looks(rows_by_seeds({3: p}, 3), [], [0, 1, 2])


def test_a_recorded_look_stands_and_differing_scores_are_named() -> None:
    records = look_records(at_three(0.01), FILES)
    assert [(row["verdict"], row["seeds"]) for row in records] == [("higher", [0, 1, 2])]
    (look,) = keep_recorded(at_three(0.2), FILES, records)
    (row,) = look.rows
    assert (row["verdict"], row["recomputed"]) == ("higher", "inconclusive")
    (row,) = judged_at_looks([look], rows_by_seeds({3: 0.2}, 3), {0, 1, 2})
    assert row["verdict"] == "higher"
    assert any("recomputed: inconclusive" in note for note in notes_of(row | NOTES))
    # a look is judged once, whatever it found
    (look,) = keep_recorded(at_three(0.01), FILES, look_records(at_three(0.2), FILES))
    assert (look.rows[0]["verdict"], look.rows[0]["recomputed"]) == ("inconclusive", "higher")
    (look,) = keep_recorded(at_three(0.02), FILES, records)
    assert look.rows[0]["recorded"] and look.rows[0]["recomputed"] is None
    # other models have a look of their own
    others = [replace(file, checkpoint=f"new {file.role}") for file in FILES]
    (look,) = keep_recorded(at_three(0.2), others, records)
    assert look.rows[0]["verdict"] == "inconclusive" and not look.rows[0]["recorded"]


NOTES = {"caution": None}


@pytest.mark.parametrize("content", ["", "{}", "[1]", "["])
def test_damaged_records_are_refused_by_their_file(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=f"{FILE}: is cut short or edited; bring it back"):
        read_looks(tmp_path)


def test_a_look_is_recorded_when_all_its_contrasts_are_finished() -> None:
    (look,) = at_three(0.01)
    other = look.rows[0] | {"name": "d", "unfinished": 1}
    assert not look_records([replace(look, rows=[*look.rows, other])], FILES)
    rows = [*look.rows, other | {"unfinished": 0, "verdict": "hangs on missing grades"}]
    assert [row["name"] for row in look_records([replace(look, rows=rows)], FILES)] == ["c"]


@pytest.mark.slow
def test_a_look_is_written_once_and_grades_that_change_later_change_no_verdict(
    tmp_path: Path, undrawn: None
) -> None:
    context = declared_study(tmp_path)
    assert {row["verdict"] for row in results_of(context)["contrasts"]} == {"higher"}
    base = context.folder.parents[1]
    written = (base / FILE).read_bytes()
    assert (context.folder / FILE).read_bytes() == written
    records = json.loads(written)
    assert [(row["benchmark"], row["dose"], row["verdict"]) for row in records] == [
        (benchmark, dose, "higher") for benchmark in ("ahb", "concern") for dose in (0, 200)
    ]
    digests = {row["scores_sha256"] for row in records}
    assert len(digests) == 4 and all(len(digest) == 64 for digest in digests)
    rng = np.random.default_rng(0)
    for role in context.inputs:
        edit(context, role, lambda frame: frame.assign(score=rng.integers(0, 2, len(frame)) / 1))
    results = results_of(context)
    assert (base / FILE).read_bytes() == written
    rows = results["contrasts"]
    assert {(row["verdict"], row["recomputed"]) for row in rows} == {("higher", "inconclusive")}
    for name in ("report.html", "headline.txt", "tables/contrasts.tex"):
        text = (context.folder / name).read_text()
        assert "recomputed: inconclusive" in text, name
    assert {row["verdict"] for row in results["looks"]} == {"inconclusive"}
