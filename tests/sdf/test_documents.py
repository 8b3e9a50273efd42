"""The stages `drafts` and `documents`: deterministic, gated, without duplicates, matched, split."""

import json
import os
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from core.cell.context import StageContext
from core.endpoints import dummy_endpoint
from core.endpoints.client import PAID
from core.endpoints.ledger import read_ledger
from core.errors import Problem, UserError
from core.files import read_rows
from sdf import documents, drafts
from study.spec.template import template_content
from tests.endpoint import KEY, Hostile, serving
from tests.sdf.support import save_word_tokenizer

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "sdf" / "templates"
SLOTS = yaml.safe_load((TEMPLATES / "slots.yaml").read_text())
QUESTIONS = ROOT / "eval/data/anima_like/questions.jsonl"
REAL = ROOT.parent / "shared/data/documents/welfare_documents.jsonl"
WRITER_KEYS = ("template", "slots", "writer", "temperature", "max_tokens", "max_attempts")

# Words that have no place in the urban corpus.
ANIMAL_WORDS = """
animal animals creature creatures beast pet pets hen hens chicken pig pigs cow cows fish cricket
crickets bee bees dog dogs cat cats elephant elephants octopus crab crabs mouse mice deer sheep goat
horse turkey duck shrimp lobster rat rats rabbit salmon pigeon fox snail whale parrot bird birds
insect insects wildlife livestock farm species vet welfare suffer suffering sentient sentience
humane cruel cruelty pain compassion feel feelings
"""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_TEST_KEY", KEY)


def cell(
    base: Path, name: str, template: str = "animal_welfare", url: str | None = None, **changes: Any
) -> StageContext:
    """A corpus of 60 documents in base/runs/study/documents/<name>-<hash>.

    The dummy endpoint writes it, unless an address is given. `changes` are settings, or resources.
    """
    tokenizer = base / "tokenizer"
    if not tokenizer.exists():
        tokenizer.mkdir(parents=True)
        save_word_tokenizer(tokenizer)
    settings = {
        "template": deepcopy(
            template_content(template, None, "prompt" in changes.get("files", {}))
        ),
        "slots": SLOTS,
        "documents": 60,
        "seed": 0,
        "writer": {"model": "dummy", "served_by": "url" if url else "dummy"},
        "temperature": 1.0,
        "max_tokens": 2500,
        "max_attempts": 3,
        "dedup_threshold": 0.9,
        "held_out": 0.0,
        "tokens": None,
        "tolerance": 0.01,
        "decontaminate_against": [],
    }
    limits = {"requests_per_minute": None, "tokens_per_minute": None, "timeout": 60}
    resources = {
        "concurrency": 8,
        "address": {"base_url": url, "key_env": "KIT_TEST_KEY" if url else None},
        "limits": limits | {"prompt_price": 1.0, "completion_price": 2.0},
        "files": {"tokenizer": str(tokenizer / "tokenizer.json")},
    }
    inputs = {"matched_to": changes.pop("matched_to")} if "matched_to" in changes else {}
    resources |= {"concurrency": changes.pop("concurrency")} if "concurrency" in changes else {}
    resources["files"] |= changes.pop("files", {})
    if "source" in changes:
        settings = {name: value for name, value in settings.items() if name not in WRITER_KEYS}
    stage = "drafts" if "share" in changes else "documents"
    study = base / "runs/study"
    folder = study / stage / f"{name}-{len(list(study.glob(f'{stage}/{name}-*'))):08x}"
    folder.mkdir(parents=True)
    return StageContext(folder, name, settings | changes, resources, inputs)


