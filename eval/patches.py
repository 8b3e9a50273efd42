"""Every place where a library has no argument for what is needed: the process's environment, one
global of `datasets`, one function of `inspect_evals`, and the grade pattern of `inspect_ai`.

Patches of a library are tied to the version that they were written for (`require_version`). When a
pin in requirements.txt changes, read the code that the patch replaces, then change `PATCHED`.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.errors import UserError

# The versions whose internals this room relies on; a test compares them with requirements.txt.
PATCHED = {
    "datasets": "5.2.0",
    "inspect_ai": "0.3.285",
    "inspect_evals": "0.26.0",
    "lm_eval": "0.4.13",
}


def require_version(package: str) -> None:
    """Raise UserError unless the installed version of `package` is the one in `PATCHED`."""
    installed = version(package)
    if installed != PATCHED[package]:
        raise UserError(
            where=f"{package} {installed}",
            what=f"the kit replaces internals of {package} {PATCHED[package]}",
            fix=f"pip install {package}=={PATCHED[package]}",
        )


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the time of the `with` block."""
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def datasets_cache(folder: Path) -> Iterator[None]:
    """Let `datasets` cache in `folder` for the time of the `with` block.

    `load_dataset` takes a `cache_dir`, but Inspect's and lm-eval's loaders do not pass one on. The
    environment variable HF_DATASETS_CACHE is read once, when `datasets` is imported.
    """
    import datasets

    require_version("datasets")
    previous = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = previous


@cache
def keep_ungraded_dimensions() -> None:
    """Let ANIMA's scorer keep a response of which one dimension has no usable grade.

    The official scorer computes the overall score from the graded dimensions. It then raises
    KeyError where it explains the others; without that, Inspect's mean over epochs would raise it.
    Both need every dimension in the scores, so a dimension without a grade becomes NaN, Inspect's
    value for an unscored one. The patch stays for the rest of the process.
    """
    from inspect_evals.anima import scorer

    require_version("inspect_evals")
    explain = scorer._generate_explanation

    def explain_all(
        *, target_dimensions: list[str], avg_by_dim: dict[str, float], **options: Any
    ) -> str:
        for dimension in target_dimensions:
            avg_by_dim.setdefault(dimension, math.nan)
        return explain(target_dimensions=target_dimensions, avg_by_dim=avg_by_dim, **options)

    scorer._generate_explanation = explain_all  # type: ignore[assignment]


@cache
def _grade_rule() -> tuple[re.Pattern[str], Mapping[str, str]]:
    from inspect_ai.scorer import _model

    require_version("inspect_ai")
    return re.compile(_model._PERMISSIVE_GRADE_PATTERN), _model._GRADE_WORD_VALUES


def official_grade(reply: str) -> str | None:
    """The grade that Inspect's `model_graded_qa` reads from a reply: "C", "I", or None.

    The last GRADE line decides. The pattern and the words are Inspect's own, which it has no public
    name for.
    """
    pattern, words = _grade_rule()
    match = pattern.search(reply)
    word = match[1] if match else ""
    grade = words.get(word.lower(), word.upper())
    return grade if grade in ("C", "I") else None
