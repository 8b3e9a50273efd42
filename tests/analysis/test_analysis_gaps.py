"""The analysis stage on small studies with gaps: what is missing is marked, bad scores refused."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from analysis.headline import headline
from analysis.run import run
from core.cell.context import StageContext
from core.errors import UserError
from tests.analysis.small_study import drop, edit, results_of, study

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.slow
def test_missing_checkpoints_are_listed_everywhere(tmp_path):
    context = study(tmp_path)
    entry = drop(context, "urban-2-200-ahb")
    for seed in range(3):
        drop(context, f"animal-{seed}-200-concern")
    results = results_of(context)
    assert entry in results["missing"] and len(results["missing"]) == 4
    contrasts = {(row["benchmark"], row["dose"]): row for row in results["contrasts"]}
    assert len(contrasts) == 4
    half = contrasts["ahb", 200]
    assert (half["seeds"], half["treatment_seeds"], half["unfinished"]) == (2, 3, 1)
    gone = contrasts["concern", 200]
    assert (gone["verdict"], gone["estimate"], gone["p"]) == ("none", None, None)
    assert (
        "not finished" in gone["reason"]
        and "animal, seed 1, dose 200, on concern" in gone["reason"]
    )
    name = "urban, seed 2, dose 200, on ahb"
    texts = [(context.folder / "report.html").read_text(), headline(results, "")]
    assert all(name in text for text in texts)
    tables = [path.read_text() for path in (context.folder / "tables").glob("*.md")]
    count = f"Missing: 4 of {4 + len(results['scores'])} checkpoints are not finished"
    assert len(tables) == 10 and all(count in text for text in tables)
    assert pd.read_parquet(context.folder / "scores.parquet").attrs["missing"] == results["missing"]
    assert any(name in warning for warning in context.warnings)


@pytest.mark.slow
def test_holm_counts_every_declared_test_of_the_family(tmp_path):
    context = study(tmp_path, seeds=2)
    aside = {
        "name": "aside",
        "treatment": "animal",
        "control": "untrained",
        "benchmarks": ["ahb"],
        "family": "other",
    }
    context.settings["contrasts"].append(aside)
    for seed in range(2):
        drop(context, f"animal-{seed}-200-concern")
    rows = results_of(context)["contrasts"]
    primary = [row for row in rows if row["family"] == "primary"]
    ps = [row["p"] for row in primary]
    assert len(ps) == 4 and ps.count(None) == 1
    expected = multipletests([1.0 if p is None else p for p in ps], method="holm")[1]
    for row, p_holm in zip(primary, expected, strict=True):
        if row["p"] is not None:
            assert row["p_holm"] == pytest.approx(p_holm, rel=1e-4)
            assert row["verdict"] == ("higher" if p_holm <= 0.05 else "inconclusive")
    alone = [row for row in rows if row["family"] == "other"]
    assert len(alone) == 1 and alone[0]["p_holm"] == alone[0]["p"]


@pytest.mark.slow
def test_one_seed_per_arm_has_no_verdict_and_says_why(tmp_path):
    context = study(tmp_path, seeds=1)
    results = results_of(context)
    for row in results["contrasts"]:
        assert (row["verdict"], row["low"], row["high"], row["p"], row["p_holm"]) == (
            "none",
            None,
            None,
            None,
            None,
        )
        assert row["estimate"] is not None and row["question_se"] is not None and row["seeds"] == 1
        assert row["reason"].startswith("one seed per arm")
    assert "one seed per arm" in (context.folder / "report.html").read_text()
    assert "one seed per arm" in (context.folder / "tables" / "contrasts.tex").read_text()
    assert "one seed per arm" in headline(results, "")


@pytest.mark.slow
def test_missing_grades_leave_the_mean_and_are_counted(tmp_path):
    context = study(tmp_path)

    def lose(frame):
        lost = (frame["question"] == "q003") | (
            (frame["question"] == "q001") & (frame["epoch"] == 2)
        )
        return frame.assign(
            score=frame["score"].mask(lost), missing=np.where(lost, "unreadable grade", None)
        )

    before = results_of(study(tmp_path / "whole"))
    for seed in range(3):
        edit(context, f"urban-{seed}-0-ahb", lose)
    results = results_of(context)
    row = next(
        r
        for r in results["scores"]
        if (r["arm"], r["seed"], r["dose"], r["benchmark"]) == ("urban", 0, 0, "ahb")
    )
    graded = lose(pd.read_parquet(tmp_path / "whole" / "urban-0-0-ahb" / "scores.parquet")).query(
        "dimension == 'overall'"
    )
    assert (row["n"], row["missing"]) == (21, 3)
    assert row["score"] == pytest.approx(
        graded.groupby("question")["score"].mean().mean(), rel=1e-5
    )
    contrast = results["contrasts"][0]
    assert (contrast["questions"], contrast["questions_left_out"]) == (11, 1)
    assert abs(contrast["estimate"] - before["contrasts"][0]["estimate"]) < 0.1
    assert (
        "9 of 144 answers" in headline(results, "")
        and "9 of 144 answers" in (context.folder / "report.html").read_text()
    )


ANIMAL = "animal, seed 0, dose 0, on ahb"


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (lambda f: pd.concat([f, f.head(1)]), "", "the same score twice (1 rows)"),
        (lambda f: f.assign(score=f["score"] * 100), "", "outside 0..1"),
        (lambda f: f.assign(judge="someone else"), "ahb", "2 judges (dummy, someone else)"),
        (lambda f: f[f["dimension"] != "overall"], ANIMAL, "no 'overall' score"),
        (lambda f: f.assign(scenario="s"), "ahb", "questions without exactly one scenario"),
        (lambda f: f.assign(missing="why"), "", "also marked missing"),
        (lambda f: f.drop(columns="response"), "scores.parquet", "columns response are absent"),
    ],
)
def test_a_table_that_would_give_wrong_numbers_is_refused(tmp_path, change, where, what):
    context = study(tmp_path, seeds=1, doses=(0,))
    edit(context, "animal-0-0-ahb", change)
    with pytest.raises(UserError) as error:
        run(context)
    assert any(where in problem.where and what in problem.what for problem in error.value.problems)
    assert not (context.folder / "results.json").exists()


def test_undeclared_judge_seed_beside_none_and_nothing_at_all_are_refused(tmp_path):
    context = study(tmp_path, seeds=1, doses=(0,))
    context.settings["benchmarks"]["ahb"]["judge"] = "gemini"
    context.settings["rows"][2]["arm"] = "untrained"
    with pytest.raises(UserError) as error:
        run(context)
    judge, seeds = error.value.problems
    assert (judge.where, judge.what) == (
        "benchmark ahb",
        "graded by dummy but gemini is declared",
    )
    assert "with and without a training seed" in seeds.what
    assert seeds.where == "arm untrained, dose 0, on ahb"
    context.settings["rows"] = []
    with pytest.raises(UserError, match="there are no scores to analyze"):
        run(context)


@pytest.mark.slow
def test_a_lost_question_is_noted(tmp_path):
    context = study(tmp_path, doses=(0,))
    edit(context, "animal-1-0-ahb", lambda frame: frame[frame["question"] != "q005"])
    assert results_of(context)["notes"] == [
        "11 of the 12 questions of ahb were answered: animal, seed 1, dose 0, on ahb"
    ]
    assert "11 of the 12 questions" in (context.folder / "report.html").read_text()


def one_arm(context: StageContext) -> None:
    context.settings["rows"] = [row for row in context.settings["rows"] if row["arm"] == "animal"]


def one_question(context: StageContext) -> None:
    for role in context.inputs:
        edit(context, role, lambda frame: frame[frame["question"] == "q000"])


def all_equal(context: StageContext) -> None:
    for role in context.inputs:
        edit(context, role, lambda frame: frame.assign(score=1.0))


def all_missing(context: StageContext) -> None:
    for role in context.inputs:
        edit(context, role, lambda frame: frame.assign(score=np.nan, missing="garbage"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (one_arm, "the two arms were not planned at a common SFT dose"),
        (one_question, "one scenario only"),
        (all_equal, "the scores vary neither over seeds nor over questions"),
        (all_missing, "no question was graded in both arms"),
    ],
)
def test_what_the_data_cannot_say_is_a_marked_gap_everywhere(tmp_path, change, reason, drawn):
    context = study(tmp_path)
    change(context)
    results = results_of(context)
    for row in results["contrasts"]:
        assert (
            reason in row["reason"]
            and row["verdict"] == "none"
            and row["p"] is row["p_holm"] is None
        )
        assert row["estimate"] is None if change in (one_arm, all_missing) else row["low"] is None
    second = [row[key] for row in results["sensitivity"] for key in ("bootstrap", "mixed")]
    assert all(result["reason"] and result["low"] is None for result in second)
    assert all(
        bought["detectable"] is None and bought["reason"]
        for r in results["variance"]
        for bought in r["purchases"]
    )
    assert all(change["p"] is None for row in results["erosion"] for change in row["changes"])
    assert not [warning for warning in context.warnings if "could not be drawn" in warning]
    text = (context.folder / "report.html").read_text() + (
        context.folder / "tables/contrasts.tex"
    ).read_text()
    assert (
        "nan" not in text.lower().replace("finan", "")
        and (context.folder / "figures/scores-ahb.png").exists()
    )
