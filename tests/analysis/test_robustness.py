"""Robustness: each variant by hand, the base as the study computes it, reasons for gaps."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.contrasts import contrast_rows
from analysis.estimates import Arm, two_way
from analysis.robustness import holds_of, natural, robustness_rows
from analysis.rows import to_jsonable
from analysis.sensitivity import dimension_rows, sensitivity_rows
from analysis.settings import Contrast
from analysis.table import OVERALL, dimension_means, primary_judge_rows, question_means

CONTRAST = Contrast("A - B", "A", "B", ("ahb",), "primary")
KEYS = (
    "name",
    "benchmark",
    "dose",
    "control_dose",
    "variant",
    "estimate",
    "low",
    "high",
    "p",
    "questions",
    "seeds",
)


def table(*rows: tuple[Any, ...], **keys: Any) -> pd.DataFrame:
    """A long table of (arm, seed, question, {dimension: score}), one answer each.

    `keys` are more columns.
    """
    lines = [(*row[:3], name, score) for row in rows for name, score in row[3].items()]
    result = pd.DataFrame(lines, columns=["arm", "seed", "question", "dimension", "score"])
    result = result.assign(
        benchmark="ahb", dose=0, judge="main", epoch=1, response="r", scenario=result["question"]
    )
    result = result.assign(**keys).astype({"seed": "Int64", "score": float})
    return result.assign(missing=result["score"].isna().map({True: "no", False: None}))


def square(
    of: list[list[float]], against: list[list[float]], ids: list[str] | None = None, **keys: Any
) -> pd.DataFrame:
    """Overall scores of arms A and B, shape (seeds, questions)."""
    names = ids or [f"q{n}" for n in range(len(of[0]))]
    arms = (("A", of), ("B", against))
    rows = [
        (arm, s, names[q], {OVERALL: x})
        for arm, m in arms
        for s, row in enumerate(m)
        for q, x in enumerate(row)
    ]
    return table(*rows, **keys)


OF, AGAINST = [[0.5, 0.7, 0.9], [0.7, 0.9, 0.8]], [[0.2, 0.4, 0.3], [0.2, 0.6, 0.7]]


def contrasts_of(
    data: pd.DataFrame, declared: list[Contrast], others: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """The rows of contrasts, which rest on all seeds."""
    main = primary_judge_rows(data, {"ahb": others})
    rows = contrast_rows(main, question_means(main), declared, [])
    return [row | {"look": None} for row in rows]


def rows_of(
    data: pd.DataFrame, declared: list[Contrast], others: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    return robustness_rows(data, contrasts_of(data, declared, others), {"ahb": others}, [])


def variants(
    data: pd.DataFrame, others: tuple[str, ...] = (), **changed: Any
) -> dict[str, dict[str, Any]]:
    rows = rows_of(data, [replace(CONTRAST, **changed)], others)
    json.dumps(to_jsonable(rows), allow_nan=False)
    return {row["variant"]: row for row in rows}


@pytest.mark.slow
def test_the_base_is_the_study_s_own_contrast():
    rng = np.random.default_rng(0)
    data = square(rng.random((3, 8)), rng.random((4, 8)))
    (declared,) = contrast_rows(data, question_means(data), [CONTRAST], [])
    base = variants(data)["all"]
    assert all(base[key] == declared[key] for key in KEYS if key != "variant")
    assert base["sign_same"] is True and base["reason"] is None


def test_first_26_questions_by_number():
    """A is better by .1 on the first 26 of 28 questions, and worse by 1 on the last two.

    Their ids are 0 to 27: as text, 3 to 9 would come after 26 and 27.
    """
    values = np.where(np.arange(28) < 26, 0.6, 0.0)
    shift = np.array([[0.0], [0.02]])
    data = square(
        values + shift, np.where(np.arange(28) < 26, 0.5, 0.98) + shift, [str(n) for n in range(28)]
    )
    rows = variants(data)
    assert rows["all"]["estimate"] == pytest.approx((26 * 0.1 - 2 * 0.98) / 28)
    result = rows["first 26 questions"]
    assert (result["estimate"], result["questions"]) == (pytest.approx(0.1), 26)
    assert result["sign_same"] is True
    few = variants(square(OF, AGAINST))["first 26 questions"]
    assert (few["estimate"], few["reason"]) == (None, "there are no more than 26 questions")


def test_ids_sort_by_their_numbers():
    assert sorted(["q10", "q9", "2", "10", "a", "q9b"], key=natural) == [
        "2",
        "10",
        "a",
        "q9",
        "q9b",
        "q10",
    ]


def test_one_question_per_scenario():
    """Of scenarios s (ids 2 and 10) and t (3) the questions 2 and 3 remain.

    Their differences are .35 and .3.
    """
    data = square(OF, AGAINST, ["10", "3", "2"])
    data["scenario"] = data["question"].map({"10": "s", "3": "t", "2": "s"})
    rows = variants(data)
    result = rows["one question per scenario"]
    assert (result["estimate"], result["questions"]) == (pytest.approx((0.35 + 0.3) / 2), 2)
    assert rows["all"]["estimate"] == pytest.approx(0.35) and "English questions" not in rows
    assert (
        variants(square(OF, AGAINST))["one question per scenario"]["reason"]
        == "no scenario has two questions"
    )


def test_english_only_where_the_table_tells():
    data = square(OF, AGAINST)
    languages = data["question"].map({"q0": "English", "q1": "German", "q2": "en"})
    rows = variants(data.assign(language=languages))
    assert rows["English questions"]["estimate"] == pytest.approx((0.4 + 0.35) / 2)
    assert "one question per scenario" not in rows
    assert (
        variants(data.assign(language="English"))["English questions"]["reason"]
        == "all questions are in English"
    )
    assert "no question" in variants(data.assign(language="German"))["English questions"]["reason"]


def test_one_question_left_out_by_hand():
    """Question differences .4, .3, .35 of mean .35: without each .325, .375, .35."""
    result = variants(square(OF, AGAINST))["one question left out"]
    assert (result["low"], result["high"]) == pytest.approx((0.325, 0.375))
    assert (
        result["which"] in ("question q0", "question q1")
        and result["questions"] == 2
        and result["sign_same"] is True
    )
    # .9, 0, -.3 of mean .2: without each -.15, .3, .45
    uneven = square([[0.9, 0.5, 0.2], [0.9, 0.5, 0.2]], [[0.01, 0.5, 0.5], [-0.01, 0.5, 0.5]])
    result = variants(uneven)["one question left out"]
    assert (result["low"], result["high"], result["estimate"]) == pytest.approx(
        (-0.15, 0.45, -0.15)
    )
    assert (result["which"], result["sign_same"]) == ("question q0", False)
    cut = [[0, 1], [0, 2], [1, 2]]
    rows = uneven["seed"].to_numpy()
    arms = [np.array(uneven.loc[uneven["arm"] == arm, "score"]).reshape(2, 3) for arm in "AB"]
    ps = [two_way([Arm(arm[:, columns]) for arm in arms], np.arange(2)).p for columns in cut]
    assert result["p"] == max(ps) and len(rows) == 12


def test_one_seed_left_out_by_hand():
    """Seed means of A .7, .8 and of B .3, .5.

    Without one of A .8 - .4 or .7 - .4, of B .75 - .5 or .75 - .3.
    """
    result = variants(square(OF, AGAINST))["one seed left out"]
    assert (result["low"], result["high"]) == pytest.approx((0.25, 0.45))
    assert result["which"] in ("B seed 0", "B seed 1") and result["seeds"] == 1
    assert result["p"] is None and result["reason"].startswith("one seed per arm")
    three = square([*OF, [0.1, 0.1, 0.1]], AGAINST)
    result = variants(three)["one seed left out"]
    assert result["which"] == "A seed 2" and result["estimate"] == pytest.approx(0.35)


def test_one_seed_or_a_fixed_checkpoint_leaves_none_out():
    result = variants(square(OF[:1], AGAINST[:1]))
    assert result["all"]["p"] is None and result["all"]["estimate"] == pytest.approx(0.4)
    row = result["one seed left out"]
    assert (row["estimate"], row["sign_same"]) == (None, None) and row["reason"].startswith(
        "one seed per arm"
    )
    data = square(OF, AGAINST[:1])
    data.loc[data["arm"] == "B", "seed"] = pd.NA
    rows = variants(data)
    assert rows["all"]["seeds"] == 2 and rows["all"]["p"] is not None
    # only A's seeds can go: .8 or .7 less .3
    assert (rows["one seed left out"]["low"], rows["one seed left out"]["high"]) == pytest.approx(
        (0.4, 0.5)
    )


def test_each_other_judge_decides():
    main = square(OF, AGAINST)
    harsh = square(AGAINST, OF).assign(judge="harsh")
    part = square(OF, AGAINST).assign(judge="part").query("question != 'q0'")
    grades = table(("A", 0, "q0", {"Harm": 1.0}), judge="people")
    rows = variants(pd.concat([main, harsh, part, grades]), ("harsh", "part", "people"))
    assert rows["all"]["estimate"] == pytest.approx(0.35)
    assert (
        rows["judge harsh"]["estimate"] == pytest.approx(-0.35)
        and rows["judge harsh"]["sign_same"] is False
    )
    assert rows["judge harsh"]["low"] == pytest.approx(-rows["all"]["high"])
    assert (rows["judge part"]["estimate"], rows["judge part"]["questions"]) == (
        pytest.approx(0.325),
        2,
    )
    assert rows["judge part"]["reason"] == "graded 8 answers, the deciding judge 12"
    assert rows["judge people"]["reason"] == "this judge gave no overall scores"
    assert "one judge only" in variants(main)["another judge"]["reason"]


def test_a_judge_of_one_arm_only():
    both_dimensions = pd.concat(
        [square(OF, AGAINST), square(OF, AGAINST).assign(judge="half").query("arm == 'A'")]
    )
    row = variants(both_dimensions, ("half",))["judge half"]
    assert row["estimate"] is None and row["reason"]


def test_length_adjusted_by_hand():
    """Scores are .1 x length, +.2 for A; A's answers are longer by 2. Adjusted .2 remain of .4."""
    lengths = {("A", 0): 4.0, ("A", 1): 6.0, ("B", 0): 2.0, ("B", 1): 4.0}
    rows = [
        (arm, seed, q, {OVERALL: 0.1 * length + (0.2 if arm == "A" else 0) + d})
        for (arm, seed), length in lengths.items()
        for q, d in (("q0", 0.0), ("q1", 0.05), ("q2", -0.01))
    ]
    data = table(*rows)
    data["length"] = [lengths[key] for key in zip(data["arm"], data["seed"], strict=True)]
    result = variants(data)
    assert result["all"]["estimate"] == pytest.approx(0.4)
    assert result["length held equal"]["estimate"] == pytest.approx(0.2)
    # an answer of unknown length is left out, and here changes nothing in the slope
    data.loc[0, "length"] = np.nan
    assert variants(data)["length held equal"]["estimate"] == pytest.approx(0.2)
    same = variants(data.assign(length=7))["length held equal"]
    assert same["reason"] == "lengths do not vary within arm and question"
    assert (
        variants(square(OF, AGAINST))["length held equal"]["reason"]
        == "the table has no lengths of responses"
    )


