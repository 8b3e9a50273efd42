"""The order in which cells are most useful: what is stopped early has its primary contrast."""

from pathlib import Path

import pytest

from core.cell import local_executor
from core.cell.identity import Cell
from core.cell.local_executor import Gpus
from core.paths import ROOT
from slurm import arrays as array_plan
from slurm.job_limits import JobLimit, Places, choose
from slurm.profile import Profile, Resources
from study.forecast.priority import ranks, steps
from study.spec import expand
from study.spec.load import load_study

TINY = ROOT / "studies/tiny.yaml"
PLAIN = Profile(stages={"default": Resources(minutes=5)})


def executed(cells: list[Cell], base: Path, order: dict[str, int]) -> list[Cell]:
    """The cells in the order in which one slot of the local executor takes them."""
    todo = {cell.identity: cell for cell in cells}
    executor = local_executor._Executor(todo, base, 1, lambda *event: None, Gpus(), order)
    sequence: list[Cell] = []
    while batch := executor._next():
        sequence += batch
        for cell in batch:
            del executor.todo[cell.identity]
    return sequence


def of_primary(last: Cell, seeds: set[int], bench: str = "ahb", dose: int = 0) -> set[str]:
    rows = last.settings["rows"]
    return {
        last.inputs[row["role"]].identity
        for row in rows
        if row["arm"] in ("animal", "urban")
        and (row["benchmark"], row["dose"]) == (bench, dose)
        and row["seed"] in seeds
    }


def test_a_third_of_the_miniature_has_its_primary_contrast(tmp_path: Path) -> None:
    last = expand.analysis(load_study(TINY))
    cells = expand.in_order(last)
    third = len(cells) // 3
    scores = of_primary(last, {0, 1})
    assert len(scores) == 4
    sequence = executed(cells, tmp_path, ranks(last))
    assert len(sequence) == len(cells) == 71
    assert scores <= {cell.identity for cell in sequence[:third]}
    unordered = executed(cells, tmp_path, {})
    assert not scores & {cell.identity for cell in unordered[:third]}


@pytest.mark.parametrize("name", ["tiny", "paper", "pilot"])
def test_no_cell_comes_before_what_it_reads(name: str) -> None:
    last = expand.analysis(load_study(ROOT / f"studies/{name}.yaml"))
    cells = expand.in_order(last)
    order = ranks(last)
    assert order.keys() == {cell.identity for cell in cells}
    for cell in cells:
        assert all(order[used.identity] <= order[cell.identity] for used in cell.inputs.values())
    assert max(order, key=lambda identity: order[identity]) == last.identity


def test_families_come_in_the_order_of_the_file_and_the_primary_one_first() -> None:
    contrasts = (
        "contrasts=[{name: a, treatment: animal, control: untrained, benchmarks: [ahb], family: A},"
        "{name: p, treatment: animal, control: urban, benchmarks: [concern]}]"
    )
    last = expand.analysis(load_study(TINY, overrides=[contrasts]))
    by_cell = steps(last)
    family = {
        (row["arm"], row["benchmark"]): by_cell[last.inputs[row["role"]].identity][0]
        for row in last.settings["rows"]
    }
    assert family["animal", "concern"] == family["urban", "concern"] == 0
    assert family["animal", "ahb"] == family["untrained", "ahb"] == 1
    assert family["urban", "ahb"] > 1 and family["untrained", "concern"] > 1


def test_seeds_come_by_looks() -> None:
    last = expand.analysis(load_study(TINY, overrides=["seeds=[3, 1, 2, 0]", "looks=[3, 4]"]))
    by_cell = steps(last)
    rounds = {
        row["seed"]: by_cell[last.inputs[row["role"]].identity][1]
        for row in last.settings["rows"]
        if row["arm"] == "animal"
    }
    assert rounds == {3: 0, 1: 0, 2: 0, 0: 1}


@pytest.mark.parametrize("order", [True, False])
def test_arrays_of_a_chain_are_sent_after_those_they_wait_for(order: bool) -> None:
    last = expand.analysis(load_study(ROOT / "tests/small/chain.yaml"))
    cells = expand.in_order(last)
    given = ranks(last) if order else None
    todo = array_plan.tasks(cells, PLAIN.resources, lambda cell: False, {}, given)
    sent: set[int] = set()
    for array in array_plan.plan(todo, PLAIN.resources, 1000):
        assert all(id(need) in sent for task in array.tasks for need in task.needs), array.kind
        sent |= {id(task) for task in array.tasks}
    assert len(sent) == len(todo)


def test_submit_sends_the_primary_contrast_first_and_orders_the_tasks_of_arrays() -> None:
    last = expand.analysis(load_study(TINY))
    cells = expand.in_order(last)
    order = ranks(last)

    def chosen(order: dict[str, int] | None) -> list[array_plan.Task]:
        todo = array_plan.tasks(cells, PLAIN.resources, lambda cell: False, {}, order)
        limit = JobLimit("max_submit", 15)
        return choose(todo, Places({limit: 15}, lambda resources: [limit]), PLAIN.resources)

    def identities(tasks: list[array_plan.Task]) -> set[str]:
        return {cell.identity for task in tasks for cell in task.cells}

    # A model, two corpora, four midtrainings, the evaluation and the grades of each.
    assert of_primary(last, {0, 1}) <= identities(chosen(order))
    assert not of_primary(last, {0, 1}) <= identities(chosen(None))
    todo = array_plan.tasks(cells, PLAIN.resources, lambda cell: False, {}, order)
    sent: set[int] = set()
    for array in array_plan.plan(todo, PLAIN.resources, 1000):
        needs = [need for task in array.tasks for need in task.needs]
        assert all(id(need) in sent for need in needs), "what an array waits for is sent before it"
        sent |= {id(task) for task in array.tasks}
        if array.kind in ("midtrain", "sft"):
            numbers = [task.rank for task in array.tasks]
            assert numbers == sorted(numbers), array.kind
    assert len(sent) == len(todo)
