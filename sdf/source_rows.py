"""The texts of a file or data set that a study gives as a corpus."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import Problem, UserError
from core.files import read_rows
from sdf.settings import SourceSettings
from sdf.text_checks import unify_line_ends

SHOWN_VALUES = 30  # of a column, in a message
MAX_UNREADABLE_SHARE = 0.01  # of the rows; beyond it the file is another than it says
# Values of a column: a text, or why there is none.
Text = str | Problem
# Names of the two sides of a conversation, also in the form of ShareGPT.
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def local_rows(path: Path) -> Iterator[dict[str, Any] | Problem]:
    """The rows of a file in their order; of a row that can't be read, what is wrong with it."""
    problems: list[Problem] = []
    reported = 0
    for _, row in read_rows(path, problems):
        yield from problems[reported:]
        reported = len(problems)
        yield row
    yield from problems[reported:]


def select_rows(
    rows: Iterable[dict[str, Any] | Problem], values: Mapping[str, str], name: str
) -> Iterable[dict[str, Any] | Problem]:
    """The rows whose columns have these texts, and those that can't be read.

    `name`: of the file or data set. Raises UserError where no row has them: it says what the
    columns hold.
    """
    if not values:
        return rows
    given = list(rows)
    selected = [
        row
        for row in given
        if not isinstance(row, dict)
        or all(str(row.get(column)) == value for column, value in values.items())
    ]
    if any(isinstance(row, dict) for row in selected):
        return selected
    readable = [row for row in given if isinstance(row, dict)]
    column = next(iter(values))
    present = sorted({str(row[column]) for row in readable if column in row})
    what = f"no row has {', '.join(f'{c} {v!r}' for c, v in values.items())}"
    columns = ", ".join(sorted({str(key) for row in readable for key in row}))
    shown = ", ".join(present[:SHOWN_VALUES])
    fix = f"{column} has {shown}" if present else f"its columns are {columns}"
    raise UserError(where=name, what=what, fix=f"correct filter: {fix}")


def read_texts(
    rows: Iterable[dict[str, Any] | Problem], source: SourceSettings, name: str
) -> tuple[list[Text], list[str | None]]:
    """The text of every row, and the question that it answers; None where there are none.

    A row with another conversation than one question and its answer is a problem in its place.
    `name`: of the file or data set. Raises UserError as `read_column` does.
    """
    if source.messages:
        return _read_conversations(rows, source.messages, name)
    given = list(rows)
    texts = read_column(given, source.column, name)
    if not source.question:
        return texts, [None] * len(texts)
    questions = read_column(given, source.question, name)
    pairs = zip(texts, questions, strict=True)
    texts = [question if isinstance(question, Problem) else text for text, question in pairs]
    return texts, [question if isinstance(question, str) else None for question in questions]


def _read_conversations(
    rows: Iterable[dict[str, Any] | Problem], column: str, name: str
) -> tuple[list[Text], list[str | None]]:
    given: list[dict[str, Any] | Problem] = []
    questions: list[str | None] = []
    for row in rows:
        pair = None if isinstance(row, Problem) else question_and_answer(row.get(column))
        questions.append(pair and pair[0])
        if pair:
            row = {**row, column: pair[1]} if isinstance(row, dict) else row
        elif isinstance(row, dict) and column in row:
            row = {**row, column: None}
        given.append(row)
    return read_column(given, column, name), questions


def question_and_answer(messages: Any) -> tuple[str, str] | None:
    """The two sides of a conversation of one turn each, also of its JSON."""
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError:
            return None
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        return None
    turns = [
        (ROLES.get(item.get("role") or item.get("from")), item.get("content") or item.get("value"))
        for item in messages
    ]
    match turns:
        case [("user", str(question)), ("assistant", str(answer))] if question.strip():
            return question, answer
    return None


def read_column(rows: Iterable[dict[str, Any] | Problem], column: str, source: str) -> list[Text]:
    """The text of every row under `column`, with its lines ended by LF.

    A row that can't be read is a problem in its place, and so is a value that is no text.

    Raises:
        UserError: No row has a text there: it says what the column holds, and which columns hold
            texts. Or more than MAX_UNREADABLE_SHARE of the rows can't be read. `source` is the name
            of the file or data set.
    """
    values: list[Any] = []
    columns: dict[str, bool] = {}  # name -> whether it holds texts
    for row in rows:
        if isinstance(row, Problem):
            values.append(row)
            continue
        for name, value in row.items():
            columns[name] = columns.get(name, False) or isinstance(value, str)
        values.append(row.get(column))
    unreadable = [value for value in values if isinstance(value, Problem)]
    if len(unreadable) > MAX_UNREADABLE_SHARE * len(values):
        first = unreadable[0]
        what = f"{first.what} ({len(unreadable)} of {len(values)} rows can't be read)"
        raise UserError(where=first.where, what=what, fix=first.fix)
    listed = ", ".join(columns)
    if columns and column not in columns:
        what = f"no column {column!r}"
        raise UserError(where=source, what=what, fix=f"column: one of {listed}")
    if columns and not columns[column]:
        kinds = Counter(_kind(value) for value in values if not isinstance(value, Problem))
        held = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
        texts = ", ".join(name for name, holds_text in columns.items() if holds_text)
        raise UserError(
            where=source,
            what=f"column {column!r} holds no text ({held})",
            fix=f"column: one of {texts}" if texts else f"no column holds texts: {listed}",
        )
    return [_text(value, column) for value in values]


def _text(value: Any, column: str) -> Text:
    if isinstance(value, str):
        return unify_line_ends(value)
    if isinstance(value, Problem):
        return value
    return Problem("", f"{column} holds {_kind(value)}, no text")


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "number", float: "number", list: "list", dict: "object"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
