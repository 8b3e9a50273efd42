"""A corpus that was written several times: its replicates stand for the seeds in every test."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.bounds import worst_cases
from analysis.contrasts import _caution, contrast_arms, contrast_rows
from analysis.corpora import corpora, training_texts
from analysis.erosion import erosion_rows
from analysis.estimates import Arm, pair_by_seed, two_way
from analysis.headline import runs_text, scope_note
from analysis.looks import levels
from analysis.next_data import next_data
from analysis.profiles import differences
from analysis.robustness import robustness_rows
from analysis.sensitivity import sensitivity_rows
from analysis.settings import Contrast
from analysis.table import by_corpus, dimension_means, question_means
from analysis.variance import components
from core.cell.context import StageContext
from tests.analysis.small_study import edit, results_of, study
from tests.analysis.test_corpora import BALANCE, CARD
from tests.analysis.test_variance import COSTS, simulated
from tests.analysis.test_variance import long as long_of

pytestmark = pytest.mark.usefixtures("undrawn")

CONTRAST = Contrast("A - B", "A", "B", ("ahb",), "primary")
SIX = (0, 1, 2, 0, 1, 2)  # of the seeds 0 to 5


def drawn(seeds: int = 6, questions: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Question means of two arms whose replicates SIX differ."""
    rng = np.random.default_rng(3)
    arms = []
    for _ in range(2):
        corpus = rng.normal(0, 0.05, (3, 1))[[*SIX][:seeds]]
        arms.append(0.5 + corpus + rng.normal(0, 0.05, (seeds, questions)))
    return arms[0], arms[1]


def long(arms: dict[str, np.ndarray], replicates: dict[str, tuple[int, ...]]) -> pd.DataFrame:
    """The long table of question means by arm, (seeds, questions), in one answer each."""
    rows = [
        (arm, seed, replicates[arm][seed] if arm in replicates else None, f"q{q:02}", score)
        for arm, scores in arms.items()
        for seed, row in enumerate(scores)
        for q, score in enumerate(row)
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "replicate", "question", "score"])
    table = table.astype({"seed": "Int64", "replicate": "Int64"})
    constant = {"benchmark": "ahb", "dose": 0, "dimension": "overall", "epoch": 1, "judge": "j"}
    table = table.assign(**constant, scenario=table["question"], missing=None)
    return table if replicates else table.drop(columns="replicate")


def averaged(scores: np.ndarray) -> np.ndarray:
    return np.array([(scores[n] + scores[n + 3]) / 2 for n in range(3)])


def test_runs_of_one_corpus_are_averaged_first() -> None:
    treatment, control = drawn()
    scenarios = np.arange(12)
    result = two_way([Arm(treatment, replicates=SIX), Arm(control, replicates=SIX)], scenarios)
    expected = two_way([Arm(averaged(treatment)), Arm(averaged(control))], scenarios)
    assert result == replace(expected, seeds=(6, 6), corpora=((2, 2, 2),) * 2)
    as_seeds = two_way([Arm(treatment), Arm(control)], scenarios)
    assert result.se > as_seeds.se and result.df < as_seeds.df
    mixed = two_way([Arm(treatment, replicates=SIX), Arm(control)], scenarios)
    assert (mixed.seeds, mixed.corpora) == ((6, 6), ((2, 2, 2), None))


def test_as_many_replicates_as_seeds_are_todays_test_to_the_last_digit() -> None:
    treatment, control = drawn()
    treatment[2, 3] = control[:, 5] = np.nan
    scenarios = np.repeat(np.arange(6), 2)
    # The file's seeds may be in any order.
    own = (4, 2, 0, 1, 5, 3)
    result = two_way([Arm(treatment, replicates=own), Arm(control, replicates=own)], scenarios)
    plain = two_way([Arm(treatment), Arm(control)], scenarios)
    assert replace(result, corpora=plain.corpora) == plain