def rows(context: StageContext, name: str = "documents.jsonl") -> list[dict[str, Any]]:
    lines = (context.folder / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def replying(
    text: Callable[[dict[str, Any], int], str | None], finish_reason: str = "stop"
) -> Hostile:
    """An endpoint that replies `text(body, n)` to the n-th request, or as the dummy if None."""

    def scripted(body: dict[str, Any], n: int) -> Any:
        content = text(body, n)
        if content is None:
            return None
        reply = dummy_endpoint.complete(body)
        message = {"role": "assistant", "content": content}
        reply["choices"][0] |= {"message": message, "finish_reason": finish_reason}
        return 200, {}, reply

    return Hostile(scripted=scripted)


def dummy_text(body: dict[str, Any]) -> str:
    text: str = dummy_endpoint.complete(body)["choices"][0]["message"]["content"]
    return text


@pytest.mark.slow
@pytest.mark.parametrize("shards", [7, 64])
def test_a_corpus_is_the_same_for_any_number_of_shards(tmp_path: Path, shards: int) -> None:
    alone = cell(tmp_path / "alone", "animal", documents=150, concurrency=1)
    documents.run(alone)
    for k in range(shards):
        name = f"animal.{k + 1}of{shards}"
        drafts.run(cell(tmp_path / "sharded", name, documents=150, share=[k, shards]))
    sharded = cell(tmp_path / "sharded", "animal", documents=150)
    counts = documents.run(sharded)
    for name in ("documents.jsonl", "corpus_stats.json", "corpus/train.parquet"):
        assert (alone.folder / name).read_bytes() == (sharded.folder / name).read_bytes()
    assert counts["calls"] == 150
    ledger = read_ledger(sharded.folder / "calls.jsonl")[0].values()
    assert len(ledger) == 150 and all(entry.copied_from for entry in ledger), "paid by the shards"
    assert counts["paid_calls"] == counts["paid_cost"] == 0 < counts["cost"]
    assert [row["id"] for row in rows(sharded)] == [*range(150)]


@pytest.mark.slow
def test_finished_calls_are_used_again_under_other_gates_and_after_a_preview(
    tmp_path: Path,
) -> None:
    with serving(Hostile()) as (endpoint, hostile):
        preview = cell(tmp_path, "animal", url=endpoint.base_url, preview=5)
        documents.run(preview)
        assert hostile.requests == 5
        corpus = cell(tmp_path, "animal", url=endpoint.base_url)
        counts = documents.run(corpus)
        assert hostile.requests == 60
        cost = (counts["prompt_tokens"] + 2 * counts["completion_tokens"]) / 1e6
        assert counts["cost"] == pytest.approx(cost)
        assert [row["text"] for row in rows(preview)] == [row["text"] for row in rows(corpus)[:5]]
        other_gates = cell(tmp_path, "animal", url=endpoint.base_url, max_attempts=10)
        other_gates.settings["template"]["gates"]["banned"].append("humane")
        rejected = documents.run(other_gates)["rejected"]
        assert hostile.requests == 60 + rejected > 60
        documents.run(cell(tmp_path, "animal", url=endpoint.base_url, seed=1))
        assert hostile.requests >= 120 + rejected, "another prompt is another call"
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("text", "finish_reason", "gate", "rejection"),
    [
        ("  ", "stop", "empty", "empty: no text"),
        ("Cut sho", "length", "truncated", "truncated: finish_reason 'length'"),
        (
            "As {institution} says, " * 40 + "it is.",
            "stop",
            "placeholder",
            "placeholder: '{institution}'",
        ),
        ("I'm sorry, but I can't help with this.", "stop", "length", "length: 8 words"),
    ],
)
def test_a_rejected_document_is_written_again_until_its_draws_are_used_up(
    tmp_path: Path, text: str, finish_reason: str, gate: str, rejection: str
) -> None:
    seeds: list[int] = []

    def reject_two(body: dict[str, Any], n: int) -> str | None:
        seeds.append(body["seed"])
        return text if n <= 2 else None

    with serving(replying(reject_two, finish_reason)) as (endpoint, _):
        url = endpoint.base_url
        counts = documents.run(cell(tmp_path / "a", "animal", url=url, documents=3, concurrency=1))
    assert counts["rejected"] == counts[f"rejected_{gate}"] == 2
    assert counts["calls"] == 5 and counts["documents"] == 3
    assert len(set(seeds)) == 5
    with serving(replying(lambda body, n: text, finish_reason)) as (endpoint, hostile):
        with pytest.raises(UserError) as error:
            documents.run(cell(tmp_path / "b", "animal", url=endpoint.base_url, concurrency=1))
        what = error.value.problems[0].what
        assert f"fail the gate {gate}" in what and rejection.partition(": ")[2] in what
        assert hostile.requests == 10, "the cell stops after ten drafts"


