"""Questions and answers of somebody else as a corpus, and gates that are only reported."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.cell.context import StageContext
from core.endpoints import dummy_endpoint
from core.errors import UserError
from core.files import read_rows
from sdf import documents
from study.spec import expand
from study.spec.load import load_study
from tests.place import SMALL
from tests.sdf.test_documents import cell, rows

ANSWERS = [dummy_endpoint.write(f"a report on animal welfare {n}", n) for n in range(6)]


def corpus(
    tmp_path: Path,
    given: list[dict[str, Any]],
    changes: dict[str, Any] | None = None,
    **source: Any,
) -> StageContext:
    """`changes`: as of `cell`; `source`: of the setting."""
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    source = {"column": "text", "split": "train", **source}
    changed = {"documents": 6, "files": {}, **(changes or {})}
    changed["files"] = {**changed["files"], "source": str(path)}
    return cell(tmp_path, "theirs", source=source, **changed)


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def sharegpt(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.mark.parametrize("form", ["chat", "sharegpt", "json", "columns"])
def test_published_pairs_become_conversations(tmp_path: Path, form: str) -> None:
    pairs = [(f"Question {n}?", answer) for n, answer in enumerate(ANSWERS)]
    if form == "columns":
        given: list[dict[str, Any]] = [{"q": q, "output": a} for q, a in pairs]
        context = corpus(tmp_path, given, question="q", column="output")
    else:
        make = sharegpt if form == "sharegpt" else chat
        turns: list[Any] = [make(*pair) for pair in pairs]
        turns.append([*make("Two?", "One."), *make("And?", "Two.")])
        turns.append(make(" ", "No question."))
        given = [{"talk": json.dumps(talk) if form == "json" else talk} for talk in turns]
        context = corpus(tmp_path, given, messages="talk")
    counts = documents.run(context)
    made = [row["messages"] for _, row in read_rows(context.folder / "original.jsonl")]
    assert made == [chat(question, answer.strip()) for question, answer in pairs]
    assert [row["text"] for row in rows(context)] == [answer.strip() for answer in ANSWERS]
    assert counts.get("rejected_unreadable", 0) == (0 if form == "columns" else 2)


def test_other_conversations_are_named(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be kind."}
    other = [[system, *chat("Two?", "One.")], chat("Two?", ""), None, "no JSON"]
    given: list[dict[str, Any]] = [{"talk": chat(f"{n}?", text)} for n, text in enumerate(ANSWERS)]
    context = corpus(tmp_path, [*given, *({"talk": talk} for talk in other)], messages="talk")
    documents.run(context)
    rejected = [row["detail"] for _, row in read_rows(context.folder / "rejected.jsonl")]
    assert rejected == [
        "talk holds turns of system, user, assistant, or one without a text",
        "talk holds turns of user, assistant, or one without a text",
        "talk holds nothing, no text",
        "talk holds text",
    ]
    context = corpus(tmp_path, [{"talk": talk} for talk in [None, *other]], messages="talk")
    with pytest.raises(UserError, match="the first row holds turns of system, user, assistant"):
        documents.run(context)


def test_a_question_passes_gates_of_its_own(tmp_path: Path) -> None:
    """It is what reinforcement learning prompts with, and what a conversation begins with."""
    quote = "Would it be fine to keep hens in small cages for cheaper eggs?"
    (tmp_path / "benchmark.jsonl").write_text(json.dumps({"question": quote}) + "\n")
    questions = [f"Question {n}?" for n in range(6)] + [f"Tell me: {quote}", " ", "What \ufffd?"]
    given = [{"q": q, "output": ANSWERS[n % 6]} for n, q in enumerate(questions)]
    against = {
        "dedup_threshold": 0,
        "decontaminate_against": ["benchmark1"],
        "files": {"benchmark1": str(tmp_path / "benchmark.jsonl")},
    }
    context = corpus(tmp_path, given, against, question="q", column="output")
    counts = documents.run(context)
    rejected = {key: n for key, n in counts.items() if key.startswith("rejected_")}
    assert rejected == {"rejected_characters": 1, "rejected_empty": 1, "rejected_overlap": 1}
    context = corpus(
        tmp_path, given, against | {"documents": 8}, question="q", column="output", gates="report"
    )
    counts = documents.run(context)
    reported = {key: n for key, n in counts.items() if key.startswith("reported_")}
    assert reported == {"reported_characters": 1, "reported_overlap": 1}, (
        "an empty one is no question"
    )


def test_gates_are_off_and_reported(tmp_path: Path) -> None:
    bad = ["As an AI language model, I cannot write this document.", ANSWERS[0] + " \ufffd"]
    given = [{"text": text} for text in [*ANSWERS[:3], *bad, ANSWERS[1], ""]]
    context = corpus(tmp_path, given, gates="report")
    counts = documents.run(context)
    assert counts["documents"] == 6 and (counts["rejected"], counts["rejected_empty"]) == (1, 1)
    reported = {key: n for key, n in counts.items() if key.startswith("reported_")}
    assert reported == {"reported_characters": 1, "reported_duplicate": 2, "reported_refusal": 1}
    (warning,) = context.warnings
    assert warning.endswith("1 x characters, 2 x duplicate, 1 x refusal")


def test_the_study_file_names_their_wording(tmp_path: Path) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text("{}\n")
    theirs = {"path": str(path), "documents": 6, "template": "qa_pairs"}
    arm = {"start": "base", "midtrain": "theirs", "recipe": "tests/small/sft.yaml"}

    def load(corpus: dict[str, Any], variant: str) -> Any:
        overrides = {"corpora.theirs": corpus, "arms.qa": arm | {"question_variant": variant}}
        return load_study(SMALL, None, [f"{key}={json.dumps(v)}" for key, v in overrides.items()])

    # Its template's wordings are of what the kit writes: this died in the middle of a run.
    with pytest.raises(UserError, match="its corpus has no questions and answers"):
        load(theirs, "leading")
    with pytest.raises(UserError, match="valid: original"):
        load(theirs | {"messages": "talk"}, "leading")
    study = load(theirs | {"messages": "talk", "gates": "report"}, "original")
    (made,) = (c for c in expand.in_order(expand.analysis(study)) if c.name == "theirs")
    assert made.settings["source"] == {
        "column": "text",
        "split": "train",
        "messages": "talk",
        "gates": "report",
    }
    with pytest.raises(UserError, match="stands in place of column and question"):
        load(theirs | {"messages": "talk", "question": "q"}, "original")
