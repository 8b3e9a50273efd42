"""macros.tex: unique names of letters only, valid LaTeX values, the numbers of the results."""

import json
import re
from itertools import pairwise
from typing import Any

import pytest

from analysis.macros import command_word, macros
from analysis.rows import to_jsonable
from core.errors import UserError

LINE = re.compile(r"\\newcommand\{\\([A-Za-z]+)\}\{(.*)\}% (.+)")
ODD = "50%_a&b$#{~^\\é"


def arm(name: str, **changed: Any) -> dict[str, Any]:
    row = {
        "arm": name,
        "benchmark": "ahb",
        "dose": 0,
        "mean": 0.557,
        "low": 0.5,
        "high": 0.61,
        "seeds": 3,
    }
    row |= {"n": 780, "grades": 2910, "dimension_normalized_avg": None}
    return row | {"fixed": False, "reason": None} | changed


def contrast(**changed: Any) -> dict[str, Any]:
    row = {
        "name": "animal - urban",
        "treatment": "animal",
        "control": "urban",
        "benchmark": "ahb",
        "dose": 0,
    }
    row |= {
        "control_dose": 0,
        "family": "primary",
        "estimate": -0.031,
        "low": -0.07,
        "high": 0.008,
        "seeds": 3,
        "prediction_low": -0.1,
        "prediction_high": 0.04,
        "p": 0.0041,
        "df": 5.23,
        "family_size": 3,
        "cohens_d": -0.12,
        "questions_opposite": 7,
        "questions": 26,
        "level": 0.05,
        "holds": {"seed": [5, 6], "question": [26, 26], "scenario": [26, 26], "judge": None},
    }
    return (
        row
        | {"p_holm": 0.0123, "p_response_level": 1e-5, "verdict": "inconclusive", "reason": None}
        | changed
    )


def results(**changed: Any) -> dict[str, Any]:
    benchmark = {"questions": 26, "scenarios": 24, "epochs": 30, "judge": "gemini-2.5_flash"}
    corpus = {
        "name": "animal",
        "documents": 2700,
        "held_out": 270,
        "tokens": 3012345,
        "median_words": 812.5,
    }
    result = {
        "study": "tiny_1",
        "benchmarks": {"ahb": benchmark},
        "arms": [arm("animal"), arm("urban", dose=5000, dimension_normalized_avg=0.484)],
    }
    return result | {"contrasts": [contrast()], "corpora": [corpus]} | changed


def parse(text: str, study: str = "TinyOne") -> dict[str, str]:
    """Commands, without the study that begins each, and their values.

    Every line must be a comment or a definition that LaTeX takes.
    """
    result = {}
    for line in text.splitlines():
        if line.startswith("%"):
            continue
        command, value, _ = LINE.fullmatch(line).groups()
        assert command.startswith(study)
        command = command.removeprefix(study)
        assert command not in result
        bare = re.sub(r"\\[^A-Za-z]", "", value)  # without \% and the like
        assert not re.search(r"[%&#$_~^]", bare), value
        depth = 0
        for letter in bare:
            depth += {"{": 1, "}": -1}.get(letter, 0)
            assert depth >= 0, value
        assert depth == 0, value
        result[command] = value
    return result


