"""Group cells into jobs and job arrays, and state what each waits for. Pure: no Slurm, no disk.

A Slurm dependency belongs to a whole array. Its one element-wise kind is aftercorr: task k waits
for task k of another array. So the tasks of an array are ordered as the tasks they wait for, and
the SFT of one arm starts when that arm's midtraining ends, not when the slowest one does.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import groupby, takewhile

from core.cell.identity import Cell
from core.stages import STAGE_INFO, STAGES
from slurm.profile import Resources

# Up to this many cells, a study is submitted in as many arrays as its dependencies need; beyond,
# in one array per CELLS_PER_ARRAY cells.
SMALL = 500
CELLS_PER_ARRAY = 100


@dataclass(eq=False)
class Task:
    """One job: cells that run one after another in one process.

    `needs`: tasks of this plan, or ids of jobs in the queue. `rank`: the smallest of its cells';
    tasks of smaller ranks come first.
    """

    kind: str
    cells: list[Cell]
    needs: list["Task | str"] = field(default_factory=list)
    rank: int = 0
    array: "Array | None" = None
    index: int = 0  # within its array


@dataclass(eq=False)
class Array:
    """Jobs submitted by one sbatch.

    Task k waits for task k of `aftercorr_parent`, and all tasks wait for all of `needs`.
    """

    kind: str
    resources: Resources
    tasks: list[Task]
    aftercorr_parent: "Array | None" = None
    needs: list[Task | str] = field(default_factory=list)


@dataclass(frozen=True)
class GroupKey:
    """Tasks of one kind with an equal key may share an array."""

    parent: Array | None  # the aftercorr parent
    layer: int = 0  # which child of its parent's task each task is
    needs: frozenset[int | str] = frozenset()  # what else each task waits for


Groups = dict[GroupKey, list[Task]]


def tasks(
    cells: list[Cell],
    resources: Callable[[str], Resources],
    finished: Callable[[Cell], bool],
    queued: dict[str, str],
    ranks: Mapping[str, int] | None = None,
) -> list[Task]:
    """Tasks for the cells that are neither finished nor queued, in an order in which they can run.

    `cells`: inputs before their users. `resources`: those of a stage. `queued`: identity of a cell
    -> the id of its job. A cell is left out if one of its inputs is neither finished, nor queued,
    nor among the cells. `ranks`: identity of a cell -> its rank, never above that of a cell that
    needs it. The tasks of each stage are then in the order of their ranks.
    """
    by_key: dict[tuple[object, ...], Task] = {}
    by_cell: dict[str, Task] = {}
    for cell in cells:
        if finished(cell) or cell.identity in queued:
            continue
        inputs = [c.identity for c in cell.inputs.values() if not finished(c)]
        if any(identity not in by_cell and identity not in queued for identity in inputs):
            continue
        key: tuple[object, ...] = (cell.identity,)
        stage = STAGE_INFO[cell.stage]
        task = None
        if stage.shared_input:
            shared = cell.inputs[stage.shared_input].identity
            # Cells of one checkpoint share a job: vLLM takes long to start.
            key = (stage.group, resources(cell.stage), shared)
            task = by_cell.get(shared) if stage.follows_input else None
        task = task or by_key.setdefault(key, Task(stage.group, []))
        task.cells.append(cell)
        by_cell[cell.identity] = task
        for identity in inputs:
            need = by_cell.get(identity) or queued[identity]
            if need is not task and need not in task.needs:
                task.needs.append(need)
    ordered = list(by_key.values())
    _drop_indirect(ordered)
    if ranks:
        for task in ordered:
            task.rank = min(ranks.get(cell.identity, 0) for cell in task.cells)
        by_stage = groupby(ordered, key=lambda task: task.cells[0].stage)
        ordered = [task for _, group in by_stage for task in sorted(group, key=_rank)]
    return ordered


def _rank(task: Task) -> int:
    return task.rank


def _drop_indirect(ordered: list[Task]) -> None:
    """Drop what a task waits for if something else that it waits for waits for that already.

    An evaluation then waits for its training alone, not for the job of the corpus too.
    """
    earlier: dict[Task, set[Task]] = {}
    for task in ordered:
        direct = {need for need in task.needs if isinstance(need, Task)}
        indirect = {before for need in direct for before in earlier[need]}
        task.needs = [need for need in task.needs if need not in indirect]
        earlier[task] = direct | indirect


def plan(
    todo: list[Task], resources: Callable[[str], Resources], largest: int, small: int = SMALL
) -> list[Array]:
    """Arrays of at most `largest` tasks for `todo` (of `tasks`), each after those it waits for.

    A study of more than `small` cells whose dependencies would take more than one sbatch per 100
    cells gets merged arrays: some of their tasks wait for more than they need, never for less.
    """
    cells = count(todo)
    arrays = _arrays(todo, resources, largest, merge=False)
    if cells > small and len(arrays) > -(-cells // CELLS_PER_ARRAY):
        arrays = _arrays(todo, resources, largest, merge=True)
    return arrays


def _arrays(
    todo: list[Task], resources: Callable[[str], Resources], largest: int, merge: bool
) -> list[Array]:
    buckets: dict[tuple[int, str, int, Resources], list[Task]] = defaultdict(list)
    depth: dict[Task, int] = {}
    turns: dict[Task, int] = {}
    for task in todo:
        # In a chain a training may start from one of a later stage: it is of a later turn.
        turns[task] = max(
            (turns[n] + (_stage(n) > _stage(task)) for n in task.needs if isinstance(n, Task)),
            default=0,
        )
        # A corpus may wait for another corpus: such tasks are of one kind but not of one array.
        needs = [n for n in task.needs if isinstance(n, Task) and n.kind == task.kind]
        depth[task] = max((depth[need] for need in needs), default=-1) + 1
        key = turns[task], task.kind, depth[task], resources(task.cells[0].stage)
        buckets[key].append(task)
    arrays: list[Array] = []
    for (_, kind, _, requested), bucket in sorted(buckets.items(), key=lambda item: item[0][0]):
        for group_key, group in _groups(bucket, merge, largest).items():
            arrays += _split(kind, requested, group_key.parent, group, largest)
    return arrays


def _stage(task: Task) -> int:
    return STAGES.index(task.cells[0].stage)


def _groups(bucket: list[Task], merge: bool, largest: int) -> Groups:
    """Group the tasks of one kind by what they wait for, in the order of their parents' tasks."""
    children = _aftercorr_children(bucket, merge)
    groups: Groups = defaultdict(list)
    for task in bucket:
        parent, layer = children.get(task, (None, 0))
        needs = frozenset(_id(need) for need in task.needs if not _in(need, parent))
        groups[GroupKey(parent, layer) if merge else GroupKey(parent, layer, needs)].append(task)
    for key, group in groups.items():
        _sort(group, key.parent)
    if merge:
        _absorb_parentless(groups, largest)
    return groups


