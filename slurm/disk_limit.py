"""How many trainings may be on their way at once, where the weights of all do not fit on the disk.

A tree is a training, those that start from it, and what reads their weights. Its weights go when
the last of these cells is finished (`keep` of the study file), so a tree that has begun keeps its
room until then, and one that does not fit waits as a whole.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from core.cell.identity import Cell
from slurm.arrays import Task


@dataclass(frozen=True)
class DiskLimit:
    """The room for weights that go again.

    Attributes:
        free_gb: Room beside what stays at the end of the study.
        tree_gb: Tree -> what its weights and step checkpoints take, until they go.
        trees: Identity of a cell -> its tree. A cell of none takes no room that it gives back.
    """

    free_gb: float
    tree_gb: dict[str, float]
    trees: dict[str, str]


def allowed(
    limit: DiskLimit | None, cells: list[Cell], done: set[str], queued: dict[str, str]
) -> Callable[[Task], bool]:
    """Whether a task may be submitted now; it is asked in the order in which tasks are chosen.

    Args:
        limit: None: any may.
        cells: All of the study.
        done: Identities of finished cells.
        queued: Identity -> job of the cells that are queued.
    """
    if limit is None:
        return lambda task: True
    by_tree: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        if tree := limit.trees.get(cell.identity):
            by_tree[tree].append(cell.identity)
    begun = {
        tree
        for tree, identities in by_tree.items()
        if not done.issuperset(identities) and any(i in done or i in queued for i in identities)
    }
    free = limit.free_gb - sum(limit.tree_gb[tree] for tree in begun)

    def is_allowed(task: Task) -> bool:
        nonlocal free
        trees = {limit.trees[c.identity] for c in task.cells if c.identity in limit.trees}
        needed = sum(limit.tree_gb[tree] for tree in trees - begun)
        if needed > free:
            return False
        free -= needed
        begun.update(trees)
        return True

    return is_allowed
