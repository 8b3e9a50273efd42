"""Progress of a running study: bars on a terminal, one line per event anywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from core.cell.identity import Cell
from core.cell.local_executor import ProgressCallback


@contextmanager
def progress_display(done: int, total: int) -> Iterator[ProgressCallback]:
    """Yield the callback for the executor's events.

    Args:
        done: Cells that are finished already.
        total: Cells of the study.
    """
    if sys.stdout.isatty():
        with _bars(done, total) as on_event:
            yield on_event
    else:
        yield _lines(done, total)


def _lines(done: int, total: int) -> ProgressCallback:
    count = done

    def on_event(event: str, cell: Cell, facts: dict[str, Any]) -> None:
        nonlocal count
        count += event == "finished"
        if event in ("finished", "waiting", "failed"):
            print(
                f"{time.strftime('%H:%M:%S')} {_line(event, cell, facts, count, total)}", flush=True
            )

    return on_event


def _line(event: str, cell: Cell, facts: dict[str, Any], count: int, total: int) -> str:
    outcome = f"{facts['seconds']:5.1f} s" if event == "finished" else event
    if event == "waiting":
        outcome += f" for {facts['what']}; looked at again in {facts['seconds']:.0f} s"
    return f"[{count:{len(str(total))}}/{total}] {cell.stage:<13} {cell.label:<37} {outcome}"


@contextmanager
def _bars(done: int, total: int) -> Iterator[ProgressCallback]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
    )
    with Progress(*columns, TimeElapsedColumn()) as progress:
        everything = progress.add_task("[bold]study", total=total, completed=done, unit="cells")
        bars: dict[str, TaskID] = {}
        count = done

        def on_event(event: str, cell: Cell, facts: dict[str, Any]) -> None:
            nonlocal count
            if event == "started":
                bars[cell.identity] = progress.add_task(
                    f"{cell.stage} {cell.label}", total=None, unit=""
                )
            elif event == "progress":
                progress.update(
                    bars[cell.identity],
                    completed=facts["done"],
                    total=facts["total"],
                    unit=facts["unit"],
                )
            else:
                progress.remove_task(bars.pop(cell.identity))
                count += event == "finished"
                progress.update(everything, completed=count)
                progress.console.print(_line(event, cell, facts, count, total), highlight=False)

        yield on_event