def _sort(group: list[Task], parent: Array | None) -> None:
    group.sort(key=lambda task: _parent_index(task, parent))


def _split(
    kind: str, resources: Resources, parent: Array | None, group: list[Task], largest: int
) -> list[Array]:
    """Arrays of at most `largest` tasks. Sets `array` and `index` of each task."""
    arrays = []
    for start in range(0, len(group), largest):
        part = group[start : start + largest]
        needs = {_id(need): need for task in part for need in task.needs if not _in(need, parent)}
        array = Array(kind, resources, part, parent, list(needs.values()))
        for index, task in enumerate(part):
            task.array = array
            task.index = index
        arrays.append(array)
    return arrays


def _aftercorr_children(bucket: list[Task], merge: bool) -> dict[Task, tuple[Array, int]]:
    """Tasks that can wait element by element -> their parent array, and the layer they are in.

    Several children of one task (doses of SFT) go into as many arrays: the layers. Left out are
    tasks with two such parents, and layers that do not cover the first tasks of the parent without
    a gap, since their tasks cannot be numbered as the parent's are. Unless arrays are merged, the
    tasks of a layer wait for the same tasks beside the parent's.
    """
    children: dict[tuple[Array, frozenset[int | str]], list[Task]] = defaultdict(list)
    for task in bucket:
        arrays = {need.array for need in task.needs if isinstance(need, Task) and need.array}
        parents = [array for array in arrays if len(array.tasks) > 1]
        if len(parents) == 1 and sum(_in(need, parents[0]) for need in task.needs) == 1:
            others = [] if merge else [need for need in task.needs if not _in(need, parents[0])]
            children[parents[0], frozenset(map(_id, others))].append(task)
    by_task: dict[Task, tuple[Array, int]] = {}
    for (parent, _), group in children.items():
        layers: dict[int, dict[int, Task]] = defaultdict(dict)
        used: dict[int, int] = defaultdict(int)  # parent's task -> its children so far
        for task in group:
            index = _parent_index(task, parent)
            layers[used[index]][index] = task
            used[index] += 1
        if len(layers) > len(used):
            # Many children of few tasks (training seeds of a corpus): one array for each of
            # those few is better.
            continue
        for layer, by_index in layers.items():
            if sorted(by_index) == list(range(len(by_index))) and len(by_index) > 1:
                for index in sorted(by_index):
                    by_task[by_index[index]] = (parent, layer)
    return by_task