def test_five_documents_that_are_rejected_for_several_reasons_stop_the_cell(tmp_path: Path) -> None:
    with serving(replying(lambda body, n: "Cut sho," if n % 2 else "")) as (endpoint, hostile):
        with pytest.raises(
            UserError, match=r"5 documents rejected in each of 3 att.*3 x truncated"
        ):
            documents.run(cell(tmp_path, "animal", url=endpoint.base_url, concurrency=1))
        assert hostile.requests == 15


def test_a_document_below_the_grade_or_without_one_is_written_again(tmp_path: Path) -> None:
    grades = iter(["SCORE: 3", "**Score:** 8", "Nice (1-10)!", "7/10", *["SCORE: 10."] * 3])
    graded: list[str] = []

    def grading(body: dict[str, Any], n: int) -> str | None:
        prompt = body["messages"][0]["content"]
        if "<document>" not in prompt:
            return None
        graded.append(prompt)
        return next(grades)

    with serving(replying(grading)) as (endpoint, hostile):
        score = {"min_score": 7, "prompt": "Rate {this}.\n<document>{document}</document>"}
        changes = {"url": endpoint.base_url, "documents": 3, "quality_filter": score}
        context = cell(tmp_path, "animal", concurrency=1, **changes)
        counts = documents.run(context)
        assert (counts["rejected_score"], counts["rejected_unscored"]) == (1, 1)
        assert counts["rejected"] == 2
        assert counts["calls"] == hostile.requests == 5 + 6, "a grade is one call"
        assert counts["cost"] > 0
        assert graded[2] == graded[3] and "Rate {this}." in graded[0]
        for row in rows(context):
            assert f"Rate {{this}}.\n<document>{row['text']}</document>" in graded
        again = documents.run(cell(tmp_path, "animal", **changes))
        assert again == counts | dict.fromkeys(PAID, 0)
        assert hostile.requests == 11, "finished grades are used again"


def test_a_renamed_corpus_and_template_pay_for_nothing(tmp_path: Path) -> None:
    first = cell(tmp_path, "animal", documents=5)
    assert documents.run(first)["paid_calls"] == 5
    renamed = cell(tmp_path, "creatures", documents=5)
    renamed.settings["template"]["name"] = "creature_welfare"
    assert documents.run(renamed)["paid_calls"] == 0
    assert rows(renamed) == rows(first)