def test_every_number_by_hand():
    assert parse(macros(results())) == {
        "Name": r"tiny\_1",
        "QuestionsAhb": "26",
        "ScenariosAhb": "24",
        "EpochsAhb": "30",
        "JudgeAhb": r"gemini-2.5\_flash",
        "ScoreAnimalAhbDoseZero": "55.7",
        "LowAnimalAhbDoseZero": "50.0",
        "HighAnimalAhbDoseZero": "61.0",
        "SeedsAnimalAhbDoseZero": "3",
        "AnswersAnimalAhbDoseZero": "780",
        "GradesAnimalAhbDoseZero": r"2\,910",
        "ScoreUrbanAhbDoseFiveZeroZeroZero": "55.7",
        "LowUrbanAhbDoseFiveZeroZeroZero": "50.0",
        "HighUrbanAhbDoseFiveZeroZeroZero": "61.0",
        "SeedsUrbanAhbDoseFiveZeroZeroZero": "3",
        "AnswersUrbanAhbDoseFiveZeroZeroZero": "780",
        "GradesUrbanAhbDoseFiveZeroZeroZero": r"2\,910",
        "DimensionNormalizedAvgUrbanAhbDoseFiveZeroZeroZero": "48.4",
        "ContrastEstimateAnimalMinusUrbanAhbDoseZero": r"\ensuremath{-3.1}",
        "ContrastLowAnimalMinusUrbanAhbDoseZero": r"\ensuremath{-7.0}",
        "ContrastHighAnimalMinusUrbanAhbDoseZero": "0.8",
        "PredictionLowAnimalMinusUrbanAhbDoseZero": r"\ensuremath{-10.0}",
        "PredictionHighAnimalMinusUrbanAhbDoseZero": "4.0",
        "ContrastPAnimalMinusUrbanAhbDoseZero": r"\ensuremath{= .004}",
        "ContrastDfAnimalMinusUrbanAhbDoseZero": r"\ensuremath{5.2}",
        "PHolmAnimalMinusUrbanAhbDoseZero": r"\ensuremath{= .012}",
        "FamilySizeAnimalMinusUrbanAhbDoseZero": "3",
        "CohensDAnimalMinusUrbanAhbDoseZero": r"\ensuremath{-0.12}",
        "OppositeQuestionsAnimalMinusUrbanAhbDoseZero": "7",
        "HoldsWithoutSeedAnimalMinusUrbanAhbDoseZero": "5 of 6",
        "HoldsWithoutQuestionAnimalMinusUrbanAhbDoseZero": "26 of 26",
        "HoldsWithoutScenarioAnimalMinusUrbanAhbDoseZero": "26 of 26",
        "HoldsByAnotherJudgeAnimalMinusUrbanAhbDoseZero": r"\mbox{--}",
        "PResponsesAnimalMinusUrbanAhbDoseZero": r"\ensuremath{< .001}",
        "ContrastSeedsAnimalMinusUrbanAhbDoseZero": "3",
        "VerdictAnimalMinusUrbanAhbDoseZero": "inconclusive",
        "DocumentsAnimal": r"2\,700",
        "HeldOutAnimal": "270",
        "TokensAnimal": r"3\,012\,345",
        "MedianWordsAnimal": "812",
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ahb_2", "AhbTwo"),
        ("animal - urban", "AnimalMinusUrban"),
        ("animal-urban", "AnimalUrban"),
        ("QA", "QA"),
        ("qa", "Qa"),
        ("a1b", "AOneB"),
        ("50%", "FiveZeroPercent"),
        ("a&b$#", "AAndBDollarNumber"),
        ("café", "Cafe"),
        ("β", "GreekSmallLetterBeta"),
        ("动", "CjkUnifiedIdeographFiveTwoAEight"),
        ("²", "Two"),
        (5000, "FiveZeroZeroZero"),
    ],
)
def test_names_are_letters_only(text, name):
    assert command_word(text) == name and re.fullmatch("[A-Za-z]+", name)


def test_odd_names_are_escaped_and_still_told_apart():
    odd = [ODD, "urban%", "urban", "动物", "动作", "ümlaut"]
    result = results(
        study=ODD,
        arms=[arm(name) for name in odd],
        contrasts=[contrast(name=f"{a} - {b}", treatment=a, control=b) for a, b in pairwise(odd)],
        benchmarks={"ahb": results()["benchmarks"]["ahb"] | {"judge": ODD}},
        corpora=[results()["corpora"][0] | {"name": name} for name in odd],
    )
    commands = parse(macros(result), command_word(ODD))
    assert len([name for name in commands if name.startswith("Score")]) == len(odd)
    assert (
        commands["JudgeAhb"]
        == commands["Name"]
        == r"50\%\_a\&b\$\#\{\textasciitilde{}\textasciicircum{}" + (r"\textbackslash{}é")
    )


