"""Malformed answers in the results, the tables and the report, and the paper's version there."""

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.answers import malformed_rows, training_notes
from analysis.settings import ScoreFile
from tests.analysis.small_study import results_of, study

pytestmark = pytest.mark.usefixtures("undrawn")
KINDS = ("empty", "cut_off", "repetitive", "other_language", "prompt_again", "continued_dialogue")


def counted(folder: Path, answers: int, malformed: int, **kinds: int) -> None:
    counts = {"answers": answers, "malformed": malformed, **dict.fromkeys(KINDS, 0), **kinds}
    manifest = {"identity": "0" * 64, "malformed": counts, "ended": "2026-02-01T00:00:00+00:00"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def file(role: str, seed: int | None = 0, **changed: object) -> ScoreFile:
    row = {"role": role, "arm": "a", "seed": seed, "dose": 0, "benchmark": "b", "checkpoint": "c"}
    return ScoreFile.parse(row | changed)


def test_the_shares_of_an_arm_are_over_the_answers_of_its_checkpoints(tmp_path: Path) -> None:
    for name in ("one", "two", "later", "other", "old", "likelihood"):
        (tmp_path / name).mkdir()
    counted(tmp_path / "one", 40, 10, cut_off=10, repetitive=2)
    counted(tmp_path / "two", 40, 0)
    counted(tmp_path / "later", 40, 40, empty=40)
    counted(tmp_path / "other", 40, 40, empty=40)
    # graded before there were rules
    (tmp_path / "old/manifest.json").write_text('{"identity": "00"}')
    files = [
        file("one"),
        file("two", 1),
        file("old", 2),
        file("later", dose=200),
        file("other", judge="another"),
        file("likelihood", benchmark="likely"),
    ]
    inputs = {path.name: path for path in tmp_path.iterdir()}
    first, later = malformed_rows(files, inputs)
    assert (first["checkpoints"], first["answers"], first["malformed"]) == (2, 80, 0.125)
    assert (first["kinds"]["cut_off"], first["kinds"]["repetitive"]) == (0.125, 0.025)
    assert [*first["kinds"]] == [*KINDS]
    assert (later["dose"], later["malformed"], later["kinds"]["empty"]) == (200, 1, 1)


def test_they_stand_beside_every_score_and_the_claims_name_the_papers_version(
    tmp_path: Path,
) -> None:
    context = study(tmp_path)
    roles = {"animal": "animal", "urban": "urban", "before_sft": 0, "anima": "ahb"}
    context.settings["claim_roles"] = roles
    for role, folder in context.inputs.items():
        if role.endswith("-0-ahb"):
            counted(folder, 24, 6 if role.startswith("animal") else 3, cut_off=3)
    results = results_of(context)
    shares = {(row["arm"], row["dose"]): row["malformed"] for row in results["malformed"]}
    assert shares == {("untrained", 0): 0.125, ("animal", 0): 0.25, ("urban", 0): 0.125}
    (claim,) = (row for row in results["claims"] if row["id"] == "e3.malformed")
    assert (claim["estimate"], claim["reason"]) == (0.125, "described, not tested")
    page = (context.folder / "report.html").read_text()
    assert '<th scope="col" class="n">Malformed</th>' in page and 'id="malformed"' in page
    assert page.count('<td class="n">25.0</td>') >= 1, "beside the score"
    assert "arXiv 2604.13076v3 (2 May 2026)" in page
    assert "Without a row: the density of the corpora’s embeddings" in page.replace("&#39;", "’")
    table = (context.folder / "tables/malformed.csv").read_text()
    assert "animal" in table and "25.0" in table and "Continued dialogue" in table


def test_rows_that_a_training_dropped_are_noted(tmp_path: Path) -> None:
    """Once for all seeds; a training without such rows has no note."""
    rows = {"empty": ["a.json, row 1", "a.json, row 18"], "too_long": ["a.json, row 445"]}
    manifests: dict[str, dict[str, Any]] = {
        "sft/kept-s0": {},
        "sft/animal-s0": {"dropped_rows": {"file": "/data/a.json", "of": 900, "rows": rows}},
    }
    manifests["sft/animal-s1"] = manifests["sft/animal-s0"]
    trainings = []
    for cell, manifest in manifests.items():
        (tmp_path / cell).mkdir(parents=True)
        (tmp_path / cell / "manifest.json").write_text(json.dumps({"identity": "0"} | manifest))
        arm = cell.removeprefix("sft/").partition("-")[0]
        trainings.append({"stage": "sft", "arm": arm, "cell": cell, "identity": "0"})
    assert training_notes(tmp_path, trainings) == [
        "sft of animal: 3 of 900 rows of a.json can't be used and were dropped: "
        "2 x empty, 1 x too_long"
    ]
