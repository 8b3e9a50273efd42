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
    given = [*rows]
    values = [row.get(column) if isinstance(row, dict) else None for row in given]
    pairs = [question_and_answer(value) for value in values]
    held = [value for value in values if value is not None]
    if held and not any(pairs):
        raise UserError(
            where=name,
            what=f"column {column!r} holds no conversation of one question and its answer; the "
            f"first row holds {_turns(held[0])}",
            fix="name the columns of questions and answers: question, column",
        )
    answers = [
        row | {column: pair and pair[1]} if isinstance(row, dict) and column in row else row
        for row, pair in zip(given, pairs, strict=True)
    ]
    texts: list[Text] = [
        text if pair or value is None else Problem("", f"{column} holds {_turns(value)}")
        for text, pair, value in zip(read_column(answers, column, name), pairs, values, strict=True)
    ]
    return texts, [pair and pair[0] for pair in pairs]


def _turns(value: Any) -> str:
    """What a column of conversations holds in place of one question and its answer."""
    messages = _messages(value)
    if messages is None:
        return _kind(value)
    return f"turns of {', '.join(map(_role, messages)) or 'nobody'}, or one without a text"


def _role(message: dict[str, Any]) -> str:
    return str(message.get("role") or message.get("from"))


def _messages(value: Any) -> list[dict[str, Any]] | None:
    """The messages of a conversation, also of its JSON; None of anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return None
    return value


def question_and_answer(messages: Any) -> tuple[str, str] | None:
    """The two sides of a conversation of one turn each, also of its JSON."""
    turns = [
        (ROLES.get(_role(item)), item.get("content") or item.get("value"))
        for item in _messages(messages) or ()
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
    names = {
        bool: "true or false",
        int: "number",
        float: "number",
        str: "text",
        list: "list",
        dict: "object",
    }
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