def test_a_prompt_may_be_a_file_of_the_users(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Write a {document_type} for {domain}, by {person} of {place}, on hens.")
    asked: list[str] = []

    def text(body: dict[str, Any], n: int) -> None:
        asked.append(body["messages"][0]["content"])

    with serving(replying(text)) as (endpoint, _):
        url = endpoint.base_url
        own = cell(
            tmp_path, "own", url=url, files={"prompt": str(prompt)}, documents=3, dedup_threshold=0
        )
        assert "prompt" not in own.settings["template"]
        documents.run(own)
    expected = [prompt.read_text().format(**row["slots"]) for row in rows(own)]
    assert sorted(asked) == sorted(expected)


def test_replicates_share_no_request_and_no_document(tmp_path: Path) -> None:
    first = cell(tmp_path, "animal.replicate0", documents=20)
    second = cell(tmp_path, "animal.replicate1", documents=20, seed=1)
    documents.run(first)
    counts = documents.run(second)
    assert counts["paid_calls"] == counts["calls"], "none is answered from the other's ledger"
    texts, slots = (
        [{str(row[key]) for row in rows(c)} for c in (first, second)] for key in ("text", "slots")
    )
    assert not texts[0] & texts[1] and not slots[0] & slots[1]
    control = {"matched_to": second.folder, "tolerance": 1.0, "documents": 20}
    documents.run(cell(tmp_path, "urban.replicate1", "urban_density", seed=1, **control))
    with pytest.raises(UserError, match="slots"):
        documents.run(cell(tmp_path, "urban.replicate0", "urban_density", **control))


def test_a_document_that_repeats_another_is_written_again(tmp_path: Path) -> None:
    first: list[str] = []

    def repeating(body: dict[str, Any], n: int) -> str | None:
        if n == 1:
            first.append(dummy_text(body))
        return first[0] if n in (4, 9) else None

    with serving(replying(repeating)) as (endpoint, hostile):
        context = cell(tmp_path, "animal", url=endpoint.base_url, documents=12, concurrency=1)
        counts = documents.run(context)
    texts = [row["text"] for row in rows(context)]
    assert len(set(texts)) == 12 and texts[0] == first[0], "the first of a group stays"
    assert counts["rejected_duplicate"] == 2 and hostile.requests == 14
    with serving(replying(lambda body, n: first[0])) as (endpoint, _):
        with pytest.raises(UserError) as error:
            documents.run(cell(tmp_path / "all", "animal", url=endpoint.base_url, documents=12))
        assert "repeats another document" in error.value.problems[0].what


def test_a_quoted_benchmark_is_rejected(tmp_path: Path) -> None:
    question = next(json.loads(line) for line in QUESTIONS.read_text().splitlines())["question"]

    def quoting(body: dict[str, Any], n: int) -> str | None:
        quote = question.upper().replace(",", " ;")
        return f"{dummy_text(body)}\n\n{quote}" if n == 1 else None

    for avoid, rejected in ((["ahb.questions"], 1), ([], 0)):
        with serving(replying(quoting)) as (endpoint, _):
            changes = {"url": endpoint.base_url, "documents": 4, "concurrency": 1}
            changes["files"] = {"ahb.questions": str(QUESTIONS)}
            context = cell(
                tmp_path, "animal", decontaminate_against=avoid, seed=rejected, **changes
            )
            assert documents.run(context).get("rejected_overlap", 0) == rejected


@pytest.mark.slow
def test_the_control_matches_and_has_no_animals(tmp_path: Path) -> None:
    changes = {"documents": 200, "held_out": 0.1, "tokens": 25_000}
    animal = cell(tmp_path, "animal", **changes)
    urban = cell(tmp_path, "urban", "urban_density", matched_to=animal.folder, **changes)
    for counts in [documents.run(context) for context in (animal, urban)]:
        assert abs(counts["tokens"] - 25_000) <= 250
        assert (counts["documents"], counts["held_out"]) == (180, 20)
    for name in ("documents.jsonl", "held_out.jsonl"):
        for a, u in zip(rows(animal, name), rows(urban, name), strict=True):
            assert a["slots"] == u["slots"] and a["id"] == u["id"] and a["text"] != u["text"]
    held_out = {row["id"] for row in rows(urban, "held_out.jsonl")}
    assert len(held_out) == 20 and not held_out & {row["id"] for row in rows(urban)}
    comparison = json.loads((urban.folder / "match.json").read_text())
    verdicts = {row["measure"]: row["verdict"] for row in comparison}
    assert verdicts["documents"] == verdicts["tokens"] == verdicts["slot domain"] == "matched"
    assert not vocabulary(urban) & set(ANIMAL_WORDS.split())
    assert {"suffer", "pain", "hens", "fish", "crickets"} <= vocabulary(animal)
    dataset = datasets.load_dataset(str(urban.folder / "corpus"), cache_dir=str(tmp_path / "cache"))
    assert {name: split["text"][:] for name, split in dataset.items()} == {
        "train": [row["text"] for row in rows(urban)],
        "validation": [row["text"] for row in rows(urban, "held_out.jsonl")],
    }


def vocabulary(context: StageContext) -> set[str]:
    return set(re.findall(r"[a-z]+", " ".join(row["text"] for row in rows(context)).lower()))


@pytest.mark.slow
def test_an_unmatched_control_is_refused(tmp_path: Path) -> None:
    animal = cell(tmp_path, "animal", tokens=9_000)
    documents.run(animal)
    match = {"matched_to": animal.folder}
    documents.run(cell(tmp_path, "urban", "urban_density", **match))  # cut to the other's tokens
    context = cell(tmp_path, "urban", "urban_density", seed=1, **match)
    with pytest.raises(UserError) as error:
        documents.run(context)
    assert "documents differ in their slots" in error.value.problems[0].what
    assert "same number" in error.value.problems[0].fix
    assert not (context.folder / "calls.jsonl").exists(), "refused before a call is paid for"
    with pytest.raises(UserError) as error:
        documents.run(cell(tmp_path, "urban", "urban_density", documents=30, **match))
    assert error.value.problems[0].what.startswith("30 documents")
    context = cell(tmp_path, "urban", "urban_density", tokens=20_000, **match)
    with pytest.raises(UserError) as error:
        documents.run(context)
    assert "the target is 20000" in error.value.problems[0].what
    assert re.search(r"tokens: \d+", error.value.problems[0].fix)
    assert not (context.folder / "documents.jsonl").exists()


@pytest.mark.slow
def test_excluded_documents_are_dropped_and_no_other_document_changes(tmp_path: Path) -> None:
    changes = {"documents": 20, "held_out": 0.2, "dedup_threshold": 0.0}
    whole = cell(tmp_path, "animal", **changes)
    documents.run(whole)
    trained, held_out = rows(whole), rows(whole, "held_out.jsonl")
    dropped = [trained[2]["id"], held_out[1]["id"]]
    less = cell(tmp_path, "animal", exclude=dropped, **changes)
    counts = documents.run(less)
    assert (counts["documents"], counts["held_out"], counts["excluded"]) == (15, 3, 2)
    assert rows(less) == [row for row in trained if row["id"] not in dropped]
    kept = [row for row in held_out if row["id"] not in dropped]
    assert rows(less, "held_out.jsonl") == kept
    match = {"matched_to": less.folder, "tolerance": 1.0, **changes}
    documents.run(cell(tmp_path, "urban", "urban_density", exclude=dropped, **match))
    with pytest.raises(UserError, match=r"15; give both .*the same exclude"):
        documents.run(cell(tmp_path, "urban", "urban_density", **match))
    with pytest.raises(UserError, match=r"exclude names documents .* not have: 20, 99; remove"):
        documents.run(cell(tmp_path, "animal", exclude=[99, 20, 3], **changes))


def test_questions_come_in_their_forms_with_one_answer(tmp_path: Path) -> None:
    context = cell(tmp_path, "qa", "qa_pairs", documents=20)
    counts = documents.run(context)
    assert counts["calls"] == 40
    leading, neutral = rows(context, "leading.jsonl"), rows(context, "neutral.jsonl")
    for row, lead, plain in zip(rows(context), leading, neutral, strict=True):
        assert row["slots"]["animal"] and row["forms"].keys() == {"leading", "neutral"}
        assert [message["role"] for message in lead["messages"]] == ["user", "assistant"]
        answer = {"role": "assistant", "content": row["text"]}
        assert lead["messages"][1] == plain["messages"][1] == answer
        assert lead["messages"][0]["content"] != plain["messages"][0]["content"]


def existing(tmp_path: Path, path: Path, **changes: Any) -> StageContext:
    source = {"column": "text", "split": "train"}
    return cell(tmp_path, "real", source=source, files={"source": str(path)}, **changes)


def test_an_existing_corpus_goes_through_the_same_gates(tmp_path: Path) -> None:
    good = [dummy_endpoint.write(f"a report on animal welfare {n}", n) for n in range(20)]
    bad = [
        good[3],
        "",
        "As an AI language model, I cannot write this document.",
        good[5] + " \ufffd",
    ]
    path = tmp_path / "given.jsonl"
    crlf = [good[0].replace("\n", "\r\n"), *good[1:]]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*crlf, *bad]))
    context = existing(tmp_path, path, documents=20)
    counts = documents.run(context)
    assert sorted(row["text"] for row in rows(context)) == sorted(good), "lines end with LF"
    assert (counts["read"], counts["rejected"], counts["rejected_duplicate"]) == (24, 4, 1)
    rejected = list(read_rows(context.folder / "rejected.jsonl"))
    copies = [row for _, row in rejected if row["gate"] == "duplicate"]
    assert len(copies) == 1 and {copies[0]["id"], int(copies[0]["detail"].split()[1])} == {3, 20}
    assert [(row["id"], row["gate"]) for _, row in rejected if row not in copies] == [
        (21, "empty"),
        (22, "refusal"),
        (23, "characters"),
    ]
    assert [row["excerpt"] for _, row in rejected][-1] == good[5][:200]


