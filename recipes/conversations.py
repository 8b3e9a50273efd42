"""Instruction data: the rows of a file as conversations, and the rules for rows that can't be used.

A recipe has a rule for each kind of bad row (RULES). Rows are dropped before a dose is drawn, and
refused beyond the share `max_dropped`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import Problem, UserError
from core.files import read_rows
from core.recipe import Training
from core.row_formats import data_file, row_location

# A message: `role`, `content`, and `weight` 0 where an answer is not trained on.
Messages = list[dict[str, Any]]
RULES = ("malformed", "empty", "special_tokens", "too_long")
ROLES = ("system", "developer", "user", "assistant", "tool", "ipython")
FORMS = "give `messages`, `instruction` and `output` or `response`, or `prompt` and `response`"
# What Alpaca's rows without an input hold as `input`, besides nothing.
NO_INPUT = re.compile(r"\s*(<\s*no\s*input\s*>|no\s?input\.?)\s*", re.IGNORECASE)
NO_OUTPUT = re.compile(r"\s*<\s*no\s*output\s*>\s*", re.IGNORECASE)
# HelpSteer's turns within a prompt: "first\n<extra_id_1>Assistant\nanswer\n<extra_id_1>User\n..."
TURN = re.compile(r"\s*<extra_id_[01]>(System|User|Assistant)[ \t]*\r?\n", re.IGNORECASE)
STRAY_TURN = re.compile(r"<extra_id_\d+>")
# Space, and what is as wide as nothing.
BLANK = re.compile(r"[\s\u200b-\u200d\u2060\ufeff]*")


@dataclass(frozen=True)
class Conversation:
    """A row that can be used."""

    source: str
    """Where it comes from ("file:line")."""

    messages: Messages


@dataclass(frozen=True)
class BadRow:
    """A row that can't be used."""

    rule: str
    """The rule of the recipe that it falls under."""

    problem: Problem


class _Unusable(Exception):
    """Args: the rule and what is wrong."""


def read_conversations(path: Path) -> tuple[list[Conversation], list[BadRow]]:
    """The conversations of a file (`core.files.read_rows`), and the rows that are none.

    Raises UserError where the file can't be read.
    """
    conversations: list[Conversation] = []
    problems: list[Problem] = []
    bad: list[BadRow] = []
    path = data_file(path)
    for number, row in read_rows(path, problems):
        source = row_location(path, number)
        try:
            conversations.append(Conversation(source, parse_messages(row)))
        except _Unusable as error:
            rule, what = error.args
            bad.append(BadRow(rule, Problem(source, what, FORMS)))
    bad += [BadRow("malformed", problem) for problem in problems]
    return conversations, bad


def parse_messages(row: dict[str, Any]) -> Messages:
    """A row's messages.

    It has `messages` (with `weight` 0 or 1 as in OpenAI's format), Alpaca's `instruction`, `input`
    and `output`, Dolly's `instruction`, `context` and `response` (Magicoder's without `context`),
    or HelpSteer's `prompt` and `response`. Of the answers within HelpSteer's prompt none is trained
    on: only the response was chosen.
    """
    if "messages" in row:
        messages = row["messages"]
    elif "instruction" in row and ("output" in row or "response" in row):
        context, output = ("input", "output") if "output" in row else ("context", "response")
        texts = [_text(row, "instruction"), _text(row, context, optional=True)]
        if _is_blank(texts[1]) or NO_INPUT.fullmatch(texts[1]):
            texts.pop()
        answer = _text(row, output)
        prompt = "\n\n".join(filter(None, texts))
        messages = _exchange(prompt, "" if NO_OUTPUT.fullmatch(answer) else answer)
    elif "prompt" in row and "response" in row:
        messages = _prompt_turns(_text(row, "prompt"))
        messages.append({"role": "assistant", "content": _text(row, "response")})
        if any(STRAY_TURN.search(message["content"]) for message in messages):
            raise _Unusable("malformed", "has <extra_id_...> that begins no turn")
    else:
        raise _Unusable("malformed", f"has no conversation, but {', '.join(row) or 'nothing'}")
    if not isinstance(messages, list):
        raise _Unusable("malformed", "messages is not a list")
    checked = [_message(message) for message in messages]
    if checked and checked[0]["role"] == "assistant":
        raise _Unusable("malformed", "begins with an answer")
    answers = [message for message in checked if message["role"] == "assistant"]
    if not answers:
        raise _Unusable("malformed", "has no answer of the assistant")
    trained = [message for message in answers if message.get("weight", 1)]
    if not trained:
        raise _Unusable("empty", "has no answer of weight 1")
    if any(_is_blank(message["content"]) for message in answers):
        raise _Unusable("empty", "has an empty answer")
    if all(_is_blank(m["content"]) for m in checked if m["role"] != "assistant"):
        raise _Unusable("empty", "has an empty question")
    return checked


