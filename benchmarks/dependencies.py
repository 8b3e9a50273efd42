"""Element-wise dependencies against stage barriers, simulated for a study of the paper's size.

    python -m benchmarks.dependencies [--nodes 64] [--seeds 3] [--draws 30]

The jobs, their order and their dependencies are those of slurm/arrays.py, parsed from the text of
sbatch's --dependency. Durations are random, and the same for every policy. The assumptions are
printed with the table.
"""

import argparse
import heapq
import random
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, median

from tabulate import tabulate

from core.cell.identity import Cell
from slurm import arrays as planning
from slurm.arrays import Array, Task
from slurm.profile import load_profile
from study.spec import expand as plan
from study.spec.load import load_study

STUDY = Path(__file__).with_name("paper_like.yaml")
FIRST = "ahb"  # an arm's first result is its first graded checkpoint on this benchmark

ASSUMED = """Assumed medians, in minutes:
  model 10 (copy and check 16 GB), analysis 3
  documents 120 for 2,700 (the paper: about 2 h on a rate-limited tier); urban corpora come after
    the animal ones
  midtrain 12 to start, load and save 8B, and 2 epochs of 1,100 tokens a document at 20,000 tokens/s
    on 2 nodes
  sft 12 likewise, and 5,000 rows of 150 tokens at 10,000 tokens/s
  evaluate 5 to start vLLM, 4 for a judged benchmark, 2 for likelihoods
  judge 10 (2,910 calls, 5 a second)
Between jobs: lognormal, sigma 0.35. 4 % are stragglers, 2 to 4 times as long. 4 % are requeued
once, which repeats up to half of them and costs 10 minutes. Jobs take the nodes that
slurm/clusters/partitions.yaml gives their stage, from one pool: first come, first served, with
backfill by its time limits, and no limit on the tasks of an array."""

Figures = dict[str, list[dict[str, float]]]  # policy -> figures for each draw
Waits = list[set[int]]  # for each task the indices of the tasks that it waits for


def element_wise(todo: list[Task], arrays: list[Array]) -> Waits:
    """What Slurm waits for, by the text of --dependency. Indices are those in `todo`."""
    number = {task: i for i, task in enumerate(todo)}
    ids = {array: str(i) for i, array in enumerate(arrays)}
    waits: Waits = [set() for _ in todo]
    for array in arrays:
        text = planning.dependency_option(array, ids)
        for term in text.split(",") if text else []:
            kind, *jobs = term.split(":")
            for job in jobs:
                array_id, _, index = job.partition("_")
                parents = arrays[int(array_id)].tasks
                for k, task in enumerate(array.tasks):
                    needed_tasks = [parents[int(index)]] if index else parents
                    # Beyond the parent's tasks, aftercorr waits for the whole array.
                    if kind == "aftercorr" and k < len(parents):
                        needed_tasks = [parents[k]]
                    waits[number[task]] |= {number[parent] for parent in needed_tasks}
    return waits


def needed(todo: list[Task]) -> Waits:
    """The tasks whose results each task reads: the least it can wait for."""
    number = {task: i for i, task in enumerate(todo)}
    return [{number[need] for need in task.needs if isinstance(need, Task)} for task in todo]


def barriers(todo: list[Task]) -> Waits:
    """Each task waits for all tasks of the stages that any task of its stage needs."""
    needs = needed(todo)
    by_kind: dict[str, set[int]] = defaultdict(set)
    for i, task in enumerate(todo):
        by_kind[task.kind].add(i)
    before = {
        kind: {todo[need].kind for i in indices for need in needs[i]} - {kind}
        for kind, indices in by_kind.items()
    }
    return [
        needs[i].union(*(by_kind[kind] for kind in before[task.kind]))
        for i, task in enumerate(todo)
    ]


def draw(todo: list[Task], dice: random.Random) -> list[float]:
    """Hours of each task."""
    hours = []
    for task in todo:
        start_minutes = {"midtrain": 12, "sft": 12, "evaluate": 5}.get(task.kind, 0)
        minutes = start_minutes + sum(map(_minutes, task.cells))
        minutes *= dice.lognormvariate(0, 0.35)
        if dice.random() < 0.04:
            minutes *= dice.uniform(2, 4)
        if dice.random() < 0.04:
            minutes += 10 + minutes * dice.uniform(0, 0.5)
        hours.append(minutes / 60)
    return hours