def test_rows_without_a_readable_text_are_listed_up_to_one_percent(tmp_path: Path) -> None:
    """A half of a surrogate pair, a number, and another column that changes its type."""
    texts = [dummy_endpoint.write(f"a report on animal welfare {n}", n) for n in range(100)]
    lines = [
        json.dumps({"text": text, "n": n if n % 2 else str(n)}) for n, text in enumerate(texts)
    ]
    path = tmp_path / "given.jsonl"
    odd = [json.dumps({"text": 7}), '{"text": "half \\ud83d"}']
    path.write_text("\n".join([*lines, *odd]))
    context = existing(tmp_path, path, documents=90)
    documents.run(context)
    rejected = [row for _, row in read_rows(context.folder / "rejected.jsonl")]
    unreadable = {row["id"]: row["detail"] for row in rejected if row["gate"] == "unreadable"}
    assert unreadable[100] == "text holds number, no text"
    assert unreadable[101].startswith(f"{path}:102: has a lone surrogate")
    assert context.warnings == [
        "2 of 102 rows have no text that can be read: rejected.jsonl",
    ]
    path.write_text("\n".join([*lines, *odd, odd[1]]))
    with pytest.raises(UserError, match=r"102: has a lone surrogate.* \(2 of 103 rows can't be"):
        documents.run(existing(tmp_path, path, documents=90))


