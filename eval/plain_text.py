"""Prompts in which the names of special tokens that a question holds stay text.

A tokenizer takes such a name, as `<|eot_id|>`, for the token wherever it stands: the model would
see a finished turn. Training keeps them text too (recipes.tokenization).
"""

import re
from collections.abc import Callable
from typing import Any

from core.errors import UserError

HIDDEN = "\ue000"  # a character of private use


def encode_with_names(
    tokenizer: Any, names: re.Pattern[str], render: Callable[[str], str], text: str
) -> list[int]:
    """Token ids of `render(text)`, where only what `render` adds is read as special tokens.

    Raises:
        UserError: `render` does not copy the text.
    """
    hidden = names.sub(lambda name: HIDDEN * len(name[0]), text)
    template = render(hidden)
    rendered = render(text)
    if len(template) != len(rendered):
        raise UserError(
            where=repr(text[:60]),
            what="holds a special token's name, and the chat template changes it",
            fix="reword the question",
        )

    def ids_of(part: str) -> list[int]:
        encoded = tokenizer(part, add_special_tokens=False, split_special_tokens=True)
        return list(encoded.input_ids) if part else []

    ids: list[int] = []
    end = 0
    for name in names.finditer(template):
        ids += [*ids_of(rendered[end : name.start()]), tokenizer.convert_tokens_to_ids(name[0])]
        end = name.end()
    return ids + ids_of(rendered[end:])
