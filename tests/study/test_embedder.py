"""The model of embeddings: a cell for each corpus, new for no document and no training."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.paths import ROOT
from study.spec import expand
from study.spec.load import load_study
from study.spec.source_cells import sources

TINY = ROOT / "studies/tiny.yaml"
PIN = {"hub": "a/mpnet", "revision": "e" * 40}


def cells(*overrides: str) -> list[Any]:
    return expand.in_order(expand.analysis(load_study(TINY, None, [*overrides])))


def test_each_corpus_has_a_cell_and_nothing_but_the_analysis_becomes_new(tmp_path: Path) -> None:
    plain = {cell.identity for cell in cells()}
    found = cells(f"embedder.path={tmp_path}")
    new = [cell for cell in found if cell.identity not in plain]
    assert sorted((cell.stage, cell.name) for cell in new) == [
        ("analysis", "tiny"),
        ("embeddings", "animal"),
        ("embeddings", "urban"),
    ]
    last = found[-1]
    assert last.inputs["embeddings-animal"].inputs["documents"] is last.inputs["corpus-animal"]
    assert new[0].settings["name"] == tmp_path.name


def test_one_on_the_hub_is_fetched_by_its_commit() -> None:
    study = load_study(TINY, None, [f"embedder.{key}={value}" for key, value in PIN.items()])
    assert {**PIN, "kind": "model"} in sources(study)
    assert sources(load_study(TINY)) == []


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["embedder.revision=" + "e" * 40], "exactly one of path, hub"),
        (["embedder.hub=a/b"], "hub needs revision"),
        (["embedder.path=no/such"], "no such file or folder: no/such"),
    ],
)
def test_mistakes(overrides: list[str], what: str) -> None:
    with pytest.raises(UserError) as error:
        load_study(TINY, None, overrides)
    assert any(what in line for line in error.value.lines), error.value.lines
