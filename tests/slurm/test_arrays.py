"""Dependencies between jobs: exact for usual studies, and never too few for any."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.cell.identity import Cell
from slurm import arrays as planning
from slurm.arrays import Array, Task
from slurm.profile import Resources, load_profile
from study.spec import expand as plan
from study.spec.load import load_study

ROOT = Path(__file__).parents[2]
TINY = ROOT / "studies/tiny.yaml"
MINUTE = Resources(minutes=1)


def resources(stage: str) -> Resources:
    return MINUTE


def cells(seeds: int) -> list[Cell]:
    return plan.in_order(plan.analysis(load_study(TINY, list(range(seeds)))))


def planned(
    study: list[Cell], done: Callable[[Cell], bool] = lambda cell: False, largest: int = 1000
) -> tuple[list[Task], list[Array]]:
    todo = planning.tasks(study, resources, done, {})
    return todo, planning.plan(todo, resources, largest)


def waits_for(task: Task) -> set[Task]:
    """The tasks that Slurm will have seen end well before it starts this one."""
    array = task.array
    assert array
    needs = {need for need in array.needs if isinstance(need, Task)}
    if array.aftercorr_parent:
        numbered = task.index < len(array.aftercorr_parent.tasks)
        needs |= (
            {array.aftercorr_parent.tasks[task.index]}
            if numbered
            else set(array.aftercorr_parent.tasks)
        )
    return needs


def test_an_arm_waits_for_its_own_training_and_nothing_else() -> None:
    todo, arrays = planned(cells(seeds=3))
    assert all(waits_for(task) == set(task.needs) for task in todo)
    assert len(arrays) < len(todo)
    of = {task.cells[0].name: task for task in todo if task.kind in ("midtrain", "sft")}
    sft, midtrain = of["base-animal-s1-d200"], of["base-animal-s1"]
    assert (
        sft.array and sft.array.aftercorr_parent is midtrain.array and sft.index == midtrain.index
    )
    assert sft.array.aftercorr_parent
    jobs = {sft.array.aftercorr_parent: "7"}
    assert planning.dependency_option(sft.array, jobs) == "aftercorr:7"
    assert planning.dependency_option(sft.array, jobs, {"7_0"}) == "aftercorr:7"
    every = {f"7_{k}" for k in range(len(sft.array.aftercorr_parent.tasks))}
    assert planning.dependency_option(sft.array, jobs, every) is None, (
        "Slurm 22.05 would take it for fulfilled anyway"
    )


def test_names_tell_arm_stage_and_seed() -> None:
    todo, arrays = planned(cells(seeds=2))
    labels = {planning.task_label(task) for task in todo if task.kind == "evaluate"}
    assert "base-animal-s1-d200" in labels and not any("ahb" in label for label in labels)
    names = {f"{array.kind}-{planning.label(array)}" for array in arrays}
    assert {"midtrain-base-animal-s0+1", "model-base"} <= names, names


def test_benchmarks_of_one_checkpoint_share_a_job() -> None:
    todo, _ = planned(cells(seeds=1))
    assert {tuple(c.stage for c in t.cells) for t in todo if t.kind == "evaluate"} == {
        ("generate", "likelihood")
    }


def test_a_corpus_is_checked_in_its_own_job_and_evaluations_wait_for_their_training() -> None:
    todo, _ = planned(cells(seeds=2))
    corpora = [[c.stage for c in task.cells] for task in todo if task.kind == "documents"]
    assert corpora == [["documents", "contamination", "contamination"]] * 2
    needed = {need.kind for task in todo if task.kind == "evaluate" for need in task.needs}
    assert needed == {"model", "midtrain", "sft"}


def test_a_corpus_that_is_there_is_checked_in_one_job_that_evaluations_wait_for() -> None:
    finished = ("model", "documents", "midtrain", "sft")
    todo, _ = planned(cells(seeds=2), lambda cell: cell.stage in finished)
    checks = [task for task in todo if task.kind == "contamination"]
    assert [len(task.cells) for task in checks] == [2, 2]
    assert all(not task.needs for task in checks)
    needs = [task.needs for task in todo if task.kind == "evaluate"]
    assert sum(need == [] for need in needs) == 3, "untrained, and its two seeds of SFT"
    assert all(need in ([], checks[:1], checks[1:]) for need in needs)


def test_what_is_finished_is_left_out_and_waited_for_by_nobody() -> None:
    study = cells(seeds=3)
    finished = ("model", "documents", "contamination", "midtrain")
    todo, _ = planned(study, lambda cell: cell.stage in finished)
    assert {task.kind for task in todo} == {"sft", "evaluate", "judge", "analysis"}
    assert all(not task.needs for task in todo if task.kind == "sft")
    assert planned(study, lambda cell: True) == ([], [])


def test_any_part_of_a_study_is_ordered_and_waits_for_enough() -> None:
    """400 random states of a study with small arrays: no task can start too early."""
    study = cells(seeds=4)
    dice = random.Random(0)
    for _ in range(400):
        done: set[str] = set()
        share = dice.random()
        for cell in study:
            if dice.random() < share and all(c.identity in done for c in cell.inputs.values()):
                done.add(cell.identity)
        largest = dice.choice([1, 2, 5, 1000])
        todo, arrays = planned(
            study,
            lambda cell, done=done: cell.identity in done,  # type: ignore[misc]
            largest,
        )
        assert {c.identity for t in todo for c in t.cells} == {c.identity for c in study} - done
        assert [task for array in arrays for task in array.tasks if task.array is not array] == []
        assert sum(len(array.tasks) for array in arrays) == len(todo)
        order = {array: position for position, array in enumerate(arrays)}
        for task in todo:
            assert task.array and len(task.array.tasks) <= largest
            assert waits_for(task) >= set(task.needs)
            assert all(
                order[need.array] < order[task.array] for need in waits_for(task) if need.array
            )


def test_a_queued_cell_is_waited_for_and_not_planned_again() -> None:
    study = cells(seeds=1)
    training = next(cell for cell in study if cell.stage == "midtrain")
    before = {cell.identity: "5" for cell in study if cell.stage in ("model", "documents")}
    todo = planning.tasks(
        study, resources, lambda cell: False, {**before, training.identity: "77_3"}
    )
    (sft,) = [t for t in todo if t.kind == "sft" and training in t.cells[0].inputs.values()]
    assert sft.needs == ["77_3"]
    planning.plan(todo, resources, 1000)
    assert sft.array and planning.dependency_option(sft.array, {}) == "afterok:77_3"
    assert planning.dependency_option(sft.array, {}, {"77_3"}) is None
    assert all(training not in task.cells for task in todo)


@pytest.mark.parametrize("largest", [1000, 60])
def test_a_thousand_cells_in_seconds_and_one_call_for_a_hundred(largest: int) -> None:
    started = time.monotonic()
    study = cells(seeds=50)
    todo, arrays = planned(study, largest=largest)
    took = time.monotonic() - started
    print(f"{len(study)} cells: {took:.2f} s, {len(todo)} jobs in {len(arrays)} arrays")
    assert len(study) >= 1000 and took < 5
    assert all(waits_for(task) >= set(task.needs) for task in todo)
    assert all(len(array.tasks) <= largest for array in arrays)
    if largest == 1000:
        assert len(arrays) <= -(-len(study) // 100)
        # Merged or not: from midtraining on, arms don't wait for each other.
        sft = [
            t
            for t in todo
            if t.kind == "sft" and any(c.stage == "midtrain" for c in t.cells[0].inputs.values())
        ]
        assert all(
            waits_for(task) - {t for t in todo if t.kind == "model"} == set(task.needs)
            for task in sft
        )


def test_the_examples_of_profiles_are_valid() -> None:
    for name in ("lab", "university", "partitions"):
        profile = load_profile(Path(name))
        assert profile.resources("analysis").minutes and profile.resources("midtrain").partition
        assert profile.resources("generate") == profile.resources("likelihood"), "they share a job"
