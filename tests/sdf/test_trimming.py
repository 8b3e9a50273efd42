"""Cutting a corpus to a number of tokens."""

import random

import pytest

from core.errors import UserError
from sdf.trimming import trim_to_tokens
from tests.sdf.support import count_words


@pytest.mark.parametrize("share", [1.0, 0.995, 0.97, 0.8])
def test_a_corpus_is_cut_to_the_target_from_its_longest_documents(share: float) -> None:
    rng = random.Random(0)
    texts = [
        "\n\n".join(
            " ".join(["word"] * rng.randrange(20, 60)) + "." for _ in range(rng.randrange(4, 12))
        )
        for _ in range(200)
    ]
    before = count_words(texts)
    target = round(share * sum(before))
    trimmed = trim_to_tokens(texts, target, count_words)
    after = count_words(trimmed)
    assert abs(sum(after) - target) <= 60 / 2
    for new, old in zip(trimmed, texts, strict=True):
        assert new == old or (old.startswith(new) and new.endswith("."))
    shortened = [old for old, new in zip(before, after, strict=True) if new < old]
    assert (shortened == []) == (share == 1)
    if shortened:  # all documents above one length are cut
        assert min(shortened) > max(after) - 60
    assert trimmed == trim_to_tokens(texts, target, count_words)


def test_a_trimmed_document_ends_with_a_paragraph_or_a_sentence() -> None:
    def trim(text: str) -> str:
        return trim_to_tokens([text, "short " * 5], 27, count_words)[0]

    body = "One two three four five six seven eight nine ten."
    last = "It ends here and now, for good."
    assert trim(f"{body}\n\n{body}\n\n## Conclusion\n\n{last}") == f"{body}\n\n{body}"
    assert trim(f"{body}\n\n{body}\n\nAs follows:\n\n- {last}\n- two") == f"{body}\n\n{body}"
    assert trim(f"{body}\n\n{body}\n\n---\n\n**Annex**\n\n{last}") == f"{body}\n\n{body}"
    assert trim(f'{body} {body[:-1]}!" It ended, said Dr. Ash.') == f'{body} {body[:-1]}!"'


def test_a_chinese_document_ends_with_a_sentence() -> None:
    texts = ["好。" * 40]
    assert trim_to_tokens(texts, 60, lambda texts: [len(text) for text in texts]) == ["好。" * 30]


def test_a_cut_that_would_lead_away_from_the_target_is_left_out() -> None:
    long = "a " * 9 + "a.\n\n" + "b " * 5 + "b."
    short = "c " * 9 + "c.\n\nd."
    assert trim_to_tokens([long, short], 26, count_words) == [long, "c " * 9 + "c."]


def test_a_target_that_takes_more_than_half_of_the_documents_is_refused() -> None:
    texts = ["One two three.\n\nFour five six."] * 10
    assert sum(count_words(trim_to_tokens(texts, 30, count_words))) == 30
    with pytest.raises(UserError) as error:
        trim_to_tokens(texts, 20, count_words)
    assert "60 tokens can't be cut to 20" in error.value.problems[0].what


def test_a_corpus_below_the_target_is_unchanged() -> None:
    texts = ["One two three.\n\nFour five six."] * 10
    assert trim_to_tokens(texts, 1000, count_words) == texts
