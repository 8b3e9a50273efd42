"""What eval/benchmarks declares of a task, checked when a study is planned.

eval/scorer.py and docs/evaluation.md say what each key does.
"""

from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from core.errors import Problem
from core.paths import ROOT
from core.strict_yaml import (
    STRICT,
    Commit,
    did_you_mean,
    in_file_order,
    located,
    read_yaml,
    validate_file,
)

# The files that a scorer reads: (needed, all). Any other scorer reads those of a judged benchmark.
FILES_OF = {
    "likelihood": (["items"], ["items"]),
    "lm_eval": (["data"], ["data"]),
    "probe": (["items"], ["items"]),
    "agent": (["items"], ["items"]),
}
# Scorers that take neither a system prompt nor a prefill of an arm: they ask without a chat
# template, or the task has a system prompt of its own.
UNPROMPTED = ("likelihood", "probe", "agent")
JUDGED = (["questions"], ["questions", "dimensions"])


@dataclass(config=STRICT, frozen=True)
class DeclaredFile:
    """A file of a benchmark: a path, a data set of the Hub or a URL. Exactly one of the three."""

    path: str | None = None
    hub: str | None = None
    revision: Commit | None = None
    file: str | None = None
    url: str | None = None
    sha256: str | None = None


@dataclass(config=STRICT, frozen=True)
class Declaration:
    """A file of eval/benchmarks."""

    scorer: str
    # Which scores are good: results say so beside each benchmark, and no verdict rests on it.
    direction: Literal["higher", "lower", "neither"]
    # None: the study file must name it.
    files: dict[Literal["questions", "dimensions", "items", "data"], DeclaredFile | None]
    # In the notes of tables. None where each study brings items of its own.
    title: str | None = None
    rows: int | None = None
    variant: str | None = None
    per_token: bool | None = None
    lm_eval: list[str] = Field(default_factory=list)
    metric: str | None = None
    filter: str | None = None
    num_fewshot: int | None = None
    pooling: Literal["last", "mean"] | None = None
    folds: Annotated[int, Field(ge=2)] | None = None
    inspect: str | None = None
    argument: str | None = None
    completion: str | None = None


@lru_cache
def declaration_problems(task: str) -> tuple[Problem, ...]:
    """Every mistake in the declaration of a task, with its file and line.

    Raises UserError where the file can't be read as YAML.
    """
    path = ROOT / f"eval/benchmarks/{task}.yaml"
    raw, lines, problems = read_yaml(path)
    declared, mistakes = validate_file(path, raw, Declaration, lines)
    problems += mistakes
    if declared:
        for key, what, fix in _mistakes(declared):
            problems.append(located(path, key, what, lines, fix))
    return tuple(in_file_order(problems))


def _mistakes(declared: Declaration) -> list[tuple[tuple[str, ...], str, str]]:
    mistakes: list[tuple[tuple[str, ...], str, str]] = []
    scorers = sorted({*FILES_OF} | _scorer_modules())
    if declared.scorer not in scorers:
        what = f"there is no scorer {declared.scorer!r}{did_you_mean(declared.scorer, scorers)}"
        mistakes.append((("scorer",), what, f"valid: {', '.join(scorers)}"))
        return mistakes
    needed, valid = FILES_OF.get(declared.scorer, JUDGED)
    for name in needed:
        if name not in declared.files:
            mistakes.append((("files",), f"{name} is missing", f"{declared.scorer} reads it"))
    for name, file in declared.files.items():
        if name not in valid:
            fix = f"valid: {', '.join(valid)}"
            mistakes.append((("files", name), f"{declared.scorer} reads no such file", fix))
        if file is None:
            continue
        if sum(bool(source) for source in (file.path, file.hub, file.url)) != 1:
            what = "needs exactly one of path, hub and url"
            mistakes.append((("files", name), what, "give one"))
        elif file.hub and not file.revision:
            what = "hub needs revision"
            mistakes.append((("files", name), what, "give a commit (40 of 0-9 and a-f)"))
    required = {
        "likelihood": ["per_token"],
        "lm_eval": ["lm_eval", "metric"],
        "probe": ["pooling", "folds"],
        "agent": ["inspect", "argument", "metric"],
    }
    for key in required.get(declared.scorer, []):
        if getattr(declared, key) in (None, []):
            mistakes.append(((key,), "missing", f"{declared.scorer} needs it"))
    return mistakes


def _scorer_modules() -> set[str]:
    """Modules of eval that define what a `Scorer` does. They are read and not imported."""
    return {
        path.stem
        for path in (ROOT / "eval").glob("*.py")
        if "\ndef to_scores(" in path.read_text(encoding="utf-8")
    }
