"""A template of documents, checked when a study is planned: before anything is paid.

`sdf.gates` and `sdf.slots` use its content. docs/documents.md says what each key does.
"""

import string
from collections.abc import Collection
from functools import lru_cache
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from core.errors import Problem
from core.paths import ROOT
from core.strict_yaml import STRICT, in_file_order, located, read_yaml, validate_file

Words = list[str]
# Placeholders of every prompt, beside the slots of the template itself and {question}.
SHARED = {
    *("authority", "institution", "document_type", "style", "reasoning", "reasoning_phrase"),
    *("scope", "scope_phrase", "domain", "marker", "person", "place"),
}


@dataclass(config=STRICT, frozen=True)
class Gates:
    """The gates of a template; `{}` has only those that every document passes."""

    words: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    language: str | None = None
    banned: Words = Field(default_factory=list)
    leaks: Words = Field(default_factory=list)
    drop: Words = Field(default_factory=list)


@dataclass(config=STRICT, frozen=True)
class Template:
    """A file of sdf/templates, except slots.yaml."""

    name: str
    topic: str
    gates: Gates
    prompt: str | None = None
    forms: Words = Field(default_factory=list)
    asker: str | None = None
    reply: str | None = None
    answerer: str | None = None
    slots: dict[str, Words] = Field(default_factory=dict)
    wording: dict[str, str] = Field(default_factory=dict)


@lru_cache
def template_problems(name: str) -> tuple[Problem, ...]:
    """Every mistake in the template of this name, with its file and line.

    Raises UserError where the file can't be read as YAML.
    """
    path = ROOT / f"sdf/templates/{name}.yaml"
    raw, lines, problems = read_yaml(path)
    template, mistakes = validate_file(path, raw, Template, lines)
    problems += mistakes
    if template:
        prompts = ("asker", "reply", "answerer") if template.forms else ("prompt",)
        problems += [
            located(path, (key,), "missing", lines, "this template needs it")
            for key in prompts
            if not getattr(template, key)
        ]
        placeholders = SHARED | template.slots.keys() | ({"question"} if template.forms else set())
        for key in ("prompt", "asker", "answerer"):
            for what, fix in _prompt_mistakes(getattr(template, key) or "", placeholders):
                problems.append(located(path, (key,), what, lines, fix))
        problems += [
            located(path, ("slots", slot), "is a slot of all templates", lines, "rename it")
            for slot in sorted(SHARED & template.slots.keys())
        ]
    return tuple(in_file_order(problems))


def _prompt_mistakes(prompt: str, placeholders: Collection[str]) -> list[tuple[str, str]]:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(prompt)} - {None}
    except ValueError as error:
        return [(f"unmatched brace ({error})", "write a literal brace twice")]
    fix = f"use one of {', '.join(sorted(placeholders))}"
    unknown = sorted(str(field) for field in fields if field not in placeholders)
    return [(f"unknown placeholder {{{name}}}", fix) for name in unknown]