def test_a_missing_grade_is_of_the_run_alone() -> None:
    treatment, control = drawn()
    lost = treatment.copy()
    lost[0, 4] = np.nan
    means = Arm(lost, replicates=SIX).of_corpora()
    assert means[0, 4] == treatment[3, 4] and means[0, 3] == averaged(treatment)[0, 3]
    lost[3, 4] = np.nan
    assert np.isnan(Arm(lost, replicates=SIX).of_corpora()[0, 4])
    assert Arm(lost, replicates=SIX).drop_seed(3).replicates == (0, 1, 2, 1, 2)
    with np.errstate(all="raise"):
        two_way([Arm(lost, replicates=SIX), Arm(control, replicates=SIX)], np.arange(12))


def test_two_runs_on_one_corpus_give_no_verdict() -> None:
    treatment, control = drawn(2)
    result = two_way([Arm(treatment, replicates=(1, 1)), Arm(control)], np.arange(12))
    assert result.p is None and result.reason is not None
    assert result.reason.startswith("one corpus per arm: how far other documents")


def test_paired_runs_are_averaged_after_their_differences() -> None:
    treatment, control = drawn()
    scenarios = np.arange(12)
    # The control lacks seed 4, the second run of replicate 1.
    rows = [0, 1, 2, 3, 5]
    arms = [Arm(treatment, replicates=SIX), Arm(control[rows], replicates=(0, 1, 2, 0, 2))]
    paired, seeds = pair_by_seed(arms, [[*range(6)], rows])
    assert seeds == [rows, []]
    difference = treatment - control
    expected = np.array([difference[[0, 3]].mean(0), difference[1], difference[[2, 5]].mean(0)])
    result = two_way(paired, scenarios)
    plain = two_way([Arm(expected), Arm(np.zeros((1, 12)), fixed=True)], scenarios)
    assert (result.se, result.df, result.p) == pytest.approx((plain.se, plain.df, plain.p))
    assert result.corpora == ((2, 1, 2), None)


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """A table of runs on replicates, and the table of their means as runs of their own."""
    treatment, control = drawn()
    arms = {"A": treatment, "B": control}
    runs = long(arms, {"A": SIX, "B": SIX})
    return runs, long({arm: averaged(scores) for arm, scores in arms.items()}, {})


def robustness_of(table: pd.DataFrame) -> dict[str, Any]:
    """Rows by variant."""
    (row,) = contrast_rows(table, question_means(table), [CONTRAST], [])
    rows = robustness_rows(table, [row | {"look": None}], {"ahb": ()}, [])
    return {row["variant"]: row for row in rows}