def test_a_corpus_file_that_was_replaced_is_not_taken_from_the_library_s_cache(
    tmp_path: Path,
) -> None:
    """That cache goes by path, size and time, which `cp -p` keeps."""
    path = tmp_path / "given.jsonl"
    for topic in ("animal welfare", "urban density."):
        texts = [dummy_endpoint.write(f"a report on {topic} {n}", n) for n in range(3)]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        os.utime(path, (0, 0))
        context = existing(tmp_path, path, documents=3)
        documents.run(context)
        assert sorted(row["text"] for row in rows(context)) == sorted(texts)
        assert not list(context.folder.glob("tmp*"))


def test_an_existing_corpus_that_cannot_be_used_is_a_user_error(tmp_path: Path) -> None:
    def problem(**changes: Any) -> Problem:
        context = existing(tmp_path, path, **changes)
        context.settings["source"]["column"] = column
        with pytest.raises(UserError) as error:
            documents.run(context)
        (problem,) = error.value.problems
        return problem

    column = "text"
    path = tmp_path / "given.jsonl"
    texts = [dummy_endpoint.write(f"a report on animal welfare {n}", n) for n in range(3)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, texts[0]]))
    assert problem(documents=4).what.startswith("3 of 4 texts pass the gates")
    assert "1 x duplicate" in problem(documents=4).what
    column = "output"
    assert problem() == Problem(str(path), "no column 'output'", "column: one of text")
    path.write_text('{"output": 1, "text": "a"}\n{"output": null, "text": "b"}\n')
    assert problem() == Problem(
        str(path),
        "column 'output' holds no text (1 x number, 1 x nothing)",
        "column: one of text",
    )
    path.write_text('{"output": [1]}\n')
    assert problem().fix == "no column holds texts: output"
    column = "text"
    path.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    assert problem().where == f"{path}:2" and "not UTF-8" in problem().what
    path.write_text('{"text": "fine"}\n{"text": \n')
    assert problem().where == f"{path}:2" and "1 of 2 rows can't be read" in problem().what


@pytest.mark.skipif(
    not REAL.exists(), reason="the real welfare documents are not beside the checkout"
)
def test_real_documents_make_a_corpus(tmp_path: Path) -> None:
    context = existing(tmp_path, REAL, documents=50, held_out=0.1)
    context.settings["source"]["column"] = "content"
    counts = documents.run(context)
    assert counts["documents"] == 45 and counts["held_out"] == 5 and counts["tokens"] > 10_000
