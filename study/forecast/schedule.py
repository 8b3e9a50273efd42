"""How long cells take on a given number of GPUs, in a given order."""

import heapq
from collections import defaultdict
from collections.abc import Mapping

from core.cell.identity import Cell
from study.forecast.cell_cost import Amounts, ByIdentity, rate_limited_hours


def ends(
    cells: list[Cell],
    planned: ByIdentity,
    gpus: int,
    needed: Mapping[str, int],
    ranks: Mapping[str, int],
) -> dict[str, float]:
    """The hour at which each cell ends, by identity: list scheduling (Graham 1966) by rank.

    A cell starts when its inputs have ended and its GPUs are free; cells of larger ranks do not
    overtake one that waits for GPUs. Cells without GPUs start at once. The calls of an endpoint go
    one cell after another at its rates.

    Args:
        cells: Those that remain. An input that is not among them is finished.
        planned: `study.forecast.cell_cost.estimates`.
        gpus: GPUs at a time.
        needed: Identity -> GPUs of its job; at most `gpus`.
        ranks: Identity -> rank, never above that of a cell that needs it.
    """
    remaining = {cell.identity for cell in cells}
    waits: dict[str, int] = {}
    users: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        inputs = {used.identity for used in cell.inputs.values()} & remaining
        waits[cell.identity] = len(inputs)
        for identity in inputs:
            users[identity].append(cell)
    position = {cell.identity: number for number, cell in enumerate(cells)}
    ready: list[tuple[int, int, Cell]] = []  # heaps
    running: list[tuple[float, int, Cell]] = []
    endpoint_free: dict[str, float] = defaultdict(float)
    ended: dict[str, float] = {}
    free = gpus
    now = 0.0

    def start(cell: Cell) -> None:
        amounts = planned[cell.identity]
        end = now + amounts["hours"]
        if amounts["calls"]:
            address = endpoint(cell)
            endpoint_free[address] = max(now, endpoint_free[address]) + hours_of_calls(
                cell, amounts
            )
            end = max(end, endpoint_free[address])
        heapq.heappush(running, (end, position[cell.identity], cell))

    def enter(cell: Cell) -> None:
        if needed.get(cell.identity):
            entry = (ranks.get(cell.identity, 0), position[cell.identity], cell)
            heapq.heappush(ready, entry)
        else:
            start(cell)

    for cell in cells:
        if not waits[cell.identity]:
            enter(cell)
    while ready or running:
        while ready and needed[ready[0][2].identity] <= free:
            _, _, cell = heapq.heappop(ready)
            free -= needed[cell.identity]
            start(cell)
        now, _, cell = heapq.heappop(running)
        free += needed.get(cell.identity, 0)
        ended[cell.identity] = now
        for user in users[cell.identity]:
            waits[user.identity] -= 1
            if not waits[user.identity]:
                enter(user)
    return ended


def endpoint(cell: Cell) -> str:
    """The address that the calls of a cell go to."""
    target = cell.resources["address"]
    return str(target.get("base_url") or target.get("path"))


def hours_of_calls(cell: Cell, amounts: Amounts) -> float:
    """Hours for which a cell's calls fill its endpoint's rates; 0 without such limits."""
    limits = cell.resources.get("limits")
    return rate_limited_hours(limits, amounts) if limits else 0.0