def test_dimensions_weigh_the_same_by_hand():
    """Harm is asked in four questions with a difference of .1, Scope in one with .9.

    The mean overall is .26, of dimensions .5.
    """
    rows = []
    for arm, harm, scope in (("A", 0.6, 0.95), ("B", 0.5, 0.05)):
        for seed in (0, 1, 2):
            shift = 0.01 * seed
            rows += [
                (arm, seed, f"q{n}", {"Harm": harm + shift, OVERALL: harm + shift})
                for n in range(4)
            ]
            rows.append((arm, seed, "q4", {"Scope": scope + shift, OVERALL: scope + shift}))
    result = variants(table(*rows))
    assert result["all"]["estimate"] == pytest.approx((4 * 0.1 + 0.9) / 5)
    row = result["dimensions weigh the same"]
    assert (row["estimate"], row["questions"]) == (pytest.approx(0.5), 5)
    # no question moves its dimension's mean, so only seeds vary: .01^2 / 3 in each arm
    assert (row["high"] - row["low"]) / 2 == pytest.approx(
        2.776 * (2 * 0.01**2 / 3) ** 0.5, rel=1e-3
    )
    assert (
        variants(square(OF, AGAINST))["dimensions weigh the same"]["reason"]
        == "no dimension was graded in both arms"
    )


