"""Which cells an edit of benchmarks, engine or decontamination makes new, in a study of 20 cells."""

import copy
from pathlib import Path

import pytest

from core.cell.identity import Cell
from core.errors import UserError
from tests import edits
from tests.edits import Edit, Raw, renamed, setting

ITEMS = "eval/data/concern_for_animals.jsonl"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    return edits.base_study(tmp_path_factory.mktemp("data"))


def expanded(raw: Raw, folder: Path) -> dict[str, Cell]:
    """The study's cells by identity."""
    return {cell.identity: cell for cell in edits.expanded(raw, folder / "runs")}


def new_cells(raw: Raw, edit: Edit, folder: Path) -> list[Cell]:
    edited = copy.deepcopy(raw)
    edit(edited)
    before = expanded(raw, folder)
    return [cell for key, cell in expanded(edited, folder).items() if key not in before]


def test_another_benchmark_is_looked_for_in_each_corpus_that_is_there(
    base: Raw, tmp_path: Path
) -> None:
    edit = setting("benchmarks.corrects", {"task": "corrigibility"})
    new = new_cells(base, edit, tmp_path)
    checks = [cell.name for cell in new if cell.stage == "contamination"]
    assert checks == ["animal-corrects", "urban-corrects"]
    assert {cell.stage for cell in new} == {"contamination", "likelihood", "analysis"}


def test_an_evaluation_reads_the_check_of_the_corpus_that_its_checkpoint_was_trained_on(
    base: Raw, tmp_path: Path
) -> None:
    raw = copy.deepcopy(base)
    raw["arms"]["untrained"] = {"start": "base"}
    cells = expanded(raw, tmp_path).values()
    evaluations = [c for c in cells if c.stage in ("generate", "likelihood")]
    assert len(evaluations) == 12
    for cell in evaluations:
        trained = cell.inputs["checkpoint"].name.partition("-")[2].partition("-")[0]
        check = cell.inputs.get("contamination")
        assert (check.inputs["documents"].name if check else "") == trained.replace("s0", "")
        assert cell.resources.get("corpus", {}).get("name", "") == trained.replace("s0", "")
        if check:
            assert list(check.settings["files"].values()) == [
                digest for name, digest in cell.settings["files"].items() if name != "dimensions"
            ]


@pytest.mark.parametrize("option", ["hf_overrides", "kv_cache_dtype", "quantization"])
def test_engine_options_that_change_answers_are_identity_of_every_evaluation(
    base: Raw, tmp_path: Path, option: str
) -> None:
    raw = copy.deepcopy(base)
    raw["benchmarks"]["scenes"] = {"task": "hellaswag", "limit": 4}
    value = {"a": 1} if option == "hf_overrides" else "auto"
    new = new_cells(raw, setting("engine.options", {option: value}), tmp_path)
    evaluations = [c for c in new if c.stage in ("generate", "likelihood", "lm_eval")]
    assert len(evaluations) == 12
    for cell in evaluations:
        assert cell.settings["engine"] == {"dtype": "float32", option: value}
        assert cell.resources["engine"] == {"max_model_len": 512}


def test_names_and_order_of_the_benchmarks_to_write_without_change_nothing(
    base: Raw, tmp_path: Path
) -> None:
    raw = copy.deepcopy(base)
    raw["corpora"]["animal"]["decontaminate_against"] = ["ahb", "concern", "concern_for_animals"]
    edited = copy.deepcopy(raw)
    renamed("benchmarks", "ahb", "harm")(edited)
    edited["benchmarks"]["concern"]["items"] = ITEMS
    edited["corpora"]["animal"]["decontaminate_against"] = ["concern", "harm"]
    before = expanded(raw, tmp_path)
    new = [cell for key, cell in expanded(edited, tmp_path).items() if key not in before]
    assert [cell.stage for cell in new] == ["analysis"]


def test_dropped_documents_make_a_new_corpus_but_no_new_drafts(base: Raw, tmp_path: Path) -> None:
    raw = copy.deepcopy(base)
    raw["corpora"]["animal"]["shards"] = 2
    files = {"one": "7\n", "same": "\n 7\n7\n"}
    paths = {name: tmp_path / f"{name}.txt" for name in files}
    for name, text in files.items():
        paths[name].write_text(text)
    new = new_cells(raw, setting("corpora.animal.exclude", str(paths["one"])), tmp_path)
    assert "drafts" not in {cell.stage for cell in new}
    corpus = next(cell for cell in new if cell.name == "animal")
    assert corpus.settings["exclude"] == [7]
    raw["corpora"]["animal"]["exclude"] = str(paths["one"])
    assert not new_cells(raw, setting("corpora.animal.exclude", str(paths["same"])), tmp_path)
    paths["one"].write_text("7\nseven\n")
    with pytest.raises(UserError, match=r"one.txt:2: 'seven' is no document id"):
        expanded(raw, tmp_path)
    paths["one"].unlink()
    with pytest.raises(UserError, match=r"corpora.animal.exclude: no such file"):
        expanded(raw, tmp_path)
