"""The types of results.json, and the conversion of values into JSON's own types."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

# One row of a table of results.json: a JSON object whose values have the types of JSON.
Row = dict[str, Any]
# The whole of results.json: tables (lists of rows) by name, and facts about the study.
Results = dict[str, Any]

# What scores a benchmark that no judge grades, by its `judge`.
UNJUDGED = {
    "likelihood": "scored by likelihood",
    "lm-eval": "scored by lm-eval",
    "probe": "scored by probe",
    "program": "scored by a program",
}


def scored_by(judge: str) -> str:
    """How output says what scored a benchmark: "judge NAME", or the way without a judge."""
    return UNJUDGED.get(judge, f"judge {judge}")


def fields(record: object, names: Iterable[str]) -> Row:
    """Some attributes of a result object (such as `Estimate`) as the entries of a row."""
    return {name: getattr(record, name) for name in names}


def select(row: Row, keys: Iterable[str]) -> Row:
    """The entries `keys` of a row, in the order of `keys`."""
    return {key: row[key] for key in keys}


def sides_of(contrast: Row) -> list[tuple[str, int]]:
    """Arm and dose of the treatment and of the control of a contrast's row."""
    return [
        (contrast["treatment"], contrast["dose"]),
        (contrast["control"], contrast["control_dose"]),
    ]


def to_jsonable(value: Any) -> Any:
    """Convert a nested value into JSON's own types.

    Floats are rounded to six significant digits, because their last bits may differ between
    machines. NaN becomes None, and -0.0 becomes 0.0.
    """
    if isinstance(value, dict):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):  # NumPy's are registered as such
        return int(value)
    if isinstance(value, Real):
        return None if math.isnan(value) else float(f"{value:.6g}") + 0.0
    return value
