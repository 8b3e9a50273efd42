"""Corpora and a tokenizer for the tests of this room."""

import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from sdf.rows import DocumentRow


def save_word_tokenizer(folder: Path) -> None:
    """Save a tokenizer with one token for a word and one for a punctuation mark.

    The file holds truncation and padding, as some models' files do.
    """
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def random_corpus(documents: int, seed: int = 0, vocabulary: int = 500) -> list[DocumentRow]:
    """Documents of four paragraphs of 30 words, drawn by Zipf's law."""
    rng = random.Random(seed)

    def paragraph() -> str:
        return " ".join(f"w{int(vocabulary ** rng.random())}" for _ in range(30))

    return [
        {
            "id": i,
            "text": "\n\n".join(paragraph() for _ in range(4)),
            "slots": {"type": "ab"[i % 2], "name": f"name {i}"},
        }
        for i in range(documents)
    ]
