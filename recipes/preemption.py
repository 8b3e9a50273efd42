"""Preemption: after a signal a training ends its step and saves before the signal takes effect."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from recipes.distributed import SINGLE_PROCESS, Ranks

# By precedence, the highest last: submitit requeues the job at USR2 and ignores TERM, and Slurm may
# send both.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class SignalGuard:
    """The signal that this process has received, and the handlers that the guard replaces."""

    ranks: Ranks = SINGLE_PROCESS
    received: int = 0
    """0: none; otherwise 1 + its index in SIGNALS."""
    previous: dict[int, Callable[[int, FrameType | None], Any] | int] = field(default_factory=dict)
    """Handlers by signal number."""

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record a signal (a handler for signal.signal)."""
        self.received = max(self.received, 1 + SIGNALS.index(signal.Signals(number)))

    def requested(self) -> int:
        """The signal of the highest precedence that any rank has received, as in `received`.

        A collective.
        """
        return self.ranks.max(self.received)[0]

    def reraise(self) -> NoReturn:
        """End this process as the signal would have without the guard. A collective.

        All ranks must have saved their state. The previous handler is called with the signal. Where
        it returns, or the signal is ignored, the process exits with 128 + the signal's number.
        """
        number = SIGNALS[self.requested() - 1]
        previous = self.previous.get(number, signal.SIG_DFL)
        self.restore()
        # Rank 0 goes first: submitit requeues the job there, and a rank that exits may end the job.
        is_first = self.ranks.rank == 0
        if not is_first:
            self.ranks.barrier()
        if callable(previous):
            try:
                previous(number, None)
            finally:
                if is_first:
                    self.ranks.barrier()
        else:
            if is_first:
                self.ranks.barrier()
            signal.raise_signal(number)
        raise SystemExit(128 + number)

    def restore(self) -> None:
        """Give the signals back to their previous handlers. A second call does nothing."""
        while self.previous:
            signal.signal(*self.previous.popitem())


@contextmanager
def guard_signals(ranks: Ranks = SINGLE_PROCESS) -> Iterator[SignalGuard]:
    """Record SIGNALS while the block runs, and re-raise them at its end at the latest.

    All ranks enter and leave it together. A signal that is ignored stays ignored. Outside the main
    thread no signal can be handled, and none is.
    """
    guard = SignalGuard(ranks)
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is not None and handler is not signal.SIG_IGN:
                guard.previous[number] = handler
                signal.signal(number, guard.handle)
    try:
        yield guard
        if guard.requested():
            guard.reraise()
    finally:
        guard.restore()
