"""Placeholders of prompts: names in braces, each of which is filled with a text as it is."""

import string
from collections.abc import Collection

TWICE = "write a literal brace twice"


def placeholders(prompt: str) -> set[str]:
    """The names of a prompt's placeholders. Raises ValueError where a brace has no other half."""
    return {str(name) for _, name, _, _ in string.Formatter().parse(prompt) if name is not None}


def placeholder_mistakes(prompt: str, valid: Collection[str]) -> list[tuple[str, str]]:
    """What is wrong with the placeholders of a prompt that may have those of `valid`, and the fix.

    `str.format` takes {name!r} and {name:>9} too, which change the text or fail on it.
    """
    try:
        fields = [*string.Formatter().parse(prompt)]
    except ValueError as error:
        return [(f"unmatched brace ({error})", TWICE)]
    mistakes = {}
    for _, name, form, conversion in fields:
        if name is not None and name not in valid:
            fix = f"use one of {', '.join(sorted(valid))}; {TWICE}"
            mistakes[f"unknown placeholder {{{name}}}"] = fix
        elif form or conversion:
            what = f"placeholder {{{name}}} has a conversion or a format"
            mistakes[what] = f"write {{{name}}} alone"
    return sorted(mistakes.items())
