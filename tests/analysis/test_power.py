"""plan --power: each contrast by its own formula, over its family, by assumed or a pilot's variances."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.planned_test import Design, Scenarios, Variances, planned_test
from analysis.power import PlannedContrast, read_pilot, rows, show
from core.errors import UserError
from core.paths import ROOT
from study.cli import main
from study.forecast.planned_contrasts import planned_contrasts
from study.spec import expand
from study.spec.load import load_study
from study.spec.schema import Study
from tests.eval.test_questions import jsonl

TINY = ROOT / "studies/tiny.yaml"
PLANNED = PlannedContrast(
    contrast="animal - urban",
    family="primary",
    family_size=8,
    benchmark="ahb",
    task="ahb_original",
    doses=((0, 0), (800, 800)),
    kind="free",
    seeds=5,
    runs=1,
    sizes=(1,) * 26,
    is_fetched=False,
    epochs=30,
)


def planned(study: Study) -> list[PlannedContrast]:
    return planned_contrasts(study, expand.analysis(study))


def pilot(kind: str = "free", benchmark: str = "ahb", **upper: float) -> dict[str, Any]:
    """Results with components of a third of the assumed standard deviations."""
    assumed = {"seed": 0.03, "arm x question": 0.08, "seed x question": 0.05, "sample": 0.22}
    parts = [
        {"component": name, "variance": (sd / 3) ** 2, "upper": upper.get(name, sd) ** 2, "df": 4}
        for name, sd in assumed.items()
    ]
    row = {"benchmark": benchmark, "kind": kind, "components": parts}
    benchmarks = {"ahb": {"task": "ahb_original"}, "first": {"task": "ahb_original"}}
    return {"study": "pilot", "variance": [row], "benchmarks": benchmarks}


@pytest.mark.slow
def test_contrasts_of_the_papers_study() -> None:
    """Families are counted with all doses; fixed checkpoints and shared midtrainings are told."""
    entries = {
        (entry.contrast, entry.benchmark, entry.kind): entry
        for entry in planned(load_study(ROOT / "studies/paper.yaml"))
    }
    first = entries["E3 animal - urban (Base)", "ahb", "free"]
    assert next(iter(entries.values())) == first
    assert (first.family, first.family_size, len(first.doses), first.seeds) == ("primary", 8, 4, 5)
    assert first.sizes == (1,) * 26 and not first.is_fetched
    assert entries["E2 erosion", "ahb", "paired"].doses == ((4000, 0),)
    untrained = "E2 documents - untrained Instruct"
    assert entries[untrained, "ahb", "fixed"].doses == ((0, 0),)
    assert entries[untrained, "ahb", "free"].doses == ((2250, 2250), (4000, 4000))
    alpaca = entries["E4 Alpaca alone", "anima", "fixed"]
    assert (alpaca.doses, alpaca.family_size, alpaca.sizes) == (((4000, 0),), 5, (1,) * 115)


@pytest.mark.slow
def test_the_alpha_is_over_the_family_and_beside_05() -> None:
    (row,) = rows([PLANNED])
    design = Design(5, Scenarios.equal(26), "free")
    alone = planned_test(Variances(), design)
    in_family = planned_test(Variances(), design, 0.05 / 8)
    assert alone and in_family
    assert (row["alone"]["alpha"], row["in_family"]["alpha"]) == (0.05, 0.05 / 8)
    assert row["alone"]["detectable"] == alone.detectable()
    assert row["in_family"]["power"]["0.062"] == in_family.power(0.062)
    assert row["in_family"]["power"]["0.062"] < 0.6 * row["alone"]["power"]["0.062"]
    curve = row["in_family"]["curve"]
    assert list(curve) == [str(seeds) for seeds in range(2, 11)]
    assert curve["5"] == in_family.detectable()
    assert sorted(curve.values(), reverse=True) == list(curve.values())
    text = show([row])
    assert "primary, 8 tests" in text and "0, 800" in text and "26?" in text
    assert f"{100 * alone.detectable():.1f} / {100 * in_family.detectable():.1f}" in text
    assert "not listed" in text and "-: no test" not in text  # 2 of 8 tests are here
    assert "not listed" not in show(rows([replace(PLANNED, family_size=2)]))
    (alone_row,) = rows([replace(PLANNED, seeds=1)])
    assert "-: no test, as with one seed" in show([alone_row])
    assert alone_row["alone"]["detectable"] is None and "- / -" in show([alone_row])


def test_a_look_spends_a_part_of_the_familys_level() -> None:
    study = load_study(TINY, overrides=["seeds=[0, 1, 2, 3, 4]", "looks=[3, 5]"])
    (row,) = rows(planned(study))
    assert row["in_family"]["alpha"] == pytest.approx(0.0386 / row["family_size"], abs=1e-5)


@pytest.mark.slow
def test_replicates_of_a_corpus_count_in_place_of_seeds() -> None:
    changes = ["seeds=[0, 1, 2, 3]", "corpora.animal.replicates=2", "corpora.urban.replicates=2"]
    (entry,) = planned(load_study(TINY, overrides=changes))
    assert (entry.seeds, entry.runs) == (2, 2)
    (row,), (twice,) = rows([entry]), rows([replace(entry, runs=1, epochs=2 * entry.epochs)])
    assert row["alone"]["detectable"] == pytest.approx(twice["alone"]["detectable"])
    assert "2 corpora" in show([row]) and "in place of the seeds" in show([row])


@pytest.mark.slow
def test_a_pilots_components_move_the_numbers() -> None:
    """At its estimates and at their upper limits, which here are what is assumed otherwise."""
    assumed = rows([PLANNED])[0]["alone"]["detectable"]
    estimates, limits = rows([PLANNED], pilot())
    assert (estimates["variances"], limits["variances"]) == ("pilot", "pilot, upper limits")
    assert limits["alone"]["detectable"] == pytest.approx(assumed)
    assert estimates["alone"]["detectable"] == pytest.approx(assumed / 3)
    text = show([estimates, limits], pilot())
    assert "seed x question" in text and "1.7" in text and "5.0" in text and "one-sided" in text
    # a benchmark of another name and the same task; a paired contrast as if nothing were shared
    renamed = rows([replace(PLANNED, kind="paired")], pilot(benchmark="first"))
    assert renamed[0]["variances"] == "pilot"
    test = planned_test(Variances(), Design(5, Scenarios.equal(26), "paired"))
    assert test and renamed[1]["alone"]["detectable"] == pytest.approx(test.detectable())


@pytest.mark.slow
def test_components_that_do_not_fit_are_not_used() -> None:
    """Those of another task; of a paired contrast, without what its sides share; unknown ones."""
    incomplete = pilot()
    incomplete["variance"][0]["components"][1]["variance"] = None
    other = replace(PLANNED, benchmark="anima", task="anima")
    for contrast, results in (
        (other, pilot()),
        (PLANNED, pilot(kind="paired")),
        (PLANNED, incomplete),
    ):
        (row,) = rows([contrast], results)
        assert row["variances"] == "assumed"
        text = show([row], results)
        assert (
            f"planned_test.py. pilot has no complete components for {contrast.benchmark}." in text
        )
        assert "upper limit" not in text and "sd, points" not in text


def test_translations_are_no_questions_of_their_own(tmp_path: Path) -> None:
    """Scenarios are counted in the benchmark's file, without the questions that are excluded."""
    questions = [
        {"id": i, "question": f"text {i}", "tags": ["Harm"], "translation": f"scenario {i % 9}"}
        for i in range(12)
    ]
    questions = [row | {"variables": None, "language": "en"} for row in questions]
    path = jsonl(tmp_path / "questions.jsonl", questions)
    changes = [f"benchmarks.ahb.questions={path}", "benchmarks.ahb.exclude=['8']"]
    (entry,) = planned(load_study(TINY, overrides=changes))
    assert sorted(entry.sizes) == [1] * 5 + [2] * 3 and entry.is_fetched
    (row,) = rows([entry])
    assert (row["questions"], row["scenarios"]) == (11, 8)
    assert "8  " in show([row]) and "8?" not in show([row])


