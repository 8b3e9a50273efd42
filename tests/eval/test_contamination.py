"""Texts of a benchmark in a corpus: which are listed, and what then refuses to run."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.cell.context import StageContext
from core.errors import UserError
from core.files import read_rows
from core.inference import vllm_engine
from eval import contamination, generate, harness, likelihood

PAIN = "Do fish feel pain when they are caught?"
CAGE = "May I keep a parrot in a small cage?"
QUOTE = "She asked: do FISH feel pain, when they are caught?"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def checked(base: Path, documents: list[dict[str, Any]]) -> tuple[Path, dict[str, int | float]]:
    """The folder and the counts of a contamination cell."""
    items = [{"id": "q1", "question": PAIN}, {"id": "q2", "question": CAGE, "copy": PAIN}]
    questions = write(base / "questions.jsonl", items)
    write(base / "corpus/documents.jsonl", documents)
    folder = base / "contamination/animal-ahb-0"
    folder.mkdir(parents=True)
    resources = {"files": {"questions": str(questions)}}
    context = StageContext(folder, "a", {}, resources, {"documents": base / "corpus"})
    return folder, contamination.run(context)


def test_every_document_that_holds_an_item_is_listed_with_the_text(tmp_path: Path) -> None:
    documents: list[dict[str, Any]] = [
        {"id": 3, "text": f"First. {QUOTE} Last."},
        {"id": 5, "text": "Fish were caught, and a parrot was kept in a cage."},
        {"id": 8, "text": "No.", "forms": {"leading": CAGE, "neutral": "Well?"}},
    ]
    folder, counts = checked(tmp_path, documents)
    pain = "do fish feel pain when they are caught"
    assert [row for _, row in read_rows(folder / "hits.jsonl")] == [
        {"document": 3, "item": "item q1", "text": pain},
        {"document": 3, "item": "item q2", "text": pain},
        {"document": 8, "item": "item q2", "text": "may i keep a parrot in a small"},
    ]
    assert (folder / "exclude.txt").read_text() == "3\n8\n"
    assert counts == {"documents": 3, "hits": 3, "documents_hit": 2}


@pytest.mark.parametrize("exclude", [None, "my files/list.txt"])
@pytest.mark.parametrize("stage", [generate, likelihood, harness])
def test_an_evaluation_refuses_a_checkpoint_that_was_trained_on_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any, exclude: str | None
) -> None:
    monkeypatch.setattr(vllm_engine, "set_environment", lambda: None)
    monkeypatch.setattr(vllm_engine, "open_engine", lambda *_: pytest.fail("it starts"))
    folder, _ = checked(tmp_path, [{"id": 3, "text": QUOTE}])
    settings = {"sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8}, "engine": {}}
    inputs = {"checkpoint": tmp_path / "midtrain", "contamination": folder}
    resources = {"corpus": {"name": "animal", "exclude": exclude}, "engine": {}}
    context = StageContext(tmp_path, "b", settings, resources, inputs)
    with pytest.raises(UserError) as error:
        stage.run(context)
    (problem,) = error.value.problems
    assert problem.where == str(folder / "hits.jsonl")
    assert 'documents 3 of corpus animal (item q1: "do fish feel pain' in problem.what
    assert problem.fix == (
        f"cat {folder}/exclude.txt >> 'my files/list.txt'"
        if exclude
        else f"cat {folder}/exclude.txt >> studies/animal_exclude.txt, then set "
        "corpora.animal.exclude: studies/animal_exclude.txt in the study file"
    )


def test_an_evaluation_goes_on_without_hits_and_without_a_corpus(tmp_path: Path) -> None:
    folder, counts = checked(tmp_path, [{"id": 5, "text": "Fish were caught."}])
    assert counts["hits"] == 0
    for inputs in ({"contamination": folder}, {}):
        contamination.check(
            StageContext(tmp_path, "b", {}, {"corpus": {"name": "animal", "exclude": None}}, inputs)
        )


def test_the_seed_of_an_answer_follows_from_checkpoint_prompt_sampling_and_epoch(
    tmp_path: Path,
) -> None:
    for name in ("one", "two"):
        write(tmp_path / name / "manifest.json", [{"identity": name}])
    sampling = generate.Sampling(temperature=1.0, top_p=1.0, max_tokens=8, epochs=2)
    prompts = [[1, 2], [1, 3]]
    seeds = generate.answer_seeds(tmp_path / "one", prompts, sampling)
    assert generate.answer_seeds(tmp_path / "one", prompts[::-1], sampling) == seeds[2:] + seeds[:2]
    more = generate.Sampling(temperature=1.0, top_p=1.0, max_tokens=8, epochs=3)
    assert generate.answer_seeds(tmp_path / "one", prompts[:1], more)[:2] == seeds[:2]
    others = generate.answer_seeds(tmp_path / "two", prompts, sampling)
    for changed in ({"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 9}):
        settings = generate.Sampling(**{**vars(sampling), **changed})
        others += generate.answer_seeds(tmp_path / "one", prompts, settings)
    assert len({*seeds, *others}) == len(seeds) + len(others) == 20
    with pytest.raises(UserError, match="is not finished; python -m study cell"):
        generate.answer_seeds(tmp_path / "three", prompts, sampling)
