"""studies/assert.yaml: ten pairs of arms, their claims, and rows of one file by a filter."""

import json
from collections import Counter
from pathlib import Path

import pytest

from analysis.claims_file import read_claims
from core.errors import UserError
from core.paths import ROOT
from study.spec import expand
from study.spec.load import load_study
from tests.place import SMALL

STUDY = ROOT / "studies/assert.yaml"


def test_ten_features_are_trained_with_and_without_on_five_seeds() -> None:
    study = load_study(STUDY)
    last = expand.analysis(study)
    cells = expand.in_order(last)
    stages = Counter(cell.stage for cell in cells)
    assert (stages["documents"], stages["midtrain"]) == (20, 100)
    assert stages["likelihood"] == 2 * (1 + 100)
    sources = [json.dumps(c.settings["source"]) for c in cells if c.stage == "documents"]
    assert len(set(sources)) == 20, "each corpus has a filter of its own"
    paths = {c.resources["files"]["source"] for c in cells if c.stage == "documents"}
    assert len(paths) == 1 and paths.pop().endswith("compassion_dataset_v4.csv")
    # Two arms of a contrast differ in their corpus alone.
    assert {tuple(row["differences"]) for row in last.settings["contrasts"]} == {("corpus",)}


def test_every_claim_of_the_paper_has_its_contrast() -> None:
    study = load_study(STUDY)
    claims = read_claims(ROOT / study.claims)["claims"]
    declared = {(c.treatment, c.control) for c in study.contrasts}
    roles = study.claim_roles
    assert {(roles[c["treatment"]], roles[c["control"]]) for c in claims} == declared
    assert Counter(c["direction"] for c in claims) == {"higher": 7, "lower": 2, "none": 1}
    assert all(roles[c["benchmark"]] == "stance" for c in claims)


def test_a_filter_is_part_of_a_corpus_and_only_where_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    rows = [f"{kind},A text of kind {kind} with number {n}" for n in range(120) for kind in "PN"]
    path.write_text("kind,text\n" + "\n".join(rows) + "\n")

    def settings(**more: object) -> dict[str, object]:
        corpus = {"path": str(path), "documents": 100} | more
        study = load_study(SMALL, None, [f"corpora.animal={json.dumps(corpus)}"])
        cells = expand.in_order(expand.analysis(study))
        return next(c.settings for c in cells if c.stage == "documents" and c.name == "animal")

    assert settings()["source"] == {"column": "text", "split": "train"}
    assert settings(filter={"kind": "P"})["source"] == {
        "column": "text",
        "split": "train",
        "filter": {"kind": "P"},
    }
    with pytest.raises(UserError, match="no row has kind 'Q'; correct filter: kind has N, P"):
        settings(filter={"kind": "Q"})
    with pytest.raises(UserError, match="file: is for a corpus on the Hub"):
        settings(file="texts.csv")
