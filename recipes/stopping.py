"""Stop on a signal: a training hears it, ends its update, saves, and only then lets the signal do its work."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from recipes.distributed import ALONE, Ranks

# A later one counts for more: submitit requeues the job at USR2 and ignores TERM, and Slurm may send both.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class Stop:
    """What this process has heard, and what its signals did before the training took them."""

    ranks: Ranks = ALONE
    heard: int = 0  # 0: nothing; else 1 + the place in SIGNALS
    before: dict[int, Callable[[int, FrameType | None], Any] | int] = field(default_factory=dict)

    def hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = max(self.heard, 1 + SIGNALS.index(signal.Signals(number)))

    def told(self) -> int:
        """What any rank has heard that counts for most; 0: nothing. All ranks must call it."""
        return self.ranks.max(self.heard)[0]

    def obey(self) -> NoReturn:
        """End this process as the signal would have without the training; every rank is here, its state saved.

        The handler of before is called with the signal. Where it returns, or ignores the signal, the process exits.
        """
        ranks, number = self.ranks, SIGNALS[self.told() - 1]
        before = self.before.get(number, signal.SIG_DFL)
        self.restore()
        # Rank 0 goes first: submitit requeues the job there, and a rank that has left may take the job with it.
        if ranks.rank:
            ranks.wait()
        if callable(before):
            try:
                before(number, None)
            finally:
                if not ranks.rank:
                    ranks.wait()
        else:
            if not ranks.rank:
                ranks.wait()
            signal.raise_signal(number)
        raise SystemExit(128 + number)

    def restore(self) -> None:
        """Give the signals back to the handlers of before; again does nothing."""
        while self.before:
            signal.signal(*self.before.popitem())


@contextmanager
def stoppable(ranks: Ranks = ALONE) -> Iterator[Stop]:
    """Hear SIGNALS while the block runs, and obey at its end at the latest; all ranks enter and leave it together.

    A signal that is ignored stays so; outside the main thread none can be heard.
    """
    stop = Stop(ranks)
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is not None and handler is not signal.SIG_IGN:
                stop.before[number] = handler
                signal.signal(number, stop.hear)
    try:
        yield stop
        if stop.told():
            stop.obey()
    finally:
        stop.restore()
