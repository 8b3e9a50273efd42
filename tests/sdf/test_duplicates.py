"""Near duplicates: which are found, which are accepted, and that the texts alone decide."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import duplicates as benchmark
from sdf.duplicates import cosine, find_duplicates, ngram_hashes, shingles

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "documents" / "welfare_documents.jsonl"
VOCABULARY = [
    f"{first}{last}"
    for first in ("ba", "ce", "di", "fo", "gu", "ha", "ji")
    for last in map(str, range(300))
]


def text(*key: object, words: int = 300) -> list[str]:
    return random.Random(repr(key)).choices(VOCABULARY, k=words)


@pytest.mark.slow
def test_planted_copies_are_found_and_less_similar_ones_stay() -> None:
    result = benchmark.measure(1500)
    assert result["dedup_threshold"] >= 15 and result["less_similar_copies"] >= 8
    assert result["found"] == result["dedup_threshold"] == result["rejected"]
    assert result["wrongly_rejected"] == 0


def test_the_result_is_that_of_comparing_all_pairs() -> None:
    rng = random.Random(1)
    texts = [text(i) for i in range(40)]
    for i in range(160):  # copies of copies, at every distance from the threshold
        words = list(rng.choice(texts))
        for position in rng.sample(range(len(words)), rng.randrange(15)):
            words[position] = rng.choice(VOCABULARY)
        texts.append(words if i % 4 else [*words[rng.randrange(60) :], *text("more", i, words=20)])
    rng.shuffle(texts)
    sets = [shingles(" ".join(words)) for words in texts]
    expected: dict[int, int] = {}
    for i in range(len(texts)):
        accepted = (j for j in range(i) if j not in expected)
        earlier = next((j for j in accepted if cosine(sets[i], sets[j]) >= 0.9), None)
        if earlier is not None:
            expected[i] = earlier
    assert find_duplicates(" ".join(words) for words in texts) == expected
    assert 50 < len(expected) < 150


def test_sentences_of_the_template_do_not_make_a_duplicate() -> None:
    shared = text("shared", words=200)
    assert find_duplicates(" ".join([*shared, *text(i, words=300)]) for i in range(50)) == {}
    hardly_different = [" ".join([*shared, *text(i, words=20)]) for i in range(2)]
    assert find_duplicates(hardly_different) == {1: 0}


def test_exact_duplicates_are_found_whatever_the_case_spacing_and_punctuation() -> None:
    same = [
        "The hens, it's said, were calm.",
        "THE  HENS\nIt\u2019s said were - calm",
        "The hens it's said were not calm",
    ]
    others = ["", "x", " ", "X!", "\U0001f404", "\U0001f404", "\ud800", "\ud800", "动物福利很重要"]
    assert find_duplicates([*same, *others]) == {1: 0, 6: 4, 8: 7, 10: 9}
    assert find_duplicates([]) == {}


def test_of_many_equal_texts_the_first_is_accepted() -> None:
    assert find_duplicates(["one two three four"] * 3000) == dict.fromkeys(range(1, 3000), 0)


def test_texts_without_spaces_and_very_long_texts() -> None:
    chinese = "".join(chr(0x4E00 + n % 3001) for n in range(0, 700 * 7919, 7919))
    assert find_duplicates([chinese, chinese[::-1], chinese[:500] + "的" + chinese[500:]]) == {2: 0}
    assert find_duplicates(["x" * 1_000_000, "y" * 1_000_000, "x" * 1_000_000]) == {2: 0}


def test_the_order_of_words_counts() -> None:
    assert np.intersect1d(shingles("one two three four"), shingles("four three two one")).size == 0
    assert ngram_hashes(["a", "b"], 3).size == 0 and ngram_hashes(["a", "b", "c"], 2).size == 2


@pytest.mark.multiprocess
def test_the_result_does_not_depend_on_the_process_and_its_hash_seed() -> None:
    code = (
        "from benchmarks.duplicates import *; "
        "numbers = sorted(find_duplicates(t for t, _ in corpus(200))); "
        "print(json.dumps([numbers, shingles('one two three four').tolist()]))"
    )
    command = [sys.executable, "-c", code]
    outputs = {
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and len(json.loads(outputs.pop())[0]) >= 2


@pytest.mark.skipif(not REAL.exists(), reason="the real documents are not on this machine")
def test_real_documents_are_no_duplicates_and_their_copies_are() -> None:
    lines = REAL.read_text(encoding="utf-8").split("\n")
    texts = [json.loads(line)["content"] for line in lines if line]
    copies = [copy.upper().replace(",", " ;") + " Copied." for copy in texts]
    assert find_duplicates([*texts, *copies]) == {i + len(texts): i for i in range(len(texts))}
