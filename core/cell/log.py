"""A cell's log.txt: all that its process prints."""

import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core import shell_limits
from core.cell.waiting import Waiting
from core.errors import UserError


@contextmanager
def log_to(folder: Path, terminal: bool = False) -> Iterator[None]:
    """Send stdout and stderr of this process, those of C libraries included, to log.txt.

    An exception is written there too, a UserError and what is waited for as lines, and raised
    again.

    Args:
        folder: The cell's folder.
        terminal: Whether the output also goes on to where it went before.
    """
    originals = (os.dup(1), os.dup(2))
    tees = []
    for stream, original in enumerate(originals, 1):
        with open(folder / "log.txt", "ab") as log:
            if not terminal:
                os.dup2(log.fileno(), stream)
                continue
        command = ["tee", "-a", log.name]
        tees.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=original))
        os.dup2(tees[-1].stdin.fileno(), stream)  # type: ignore[union-attr]
    try:
        yield
    except Waiting as waiting:
        print(*waiting.lines, flush=True)
        raise
    except UserError as error:
        print(*(f"error: {line}" for line in error.lines), sep="\n", file=sys.stderr)
        raise
    except Exception as error:
        if note := shell_limits.note(error):
            error.add_note(note)
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, original in enumerate(originals, 1):
            os.dup2(original, stream)
            os.close(original)
        for tee in tees:
            tee.communicate()