def _absorb_parentless(groups: Groups, largest: int) -> None:
    """Append the tasks without a parent to the first array with one, after its numbered tasks.

    aftercorr with an index that the parent lacks waits for the whole parent: later than needed,
    and safe.
    """
    parentless = groups.get(GroupKey(None), [])
    with_parent = [group for key, group in groups.items() if key.parent]
    if parentless and with_parent and len(with_parent[0]) + len(parentless) <= largest:
        with_parent[0] += parentless
        del groups[GroupKey(None)]


def _in(need: Task | str, array: Array | None) -> bool:
    return isinstance(need, Task) and array is not None and need.array is array


def _parent_index(task: Task, parent: Array | None) -> int:
    """The index of the parent's task that this one waits for; 0 for all where there is none."""
    needs = (need for need in task.needs if isinstance(need, Task) and _in(need, parent))
    return next((need.index for need in needs), 0)


def _id(need: Task | str) -> int | str:
    return need if isinstance(need, str) else id(need)


def dependency_option(
    array: Array, jobs: dict[Array, str], forgotten: AbstractSet[str] = frozenset()
) -> str | None:
    """The text of sbatch's --dependency. None: the array can start at once.

    `jobs`: the ids that sbatch gave to the arrays before this one. `forgotten`: ids that Slurm no
    longer knows. Slurm 22.05 takes those for fulfilled, later versions refuse them; they are left
    out.
    """
    terms = []
    parent = array.aftercorr_parent
    if parent and any(task_id(jobs, task) not in forgotten for task in parent.tasks):
        terms.append(f"aftercorr:{jobs[parent]}")
    after: list[str] = []
    by_array: dict[Array, list[Task]] = defaultdict(list)
    for need in array.needs:
        if isinstance(need, str):
            after += [need] if need not in forgotten else []
        elif task_id(jobs, need) not in forgotten:
            assert need.array
            by_array[need.array].append(need)
    for needed, needs in by_array.items():
        all_tasks = len(needs) == len(needed.tasks)
        after += [jobs[needed]] if all_tasks else [task_id(jobs, task) for task in needs]
    if after:
        terms.append("afterok:" + ":".join(after))
    return ",".join(terms) or None


def task_id(jobs: dict[Array, str], task: Task) -> str:
    """The id of one task. An array of one task is a plain job."""
    assert task.array, "an array is submitted after those it waits for"
    job = jobs[task.array]
    return f"{job}_{task.index}" if len(task.array.tasks) > 1 else job


def task_label(task: Task) -> str:
    """The name of a task's cell; of several cells the words that all names begin or end with.

    Evaluations of one checkpoint end with its name, the benchmark before it.
    """
    names = [cell.name.split("-") for cell in task.cells]
    last = _common([name[::-1] for name in names])[::-1]
    return "-".join(_common(names) or last or names[0])


def _common(names: list[list[str]]) -> list[str]:
    """The words with which all names begin."""
    same = takewhile(lambda words: len({*words}) == 1, zip(*names, strict=False))
    return [words[0] for words in same]


def label(array: Array) -> str:
    """The first task's label and how many follow, such as `base-animal-s0+5`."""
    more = len(array.tasks) - 1
    return task_label(array.tasks[0]) + (f"+{more}" if more else "")


def count(tasks: Iterable[Task]) -> int:
    """Cells in all tasks."""
    return sum(len(task.cells) for task in tasks)