def test_every_method_takes_replicates_in_place_of_seeds(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    """What the analysis says of six runs on three replicates is what it says of three runs."""

    def everything(table: pd.DataFrame) -> dict[str, Any]:
        means = question_means(table)
        (row,) = contrast_rows(table, means, [CONTRAST], [])
        (erosion,) = erosion_rows(means, [CONTRAST])
        robust = robustness_of(table)
        (other,) = sensitivity_rows(table, means, [row | {"look": None}], {}, [])
        part = components(table, "ahb")
        profile = differences(means, [row])
        return {
            "contrast": [row[key] for key in ("estimate", "low", "high", "se", "df", "p")],
            "erosion": [erosion["advantages"][0][key] for key in ("estimate", "se", "df")],
            "robust": [
                row[key]
                for name, row in robust.items()
                if "seed" not in name
                for key in ("estimate", "p")
                if row[key] is not None
            ],
            "mixed": [other["mixed"][key] for key in ("estimate", "low", "p")],
            "permutation": [other["permutation"][key] for key in ("p", "smallest_p")],
            "components": [part["sd"] for part in part["components"][:4]],
            "profile": [value.low for by in profile.values() for value in by.values()],
        }

    runs, means = (everything(table) for table in tables)
    for key, values in means.items():
        assert runs[key] == pytest.approx(values), key


def test_a_left_out_run_leaves_its_replicate_to_the_others(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    rows = robustness_of(tables[0])
    estimates = []
    for side in (0, 1):
        for seed in range(6):
            means = [averaged(scores) for scores in drawn()]
            means[side][seed % 3] = drawn()[side][(seed + 3) % 6]  # the other run alone
            estimates.append((means[0] - means[1]).mean())
    row = rows["one seed left out"]
    assert (row["low"], row["high"]) == pytest.approx((min(estimates), max(estimates)))


def test_worst_cases_of_missing_grades_are_averaged_alike() -> None:
    treatment, control = (scores.round(1) for scores in drawn())
    treatment[0, 0] = treatment[4, 1] = np.nan
    runs = long({"A": treatment, "B": control}, {"A": SIX, "B": SIX})
    (row,) = contrast_rows(runs, question_means(runs), [CONTRAST], [])
    assert (row["treatment_corpora"], row["missing_treatment"]) == ((2, 2, 2), 2 / 72)
    filled = long({"A": np.nan_to_num(treatment), "B": control}, {"A": SIX, "B": SIX})
    means = worst_cases(runs).failed
    sides = [("A", 0), ("B", 0)]
    of_runs, _ = contrast_arms((means, means), "ahb", sides, False)
    means = question_means(filled)
    of_filled, _ = contrast_arms((means, means), "ahb", sides, False)
    assert of_runs[0].replicates == SIX
    assert two_way(of_runs, np.arange(12)) == two_way(of_filled, np.arange(12))


def test_described_means_weigh_replicates_alike() -> None:
    scores = np.array([[0.0], [1.0], [0.5]])
    table = long({"A": scores}, {"A": (0, 1, 0)})
    table = pd.concat([table, table.assign(dimension="Harm")], ignore_index=True)
    (mean,) = dimension_means(by_corpus(table))["score"]
    assert mean == pytest.approx((0.25 + 1) / 2)
    assert not by_corpus(table).duplicated(["seed", "question", "epoch", "dimension"]).any()


def test_components_are_of_the_corpus_and_its_price_of_all_its_runs() -> None:
    # arms, replicates x runs, questions, epochs
    rng = np.random.default_rng(0)
    scores = simulated(1, 2, 40, 26, 4)
    corpus = rng.normal(0, 0.2, (2, 20, 1, 1))
    table = long_of(scores + np.repeat(corpus, 2, axis=1))
    table["replicate"] = (table["seed"] // 2).astype("Int64")
    part = components(table, "ahb")
    sds = {row["component"]: row["sd"] for row in part["components"]}
    assert sds["seed"] == pytest.approx((0.2**2 + 0.05**2 / 2) ** 0.5, rel=0.25)
    assert sds["seed x question"] == pytest.approx(0.06 / 2**0.5, rel=0.1)
    assert sds["sample"] == pytest.approx(0.15, rel=0.05)
    assert (part["training_unit"], part["design"]["seeds"], part["design"]["runs"]) == (
        "corpus",
        20,
        2,
    )
    options = {row["purchase"]: row for row in next_data(part, part["design"], COSTS)}
    assert options["one more corpus per arm"]["cost"] == 2 * 2 * COSTS.seed


def test_two_corpora_of_unequal_spread_have_a_caution() -> None:
    treatment, control = drawn(4)
    control += np.array([[0.4], [-0.4], [0.4], [-0.4]])
    pairs = (0, 1, 0, 1)
    arms = [Arm(treatment, replicates=pairs), Arm(control, replicates=pairs)]
    text = _caution(two_way(arms, np.arange(12)))
    assert text and text.startswith("an arm has 2 corpora, and the spread over corpora is unequal")


@pytest.mark.parametrize(
    ("seeds", "runs", "text"),
    [
        (5, None, "5"),
        (6, [2, 2, 2], "3 corpora x 2 runs"),
        (3, [1, 1, 1], "3 corpora x 1 run"),
        (5, [2, 2, 1], "3 corpora with 2, 2 and 1 runs"),
        (2, [2], "1 corpus x 2 runs"),
    ],
)
def test_the_runs_are_named_with_their_corpora(
    seeds: int, runs: list[int] | None, text: str
) -> None:
    assert runs_text(seeds, runs) == text


def test_the_scope_of_verdicts_is_said() -> None:
    once = {"corpus": "city"}
    assert scope_note([once]).startswith("Verdicts are about the corpora as written")
    several = [{"corpus": "animal", "replicates": 3}, {"corpus": "urban", "replicates": 2}]
    assert scope_note(several).startswith(
        "Independently written several times: animal (3 times) and urban (2 times)."
    )
    assert scope_note([*several, once]).endswith("About the corpora as written: city.")


def replicated(folder: Path, seeds: int = 4) -> StageContext:
    """The small study, whose trained arms are on two replicates."""
    context = study(folder, seeds=seeds, doses=(0,))
    for row in context.settings["rows"]:
        if row["seed"] is not None:
            row["replicate"] = row["seed"] % 2
    context.settings["writers"][0]["replicates"] = 2
    for number in range(2):
        for name in ("animal", "urban"):
            role = f"corpus-{name}.replicate{number}"
            context.inputs[role] = folder / role
            context.inputs[role].mkdir()
            card = json.dumps(CARD | {"tokens": 12000 + 10 * number})
            (context.inputs[role] / "corpus_stats.json").write_text(card)
            (context.inputs[role] / "match.json").write_text(json.dumps(BALANCE))
            text = json.dumps({"text": f"{name} {number}"}) + "\n"
            (context.inputs[role] / "documents.jsonl").write_text(text)
    context.settings["writers"].append(
        {"corpus": "urban", "model": "m", "dummy": False, "matched_to": "animal", "replicates": 2}
    )
    return context


def test_a_study_of_two_corpora_says_so_in_report_and_tables(tmp_path: Path) -> None:
    context = replicated(tmp_path)
    results = results_of(context)
    row = results["contrasts"][0]
    assert (row["seeds"], row["treatment_corpora"], row["control_corpora"]) == (4, [2, 2], [2, 2])
    assert row["verdict"] != "interim", "all planned seeds have run"
    arms = {row["arm"]: row["corpora"] for row in results["arms"]}
    assert arms == {"untrained": None, "animal": [2, 2], "urban": [2, 2]}
    assert "animal (2 times) and urban (2 times)" in results["method"]
    report = (context.folder / "report.html").read_text()
    assert "2 corpora x 2 runs / 2 corpora x 2 runs" in report
    assert "corpus x question" in report and "one more corpus per arm" in report
    tables = context.folder / "tables"
    assert "2 corpora x 2 runs/2 corpora x 2 runs" in (tables / "contrasts.csv").read_text()
    assert "Independently written several times" in (tables / "contrasts.tex").read_text()
    assert "corpus x question" in (tables / "variance.csv").read_text()
    assert "animal.replicate1" in (tables / "corpora.csv").read_text()
    assert r"\TinyTokensAnimalReplicateOne}{12\,010}" in (context.folder / "macros.tex").read_text()
    table = pd.read_parquet(context.folder / "scores.parquet")
    assert set(table.loc[table["arm"] == "animal", "replicate"]) == {0, 1}
    assert table.loc[table["arm"] == "untrained", "replicate"].isna().all()


def test_a_look_counts_seeds_and_tests_their_corpora(tmp_path: Path) -> None:
    context = replicated(tmp_path)
    context.settings["looks"] = [2, 4]
    for role in [role for role in context.inputs if re.match(r"animal-\d", role)]:
        edit(context, role, lambda frame: frame.assign(score=frame["score"] * 0.9))
    (row, *_) = results_of(context)["contrasts"]
    first = row["look"] == 2
    assert row["treatment_corpora"] == ([1, 1] if first else [2, 2])
    assert row["level"] == pytest.approx(levels([2, 4])[0 if first else 1], rel=1e-5)


def test_replicates_of_corpora_are_rows_and_their_texts_one_cloud(tmp_path: Path) -> None:
    context = replicated(tmp_path)
    rows = corpora(context.inputs, context.settings["writers"])
    assert [row["name"] for row in rows] == [
        f"{name}.replicate{number}" for number in range(2) for name in ("animal", "urban")
    ]
    assert rows[3]["reference_corpus"] == "animal.replicate1"
    texts = training_texts(rows, context.inputs)
    assert texts == {"animal": ["animal 0", "animal 1"], "urban": ["urban 0", "urban 1"]}
