"""Element-wise dependencies against stage barriers, simulated: a study of the paper's size on 64 nodes.

    python -m benchmarks.dependencies [--nodes 64] [--seeds 3] [--draws 30]

The jobs, their order and what they wait for are those of slurm/arrays.py, read back from the text that sbatch would
get. Durations are drawn, and the same for every policy. The assumptions are printed with the table.
"""

import argparse
import heapq
import random
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, median
from unittest.mock import patch

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
  documents 120 for 2,700 (the paper: about 2 h on a rate-limited tier); urban corpora come after the animal ones
  midtrain 12 to start, load and save 8B, and 2 epochs of 1,100 tokens a document at 20,000 tokens/s on 2 nodes
  sft 12 likewise, and 5,000 rows of 150 tokens at 10,000 tokens/s
  evaluate 5 to start vLLM, 4 for a judged benchmark, 2 for likelihoods; judge 10 (2,910 calls, 5 a second)
Between jobs: lognormal, sigma 0.35; 4 % are stragglers, 2 to 4 times as long; 4 % are requeued once, which repeats up
to half of them and costs 10 minutes. Jobs take the nodes that slurm/clusters/partitions.yaml gives their stage, from
one pool: first come, first served, with backfill by its time limits, and no limit on the tasks of an array."""


def element_wise(todo: list[Task], arrays: list[Array]) -> list[set[int]]:
    """For each task the numbers (in `todo`) of those that Slurm waits for, by the text of its --dependency."""
    number = {task: i for i, task in enumerate(todo)}
    ids = {array: str(i) for i, array in enumerate(arrays)}
    waits: list[set[int]] = [set() for _ in todo]
    for array in arrays:
        text = planning.dependency(array, ids)
        for term in text.split(",") if text else []:
            kind, *jobs = term.split(":")
            for job, _, index in (job.partition("_") for job in jobs):
                others = arrays[int(job)].tasks
                for k, task in enumerate(array.tasks):
                    if kind == "aftercorr" and k < len(
                        others
                    ):  # beyond, Slurm waits for the whole array
                        waits[number[task]].add(number[others[k]])
                    else:
                        waits[number[task]] |= {
                            number[o] for o in ([others[int(index)]] if index else others)
                        }
    return waits


def needed(todo: list[Task]) -> list[set[int]]:
    """For each task the numbers of those whose results it reads: the least it can wait for."""
    number = {task: i for i, task in enumerate(todo)}
    return [{number[need] for need in task.needs if isinstance(need, Task)} for task in todo]


def barriers(todo: list[Task]) -> list[set[int]]:
    """The same with afterok on the whole of each stage that any task of a stage needs."""
    needs = needed(todo)
    of_kind: dict[str, set[int]] = defaultdict(set)
    for i, task in enumerate(todo):
        of_kind[task.kind].add(i)
    before = {
        kind: {todo[n].kind for i in some for n in needs[i]} - {kind}
        for kind, some in of_kind.items()
    }
    return [
        needs[i].union(*(of_kind[kind] for kind in before[task.kind]))
        for i, task in enumerate(todo)
    ]


def draw(todo: list[Task], dice: random.Random) -> list[float]:
    """Hours of each task."""
    found = []
    for task in todo:
        minutes = {"midtrain": 12, "sft": 12, "evaluate": 5}.get(task.kind, 0) + sum(
            map(_minutes, task.cells)
        )
        minutes *= dice.lognormvariate(0, 0.35)
        if dice.random() < 0.04:
            minutes *= dice.uniform(2, 4)
        if dice.random() < 0.04:
            minutes += 10 + minutes * dice.uniform(0, 0.5)
        found.append(minutes / 60)
    return found


def _minutes(cell: Cell) -> float:
    if cell.stage == "documents":
        return 120 * cell.settings["documents"] / 2700
    if cell.stage == "midtrain":
        return cell.inputs["documents"].settings["documents"] * 1100 * 2 / 20_000 / 60
    if cell.stage == "sft":
        return cell.settings["dose"] * 150 / 10_000 / 60
    return {"model": 10, "generate": 4, "likelihood": 2, "judge": 10, "analysis": 3}[cell.stage]


def schedule(
    waits: list[set[int]], hours: list[float], wide: list[int], limits: list[float], nodes: int
) -> list[tuple[float, float]]:
    """Start and end of each task: first come, first served, and backfill.

    waits: tasks that must have ended; hours: how long each takes; wide: nodes of each; limits: time limits in hours,
    all that the scheduler knows of durations. A task may overtake the first that does not fit where that one, by the
    limits, starts no later for it.
    """
    assert max(wide) <= nodes, "a task wants more nodes than there are"
    users: dict[int, list[int]] = defaultdict(list)
    for i, some in enumerate(waits):
        for other in some:
            users[other].append(i)
    left = [len(some) for some in waits]
    ready = [i for i, n in enumerate(left) if n == 0]
    spans: dict[int, tuple[float, float]] = {}
    running: list[tuple[float, int]] = []
    now, free = 0.0, nodes
    while ready or running:
        spare, by = (
            0,
            None,
        )  # nodes that the first waiting task leaves over, and when it is promised its own
        for i in sorted(ready):
            if wide[i] <= free and (by is None or wide[i] <= spare or now + limits[i] <= by):
                if by is not None and now + limits[i] > by:
                    spare -= wide[i]
                ready.remove(i)
                spans[i] = (now, now + hours[i])
                heapq.heappush(running, (now + hours[i], i))
                free -= wide[i]
            elif by is None:
                spare = free
                for end, other in sorted(
                    (max(now, spans[j][0] + limits[j]), j) for _, j in running
                ):
                    if spare < wide[i]:
                        spare, by = spare + wide[other], end
                spare -= wide[i]
        now = running[0][0]
        while running and running[0][0] <= now:
            _, i = heapq.heappop(running)
            free += wide[i]
            for user in users[i]:
                left[user] -= 1
                if left[user] == 0:
                    ready.append(user)
    assert len(spans) == len(waits), "tasks wait for each other in a circle"
    return [spans[i] for i in range(len(waits))]


def longest(needs: list[set[int]], hours: list[float]) -> float:
    """The critical path: what must be waited for on any number of nodes. Tasks come after those they need."""
    ends: list[float] = []
    for i, some in enumerate(needs):
        ends.append(max((ends[n] for n in some), default=0.0) + hours[i])
    return max(ends)


def arms(todo: list[Task]) -> list[set[int]]:
    """For each arm the tasks that give a graded result of the first benchmark."""
    last = todo[-1].cells[-1]
    number = {cell.identity: i for i, task in enumerate(todo) for cell in task.cells}
    found: dict[str, set[int]] = defaultdict(set)
    for row in last.settings["rows"]:
        if row["benchmark"] == FIRST:
            found[row["arm"]].add(number[last.inputs[row["role"]].identity])
    return list(found.values())


def compare(
    cells: list[Cell], there: tuple[str, ...], nodes: int, draws: int
) -> tuple[dict[str, list[dict[str, float]]], str]:
    """Figures of each policy, one for each draw of durations, without the stages `there`; and a line about the jobs.

    Hours: makespan; first result of an arm, mean and median over arms; wait of a job after what it needs, mean.
    Node-hours: idle while any job still waits for another.
    """
    profile = load_profile(Path("partitions"))
    todo = planning.tasks(cells, profile.resources, lambda cell: cell.stage in there, {})
    needs = needed(todo)
    policies, sizes = {}, {}
    for name, small in (("element-wise", sys.maxsize), ("arrays merged", 0)):
        with patch.object(planning, "SMALL", small):
            arrays = planning.plan(todo, profile.resources, 1000)
        policies[name], sizes[name] = element_wise(todo, arrays), len(arrays)
    policies["stage barriers"] = barriers(todo)
    missing = sum(len(task.cells) for task in todo)
    more = [
        f"{name} {sum(w > n for w, n in zip(p, needs, strict=True))}"
        for name, p in policies.items()
    ]
    text = (
        f"{missing} of {len(cells)} cells in {len(todo)} jobs; {sizes['element-wise']} arrays, or merged "
        f"{sizes['arrays merged']} (above {planning.SMALL} cells); waiting for more than they need: {', '.join(more)}"
    )
    shapes = [profile.resources(task.cells[0].stage) for task in todo]
    wide, limits = [s.nodes for s in shapes], [s.minutes / 60 for s in shapes]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("lower bound", *policies)}
    for seed in range(draws):
        hours = draw(todo, random.Random(seed))
        work = sum(h * w for h, w in zip(hours, wide, strict=True))
        found["lower bound"].append({"makespan": max(longest(needs, hours), work / nodes)})
        for name, waits in policies.items():
            spans = schedule(waits, hours, wide, limits, nodes)
            firsts = [min(spans[i][1] for i in some) for some in arms(todo)]
            inputs = [max((spans[n][1] for n in some), default=0.0) for some in needs]
            until = max(max((spans[n][1] for n in some), default=0.0) for some in waits)
            busy = sum(
                w * max(0.0, min(e, until) - s) for (s, e), w in zip(spans, wide, strict=True)
            )
            found[name].append({
                "makespan": max(end for _, end in spans),
                "first result, mean": mean(firsts),
                "first result, median": median(firsts),
                "wait beyond inputs": mean(s - i for (s, _), i in zip(spans, inputs, strict=True)),
                "idle node-hours": nodes * until - busy,
            })  # fmt: skip
    return found, text


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Median and range over the draws, and the paired ratio of the barriers to element-wise dependencies."""

    def spread(values: list[float], digits: int = 2) -> str:
        return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"

    rows: list[dict[str, str]] = []
    for name, figures in found.items():
        spreads = {k: spread([f[k] for f in figures], 0 if "node" in k else 2) for k in figures[0]}
        rows.append({"policy": name} | spreads)
    for name, other in (
        ("stage barriers", "element-wise"),
        ("arrays merged", "element-wise"),
        ("element-wise", "lower bound"),
    ):
        pairs = list(zip(found[name], found[other], strict=True))
        ratios = {
            k: spread([a[k] / b[k] for a, b in pairs])
            for k in pairs[0][1]
            if all(b[k] > 1e-9 for _, b in pairs)
        }
        rows.append({"policy": f"{name} / {other}"} | ratios)
    return tabulate(rows, headers="keys", disable_numparse=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dependencies", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="training seeds per arm; 10 make a study of 1,000 cells",
    )
    parser.add_argument(
        "--draws", type=int, default=30, help="draws of durations, seeded 0, 1, ..."
    )
    args = parser.parse_args()
    cells = plan.in_order(plan.analysis(load_study(STUDY, list(range(args.seeds)))))
    print(ASSUMED)
    for title, there in (
        ("from nothing", ()),
        ("models and corpora are there", ("model", "documents")),
    ):
        figures, text = compare(cells, there, args.nodes, args.draws)
        print(
            f"\n{title}: {text}\nHours on {args.nodes} nodes, median (range) of {args.draws} draws:\n{table(figures)}"
        )


if __name__ == "__main__":
    main()