def test_a_line_break_in_a_name_does_not_end_the_comment():
    assert "ScoreABAhbDoseZero" in parse(macros(results(arms=[arm("a\nb")])))


@pytest.mark.parametrize("names", [("a-b", "a_b"), ("café", "cafe"), ("a b", "aB")])
def test_two_names_that_come_out_the_same_are_an_error(names):
    with pytest.raises(UserError) as error:
        macros(results(arms=[arm(name) for name in names]))
    problems = error.value.problems
    assert len(problems) == 6 and all(name in problems[0].what for name in names)


def test_one_contrast_at_several_doses_and_across_doses():
    rows = [contrast(), contrast(dose=200, control_dose=200), contrast(dose=200, control_dose=0)]
    commands = parse(macros(results(contrasts=rows)))
    assert {name for name in commands if name.startswith("Verdict")} == {
        "VerdictAnimalMinusUrbanAhbDoseZero",
        "VerdictAnimalMinusUrbanAhbDoseTwoZeroZero",
        "VerdictAnimalMinusUrbanAhbDoseTwoZeroZeroVersusZero",
    }


def test_what_there_is_not_prints_as_a_dash_and_says_why():
    nothing = dict.fromkeys(("low", "high", "p_holm", "p_response_level"))
    reason = "one seed per arm: how far another training seed would differ is unknown"
    row = contrast(**nothing, verdict="none", reason=reason)
    missing = contrast(
        name="other", dose=None, control_dose=None, estimate=None, **nothing, reason="never planned"
    )
    text = macros(
        results(
            contrasts=[row, missing],
            arms=[arm("animal", mean=None, low=None, high=None, reason="no")],
        )
    )
    commands = parse(text)
    assert commands["ContrastEstimateAnimalMinusUrbanAhbDoseZero"] == r"\ensuremath{-3.1}"
    assert commands["VerdictAnimalMinusUrbanAhbDoseZero"] == "no verdict"
    for name in (
        "ContrastLowAnimalMinusUrbanAhbDoseZero",
        "PHolmAnimalMinusUrbanAhbDoseZero",
        "ContrastEstimateOtherAhbNoDose",
    ):
        assert commands[name] == r"\mbox{--}"
    assert commands["ScoreAnimalAhbDoseZero"] == r"\mbox{--}"
    start = "\\newcommand{\\TinyOnePHolmAnimal"
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    assert line.endswith(f"none, {reason}")


def test_claims_on_scores_have_macros() -> None:
    sized = {"id": "e2.sft_2500", "benchmark": "ahb", "verdict": "reproduced, smaller"}
    sized |= {"share": 0.61, "share_low": 0.3, "share_high": 0.92, "reason": "its interval"}
    untested = sized | {"id": "e1.ai", "verdict": "none", "share": None, "reason": None}
    corpus = sized | {"id": "e2.tokens", "benchmark": None}
    lines = [
        LINE.fullmatch(line)
        for line in macros(results(claims=[sized, untested, corpus])).split("\n")
    ]
    values = {line[1].removeprefix("TinyOne"): line[2] for line in lines if line}
    assert values["ClaimVerdictETwoSftTwoFiveZeroZero"] == "reproduced, smaller"
    assert values["ClaimShareEstimateETwoSftTwoFiveZeroZero"] == "61.0"
    assert values["ClaimShareHighETwoSftTwoFiveZeroZero"] == "92.0"
    assert values["ClaimVerdictEOneAi"] == "no verdict"
    assert values["ClaimShareEstimateEOneAi"] == r"\mbox{--}"
    assert not any("Tokens" in name for name in values if name.startswith("Claim"))


def test_deterministic_and_from_the_json_file():
    result = results()
    assert macros(result) == macros(json.loads(json.dumps(to_jsonable(result)))) and macros(
        result
    ).endswith("\n")
    assert parse(macros(results(arms=[], contrasts=[], corpora=[], benchmarks={}))) == {
        "Name": r"tiny\_1"
    }
