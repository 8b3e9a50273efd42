"""Count the tokens of texts with a model's tokenizer."""

from collections.abc import Callable, Sequence
from pathlib import Path

from core.errors import UserError

BATCH = 1_000  # texts

TokenCounter = Callable[[Sequence[str]], list[int]]  # texts -> tokens of each


def token_counter(folder: Path) -> TokenCounter:
    """Return a function that counts tokens by the tokenizer.json in `folder`.

    Special tokens (BOS, EOS) are not counted.

    Raises:
        UserError: the file is missing or is not a tokenizer.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(
            where=str(path),
            what=f"can't load the tokenizer ({error})",
            fix="give a model's folder with this file",
        ) from None
    # Both may be saved in the file, and both would change the counts.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        lengths: list[int] = []
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            lengths += [len(encoding) for encoding in encodings]
        return lengths

    return count
