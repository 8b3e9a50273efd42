"""What `plan --add` and `--contrast` put beside a study file: arms and all they need, contrasts.

Nothing that the study file has is changed, so that all of its cells stay the same.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from core.errors import Problem, UserError
from core.strict_yaml import did_you_mean, parse_yaml, read_yaml
from study.spec.schema import Contrast

SECTIONS = ("endpoints", "models", "corpora", "sfts", "arms", "benchmarks")
LISTS = ("benchmarks", "doses", "varies")  # keys of a contrast whose values are lists
KEYS = tuple(field.name for field in fields(Contrast))
EXAMPLE = '--contrast "treatment animal, control urban"'
PRIMARY = "primary"


@dataclass(frozen=True)
class Addition:
    """What is added: the content of a YAML file by section, and contrasts."""

    file: Path | None
    sections: dict[str, Any]
    contrasts: list[dict[str, Any]]

    def add_to(self, raw: dict[str, Any]) -> list[Problem]:
        """Add it to the raw study file; returns a problem for each entry that is there already.

        A contrast without a family goes to the primary one, without benchmarks to those of its
        family.
        """
        problems = []
        for section, entries in self.sections.items():
            there = raw.setdefault(section, {})
            if not isinstance(there, dict):
                continue  # the study file's own mistake, of which it is told
            for name, entry in entries.items():
                if name in there:
                    at = f"{self.file}: {section}.{name}"
                    fix = "give it another name; --set changes an entry"
                    problems.append(Problem(at, "the study has one of this name", fix))
                there.setdefault(name, entry)
        contrasts = raw.setdefault("contrasts", [])
        for contrast in self.contrasts if isinstance(contrasts, list) else ():
            family = contrast.setdefault("family", PRIMARY)
            declared = [row for row in contrasts if isinstance(row, dict)]
            named = dict.fromkeys(
                bench
                for row in declared
                if row.get("family", PRIMARY) == family
                for bench in row.get("benchmarks") or []
            )
            if not contrast.setdefault("benchmarks", [*named]):
                at = f"--contrast {contrast['name']}"
                what = f"family {family} has no benchmarks yet"
                problems.append(Problem(at, what, "add: benchmarks NAME NAME"))
            if contrast["name"] in [row.get("name") for row in declared]:
                at = f"--contrast {contrast['name']}"
                fix = "add: name OTHER"
                problems.append(Problem(at, "the study has a contrast of this name", fix))
            contrasts.append(contrast)
        return problems


def read_addition(file: Path | None, contrasts: list[str]) -> Addition:
    """The file and the contrasts of the command line. Raises UserError with every mistake."""
    sections: dict[str, Any] = {}
    problems: list[Problem] = []
    if file:
        sections, problems = _sections(file)
    rows = []
    for text in contrasts:
        row, mistakes = _contrast(text)
        rows.append(row)
        problems += mistakes
    if problems:
        raise UserError.of(problems)
    return Addition(file, sections, rows)


def _sections(file: Path) -> tuple[dict[str, Any], list[Problem]]:
    raw, lines, problems = read_yaml(file)
    if not isinstance(raw, dict):
        fix = "such as arms: {NAME: {start: MODEL, midtrain: CORPUS}}"
        raise UserError(where=str(file), what="must be a mapping of sections", fix=fix)
    for section, entries in raw.items():
        at = f"{file}:{lines.get((section,), 1)}: {section}"
        if section not in SECTIONS:
            what = f"is nothing that is added{did_you_mean(str(section), list(SECTIONS))}"
            problems.append(Problem(at, what, f"valid: {', '.join(SECTIONS)}"))
        elif not isinstance(entries, dict):
            problems.append(Problem(at, "must be a mapping of names"))
    return raw, problems


def _contrast(text: str) -> tuple[dict[str, Any], list[Problem]]:
    """ "treatment x, control y, benchmarks a b" as an entry of `contrasts`."""
    at = f"--contrast {text!r}"
    row: dict[str, Any] = {}
    problems = []
    for part in filter(None, map(str.strip, text.split(","))):
        key, _, value = part.replace(":", " ", 1).partition(" ")
        if key not in KEYS:
            what = f"has no key {key!r}{did_you_mean(key, list(KEYS))}"
            problems.append(Problem(at, what, f"valid: {', '.join(KEYS)}"))
        elif key in row or not value.strip():
            what = f"{key} is given twice" if key in row else f"{key} has no value"
            problems.append(Problem(at, what, f"such as {EXAMPLE}"))
        elif key in LISTS:
            row[key] = [parse_yaml(word, at)[0] for word in value.split()]
        else:
            row[key] = value.strip() if key == "name" else parse_yaml(value, at)[0]
    if missing := [key for key in ("treatment", "control") if key not in row]:
        problems.append(Problem(at, f"lacks {' and '.join(missing)}", f"such as {EXAMPLE}"))
    row.setdefault("name", f"{row.get('treatment')} - {row.get('control')}")
    return row, problems