def test_dimensions_agree_with_the_study_s_dimension_means():
    rng = np.random.default_rng(3)
    tags = {
        "q0": ["Harm"],
        "q1": ["Harm", "Scope"],
        "q2": ["Scope", "Trade"],
        "q3": ["Harm"],
        "q4": ["Trade"],
    }
    rows = []
    for arm in "AB":
        for seed in range(3):
            for question, names in tags.items():
                grades = {
                    name: float(x) for name, x in zip(names, rng.random(len(names)), strict=True)
                }
                rows.append(
                    (arm, seed, question, grades | {OVERALL: float(np.mean(list(grades.values())))})
                )
    data = table(*rows)
    means = dimension_means(data).groupby("arm")["score"].mean()
    result = variants(data)["dimensions weigh the same"]
    assert result["estimate"] == pytest.approx(means["A"] - means["B"]) and result["p"] is not None
    # what only one arm was graded on leaves both
    only_b = data[
        ~((data["arm"] == "A") & (data["question"] == "q4") & (data["dimension"] != OVERALL))
    ]
    means = dimension_means(data[data["question"] != "q4"]).groupby("arm")["score"].mean()
    assert variants(only_b)["dimensions weigh the same"]["estimate"] == pytest.approx(
        means["A"] - means["B"]
    )


