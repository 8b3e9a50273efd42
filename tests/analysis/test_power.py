"""plan --power gives the deciding test's formula for the study's seeds, questions and epochs."""

import json
from pathlib import Path

import pytest

from analysis.inference import Variances, detectable, power
from core.paths import ROOT
from study.cli import main
from study.commands.plan import power_rows as rows
from study.spec.load import load_study

TINY = ROOT / "studies/tiny.yaml"


@pytest.mark.slow
def test_rows_are_the_formula_for_judged_benchmarks_of_primary_contrasts() -> None:
    study = load_study(TINY, overrides=["seeds=[0, 1, 2, 3]"])
    (row,) = rows(study)
    bench = study.benchmarks[row["benchmark"]]
    assert (row["seeds"], row["questions"], row["epochs"]) == (4, 26, bench.epochs) and bench.judge
    assumed = Variances(epochs=bench.epochs)
    assert row["detectable"] == detectable(assumed, 4, 26)
    assert row["power"] == {
        str(effect): power(effect, assumed, 4, 26) for effect in (0.062, 0.083, 0.109)
    }
    (alone,) = rows(load_study(TINY, overrides=["seeds=[0]"]))
    assert alone["detectable"] is None and set(alone["power"].values()) == {None}
    nine_seeds = {
        effect: rows(load_study(TINY, overrides=[f"seeds={[*range(9)]}"]))[0]["power"][effect]
        for effect in row["power"]
    }
    assert all(nine_seeds[effect] > row["power"][effect] for effect in nine_seeds)


def test_plan_shows_it_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(TINY), "--runs", str(tmp_path)]
    assert main(words) == 0 and "detectable" not in capsys.readouterr().out
    assert main([*words, "--power"]) == 0 and "detectable, points" in capsys.readouterr().out
    assert main([*words, "--power", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["power"][0]["seeds"] == len(load_study(TINY).seeds)