def _minutes(cell: Cell) -> float:
    if cell.stage == "documents":
        return 120 * cell.settings["documents"] / 2700
    if cell.stage == "midtrain":
        return cell.inputs["documents"].settings["documents"] * 1100 * 2 / 20_000 / 60
    if cell.stage == "sft":
        return cell.settings["dose"] * 150 / 10_000 / 60
    minutes = {"model": 10, "contamination": 1, "generate": 4, "likelihood": 2, "judge": 10}
    return {**minutes, "analysis": 3}[cell.stage]


def schedule(
    waits: Waits, hours: list[float], nodes_of: list[int], limits: list[float], nodes: int
) -> list[tuple[float, float]]:
    """Start and end of each task, first come, first served, with backfill.

    A task may overtake the first that does not fit if that one, by the time limits, starts no later
    for it.

    Args:
        waits: Tasks that must have ended.
        hours: Duration of each task.
        nodes_of: Nodes of each task.
        limits: Time limits in hours, all that the scheduler knows of durations.
        nodes: Nodes of the cluster.
    """
    assert max(nodes_of) <= nodes, "a task wants more nodes than there are"
    users: dict[int, list[int]] = defaultdict(list)
    for i, needs in enumerate(waits):
        for need in needs:
            users[need].append(i)
    unmet = [len(needs) for needs in waits]
    ready = [i for i, count in enumerate(unmet) if count == 0]
    spans: dict[int, tuple[float, float]] = {}
    running: list[tuple[float, int]] = []
    now = 0.0
    free = nodes
    while ready or running:
        # The first task that does not fit: when it will start, and what it leaves free until then.
        reserved_at: float | None = None
        spare = 0
        for i in sorted(ready):
            fits = nodes_of[i] <= free
            if reserved_at is not None:
                fits &= nodes_of[i] <= spare or now + limits[i] <= reserved_at
            if fits:
                if reserved_at is not None and now + limits[i] > reserved_at:
                    spare -= nodes_of[i]
                ready.remove(i)
                spans[i] = (now, now + hours[i])
                heapq.heappush(running, (now + hours[i], i))
                free -= nodes_of[i]
            elif reserved_at is None:
                spare = free
                ends = sorted((max(now, spans[j][0] + limits[j]), j) for _, j in running)
                for end, other in ends:
                    if spare < nodes_of[i]:
                        spare += nodes_of[other]
                        reserved_at = end
                spare -= nodes_of[i]
        now = running[0][0]
        while running and running[0][0] <= now:
            _, i = heapq.heappop(running)
            free += nodes_of[i]
            for user in users[i]:
                unmet[user] -= 1
                if unmet[user] == 0:
                    ready.append(user)
    assert len(spans) == len(waits), "tasks wait for each other in a circle"
    return [spans[i] for i in range(len(waits))]


def longest(needs: Waits, hours: list[float]) -> float:
    """The critical path: hours needed on any number of nodes.

    Tasks come after those that they need.
    """
    ends: list[float] = []
    for i in range(len(needs)):
        ends.append(_last_end(needs[i], ends) + hours[i])
    return max(ends)


def _last_end(tasks: set[int], ends: list[float]) -> float:
    return max((ends[i] for i in tasks), default=0.0)


def arms(todo: list[Task]) -> list[set[int]]:
    """For each arm the tasks that give a graded result of the first benchmark."""
    last = todo[-1].cells[-1]
    number = {cell.identity: i for i, task in enumerate(todo) for cell in task.cells}
    by_arm: dict[str, set[int]] = defaultdict(set)
    for row in last.settings["rows"]:
        if row["benchmark"] == FIRST:
            by_arm[row["arm"]].add(number[last.inputs[row["role"]].identity])
    return list(by_arm.values())


