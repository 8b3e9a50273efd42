"""The questions that a study leaves out of a benchmark, by id or by a pattern of ids."""

import re
from collections.abc import Iterable, Sequence


def excluded_ids(questions: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """Those of `questions` that one of the patterns is, or matches; * stands for any letters."""
    rules = [re.escape(pattern).replace(r"\*", ".*") for pattern in patterns]
    rule = re.compile("|".join(rules), re.DOTALL)
    return {q for q in questions if patterns and (q in patterns or rule.fullmatch(q))}
