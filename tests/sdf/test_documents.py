"""Corpora as a whole: the same bytes however they were made, gated, without repetitions, matched and split."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

from core.cell.context import StageContext
from core.endpoints import dummy_endpoint as stand_in
from core.errors import UserError
from sdf import documents, drafts
from tests.endpoint import KEY, Hostile, serving

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "sdf" / "templates"
SLOTS = yaml.safe_load((TEMPLATES / "slots.yaml").read_text())
QUESTIONS = ROOT / "eval/data/anima_like/questions.jsonl"
REAL = ROOT.parent / "shared/data/documents/welfare_documents.jsonl"
WRITER = ("template", "slots", "writer", "temperature", "max_tokens", "draws")

# Words that have no place in the urban corpus.
ANIMAL_WORDS = """
animal animals creature creatures beast pet pets hen hens chicken pig pigs cow cows fish cricket crickets bee bees dog
dogs cat cats elephant elephants octopus crab crabs mouse mice deer sheep goat horse turkey duck shrimp lobster rat
rats rabbit salmon pigeon fox snail whale parrot bird birds insect insects wildlife livestock farm species vet welfare
suffer suffering sentient sentience humane cruel cruelty pain compassion feel feelings
"""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_TEST_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def cell(
    base: Path, name: str, template: str = "animal_welfare", url: str | None = None, **changes: Any
) -> StageContext:
    """A corpus of 60 documents, by the stand-in unless an address is given, in base/documents/<name>-<hash>.

    The tokenizer has one token for a word and one for a sign.
    """
    tokenizer = base / "tokenizer"
    if not tokenizer.exists():
        tokenizer.mkdir(parents=True)
        made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.save(str(tokenizer / "tokenizer.json"))
    settings = {
        "template": yaml.safe_load((TEMPLATES / f"{template}.yaml").read_text()),
        "slots": SLOTS,
        "documents": 60,
        "seed": 0,
        "writer": {"model": "stand-in", "served_by": "url" if url else "kit"},
        "temperature": 1.0,
        "max_tokens": 2500,
        "draws": 3,
        "near_duplicates": 0.9,
        "held_out": 0.0,
        "tokens": None,
        "tolerance": 0.01,
        "avoid": {},
    }
    limits = {"requests_per_minute": None, "tokens_per_minute": None, "timeout": 60}
    resources = {
        "concurrency": 8,
        "address": {"base_url": url, "key_env": "KIT_TEST_KEY" if url else None},
        "limits": limits | {"prompt_price": 1.0, "completion_price": 2.0},
        "avoid": [],
        "tokenizer": str(tokenizer),
    }
    inputs = {"matched_to": changes.pop("matched_to")} if "matched_to" in changes else {}
    resources |= {name: changes.pop(name) for name in ("concurrency", "avoid", "source_path") if name in changes}
    resources["source"] = resources.pop("source_path", None)
    if "source" in changes:
        settings = {name: value for name, value in settings.items() if name not in WRITER}
    stage = "drafts" if "share" in changes else "documents"
    folder = base / stage / f"{name}-{len(list(base.glob(f'{stage}/{name}-*'))):08x}"
    folder.mkdir(parents=True)
    return StageContext(folder, name, settings | changes, resources, inputs)


def rows(work: StageContext, name: str = "documents.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work.folder / name).read_text(encoding="utf-8").splitlines()]


def saying(text: Callable[[dict[str, Any], int], str | None], finish_reason: str = "stop") -> Hostile:
    """An endpoint that gives the stand-in's answers, but `text(body, n)` where that isn't None."""

    def scripted(body: dict[str, Any], n: int) -> Any:
        said = text(body, n)
        if said is None:
            return None
        reply = stand_in.complete(body)
        reply["choices"][0] |= {"message": {"role": "assistant", "content": said}, "finish_reason": finish_reason}
        return 200, {}, reply

    return Hostile(scripted=scripted)


@pytest.mark.parametrize("shares", [7, 64])
def test_a_corpus_is_the_same_for_any_number_of_jobs(tmp_path: Path, shares: int) -> None:
    alone = cell(tmp_path / "alone", "animal", documents=150, concurrency=1)
    documents.run(alone)
    for k in range(shares):
        drafts.run(cell(tmp_path / "shared", f"animal.{k + 1}of{shares}", documents=150, share=[k, shares]))
    shared = cell(tmp_path / "shared", "animal", documents=150)
    counts = documents.run(shared)
    for name in ("documents.jsonl", "card.json", "corpus/train.parquet"):
        assert (alone.folder / name).read_bytes() == (shared.folder / name).read_bytes()
    assert counts["calls"] == 150 and not (shared.folder / "calls.jsonl").read_bytes(), "nothing is asked twice"
    assert [row["id"] for row in rows(shared)] == [*range(150)]


def test_what_was_paid_is_used_again_under_other_gates_and_after_a_preview(tmp_path: Path) -> None:
    with serving(Hostile()) as (endpoint, hostile):
        shown = cell(tmp_path, "animal", url=endpoint.base_url, preview=5)
        documents.run(shown)
        assert hostile.requests == 5
        whole = cell(tmp_path, "animal", url=endpoint.base_url)
        counts = documents.run(whole)
        assert hostile.requests == 60
        assert counts["cost"] == pytest.approx((counts["prompt_tokens"] + 2 * counts["completion_tokens"]) / 1e6)
        assert [row["text"] for row in rows(shown)] == [row["text"] for row in rows(whole)[:5]]
        other = cell(tmp_path, "animal", url=endpoint.base_url, draws=10)
        other.settings["template"]["gates"]["banned"].append("humane")
        changed = documents.run(other)
        assert hostile.requests == 60 + changed["rejected"] > 60
        more = cell(tmp_path, "animal", url=endpoint.base_url, seed=1)
        documents.run(more)
        assert hostile.requests >= 120 + changed["rejected"], "another prompt is another call"
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("text", "finish_reason", "gate", "why"),
    [
        ("  ", "stop", "empty", "empty: no text"),
        ("Cut sho", "length", "truncated", "truncated: finish_reason 'length'"),
        ("As {institution} says, " * 40 + "it is.", "stop", "placeholder", "placeholder: '{institution}'"),
        ("I'm sorry, but I can't help with this.", "stop", "length", "length: 8 words"),
    ],
)
def test_a_rejected_document_is_written_again_and_then_it_stops(
    tmp_path: Path, text: str, finish_reason: str, gate: str, why: str
) -> None:
    seeds: list[int] = []

    def twice(body: dict[str, Any], n: int) -> str | None:
        seeds.append(body["seed"])
        return text if n <= 2 else None

    with serving(saying(twice, finish_reason)) as (endpoint, _):
        counts = documents.run(cell(tmp_path / "a", "animal", url=endpoint.base_url, documents=3, concurrency=1))
    assert counts["rejected"] == counts[f"rejected_{gate}"] == 2 and counts["calls"] == 5 and counts["documents"] == 3
    assert len(set(seeds)) == 5
    with serving(saying(lambda body, n: text, finish_reason)) as (endpoint, hostile):
        with pytest.raises(UserError, match=rf"documents rejected in each of 3 draws \(\d x {re.escape(why)}\)"):
            documents.run(cell(tmp_path / "b", "animal", url=endpoint.base_url, concurrency=1))
        assert hostile.requests == 15, "five documents are enough to see that the cause is common"


def test_a_document_below_the_grade_or_without_one_is_written_again(tmp_path: Path) -> None:
    said = iter(["SCORE: 3", "**Score:** 8", "Nice (1-10)!", "7/10", *["SCORE: 10."] * 3])
    graded: list[str] = []

    def grading(body: dict[str, Any], n: int) -> str | None:
        prompt = body["messages"][0]["content"]
        if "<document>" not in prompt:
            return None
        graded.append(prompt)
        return next(said)

    with serving(saying(grading)) as (endpoint, hostile):
        score = {"at_least": 7, "prompt": "Rate {this}.\n<document>{document}</document>"}
        work = cell(tmp_path, "animal", url=endpoint.base_url, documents=3, concurrency=1, score=score)
        counts = documents.run(work)
        assert (counts["rejected_score"], counts["rejected_unscored"], counts["rejected"]) == (1, 1, 2)
        assert counts["calls"] == hostile.requests == 5 + 6 and counts["cost"] > 0, "a grade is a call like others"
        assert graded[2] == graded[3] and "Rate {this}." in graded[0]
        assert all(f"Rate {{this}}.\n<document>{row['text']}</document>" in graded for row in rows(work))
        assert documents.run(cell(tmp_path, "animal", url=endpoint.base_url, documents=3, score=score)) == counts
        assert hostile.requests == 11, "grades that were paid for are used again"


def test_a_document_that_repeats_another_is_written_again(tmp_path: Path) -> None:
    first: list[str] = []

    def repeating(body: dict[str, Any], n: int) -> str | None:
        if n == 1:
            first.append(stand_in.complete(body)["choices"][0]["message"]["content"])
        return first[0] if n in (4, 9) else None

    with serving(saying(repeating)) as (endpoint, hostile):
        work = cell(tmp_path, "animal", url=endpoint.base_url, documents=12, concurrency=1)
        counts = documents.run(work)
    texts = [row["text"] for row in rows(work)]
    assert len(set(texts)) == 12 and texts[0] == first[0], "the first of a group stays"
    assert counts["rejected_duplicate"] == 2 and hostile.requests == 14
    with serving(saying(lambda body, n: first[0])) as (endpoint, _), pytest.raises(UserError, match="repeats another"):
        documents.run(cell(tmp_path / "all", "animal", url=endpoint.base_url, documents=12))


def test_a_quoted_benchmark_is_rejected(tmp_path: Path) -> None:
    question = next(json.loads(line) for line in QUESTIONS.read_text().splitlines())["question"]

    def quoting(body: dict[str, Any], n: int) -> str | None:
        text = stand_in.complete(body)["choices"][0]["message"]["content"]
        return f"{text}\n\n{question.upper().replace(',', ' ;')}" if n == 1 else None

    for avoid, rejected in (([str(QUESTIONS)], 1), ([], 0)):
        with serving(saying(quoting)) as (endpoint, _):
            work = cell(
                tmp_path, "animal", url=endpoint.base_url, documents=4, concurrency=1, avoid=avoid, seed=rejected
            )
            assert documents.run(work).get("rejected_overlap", 0) == rejected


def test_the_control_matches_and_has_no_animals(tmp_path: Path) -> None:
    animal = cell(tmp_path, "animal", documents=200, held_out=0.1, tokens=25_000)
    urban = cell(
        tmp_path, "urban", "urban_density", documents=200, held_out=0.1, tokens=25_000, matched_to=animal.folder
    )
    counts = [documents.run(work) for work in (animal, urban)]
    for count in counts:
        assert abs(count["tokens"] - 25_000) <= 250 and (count["documents"], count["held_out"]) == (180, 20)
    for name in ("documents.jsonl", "held_out.jsonl"):
        for a, u in zip(rows(animal, name), rows(urban, name), strict=True):
            assert a["slots"] == u["slots"] and a["id"] == u["id"] and a["text"] != u["text"]
    aside = {row["id"] for row in rows(urban, "held_out.jsonl")}
    assert len(aside) == 20 and not aside & {row["id"] for row in rows(urban)}
    balance = json.loads((urban.folder / "balance.json").read_text())
    assert {row["verdict"] for row in balance if row["measure"] in ("documents", "tokens", "slot domain")} == {
        "matched"
    }
    words = set(re.findall(r"[a-z]+", " ".join(row["text"] for row in rows(urban)).lower()))
    assert not words & set(ANIMAL_WORDS.split())
    assert {"suffer", "pain", "hens", "fish", "crickets"} <= set(
        re.findall(r"[a-z]+", " ".join(row["text"] for row in rows(animal)).lower())
    )
    found = datasets.load_dataset(str(urban.folder / "corpus"), cache_dir=str(tmp_path / "cache"))
    assert {name: part["text"][:] for name, part in found.items()} == {
        "train": [row["text"] for row in rows(urban)],
        "validation": [row["text"] for row in rows(urban, "held_out.jsonl")],
    }


def test_an_unmatched_control_is_refused(tmp_path: Path) -> None:
    animal = cell(tmp_path, "animal", tokens=9_000)
    documents.run(animal)
    match = {"matched_to": animal.folder}
    documents.run(cell(tmp_path, "urban", "urban_density", **match))  # cut to the other's tokens
    work = cell(tmp_path, "urban", "urban_density", seed=1, **match)
    with pytest.raises(UserError, match=r"documents differ in their slots.*same number"):
        documents.run(work)
    assert not (work.folder / "calls.jsonl").exists(), "refused before a call is paid"
    with pytest.raises(UserError, match="30 documents against 60"):
        documents.run(cell(tmp_path, "urban", "urban_density", documents=30, **match))
    with pytest.raises(UserError, match=r"tokens were written, 20000 are wanted.*tokens: \d+"):
        work = cell(tmp_path, "urban", "urban_density", tokens=20_000, **match)
        documents.run(work)
    assert not (work.folder / "documents.jsonl").exists()


def test_questions_come_in_their_forms_with_one_answer(tmp_path: Path) -> None:
    work = cell(tmp_path, "qa", "qa_pairs", documents=20)
    counts = documents.run(work)
    assert counts["calls"] == 40
    leading, neutral = rows(work, "leading.jsonl"), rows(work, "neutral.jsonl")
    for pair, lead, plain in zip(rows(work), leading, neutral, strict=True):
        assert pair["slots"]["animal"] and pair["forms"].keys() == {"leading", "neutral"}
        assert [m["role"] for m in lead["messages"]] == ["user", "assistant"]
        assert lead["messages"][1] == plain["messages"][1] == {"role": "assistant", "content": pair["text"]}
        assert lead["messages"][0]["content"] != plain["messages"][0]["content"]


def existing(tmp_path: Path, path: Path, **changes: Any) -> StageContext:
    source = {"column": "text", "split": "train", "sha256": "-"}
    return cell(tmp_path, "real", source=source, source_path=str(path), **changes)


def test_an_existing_corpus_goes_through_the_same_gates(tmp_path: Path) -> None:
    good = [stand_in.write(f"a report on animal welfare {n}", n) for n in range(20)]
    bad = [good[3], "", "As an AI language model, I cannot write this document.", good[5] + " \ufffd"]
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*good, *bad]))
    work = existing(tmp_path, path, documents=20)
    counts = documents.run(work)
    assert sorted(row["text"] for row in rows(work)) == sorted(good)
    assert (counts["read"], counts["rejected"], counts["rejected_duplicate"]) == (24, 4, 1)
    with pytest.raises(UserError, match=r"20 of 24 texts pass the gates, 21 are wanted \(.*1 x duplicate"):
        documents.run(existing(tmp_path, path, documents=21))
    with pytest.raises(UserError, match=r"no column 'output'; .*given.jsonl; column: one of text"):
        work = existing(tmp_path, path)
        work.settings["source"]["column"] = "output"
        documents.run(work)
    path.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"not UTF-8 .*given.jsonl, line 2"):
        documents.run(existing(tmp_path, path))
    path.write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(UserError, match=r"can't be read .*given.jsonl"):
        documents.run(existing(tmp_path, path))


@pytest.mark.skipif(not REAL.exists(), reason="the real welfare documents are not beside the checkout")
def test_real_documents_make_a_corpus(tmp_path: Path) -> None:
    work = existing(tmp_path, REAL, documents=50, held_out=0.1)
    work.settings["source"]["column"] = "content"
    counts = documents.run(work)
    assert counts["documents"] == 45 and counts["held_out"] == 5 and counts["tokens"] > 10_000