def test_dimensions_of_every_question_give_the_study_s_own_interval():
    rng = np.random.default_rng(4)
    rows = []
    for arm in "AB":
        for seed in range(3):
            for n in range(5):
                harm, scope = rng.random(2)
                rows.append(
                    (
                        arm,
                        seed,
                        f"q{n}",
                        {"Harm": harm, "Scope": scope, OVERALL: (harm + scope) / 2},
                    )
                )
    result = variants(table(*rows))
    for key in ("estimate", "low", "high", "p"):
        assert result["dimensions weigh the same"][key] == pytest.approx(result["all"][key])


def test_doses_families_and_arms_without_scores():
    data = pd.concat([square(OF, AGAINST), square(AGAINST, OF).assign(dose=5000)])
    rows = rows_of(data, [CONTRAST])
    assert [(row["dose"], row["estimate"]) for row in rows if row["variant"] == "all"] == [
        (0, pytest.approx(0.35)),
        (5000, pytest.approx(-0.35)),
    ]
    across = variants(data, treatment_dose=5000, control_dose=0, control="A")
    assert (across["all"]["dose"], across["all"]["control_dose"]) == (5000, 0)
    assert across["all"]["estimate"] == pytest.approx(-0.35)
    assert {*variants(data, family="E2")} == {"all", "one seed left out", "one question left out"}
    for nothing in ({"control": "C"}, {"treatment_dose": 200, "control_dose": 0}):
        (row,) = variants(data, **nothing).values()
        assert (row["estimate"], row["sign_same"], row["holds"]) == (None, None, None)
        assert row["reason"]


def test_ungraded_answers_give_reasons():
    data = square(OF, AGAINST)
    data.loc[data["arm"] == "A", "score"] = np.nan
    for row in variants(data).values():
        assert row["estimate"] is None and row["reason"] and row["sign_same"] is None