@pytest.mark.slow
def test_plan_shows_it_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(TINY), "--runs", str(tmp_path)]
    assert main(words) == 0 and "etectable" not in capsys.readouterr().out
    assert main([*words, "--power"]) == 0
    assert "primary, 4 tests" in capsys.readouterr().out, "2 doses on 2 benchmarks"
    (tmp_path / "results.json").write_text(json.dumps(pilot()))
    words += ["--json", "--variances", str(tmp_path / "results.json")]
    assert main(words) == 0
    power = json.loads(capsys.readouterr().out)["power"]
    assert [row["variances"] for row in power] == ["pilot", "pilot, upper limits"]
    assert power[0]["seeds"] == len(load_study(TINY).seeds)


def test_a_study_without_judged_contrasts_has_no_empty_tables() -> None:
    assert show([]) == "No power: no contrast is on a benchmark that a judge grades."


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: row.pop("kind"),
        lambda row: row.update(benchmark="other"),
        lambda row: row["components"][0].pop("component"),
        lambda row: row["components"][0].update(variance="0.1"),
        lambda row: row["components"][1].update(upper=-0.1),
        lambda row: row["components"][1].update(variance=float("nan")),
    ],
)
def test_damaged_components_are_refused(tmp_path: Path, damage: Callable[[Any], object]) -> None:
    results = pilot()
    damage(results["variance"][0])
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    with pytest.raises(UserError) as error:
        read_pilot(path)
    assert "the file was edited or cut" in error.value.lines[0]
    path.write_text(json.dumps(pilot()))
    assert read_pilot(path) == pilot()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "no such file"),
        ("[1]", "no results of a study"),
        ("{", "no results of a study"),
        ('{"study": "s", "variance": [{"components": [{}]}]}', "an older version wrote it"),
    ],
)
def test_results_without_components_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, what: str
) -> None:
    path = tmp_path / "results.json"
    if text:
        path.write_text(text)
    words = ["plan", str(TINY), "--runs", str(tmp_path), "--variances", str(path)]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert what in message and str(path) in message
