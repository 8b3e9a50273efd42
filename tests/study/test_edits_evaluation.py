"""What an edit of benchmarks, engine or decontamination makes new, in a study of 20 cells."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.cell.identity import Cell
from core.errors import UserError
from core.paths import ROOT
from study.spec import expand
from study.spec.load import load_study

Raw = dict[str, Any]
Edit = Callable[[Raw], None]
ITEMS = "eval/data/concern_for_animals.jsonl"


def setting(path: str, value: Any) -> Edit:
    """Set one key of the study file."""

    def edit(raw: Raw) -> None:
        *parents, last = path.split(".")
        target = raw
        for key in parents:
            target = target.setdefault(key, {})
        target[last] = value

    return edit


def word(path: str) -> Edit:
    """Change a word in a file that the study file names."""

    def edit(raw: Raw) -> None:
        *parents, last = path.split(".")
        target = raw
        for key in parents:
            target = target[key]
        # Another name, because a process hashes a file once.
        file = Path(target[last])
        changed = file.with_stem(f"{file.stem}_changed")
        changed.write_text(file.read_text().replace(" the ", " that ", 1))
        target[last] = str(changed)

    return edit


def one_fewer(raw: Raw) -> None:
    del raw["benchmarks"]["concern"]
    raw["contrasts"][0]["benchmarks"] = ["ahb"]


def renamed(raw: Raw) -> None:
    raw["benchmarks"] = {"harm": raw["benchmarks"]["ahb"], "concern": raw["benchmarks"]["concern"]}
    raw["contrasts"][0]["benchmarks"] = ["harm", "concern"]


def other_judge(raw: Raw) -> None:
    raw["endpoints"]["judge"] = {"base_url": "http://a", "model": "m", "key_env": "KEY"}
    raw["benchmarks"]["ahb"]["judge"] = "judge"


# (edit, its function, cells that are new, those of stage contamination not counted)
EDITS: list[tuple[str, Edit, int]] = [
    ("one more benchmark", setting("benchmarks.prefers", {"task": "preference"}), 5),
    ("one fewer benchmark", one_fewer, 1),
    ("a renamed benchmark", renamed, 1),
    ("a word in a file of items", word("benchmarks.concern.items"), 5),
    ("a word in a file of questions", word("benchmarks.ahb.questions"), 9),
    ("rubric", word("benchmarks.ahb.dimensions"), 5),
    ("the judge's model", other_judge, 5),
    ("answers' epochs", setting("benchmarks.ahb.epochs", 3), 9),
    ("answers' temperature", setting("benchmarks.ahb.temperature", 0.5), 9),
    ("max_model_len", setting("engine.max_model_len", 1024), 0),
    ("engine.options: speed", setting("engine.options", {"tensor_parallel_size": 2}), 0),
    ("engine.options: answers", setting("engine.options", {"quantization": "fp8"}), 13),
    ("benchmarks to write without", setting("corpora.animal.decontaminate_against", ["ahb"]), 19),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    """The study of tests/small, with data files of its own."""
    folder = tmp_path_factory.mktemp("data")
    raw: Raw = yaml.safe_load((ROOT / "tests/small/small.yaml").read_text())
    for bench, key in (("ahb", "questions"), ("ahb", "dimensions"), ("concern", "items")):
        source = ROOT / raw["benchmarks"][bench][key]
        raw["benchmarks"][bench][key] = shutil.copy(source, folder)
    return raw


def expanded(raw: Raw, folder: Path) -> dict[str, Cell]:
    """The study's cells by identity."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(raw))
    cells = expand.in_order(expand.analysis(load_study(file)))
    return {cell.identity: cell for cell in cells}


def new_cells(raw: Raw, edit: Edit, folder: Path) -> list[Cell]:
    edited = copy.deepcopy(raw)
    edit(edited)
    before = expanded(raw, folder)
    return [cell for key, cell in expanded(edited, folder).items() if key not in before]


@pytest.mark.parametrize(("edit", "count"), [row[1:] for row in EDITS], ids=[e[0] for e in EDITS])
def test_an_edit_makes_no_more_cells_new_than_it_changes(
    base: Raw, tmp_path: Path, edit: Edit, count: int
) -> None:
    assert sum(c.stage != "contamination" for c in expanded(base, tmp_path).values()) == 20
    new = new_cells(base, edit, tmp_path)
    assert sum(cell.stage != "contamination" for cell in new) == count, [c.relpath for c in new]


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
        assert cell.resources.get("corpus", "") == trained.replace("s0", "")
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
    renamed(edited)
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
