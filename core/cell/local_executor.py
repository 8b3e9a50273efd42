"""The local executor: run every missing cell of a study on this machine, inputs first."""

import json
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core.cell.failures import last_lines
from core.cell.fork_server import Child, ForkServer
from core.cell.identity import Cell, create_cell_dir
from core.cell.lookup import RunsIndex
from core.cell.manifest import read_manifest
from core.cell.waiting import clear_waiting, read_waiting
from core.stages import STAGE_INFO

# The groups of stages in the order in which free slots take them: first those that begin the
# longest chain of cells.
GROUPS = tuple(dict.fromkeys(info.group for info in STAGE_INFO.values()))
# Cells of these groups that are ready together share a process: vLLM and Inspect take seconds to
# import.
SHARED_GROUPS = {info.group for info in STAGE_INFO.values() if info.shares_process}


NO_RANKS: Mapping[str, int] = MappingProxyType({})

# (event, cell, facts). Events: "started"; "progress" with the content of progress.json; "finished"
# with `seconds` and `counts`; "waiting" with `what` it waits for and the `seconds` until it is
# started again; "failed" with the exit `status`.
ProgressCallback = Callable[[str, Cell, dict[str, Any]], None]


@dataclass
class Running:
    """One process, or the ranks of a training, with the cells that it works through, in order."""

    ranks: list[Child]
    group: str
    cells: list[Cell]
    gpus: list[str] = field(default_factory=list)
    """Those that no other process may use meanwhile."""
    started: float = field(default_factory=time.monotonic)

    def poll(self) -> int | None:
        """The exit status; None while a rank runs. Where a rank fails, the others are killed."""
        statuses = [rank.poll() for rank in self.ranks]
        if failed := next((status for status in statuses if status), None):
            self.send_signal(signal.SIGKILL)
            return failed
        return None if None in statuses else 0

    def send_signal(self, number: int) -> None:
        """Send a signal to all ranks that run."""
        for rank in self.ranks:
            rank.send_signal(number)

    def wait(self) -> None:
        """Block until all ranks have ended."""
        for rank in self.ranks:
            rank.wait()


@dataclass(frozen=True)
class Gpus:
    """The GPUs of this machine and how many of them each cell holds while it runs.

    Attributes:
        ids: As in CUDA_VISIBLE_DEVICES. An empty one is no GPU: a process on the CPU stands in.
        needed: Identity -> GPUs of a cell; none for a cell that is not in it.
        ranks: Identities of the cells that run as one process for each of their GPUs.
    """

    ids: tuple[str, ...] = ()
    needed: Mapping[str, int] = field(default_factory=dict)
    ranks: frozenset[str] = frozenset()

    def of(self, cell: Cell) -> int:
        """How many GPUs the cell holds."""
        return self.needed.get(cell.identity, 0)


@dataclass
class Failure:
    """A cell that failed: its folder, its process' exit status, the last lines of its log."""

    cell: Cell
    folder: Path
    status: int
    last_lines: list[str]


def run(
    cells: list[Cell],
    base: Path,
    slots: int,
    on_event: ProgressCallback,
    gpus: Gpus = Gpus(),
    ranks: Mapping[str, int] = NO_RANKS,
) -> list[Failure]:
    """Run the cells that are not finished. A failed cell stops only the cells that need it.

    Args:
        cells: Inputs before their users.
        base: The study's folder.
        slots: Processes at a time; the ranks of a training count as one.
        on_event: Called at each event.
        gpus: No two processes get the same.
        ranks: Identity -> rank. Of the cells that are ready, those of the smallest rank start
            first; a cell without a rank has 0.

    Returns:
        The failures.
    """
    todo = {cell.identity: cell for cell in cells if not read_manifest(base / cell.relpath)}
    for cell in todo.values():
        create_cell_dir(cell, base)
    executor = _Executor(todo, base, slots, on_event, gpus, ranks)
    try:
        executor.run()
    finally:
        executor.close()
    return executor.failures


