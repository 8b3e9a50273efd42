"""What vLLM prints: the errors in it, and what this process and its workers have just printed."""

import os
import re
import stat
import sys

# Lines that report an error, lines that do not, and the prefix of a line.
_ERROR = re.compile(r"rror[:,] (?!\d+ validation error)")
_NO_ERROR = re.compile(r" (INFO|WARNING) \d")
_PREFIX = re.compile(r"^\(\w+ pid=\d+\) |[A-Z]+ [-\d]+ [:\d]+ \[\S+\] ")


def errors(lines: list[str]) -> list[str]:
    """The lines that report an error."""
    return [line for line in lines if _ERROR.search(line) and not _NO_ERROR.search(line)]


def first_error(lines: list[str]) -> str | None:
    """The first error without vLLM's prefix; None where no line reports one.

    It is nearest to the cause; those after it are its consequences.
    """
    first = next((" ".join(_PREFIX.sub("", line).split()) for line in errors(lines)), None)
    # An engine that fails by itself prints why before that.
    return "its engine was killed" if first and "EngineDeadError" in first else first


def size() -> int:
    """How much the file behind this process' stdout holds (bytes); 0 where it is no file."""
    sys.stdout.flush()
    status = os.fstat(1)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def lines_since(start: int) -> list[str]:
    """The lines that this process and its workers have printed since `size()` was `start`.

    Empty where stdout is no file, as on a terminal. A cell's stdout is its log.txt.
    """
    if not size():
        return []
    with open("/proc/self/fd/1", "rb") as log:
        log.seek(start)
        return log.read().decode(errors="replace").splitlines()
