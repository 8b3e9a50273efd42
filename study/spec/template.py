"""A template of documents, checked when a study is planned: before anything is paid.

`sdf.gates` and `sdf.slots` use its content. docs/documents.md says what each key does.
"""

from collections.abc import Collection
from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from core.errors import Problem
from core.paths import ROOT
from core.strict_yaml import STRICT, in_file_order, located, read_yaml, validate_file
from study.spec.fingerprints import yaml_once
from study.spec.placeholders import placeholder_mistakes, placeholders

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
    endings: dict[str, str] = Field(default_factory=dict)


def template_content(name: str, ending: str | None, has_prompt_file: bool) -> dict[str, Any]:
    """A template as a cell's settings have it: with one of its endings in the prompt.

    The prompt is left out where a file of the user's has it.
    """
    content: dict[str, Any] = yaml_once(f"sdf/templates/{name}.yaml")
    template = {key: value for key, value in content.items() if key != "endings"}
    if has_prompt_file:
        del template["prompt"]
    elif endings := content.get("endings"):
        text = endings[ending or next(iter(endings))]
        template["prompt"] = content["prompt"].replace("{ending}", text)
    return template


def prompt_mistakes(prompt: str, slots: Collection[str]) -> list[tuple[str, str]]:
    """What is wrong with a prompt for a template that has `slots` of its own, and the fix."""
    mistakes = placeholder_mistakes(prompt, SHARED | set(slots))
    if not mistakes and not placeholders(prompt):
        what = "has no slot: all documents would have the same prompt"
        mistakes.append((what, "write one at least, such as {domain}"))
    return mistakes


def shipped_templates() -> list[str]:
    """The names of the files of sdf/templates, except slots.yaml."""
    files = (ROOT / "sdf/templates").glob("*.yaml")
    return sorted(path.stem for path in files if path.stem != "slots")


def usable_template(name: Any) -> dict[str, Any]:
    """The content of a template; empty where there is none or `template_problems` finds some."""
    if name not in shipped_templates() or template_problems(name):
        return {}
    content: dict[str, Any] = yaml_once(f"sdf/templates/{name}.yaml")
    return content


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
        valid = SHARED | template.slots.keys() | ({"question"} if template.forms else set())
        for ending, text in template.endings.items():
            for what, fix in placeholder_mistakes(text, valid):
                problems.append(located(path, ("endings", ending), what, lines, fix))
        valid |= {"ending"} if template.endings else set()
        for key in ("prompt", "asker", "answerer"):
            for what, fix in placeholder_mistakes(getattr(template, key) or "", valid):
                problems.append(located(path, (key,), what, lines, fix))
        problems += [
            located(path, ("slots", slot), "is a slot of all templates", lines, "rename it")
            for slot in sorted(SHARED & template.slots.keys())
        ]
    return tuple(in_file_order(problems))