def test_order_of_rows_does_not_matter():
    rng = np.random.default_rng(5)
    data = square(rng.random((3, 30)), rng.random((3, 30)), [str(n) for n in range(30)])
    shuffled = data.sample(frac=1, random_state=2).reset_index(drop=True)
    assert to_jsonable(rows_of(data, [CONTRAST])) == to_jsonable(rows_of(shuffled, [CONTRAST]))


def test_how_often_a_verdict_holds_by_hand():
    """A is better by .4 on ten questions in nine scenarios, and by more on none.

    Without seed 2 of A, which alone is bad, it is better; the second judge finds nothing.
    """
    rng = np.random.default_rng(7)
    noise = rng.normal(0, 0.01, (2, 3, 10))
    of = np.full((3, 10), 0.8) + noise[0]
    against = np.full((3, 10), 0.4) + noise[1]
    data = square(of, against)
    data["scenario"] = data["question"].where(data["question"] != "q1", "q0")
    other = data.assign(judge="second", score=0.5 + rng.normal(0, 0.01, len(data)))
    data = pd.concat([data, other])
    (contrast,) = contrasts_of(data, [CONTRAST], ("second",))
    rows = robustness_rows(data, [contrast], {"ahb": ("second",)}, [])
    assert contrast["verdict"] == "higher"
    assert holds_of(contrast, rows) == {
        "seed": (6, 6),
        "question": (10, 10),
        "scenario": (9, 9),
        "judge": [0, 1],
    }
    # with p so near to what is needed that it is lost without any question
    close = contrast | {"p_needed": contrast["p"]}
    rows = robustness_rows(data, [close], {"ahb": ("second",)}, [])
    lost = [two_way_without(data, question) > contrast["p"] for question in range(10)]
    assert holds_of(close, rows)["question"] == (10 - sum(lost), 10)
    assert 0 < sum(lost) <= 10
    for verdict in ("interim", "none", "hangs on missing grades"):
        rows = robustness_rows(data, [contrast | {"verdict": verdict}], {"ahb": ("second",)}, [])
        assert set(holds_of(contrast, rows).values()) == {None}


def two_way_without(data: pd.DataFrame, question: int) -> float:
    main = data[(data["judge"] == "main") & (data["question"] != f"q{question}")]
    (row,) = contrasts_of(main, [CONTRAST])
    return row["p"]


def test_a_range_of_one_scenario_is_that_of_its_questions():
    """Two questions of s differ by .4 and .3, one of t by .35: without s .35, without t .35."""
    data = square(OF, AGAINST)
    data["scenario"] = data["question"].map({"q0": "s", "q1": "s", "q2": "t"})
    row = variants(data)["one scenario left out"]
    assert (row["low"], row["high"]) == pytest.approx((0.35, 0.35))
    assert row["which"] in ("scenario s", "scenario t")


def test_rows_rest_on_the_seeds_of_their_look():
    """A third seed of A that is bad was added after the look."""
    data = square([*OF, [0.0, 0.0, 0.0]], [*AGAINST, [0.5, 0.5, 0.5]])
    first = data[data["seed"] < 2]
    rows = [contrasts_of(first, [CONTRAST])[0] | {"look": 2}]
    at_look = robustness_rows(data, rows, {"ahb": ()}, [0, 1, 2])
    assert to_jsonable(at_look) == to_jsonable(rows_of(first, [CONTRAST]))
    (means_of_look,) = sensitivity_rows(data, question_means(data), rows, {}, [0, 1, 2])
    (expected,) = sensitivity_rows(first, question_means(first), rows, {}, [0, 1])
    assert means_of_look == expected
    dimensions = data.assign(dimension="Harm")
    (row,) = dimension_rows(dimensions, rows, [0, 1, 2])
    assert row["estimate"] == pytest.approx(rows[0]["estimate"])
