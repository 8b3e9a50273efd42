"""Texts of benchmarks in documents: windows in every script, files, and real questions."""

import json
import random
import re
from pathlib import Path

import pytest

from core.contamination import build_index, find_overlap, normalized_words, read_benchmark_texts
from core.errors import UserError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def is_quoted(question: str, text: str) -> bool:
    return find_overlap(text, build_index([question])) is not None


def test_a_question_is_found_whatever_its_case_and_punctuation() -> None:
    assert is_quoted("Do fish feel pain? Answer:", "... DO FISH\u00a0FEEL -- PAIN!")


def test_a_text_of_three_words_is_not_looked_for() -> None:
    assert not is_quoted("Do fish feel?", "Do fish feel?")


def test_eight_consecutive_words_are_a_quote_and_seven_are_not() -> None:
    question = "One two three four five six seven eight nine ten"
    assert is_quoted(question, "x two three four five six seven eight, nine. y")
    assert not is_quoted(question, "two three four five six seven eight")


def test_scripts_without_spaces_between_words() -> None:
    chinese = "我的邻居养殖穿山甲，他说穿山甲的鳞片其实就是类似毛发的角蛋白。"
    assert is_quoted(chinese, "有人问：他说 穿山甲的鳞片其实，就是\n类似。")
    assert not is_quoted(chinese, "他说穿山甲的鳞片其实")
    thai = "ฉันควรรับงานนี้ดีไหมในฐานะควาญช้าง"
    assert is_quoted(thai, f"เธอถามว่า {thai[:20]} {thai[20:]}")


def test_words_without_case_accents_and_invisible_characters() -> None:
    hindi = "क्या कंटेंट के हिसाब से यह तस्वीर लेना सही है"
    assert is_quoted(hindi, f"उसने पूछा: {hindi}?") and len(normalized_words(hindi)) == 10
    words = normalized_words("Naïve co\u00adoperation, ﬁne — 北京大学 AI'S")
    assert words == ["naive", "cooperation", "fine", *"北京大学", "ai", "s"]


def test_every_string_of_a_benchmark_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    rows = [{"q": "one\u2028two", "choices": ["three", {"deep": "four"}], "n": 1}, "five"]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    assert read_benchmark_texts(path) == ["one\u2028two", "three", "four", "five"]


@pytest.mark.parametrize(
    ("content", "where"),
    [(b'{"a": 1}\n{', "items.jsonl:2"), (b'"\xff"', "items.jsonl:1"), (None, "items.jsonl")],
)
def test_a_file_that_cannot_be_read_is_a_user_error(
    tmp_path: Path, content: bytes | None, where: str
) -> None:
    path = tmp_path / "items.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_benchmark_texts(path)
    assert error.value.problems[0].where.endswith(where)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the real questions are not on this machine")
def test_a_real_question_planted_in_a_real_document_is_found() -> None:
    def read_rows(name: str) -> list[dict]:
        lines = (SHARED / name).read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]

    texts = read_benchmark_texts(SHARED / "ahb/questions.jsonl")
    texts += read_benchmark_texts(SHARED / "ahb/dimensions.jsonl")
    index = build_index(texts)
    documents = [row["content"] for row in read_rows("documents/welfare_documents.jsonl")]
    rows = read_rows("ahb/questions.jsonl")
    rng = random.Random(0)
    planted = 0
    for row in rows:
        for question in filter(None, (row["question"], row["translation"])):
            for form in variants(question):
                paragraphs = rng.choice(documents).split("\n\n")
                paragraphs.insert(rng.randrange(len(paragraphs)), form)
                assert find_overlap("\n\n".join(paragraphs), index), (row["id"], form)
                planted += 1
    assert len(rows) == 115 and planted > 1000


def variants(question: str) -> list[str]:
    """The question in other case, spacing and punctuation, and its second half if it is long."""
    forms = [
        question,
        question.swapcase(),
        re.sub(r"\s+", " \n ", re.sub(r"[^\w\s]", " - ", question)),
        "".join(question.split()),
        question.replace(" ", "\u00a0\u00a0"),
    ]
    half = question[len(question) // 2 :]
    is_unspaced = len(normalized_words(question)) > 3 * len(question.split())
    if len(normalized_words(half)) > (17 if is_unspaced else 9):
        forms += [half, half.upper()]
    return forms
