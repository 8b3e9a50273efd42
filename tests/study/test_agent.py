"""Agents' tasks in a study file: their cells, what their identity holds, and mistakes."""

from typing import Any

import pytest

from core.errors import UserError
from study.spec import expand
from study.spec.load import load_study
from tests.place import SMALL

TICKETS = "benchmarks.tickets={task: tac, items: eval/data/tickets.jsonl, doses: [%s]}"


def cells(*settings: str) -> dict[str, Any]:
    last = expand.analysis(load_study(SMALL, (), settings))
    return {f"{c.stage}/{c.name}": c for c in expand.in_order(last)}


def dose() -> int:
    return max(load_study(SMALL, (), ()).sft.doses)


def test_an_agent_is_a_cell_for_each_checkpoint_with_the_official_task() -> None:
    agents = {name: c for name, c in cells(TICKETS % dose()).items() if c.stage == "agent"}
    assert agents
    for cell in agents.values():
        assert cell.settings["inspect"] == "inspect_evals/tac"
        assert cell.settings["metric"] == "welfare" and cell.settings["rows"] is None
        assert cell.resources["engine"]["max_model_len"]


def test_the_parser_and_the_sampling_are_part_of_an_agent_and_the_context_is_not() -> None:
    def identities(*settings: str) -> set[str]:
        made = cells(TICKETS % dose(), *settings)
        return {c.identity for c in made.values() if c.stage == "agent"}

    first = identities()
    assert identities("engine.max_model_len=4096") == first
    assert not identities("benchmarks.tickets.tool_parser=hermes") & first
    assert not identities("benchmarks.tickets.max_tokens=99") & first


@pytest.mark.parametrize(
    ("bench", "what"),
    [
        (TICKETS % 0, "without one are prompted: animal at dose 0, urban at dose 0"),
        ("benchmarks.tickets={task: tac, judge: dummy}", "task tac has no such option"),
        ("benchmarks.concern.tool_parser=hermes", "no such option"),
    ],
)
def test_mistakes(bench: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        cells(bench)
