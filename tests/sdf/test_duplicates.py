"""Near duplicates: what is found, what is spared, and that nothing but the texts decides."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import duplicates as benchmark
from sdf.duplicates import cosine, duplicates, runs, shingles

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "documents" / "welfare_documents.jsonl"
VOCABULARY = [f"{first}{last}" for first in ("ba", "ce", "di", "fo", "gu", "ha", "ji") for last in map(str, range(300))]


def text(*key: object, words: int = 300) -> list[str]:
    return random.Random(repr(key)).choices(VOCABULARY, k=words)


def test_planted_copies_are_found_and_less_similar_ones_stay() -> None:
    found = benchmark.measure(1500)
    assert found["near_duplicates"] >= 15 and found["less_similar_copies"] >= 8
    assert found["found"] == found["near_duplicates"] == found["rejected"] and found["wrongly_rejected"] == 0


def test_the_result_is_that_of_comparing_all_pairs() -> None:
    rng = random.Random(1)
    texts = [text(i) for i in range(40)]
    for i in range(160):  # copies of copies, at every distance from the threshold
        words = list(rng.choice(texts))
        for place in rng.sample(range(len(words)), rng.randrange(15)):
            words[place] = rng.choice(VOCABULARY)
        texts.append(words if i % 4 else [*words[rng.randrange(60) :], *text("more", i, words=20)])
    rng.shuffle(texts)
    sets = [shingles(" ".join(words)) for words in texts]
    expected: dict[int, int] = {}
    for i in range(len(texts)):
        kept = (j for j in range(i) if j not in expected)
        if (first := next((j for j in kept if cosine(sets[i], sets[j]) >= 0.9), None)) is not None:
            expected[i] = first
    assert duplicates(" ".join(words) for words in texts) == expected and 50 < len(expected) < 150


def test_sentences_of_the_template_do_not_make_a_duplicate() -> None:
    shared = text("shared", words=200)
    assert duplicates(" ".join([*shared, *text(i, words=300)]) for i in range(50)) == {}
    assert duplicates([" ".join([*shared, *text(i, words=20)]) for i in range(2)]) == {1: 0}  # but hardly anything else


def test_exact_duplicates_whatever_the_case_spacing_and_signs() -> None:
    same = [
        "The hens, it's said, were calm.",
        "THE  HENS\nIt\u2019s said were - calm",
        "The hens it's said were not calm",
    ]
    others = ["", "x", " ", "X!", "\U0001f404", "\U0001f404", "\ud800", "\ud800", "动物福利很重要"]
    assert duplicates([*same, *others]) == {1: 0, 6: 4, 8: 7, 10: 9}
    assert duplicates([]) == {}


def test_of_many_equal_texts_the_first_stays_and_none_costs_more_than_another() -> None:
    assert duplicates(["one two three four"] * 3000) == dict.fromkeys(range(1, 3000), 0)


def test_a_text_without_spaces_and_a_huge_one() -> None:
    chinese = "".join(chr(0x4E00 + n % 3001) for n in range(0, 700 * 7919, 7919))
    assert duplicates([chinese, chinese[::-1], chinese[:500] + "的" + chinese[500:]]) == {2: 0}
    assert duplicates(["x" * 1_000_000, "y" * 1_000_000, "x" * 1_000_000]) == {2: 0}


def test_the_order_of_words_counts() -> None:
    assert np.intersect1d(shingles("one two three four"), shingles("four three two one")).size == 0
    assert runs(["a", "b"], 3).size == 0 and runs(["a", "b", "c"], 2).size == 2


def test_another_process_and_hash_seed_find_the_same() -> None:
    code = "from benchmarks.duplicates import *; found = duplicates(t for t, _ in corpus(200)); " + (
        "print(json.dumps([sorted(found), shingles('one two three four').tolist()]))"
    )
    command = [sys.executable, "-c", code]
    outputs = {
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and len(json.loads(outputs.pop())[0]) >= 2


@pytest.mark.skipif(not REAL.exists(), reason="the real documents are not on this machine")
def test_real_documents_are_no_duplicates_and_their_copies_are() -> None:
    texts = [json.loads(line)["content"] for line in REAL.read_text(encoding="utf-8").split("\n") if line]
    copies = [copy.upper().replace(",", " ;") + " Copied." for copy in texts]
    found = duplicates([*texts, *copies])
    assert found == {i + len(texts): i for i in range(len(texts))}
