"""What ends a command from outside is a KeyboardInterrupt in it, so that it can tidy up."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal has asked the command to end. `cells`: what it stopped."""

    def __init__(self, number: int, cells: list[str]) -> None:
        super().__init__()
        self.number = number
        self.cells = cells

    @property
    def line(self) -> str:
        """What to tell the user."""
        by = f" by {signal.Signals(self.number).name}" if self.number != signal.SIGINT else ""
        cells = f": {', '.join(self.cells)}" if self.cells else ""
        return f"stopped{by}{cells}; finished cells are kept, the same command continues"


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Raise Stopped at the first of SIGNALS; later ones, which come while it tidies up, do nothing.

    What is ignored, as by nohup, stays ignored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number, [])

    handled = [n for n in SIGNALS if signal.getsignal(n) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
