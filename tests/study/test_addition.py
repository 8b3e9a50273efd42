"""What one more arm and one more contrast take, and what they do to the family they join."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.paths import ROOT
from study.cli import main
from study.spec import expand
from study.spec.addition import read_addition
from study.spec.load import load_study
from tests.study.finished import finish

TINY = ROOT / "studies/tiny.yaml"
PLANETS = """\
corpora:
  planets: {template: random_topic, documents: 240, writer: dummy, tokens: 70000, matched_to: animal,
            decontaminate_against: [ahb, concern]}
arms:
  planets: {start: base, midtrain: planets}
"""
CONTRAST = "treatment animal, control planets"


def plan(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> dict[str, Any]:
    assert main(["plan", str(TINY), "--runs", str(tmp_path), "--json", *words]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def added(tmp_path: Path) -> Path:
    (tmp_path / "arm.yaml").write_text(PLANETS)
    return tmp_path / "arm.yaml"


def by_hand(tmp_path: Path) -> Path:
    """The miniature with the arm and the contrast written into its file."""
    raw = yaml.safe_load(TINY.read_text())
    for section, entries in yaml.safe_load(PLANETS).items():
        raw[section] |= entries
    row = {"name": "animal - planets", "treatment": "animal", "control": "planets"}
    raw["contrasts"].append(row | {"benchmarks": ["ahb", "concern"]})
    (tmp_path / "by_hand.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return tmp_path / "by_hand.yaml"


def test_an_addition_is_the_study_with_it_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--add", str(added(tmp_path)), "--contrast", CONTRAST]
    facts = plan(capsys, tmp_path, *words)
    addition = read_addition(added(tmp_path), [CONTRAST])
    larger = expand.in_order(expand.analysis(load_study(TINY, addition=addition)))
    as_written = expand.in_order(expand.analysis(load_study(by_hand(tmp_path))))
    assert [cell.identity for cell in larger] == [cell.identity for cell in as_written]
    before = expand.in_order(expand.analysis(load_study(TINY)))
    old = {cell.identity for cell in before}
    new = [cell for cell in as_written[:-1] if cell.identity not in old]
    assert sum(row["cells"] for row in facts["stages"]) == len(new) == 1 + 2 + 3 * 2 + 3 * 2 * 3
    assert old - {cell.identity for cell in larger} == {before[-1].identity}, "no old cell changes"
    # Two benchmarks at two doses, for each of two contrasts.
    assert facts["families"] == {"primary": [4, 8]}
    totals = {}
    for study in (TINY, by_hand(tmp_path)):
        main(["plan", str(study), "--runs", str(tmp_path), "--json", "--power"])
        totals[study] = json.loads(capsys.readouterr().out)
    small, large = (totals[study]["totals"]["left"] for study in totals)
    for key in ("calls", "cpu_hours", "disk_gb"):
        assert facts["total"][key] == pytest.approx(large[key] - small[key]) != 0
        of_stages = sum(row[key] for row in facts["stages"])
        assert facts["total"][key] == pytest.approx(of_stages, abs=0.01), key
    for row in facts["contrasts"]:
        assert row["in_family"]["alpha"] == pytest.approx(0.05 / 8)
        same = [
            other
            for other in totals[by_hand(tmp_path)]["power"]
            if (other["contrast"], other["benchmark"]) == (row["contrast"], row["benchmark"])
        ]
        assert same[0] == {key: row[key] for key in same[0]}
        assert row["is_new"] == (row["contrast"] == "animal - planets")
        if not row["is_new"]:
            assert row["before"]["in_family"]["alpha"] == pytest.approx(0.05 / 4)
            assert row["before"]["in_family"]["detectable"] < row["in_family"]["detectable"]
    assert [row["is_new"] for row in facts["contrasts"]] == [False, True]


@pytest.mark.multiprocess  # git, for the manifests
def test_finished_cells_of_an_addition_take_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--add", str(added(tmp_path))]
    stages = {row["stage"]: row for row in plan(capsys, tmp_path, *words)["stages"]}
    assert stages["documents"]["finished"] == 0 and stages["documents"]["calls"] > 0
    study = load_study(TINY, addition=read_addition(added(tmp_path), []))
    cells = expand.in_order(expand.analysis(study))
    (documents,) = (c for c in cells if c.stage == "documents" and "planets" in c.name)
    for cell in cells[: cells.index(documents) + 1]:
        if cell.stage in ("model", "documents"):
            finish(tmp_path / "tiny", cell)
    stages = {row["stage"]: row for row in plan(capsys, tmp_path, *words)["stages"]}
    assert stages["documents"]["finished"] == 1 and stages["documents"]["calls"] == 0


def test_the_text_names_hours_level_and_power(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(TINY), "--runs", str(tmp_path), "--contrast"]
    assert main([*words, "treatment animal, control untrained, benchmarks ahb"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("no new cells")
    assert "family primary: 6 tests in place of 4; Holm's first step is at 0.0083 in" in printed
    assert " -> " in printed and "\nnew  animal - untrained" in printed
    assert main([*words, "treatment animal, control untrained, benchmarks ahb, family F"]) == 0
    assert "family F is new: 2 tests" in capsys.readouterr().out
    assert main([*words, "treatment animal, control untrained, benchmarks concern, family F"]) == 0
    assert "no judge grades its benchmarks" in capsys.readouterr().out


def test_a_declared_study_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from study.spec.study_declaration import declare

    study = load_study(TINY)
    declare(study, tmp_path / "tiny", expand.in_order(expand.analysis(study)))
    words = ["plan", str(TINY), "--runs", str(tmp_path)]
    assert main([*words, "--contrast", "treatment animal, control untrained"]) == 0
    assert "was not declared" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "tiny")
    assert main([*words, "--contrast", "treatment animal, control untrained"]) == 0
    assert "was not declared" not in capsys.readouterr().out


def test_mistakes_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text("arm: {x: 1}\nseeds: [1]\nmodels: []\n")
    words = ["plan", str(TINY), "--runs", str(tmp_path)]
    contrasts = ["--contrast", "treatment animal, kontrol urban", "--contrast", "doses, doses 0 0"]
    assert main([*words, "--add", str(file), *contrasts]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7 and all(line.startswith("error: ") for line in lines)
    for text in (
        ":1: arm: is nothing that is added (did you mean arms?)",
        ":2: seeds: is nothing",
        ":3: models: must be a mapping",
        "has no key 'kontrol' (did you mean control?)",
        "lacks control",
        "doses has no value",
        "lacks treatment and control",
    ):
        assert any(text in line for line in lines), text
    file.write_text("arms: {animal: {start: base}, x: {start: nobody}}\n")
    contrasts = ["--contrast", "treatment x, control y, family new"]
    assert main([*words, "--add", str(file), *contrasts]) == 2
    text = capsys.readouterr().err
    assert "arms.animal: the study has one of this name" in text
    assert "family new has no benchmarks yet; add: benchmarks NAME NAME" in text
    assert "nobody" in text and "'y'" in text
    again = ["--contrast", "treatment animal, control untrained, name animal - urban"]
    assert main([*words, *again]) == 2
    assert "has a contrast of this name; add: name OTHER" in capsys.readouterr().err
