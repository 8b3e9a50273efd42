"""Names, order and how cells run make nothing new, and no two arms share what is not the same."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.cell.identity import Cell
from study.commands.common import shown_names
from study.forecast import training_cost, training_size
from tests import edits, paper_edits
from tests.edits import EDITS, Edit, Raw, renamed, reversed_order, setting


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    return edits.base_study(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(base: Raw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the finished study."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    assert sum(cell.stage != "contamination" for cell in edits.unfinished(base, runs)) == 20
    edits.finish(base, runs)
    return runs


@pytest.mark.parametrize(("edit", "right"), [row[1:] for row in EDITS], ids=[e[0] for e in EDITS])
def test_an_edit_makes_no_more_cells_new_than_it_changes(
    base: Raw, finished: Path, edit: Edit, right: int
) -> None:
    assert edits.count_new(base, edit, finished) == right


@pytest.mark.nightly
def test_an_edit_of_the_papers_study_makes_no_more_cells_new_than_it_changes() -> None:
    assert paper_edits.main() == 0


def cells_by_role(raw: Raw, runs: Path) -> list[tuple[dict[str, Any], Cell]]:
    """Each row of the table of scores with the cell that the analysis reads it from."""
    last = edits.expanded(raw, runs)[-1]
    return [(row, last.inputs[row["role"]]) for row in last.settings["rows"]]


def checkpoint_of(cell: Cell) -> Cell:
    while "checkpoint" not in cell.inputs:
        cell = cell.inputs["samples"]
    return cell.inputs["checkpoint"]


def two_recipes_of_one_stem(raw: Raw, folder: Path) -> None:
    for name, lr in (("full", 0.001), ("lora", 0.004)):
        path = folder / name / "mid.yaml"
        path.parent.mkdir()
        recipe = yaml.safe_load(Path(raw["midtrain"]["recipe"]).read_text())
        path.write_text(yaml.safe_dump(recipe | {"lr": lr}))
        raw["arms"][name] = {"start": "base", "midtrain": "animal", "recipe": str(path)}


def an_sft_named_like_a_corpus(raw: Raw, folder: Path) -> None:
    raw["sfts"] = {"animal": raw["sft"]}
    raw["arms"]["tuned"] = {"start": "base", "sft": "animal"}


def a_corpus_named_like_a_corpus_with_a_recipe(raw: Raw, folder: Path) -> None:
    path = folder / "mid.yaml"
    recipe = yaml.safe_load(Path(raw["midtrain"]["recipe"]).read_text())
    path.write_text(yaml.safe_dump(recipe | {"lr": 0.003}))
    raw["corpora"]["animal_mid"] = raw["corpora"]["animal"] | {"documents": 101}
    raw["arms"]["other"] = {"start": "base", "midtrain": "animal_mid"}
    raw["arms"]["recipe"] = {"start": "base", "midtrain": "animal", "recipe": str(path)}


@pytest.mark.parametrize(
    "edit",
    [
        two_recipes_of_one_stem,
        an_sft_named_like_a_corpus,
        a_corpus_named_like_a_corpus_with_a_recipe,
    ],
)
def test_each_arm_has_its_own_scores_whatever_the_names(
    base: Raw, tmp_path: Path, edit: Any
) -> None:
    raw = copy.deepcopy(base)
    edit(raw, tmp_path)
    rows = cells_by_role(raw, tmp_path / "runs")
    owners: dict[str, set[str]] = {}
    for row, cell in rows:
        assert checkpoint_of(cell).identity == row["checkpoint"]
        owners.setdefault(cell.identity, set()).add(row["arm"])
    assert all(len(arms) == 1 for arms in owners.values()), owners
    cells = edits.expanded(raw, tmp_path / "runs")
    names = [(cell.stage, cell.name) for cell in cells]
    assert len(set(names)) < len(names)
    shown = shown_names(cells)
    assert len({(cell.stage, shown[cell.identity]) for cell in cells}) == len(cells)
    trainings = training_cost.forecast(cells, tmp_path / "runs/small", {})
    assert len({row["training"] for row in trainings}) == len(trainings)
    assert sum(row["cells"] for row in trainings) == sum(map(training_size.is_training, cells))


def test_the_order_and_names_of_arms_and_models_choose_no_tokenizer(
    base: Raw, tmp_path: Path
) -> None:
    raw = copy.deepcopy(base)
    recipe = yaml.safe_load(Path("tests/small/llama.yaml").read_text())
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(recipe | {"vocab_size": 1024}))
    raw["models"]["other"] = {"make": str(tmp_path / "other.yaml")}
    raw["arms"]["other"] = {"start": "other", "midtrain": "animal"}
    runs = tmp_path / "runs"
    edits.finish(raw, runs)
    orders = [reversed_order("arms"), reversed_order("models"), reversed_order("arms", "models")]
    for edit in (*orders, renamed("models", "base", "zebra"), renamed("models", "other", "a")):
        assert edits.count_new(raw, edit, runs) == 0
    assert edits.count_new(raw, renamed("arms", "other", "aa"), runs) == 1


def test_any_order_of_renamings_and_back_makes_nothing_but_the_analysis(
    base: Raw, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    edits.finish(base, runs)
    names = [("corpora", "animal", "beasts"), ("benchmarks", "ahb", "harm"), ("arms", "urban", "x")]
    for order in itertools.permutations(names):
        raw = copy.deepcopy(base) | {"study": "again"}
        for kind, old, new in order:
            renamed(kind, old, new)(raw)
        assert {cell.stage for cell in edits.unfinished(raw, runs)} <= {"analysis"}
        edits.finish(raw, runs)
        assert not edits.unfinished(raw, runs)
        assert not edits.unfinished(base, runs)


def test_shards_of_a_corpus_that_is_not_finished_are_written(base: Raw, tmp_path: Path) -> None:
    raw = copy.deepcopy(base)
    setting("corpora.animal.shards", 2)(raw)
    assert sum(cell.stage == "drafts" for cell in edits.unfinished(raw, tmp_path / "runs")) == 2