def compare(
    cells: list[Cell], finished: tuple[str, ...], nodes: int, draws: int
) -> tuple[Figures, str]:
    """Simulate each policy, without the `finished` stages.

    Returns the figures, and a line about the jobs. In hours: the makespan; the first result of an
    arm, mean and median over arms; the wait of a job after its inputs, mean. In node-hours: idle
    nodes while any job still waits for another.
    """
    profile = load_profile(Path("partitions"))
    todo = planning.tasks(cells, profile.resources, lambda cell: cell.stage in finished, {})
    needs = needed(todo)
    policies: dict[str, Waits] = {}
    sizes: dict[str, int] = {}
    for name, small in (("element-wise", sys.maxsize), ("arrays merged", 0)):
        arrays = planning.plan(todo, profile.resources, 1000, small)
        policies[name] = element_wise(todo, arrays)
        sizes[name] = len(arrays)
    policies["stage barriers"] = barriers(todo)
    text = _describe(cells, todo, sizes, policies, needs)
    requests = [profile.resources(task.cells[0].stage) for task in todo]
    nodes_of = [resources.nodes for resources in requests]
    limits = [resources.minutes / 60 for resources in requests]
    figures: Figures = {name: [] for name in ("lower bound", *policies)}
    for seed in range(draws):
        hours = draw(todo, random.Random(seed))
        work = sum(h * n for h, n in zip(hours, nodes_of, strict=True))
        figures["lower bound"].append({"makespan": max(longest(needs, hours), work / nodes)})
        for name, waits in policies.items():
            spans = schedule(waits, hours, nodes_of, limits, nodes)
            starts = [start for start, _ in spans]
            ends = [end for _, end in spans]
            firsts = [min(ends[i] for i in tasks) for tasks in arms(todo)]
            inputs = [_last_end(tasks, ends) for tasks in needs]
            until = max(_last_end(tasks, ends) for tasks in waits)
            busy = sum(
                n * max(0.0, min(end, until) - start)
                for (start, end), n in zip(spans, nodes_of, strict=True)
            )
            waited = [start - ready for start, ready in zip(starts, inputs, strict=True)]
            row = {
                "makespan": max(ends),
                "first result, mean": mean(firsts),
                "first result, median": median(firsts),
                "wait beyond inputs": mean(waited),
                "idle node-hours": nodes * until - busy,
            }
            figures[name].append(row)
    return figures, text


def _describe(
    cells: list[Cell],
    todo: list[Task],
    sizes: dict[str, int],
    policies: dict[str, Waits],
    needs: Waits,
) -> str:
    excess = [
        f"{name} {sum(wait > need for wait, need in zip(waits, needs, strict=True))}"
        for name, waits in policies.items()
    ]
    return (
        f"{planning.count(todo)} of {len(cells)} cells in {len(todo)} jobs; "
        f"{sizes['element-wise']} arrays, or merged {sizes['arrays merged']} "
        f"(above {planning.SMALL} cells); waiting for more than they need: {', '.join(excess)}"
    )


def table(figures: Figures) -> str:
    """Median and range over the draws, and paired ratios of the policies."""

    def spread(values: list[float], digits: int = 2) -> str:
        return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"

    rows: list[dict[str, str]] = []
    for name, draws in figures.items():
        spreads = {k: spread([f[k] for f in draws], 0 if "node" in k else 2) for k in draws[0]}
        rows.append({"policy": name} | spreads)
    for name, other in (
        ("stage barriers", "element-wise"),
        ("arrays merged", "element-wise"),
        ("element-wise", "lower bound"),
    ):
        pairs = list(zip(figures[name], figures[other], strict=True))
        keys = [key for key in pairs[0][1] if all(b[key] > 1e-9 for _, b in pairs)]
        ratios = {key: spread([a[key] / b[key] for a, b in pairs]) for key in keys}
        rows.append({"policy": f"{name} / {other}"} | ratios)
    return tabulate(rows, headers="keys", disable_numparse=True)


def main() -> None:
    """Print the tables."""
    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dependencies", description=summary)
    parser.add_argument("--nodes", type=int, default=64)
    seeds_help = "training seeds per arm; 10 make a study of 1,000 cells"
    parser.add_argument("--seeds", type=int, default=3, help=seeds_help)
    draws_help = "draws of durations, seeded 0, 1, ..."
    parser.add_argument("--draws", type=int, default=30, help=draws_help)
    args = parser.parse_args()
    cells = plan.in_order(plan.analysis(load_study(STUDY, list(range(args.seeds)))))
    print(ASSUMED)
    for title, finished in (
        ("from nothing", ()),
        ("models and corpora are there", ("model", "documents")),
    ):
        figures, text = compare(cells, finished, args.nodes, args.draws)
        print(f"\n{title}: {text}")
        print(f"Hours on {args.nodes} nodes, median (range) of {args.draws} draws:")
        print(table(figures))


if __name__ == "__main__":
    main()
