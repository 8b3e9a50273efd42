"""A cell's log.txt: all that its process prints."""

import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import UserError


@contextmanager
def log_to(folder: Path, terminal: bool = False) -> Iterator[None]:
    """Send what this process and its libraries' C code print to the cell's log.txt, and on to the terminal if so.

    An exception is written there too, a UserError as its lines, and raised again.
    """
    kept, tees = (os.dup(1), os.dup(2)), []
    for stream, before in enumerate(kept, 1):
        with open(folder / "log.txt", "ab") as log:
            if not terminal:
                os.dup2(log.fileno(), stream)
                continue
        tees.append(subprocess.Popen(["tee", "-a", log.name], stdin=subprocess.PIPE, stdout=before))
        os.dup2(tees[-1].stdin.fileno(), stream)  # type: ignore[union-attr]
    try:
        yield
    except UserError as error:
        print(*(f"error: {line}" for line in error.lines), sep="\n", file=sys.stderr)
        raise
    except Exception:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, before in enumerate(kept, 1):
            os.dup2(before, stream)
            os.close(before)
        for tee in tees:
            tee.communicate()
