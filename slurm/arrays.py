"""Cells as job arrays: which share a job, which an array, and what each waits for. Pure: asks nobody, changes nothing.

A Slurm dependency belongs to a whole array. Its one element-wise kind is aftercorr: task k waits for task k of another
array. So the tasks of an array are ordered as the tasks that they wait for, and one arm's SFT starts when that arm's
midtraining ends, not when the slowest does.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from core.cell.identity import Cell
from core.stages import STAGE_INFO
from slurm.profile import Shape

# A study this small may be submitted in as many arrays as its dependencies ask for; beyond, one sbatch per 100 cells.
SMALL = 500


@dataclass(eq=False)
class Task:
    """One job: cells that run one after another in one process. `needs`: tasks of this plan, or ids in the queue."""

    kind: str
    cells: list[Cell]
    needs: list["Task | str"] = field(default_factory=list)
    array: "Array | None" = None
    index: int = 0


@dataclass(eq=False)
class Array:
    """Jobs submitted by one sbatch. Task k waits for task k of `beside`, and all tasks for all of `needs`."""

    kind: str
    shape: Shape
    tasks: list[Task]
    beside: "Array | None" = None
    needs: list[Task | str] = field(default_factory=list)


Finished = Callable[[Cell], bool]


def tasks(cells: list[Cell], shape: Callable[[str], Shape], finished: Finished, queued: dict[str, str]) -> list[Task]:
    """Tasks for the cells that are neither finished nor queued, in an order in which they can run.

    `cells`: inputs before their users. `queued`: identity of a cell -> the id of its job in the queue. A cell is left
    out that needs one which is neither finished, queued nor among the cells.
    """
    made: dict[tuple[object, ...], Task] = {}
    by_cell: dict[str, Task] = {}
    for cell in cells:
        if finished(cell) or cell.identity in queued:
            continue
        waits = [c.identity for c in cell.inputs.values() if not finished(c)]
        if any(identity not in by_cell and identity not in queued for identity in waits):
            continue
        key: tuple[object, ...] = (cell.identity,)
        if STAGE_INFO[cell.stage].job_group:  # of one checkpoint they share a job: vLLM takes long to start
            key = (shape(cell.stage), *sorted(c.identity for c in cell.inputs.values()))
        task = made.setdefault(key, Task(STAGE_INFO[cell.stage].group, []))
        task.cells.append(cell)
        by_cell[cell.identity] = task
        for need in (by_cell.get(identity) or queued[identity] for identity in waits):
            if need not in task.needs:
                task.needs.append(need)
    return list(made.values())


def plan(todo: list[Task], shape: Callable[[str], Shape], largest: int) -> list[Array]:
    """Arrays of at most `largest` tasks for `todo` (of `tasks`), each after those it waits for.

    Where dependencies of different kinds would take more than one sbatch per 100 cells, arrays are merged: then some
    tasks wait for more than they need, never for less.
    """
    cells = count(todo)
    arrays = _arrays(todo, shape, largest, merge=False)
    if cells > SMALL and len(arrays) > -(-cells // 100):
        arrays = _arrays(todo, shape, largest, merge=True)
    return arrays


def _arrays(todo: list[Task], shape: Callable[[str], Shape], largest: int, merge: bool) -> list[Array]:
    buckets: dict[tuple[str, int, Shape], list[Task]] = defaultdict(list)
    depth: dict[Task, int] = {}
    for task in todo:
        # A corpus may wait for another corpus: such tasks are of one kind but not of one array.
        same = [depth[n] for n in task.needs if isinstance(n, Task) and n.kind == task.kind]
        depth[task] = max(same, default=-1) + 1
        buckets[task.kind, depth[task], shape(task.cells[0].stage)].append(task)
    arrays: list[Array] = []
    for (kind, _, form), bucket in buckets.items():
        beside = _beside(bucket)
        groups: dict[tuple[object, ...], list[Task]] = defaultdict(list)
        for task in bucket:
            parent, layer = beside.get(task, (None, 0))
            fixed = frozenset(_id(n) for n in task.needs if not _in(n, parent))
            groups[(parent, layer) if merge else (parent, layer, fixed)].append(task)
        for key, group in groups.items():
            group.sort(key=lambda task, parent=key[0]: _index(task, parent))  # type: ignore[misc]
        if merge:
            _adopt(groups, largest)
        for key, group in groups.items():
            parent = key[0]  # type: ignore[assignment]
            for start in range(0, len(group), largest):
                part = group[start : start + largest]
                needs = {_id(n): n for task in part for n in task.needs if not _in(n, parent)}
                array = Array(kind, form, part, parent, list(needs.values()))
                for index, task in enumerate(part):
                    task.array, task.index = array, index
                arrays.append(array)
    return arrays


def _beside(bucket: list[Task]) -> dict[Task, tuple[Array, int]]:
    """For the tasks that can wait element by element: the array to wait beside, and which child of its task each is.

    Several children of one task (doses of SFT) go into as many arrays. Children that do not cover the first tasks of
    the array without a gap can't be numbered alike and are left out, as are those with two such parents.
    """
    children: dict[Array, list[Task]] = defaultdict(list)
    for task in bucket:
        parents = {n.array for n in task.needs if isinstance(n, Task) and n.array and len(n.array.tasks) > 1}
        if len(parents) == 1:
            (parent,) = parents
            if sum(_in(n, parent) for n in task.needs) == 1:
                children[parent].append(task)
    found: dict[Task, tuple[Array, int]] = {}
    for parent, tasks in children.items():
        layers: dict[int, dict[int, Task]] = defaultdict(dict)
        used: dict[int, int] = defaultdict(int)
        for task in tasks:
            index = _index(task, parent)
            layers[used[index]][index] = task
            used[index] += 1
        if len(layers) > len(used):
            continue  # many children of few tasks (training seeds of a corpus): one array for each of those few
        for layer, by_index in layers.items():
            if sorted(by_index) == list(range(len(by_index))) and len(by_index) > 1:
                found |= {by_index[index]: (parent, layer) for index in sorted(by_index)}
    return found


def _adopt(groups: dict[tuple[object, ...], list[Task]], largest: int) -> None:
    """Append tasks that wait for no array to the first array that waits for one, behind its numbered tasks.

    aftercorr with a number that the other array lacks waits for all of it: later than needed, and safe.
    """
    alone = groups.get((None, 0), [])
    others = [key for key in groups if key[0] is not None]
    if alone and others and len(groups[others[0]]) + len(alone) <= largest:
        groups[others[0]] += alone
        del groups[None, 0]


def _in(need: Task | str, array: object) -> bool:
    return isinstance(need, Task) and array is not None and need.array is array


def _index(task: Task, parent: object) -> int:
    """The number of the task of `parent` that this one waits for; 0 for all where there is none."""
    return next((n.index for n in task.needs if isinstance(n, Task) and _in(n, parent)), 0)


def _id(need: Task | str) -> object:
    return need if isinstance(need, str) else id(need)


def dependency(array: Array, jobs: dict[Array, str], forgotten: set[str] = frozenset()) -> str | None:  # type: ignore[assignment]
    """The text for sbatch's --dependency, without ids that Slurm has `forgotten`. None: it can start at once.

    `jobs`: the id that sbatch gave to each array before this one.
    """
    terms, beside = [], array.beside
    # Slurm 22.05 takes an id that it has forgotten for fulfilled, later versions refuse it.
    if beside and any(task_id(jobs, task) not in forgotten for task in beside.tasks):
        terms.append(f"aftercorr:{jobs[beside]}")
    wanted: dict[Array, list[Task]] = defaultdict(list)
    after: list[str] = []
    for need in array.needs:
        if isinstance(need, str):
            after += [need] if need not in forgotten else []
        elif task_id(jobs, need) not in forgotten:
            assert need.array
            wanted[need.array].append(need)
    for parent, needs in wanted.items():
        whole = len(needs) == len(parent.tasks)
        after += [jobs[parent]] if whole else [task_id(jobs, task) for task in needs]
    if after:
        terms.append("afterok:" + ":".join(after))
    return ",".join(terms) or None


def task_id(jobs: dict[Array, str], task: Task) -> str:
    """The id of one task: an array of one is a plain job."""
    assert task.array, "an array is submitted after those it waits for"
    job = jobs[task.array]
    return f"{job}_{task.index}" if len(task.array.tasks) > 1 else job


def count(tasks: Iterable[Task]) -> int:
    """Cells in all tasks."""
    return sum(len(task.cells) for task in tasks)