class _Executor:
    """The state of one call of `run`."""

    def __init__(
        self,
        todo: dict[str, Cell],
        base: Path,
        slots: int,
        on_event: ProgressCallback,
        gpus: Gpus,
        ranks: Mapping[str, int],
    ) -> None:
        self.todo = todo
        self.base = base
        self.slots = slots
        self.on_event = on_event
        self.gpus = gpus
        self.ranks = ranks
        self.free_gpus = list(gpus.ids)
        self.running: list[Running] = []
        self.failures: list[Failure] = []
        self.waiting: dict[str, tuple[Cell, float]] = {}
        """Identity -> a cell that waits for something outside, and when to start it again (by
        time.monotonic)."""
        self.servers: dict[str, ForkServer] = {}
        """By import group."""

    def run(self) -> None:
        """Run all cells that can be run."""
        while self.todo or self.running or self.waiting:
            self._wake()
            while len(self.running) < self.slots and (batch := self._next()):
                self._start(batch)
            if not self.running and not self.waiting:
                break  # all remaining cells need a failed cell
            if len(self.running) < self.slots:
                self._import_ahead()
            time.sleep(0.05)
            for job in list(self.running):
                self._follow(job)
                status = job.poll()
                if status is not None:
                    self._end(job, status)

    def _wake(self) -> None:
        """Take up the cells that have waited long enough."""
        now = time.monotonic()
        for identity, (cell, moment) in [*self.waiting.items()]:
            if moment <= now:
                del self.waiting[identity]
                self.todo[identity] = cell

    def close(self) -> None:
        """Stop all processes."""
        for job in self.running:
            job.send_signal(signal.SIGTERM)
        for job in self.running:
            job.wait()
        for server in self.servers.values():
            server.close()

    def _next(self) -> list[Cell]:
        """The cells for a free slot: one, or an equal share of those ready where they share one.

        They are taken in the order of their ranks, of one rank in that of their groups. Where there
        are too few GPUs for the next, those that need fewer wait with it, or it would wait for the
        last of them.
        """
        unfinished = (
            set(self.todo)
            | set(self.waiting)
            | {c.identity for job in self.running for c in job.cells}
            | {f.cell.identity for f in self.failures}
        )
        ready = [
            cell
            for cell in self.todo.values()
            if not any(source.identity in unfinished for source in cell.inputs.values())
        ]
        ready.sort(key=lambda cell: (self._rank(cell), GROUPS.index(_group(cell))))
        needed = next((self.gpus.of(cell) for cell in ready if self.gpus.of(cell)), 0)
        if needed > len(self.free_gpus):
            ready = [cell for cell in ready if not self.gpus.of(cell)]
        if not ready:
            return []
        first = ready[0]
        group = _group(first)
        alike = [c for c in ready if _group(c) == group and self.gpus.of(c) == self.gpus.of(first)]
        if group not in SHARED_GROUPS:
            return alike[:1]
        # Benchmarks of one checkpoint stay together, so that one engine start serves them all.
        of_rank = [_shared(c) for c in alike if self._rank(c) == self._rank(first)]
        alike = [c for c in alike if _shared(c) in of_rank]
        alike.sort(key=_shared)
        slots = self.slots - sum(job.group == group for job in self.running)
        if num_gpus := self.gpus.of(first):
            slots = min(slots, len(self.free_gpus) // num_gpus)
        share = -(-len(alike) // slots)
        while share < len(alike) and _shared(alike[share - 1]) == _shared(alike[share]):
            share += 1
        return alike[:share]

    def _rank(self, cell: Cell) -> int:
        return self.ranks.get(cell.identity, 0)

    def _start(self, batch: list[Cell]) -> None:
        """Start a process for these cells, or one for each GPU of a training's."""
        first = batch[0]
        for cell in batch:
            del self.todo[cell.identity]
            clear_waiting(self.base / cell.relpath)  # of an earlier run
        taken = [self.free_gpus.pop(0) for _ in range(self.gpus.of(first))]
        environment = {}
        if self.gpus.ids:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(filter(None, taken))
            # nvidia-smi counts in this order, CUDA by speed.
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environments = [environment]
        if first.identity in self.gpus.ranks and len(taken) > 1:
            environments = _ranks(environment, len(taken))
        server = self._server(first)
        folders = [self.base / cell.relpath for cell in batch]
        ranks = [server.start(folders, variables) for variables in environments]
        self.running.append(Running(ranks, _group(first), batch, taken))
        self.on_event("started", first, {})

    def _server(self, cell: Cell) -> ForkServer:
        """The server of the cell's import group; a new one where that has died."""
        group = STAGE_INFO[cell.stage].imports
        server = self.servers.get(group)
        if server is None or server.process.poll() is not None:
            names = {cell.stage, *(other.stage for other in self.todo.values())}
            stages = [name for name, info in STAGE_INFO.items() if name in names]
            stages = [name for name in stages if STAGE_INFO[name].imports == group]
            server = self.servers[group] = ForkServer(stages, self.base / cell.relpath)
        return server

    def _import_ahead(self) -> None:
        """While a slot has nothing to do, import what later cells need."""
        if all(server.ready for server in self.servers.values()):
            later = sorted(self.todo.values(), key=lambda cell: GROUPS.index(_group(cell)))
            groups = self.servers.keys()
            cells = (cell for cell in later if STAGE_INFO[cell.stage].imports not in groups)
            if cell := next(cells, None):
                self._server(cell)

    def _end(self, job: Running, status: int) -> None:
        """Take note of a job's end."""
        job.wait()
        self._follow(job, ended=True)
        self.running.remove(job)
        self.free_gpus = sorted([*self.free_gpus, *job.gpus], key=self.gpus.ids.index)
        if job.cells:
            # The first cell without a manifest failed; those after it never began.
            failed, *rest = job.cells
            self.todo.update({cell.identity: cell for cell in rest})
            folder = self.base / failed.relpath
            self.failures.append(Failure(failed, folder, status, last_lines(folder)))
            self.on_event("failed", failed, {"status": status})
        remaining = [*self.todo.values(), *(cell for cell, _ in self.waiting.values())]
        remaining += [cell for other in self.running for cell in other.cells]
        needed = {STAGE_INFO[cell.stage].imports for cell in remaining}
        for group in self.servers.keys() - needed:
            self.servers.pop(group).close()  # its memory is for the others

    def _follow(self, job: Running, ended: bool = False) -> None:
        """Report the cells that ended since the last call, and the progress of the current one.

        ended: the process is over. It left out cells that another study had finished by then.
        """
        while job.cells and (event := self._ending(job, ended)):
            cell = job.cells.pop(0)
            self.on_event(event[0], cell, event[1])
            job.started = time.monotonic()
            if job.cells:
                self.on_event("started", job.cells[0], {})
        if job.cells and not ended:
            folder = self.base / job.cells[0].relpath
            try:
                progress = json.loads((folder / "progress.json").read_text())
            except (OSError, ValueError):
                return
            if not isinstance(progress, dict):
                return
            self.on_event("progress", job.cells[0], progress)

    def _ending(self, job: Running, ended: bool) -> tuple[str, dict[str, Any]] | None:
        """The event by which the current cell of a job has ended; None while it runs.

        A cell that waits is put aside.
        """
        cell = job.cells[0]
        if manifest := _manifest(cell, self.base, everywhere=ended):
            seconds = time.monotonic() - job.started
            return "finished", {"seconds": seconds, "counts": manifest["counts"]}
        if record := read_waiting(self.base / cell.relpath):
            self.waiting[cell.identity] = cell, time.monotonic() + record.seconds
            return "waiting", {"what": record.what, "seconds": record.seconds}
        return None


def _group(cell: Cell) -> str:
    return STAGE_INFO[cell.stage].group


def _shared(cell: Cell) -> str:
    """The identity of the input that cells which share a process have in common."""
    return next(iter(cell.inputs.values())).identity


def _ranks(environment: dict[str, str], world_size: int) -> list[dict[str, str]]:
    """The environment of each rank of a training on this machine (torch.distributed's names)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        {
            **environment,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(world_size)
    ]


def _manifest(cell: Cell, base: Path, everywhere: bool) -> dict[str, Any] | None:
    """The manifest in the cell's folder or, of `everywhere`, in that of another study."""
    manifest = read_manifest(base / cell.relpath)
    if manifest or not everywhere:
        return manifest
    folder = RunsIndex(base, [cell.stage]).finished(cell.stage, cell.identity)
    return read_manifest(folder) if folder else None
