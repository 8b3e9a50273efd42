"""The simulation of benchmarks/dependencies.py keeps to what it simulates; its figures are not tested."""

import random
from pathlib import Path

import pytest

from benchmarks.dependencies import STUDY, barriers, compare, draw, element_wise, longest, needed, schedule
from slurm import arrays as planning
from slurm.arrays import Task
from slurm.profile import Shape, load_profile
from study import plan
from study.cells import Cell
from study.load import load_study

PROFILE = load_profile(Path("partitions"))
STAGES = ("model", "documents", "midtrain", "sft", "generate", "likelihood", "judge", "analysis")


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return plan.in_order(plan.analysis(load_study(STUDY, [0, 1])))


def planned(cells: list[Cell], there: tuple[str, ...] = ()) -> tuple[list[Task], list[set[int]]]:
    """Tasks for the stages that are not there, and what each waits for by its --dependency."""
    todo = planning.tasks(cells, PROFILE.shape, lambda cell: cell.stage in there, {})
    return todo, element_wise(todo, planning.plan(todo, PROFILE.shape, 1000))


def shapes(todo: list[Task]) -> list[Shape]:
    return [PROFILE.shape(task.cells[0].stage) for task in todo]


@pytest.mark.parametrize("nodes", [2, 16, 64])
def test_no_task_starts_before_its_inputs_ended_or_without_nodes(cells: list[Cell], nodes: int) -> None:
    todo, waits = planned(cells)
    wide = [shape.nodes for shape in shapes(todo)]
    limits = [shape.minutes / 60 for shape in shapes(todo)]
    for seed in range(3):
        hours = draw(todo, random.Random(seed))
        for some in (waits, barriers(todo)):
            spans = schedule(some, hours, wide, limits, nodes)
            for i, (start, end) in enumerate(spans):
                assert end == start + hours[i]
                assert all(spans[n][1] <= start for n in needed(todo)[i] | some[i])
                assert sum(w for w, (s, e) in zip(wide, spans, strict=True) if s <= start < e) <= nodes
            assert max(end for _, end in spans) >= longest(needed(todo), hours)


def test_with_nodes_enough_nothing_is_later_than_behind_barriers(cells: list[Cell]) -> None:
    todo, waits = planned(cells)
    assert all(exact <= some <= most for exact, some, most in zip(needed(todo), waits, barriers(todo), strict=True))
    one = [1] * len(todo)
    for seed in range(5):
        hours = draw(todo, random.Random(seed))
        free, held = (schedule(some, hours, one, [1.0] * len(todo), len(todo)) for some in (waits, barriers(todo)))
        assert all(a <= b for (_, a), (_, b) in zip(free, held, strict=True))
        assert max(end for _, end in free) == longest(needed(todo), hours)


def test_one_stage_has_no_barriers(cells: list[Cell]) -> None:
    for stage in ("model", "midtrain", "judge"):
        there = tuple(s for s in STAGES if s != stage)
        todo, waits = planned(cells, there)
        assert {task.kind for task in todo} == {stage}
        assert waits == barriers(todo) == needed(todo) == [set()] * len(todo)


def test_a_task_is_overtaken_only_by_what_does_not_delay_it() -> None:
    """Four nodes, three taken for 10 h; then one that wants all four, a long and a short one that want one."""
    spans = schedule([set()] * 4, [10, 1, 20, 5], [3, 4, 1, 1], [10, 1, 20, 5], nodes=4)
    assert [start for start, _ in spans] == [0, 10, 11, 0]


def test_every_draw_gives_each_policy_its_figures(cells: list[Cell]) -> None:
    found, text = compare(cells, ("model", "documents"), nodes=64, draws=2)
    assert set(found) == {"lower bound", "element-wise", "arrays merged", "stage barriers"}
    assert "element-wise 0," in text
    for low, high in zip(found["lower bound"], found["element-wise"], strict=True):
        assert low["makespan"] <= high["makespan"] and high["first result, mean"] < high["makespan"]