def _is_blank(text: str) -> bool:
    return BLANK.fullmatch(text) is not None


def _text(row: dict[str, Any], key: str, optional: bool = False) -> str:
    value = row.get(key)
    if optional and value is None:
        return ""
    if not isinstance(value, str):
        raise _Unusable("malformed", f"{key} is not a text")
    return value


def _exchange(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _prompt_turns(prompt: str) -> Messages:
    """The turns of HelpSteer's prompt; the first is the user's unless it says otherwise."""
    first, *rest = TURN.split(prompt)
    turns = [("user", first)] if first.strip() or not rest else []
    turns += zip(map(str.lower, rest[::2]), rest[1::2], strict=True)
    return [
        {"role": role, "content": text} | ({"weight": 0} if role == "assistant" else {})
        for role, text in turns
    ]


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise _Unusable("malformed", "a message has no text as content")
    role = str(message.get("role")).lower()
    if role not in ROLES:
        what = f"role {message.get('role')!r} is none of {', '.join(ROLES)}"
        raise _Unusable("malformed", what)
    checked = {"role": role, "content": message["content"]}
    weight = message.get("weight")
    if weight is None or weight == 1:
        return checked
    if weight != 0:
        raise _Unusable("malformed", f"weight {weight!r} is neither 0 nor 1")
    return checked | {"weight": 0}


def check_bad_rows(bad: Sequence[BadRow], total: int, recipe: Training) -> None:
    """Refuse what the recipe's rules refuse.

    Raises:
        UserError: Rows of a rule that is `refuse`, or more than the share `max_dropped` of `total`.
    """
    for rule in RULES:
        refused = [row.problem for row in bad if row.rule == rule]
        if refused and getattr(recipe, rule) == "refuse":
            raise UserError(
                where=_places(refused),
                what=f"{len(refused)} of {total} rows can't be used ({rule}: {refused[0].what})",
                fix=f"mend them, or set {rule}: drop in the recipe",
            )
    if len(bad) > recipe.max_dropped * total:
        problems = [row.problem for row in bad]
        counts = ", ".join(f"{count} x {rule}" for rule, count in count_by_rule(bad).items())
        raise UserError(
            where=_places(problems),
            what=f"{len(bad)} of {total} rows can't be used, more than the recipe's max_dropped "
            f"{recipe.max_dropped:g} ({counts}; the first: {problems[0].what})",
            fix=problems[0].fix or "mend them, or raise max_dropped in the recipe",
        )


def count_by_rule(bad: Iterable[BadRow]) -> dict[str, int]:
    """How many rows fall under each rule, in the order of RULES."""
    counts = Counter(row.rule for row in bad)
    return {rule: counts[rule] for rule in RULES if counts[rule]}


def _places(problems: Sequence[Problem]) -> str:
    more = " ..." if len(problems) > 3 else ""
    return ", ".join(problem.where for problem in problems[:3]) + more


def split_rows(path: str, usable: int, recipe: Training, dose: int | None) -> tuple[int, int]:
    """How many of the usable rows are trained on, and how many can be, without those held out.

    dose: None trains on all that are not held out.

    Raises UserError where the dose is larger, or an evaluation has no rows.
    """
    num_held_out = round(recipe.held_out * usable)
    available = usable - num_held_out
    wanted = available if dose is None else dose
    if wanted > available:
        held_out = f", {num_held_out} of them held out" if num_held_out else ""
        raise UserError(
            where=path,
            what=f"has {usable} rows{held_out}, the dose is {wanted}",
            fix="lower sft.doses",
        )
    if recipe.eval_every and not num_held_out:
        raise UserError(
            where=path,
            what="eval_every needs held-out rows",
            fix="give the recipe held_out, a share such as 0.1",
        )
    return wanted, available
