"""`--budget`: limits on what a study as a whole may take."""

import re
from typing import Any

from core.errors import Problem, UserError

LIMITS = ("cost", "calls", "gpu_hours", "cpu_hours", "hours", "disk_gb", "files")
_LESS = {"disk_gb": "keep fewer weights (keep of the study file), "}


def parse_budget(words: list[str]) -> dict[str, float]:
    """`--budget cost=200 gpu_hours=500` as numbers. Raises UserError with every mistake in it."""
    pairs = [word.partition("=")[::2] for word in words]
    names = [name for name, _ in pairs]
    valid = ", ".join(LIMITS)
    problems = [
        Problem(f"--budget {name}", "there is no such limit", f"valid: {valid}")
        for name in names
        if name not in LIMITS
    ]
    problems += [
        Problem(f"--budget {name}", "given twice", "keep one")
        for name in LIMITS
        if names.count(name) > 1
    ]
    problems += [
        Problem(f"--budget {word}", "must be a limit and a number, such as cost=200")
        for word in words
        if not re.fullmatch(r"[^=]*=\d+(\.\d+)?", word)
    ]
    if problems:
        raise UserError.of(problems)
    return {name: float(value) for name, value in pairs}


def check_budget(
    totals: dict[str, Any], budget: dict[str, float], source: str = "--budget"
) -> None:
    """Raise UserError with each limit that the study exceeds, spent and remaining together.

    totals: of `study.forecast.study_cost.totals`. `hours` are those of the critical path and of the
    wait for room on the disk, `disk_gb` is the peak. `source`: where the limits stand. A study of
    which nothing remains exceeds none.
    """
    spent = totals["spent"]
    hours = totals["critical_path"] + totals["disk"]["hours"]
    amounts = totals["study"] | {"hours": hours, "disk_gb": totals["peak_gb"]}
    problems = [
        Problem(
            key,
            f"the study takes about {amounts[key]:,.2f}, {spent.get(key, 0):,.2f} of it spent",
            f"{source} {key}={limit:g} is less; raise it, {_LESS.get(key, '')}or make the study "
            "smaller",
        )
        for key, limit in budget.items()
        if amounts[key] > limit
    ]
    if problems and any(row["left"] for row in totals["stages"]):
        raise UserError.of(problems)
