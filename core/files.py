"""Files: atomic writes, durable appends, hashes, locks, and rows of data files."""

import fcntl
import hashlib
import io
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import Problem, UserError
from core.paths import resolve
from core.row_formats import (
    GIVE,
    SEPARATED,
    csv_rows,
    data_file,
    json_lines,
    json_list,
    open_binary,
    parquet_rows,
    row_format,
    row_location,
)

_damaged: set[Path] = set()  # files that were named


def fingerprints(folder: str) -> dict[str, str]:
    """Each file of a model folder by its content, to plan quickly.

    Of a file are read its size, its first and last MiB, and 256 blocks of 16 KiB between them, so
    that a checkpoint whose embeddings alone are as before, such as one with merged adapters, is
    told from it.

    Args:
        folder: A model folder, relative to the checkout or absolute.

    Returns:
        Path relative to the folder -> "SIZE-SHA256".
    """
    digests = {}
    for path in sorted(p for p in resolve(folder).rglob("*") if p.is_file()):
        size = path.stat().st_size
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read(2**20))
            for block in range(256):
                file.seek(size * block // 256)
                digest.update(file.read(2**14))
            file.seek(max(0, size - 2**20))
            digest.update(file.read(2**20))
        digests[str(path.relative_to(resolve(folder)))] = f"{size}-{digest.hexdigest()}"
    return digests


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader never sees a part of it.

    A reader, or a kill at any moment, meets the old content or the new one.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_record(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file that the kit wrote; None where it is missing.

    A damaged file counts as missing and is named on stderr, once in a process: one of a thousand
    must not stop every command.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    warn_of_damage(path)
    return None


def warn_of_damage(path: Path) -> None:
    """Name a damaged file on stderr, once in a process."""
    if path not in _damaged:
        _damaged.add(path)
        print(
            f"warning: {path}: is cut short or edited, and counts as missing; bring it back from a "
            "copy, or run the study again to make it anew",
            file=sys.stderr,
            flush=True,
        )


def sha256(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cut_torn_line(path: Path) -> None:
    """Remove what a kill left behind the last complete line.

    Otherwise the next line would be appended to it.
    """
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def append(file: io.FileIO, lines: bytes) -> None:
    """Append all of `lines` and flush them to the disk, or raise OSError and append none."""
    size = os.fstat(file.fileno()).st_size
    view = memoryview(lines)
    try:
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())  # only now does NFS report a full disk
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise


@contextmanager
def locked(path: Path, shared: bool = False, wait: bool | float = True) -> Iterator[bool]:
    """Hold the lock (flock) of the file `path` for the time of the `with` block.

    The kernel drops the lock when its holder dies, however it dies. A process that locks a file
    twice is two holders.

    Args:
        path: The lock file. An exclusive lock makes it where it is missing.
        shared: Take a shared lock: it goes together with other shared locks and changes nothing.
        wait: Wait for the holder, or for so many seconds. Then, or at once, the block runs with or
            without the lock.

    Yields:
        Whether the lock is held; always True with `wait`.

    Raises:
        OSError: The file can't be opened, or its file system has no locks.
    """
    # NFS wants a file that is open for writing for an exclusive lock.
    descriptor = os.open(path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        yield _flock(descriptor, kind, wait)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: int, wait: bool | float) -> bool:
    if wait is True:
        fcntl.flock(descriptor, kind)
        return True
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.5)


def read_rows(
    path: Path,
    problems: list[Problem] | None = None,
    *,
    objects: bool = True,
    skip_torn_line: bool = False,
    allow_surrogates: bool = False,
) -> Iterator[tuple[int, Any]]:
    """The rows of a file: JSON lines, a JSON list (.json), CSV (.csv, .tsv) or Parquet.

    The kit reads rows with this function alone, so that a file has the same rows wherever it is
    used. A file whose name ends in .gz is unpacked; endings count in any case. Of a folder its only
    data file is read. A text file is UTF-8, or UTF-16 with a byte order mark. Lines end with LF or
    CRLF alone: other separators, such as U+2028, may stand in a string. A byte order mark and blank
    lines are skipped.

    Args:
        path: The file.
        problems: Where given, what is wrong with a row is appended here and the row is skipped.
            Otherwise the first problem is raised. A file that can't be read is always raised.
        objects: Whether each JSON value must be an object.
        skip_torn_line: Skip a last line without a line break: a process that may still write the
            file has not finished it, or was killed.
        allow_surrogates: Whether a text may have half of a surrogate pair, as in a ledger.

    Yields:
        Number (`core.row_formats.row_location`: the line from 1, of a CSV row the last of its
        lines; of a JSON list and of Parquet the row) and value. A CSV row is a mapping from header
        to text.

    Raises:
        UserError: The file can't be read or its kind is unknown; a line is not UTF-8, not JSON or
            not an object; a CSV row has more or fewer cells than the header. It names the file and
            the line.
    """
    path = data_file(path)

    def report(number: int, what: str, fix: str) -> None:
        problem = Problem(row_location(path, number), what, fix)
        if problems is None:
            raise UserError.of([problem])
        problems.append(problem)

    try:
        with open_binary(path) as file:
            kind = row_format(path)
            if kind in SEPARATED:
                yield from csv_rows(file, path, report)
                return
            if kind == ".parquet":
                yield from parquet_rows(file)
                return
            if kind == ".json":
                rows = json_list(file, path, report)
            else:
                rows = json_lines(file, path, report, skip_torn_line, allow_surrogates)
            for number, value in rows:
                if objects and not isinstance(value, dict):
                    report(number, "not a JSON object", "give JSON objects")
                else:
                    yield number, value
    # EOFError, zlib.error: a .gz that was cut short or damaged. ValueError: pyarrow's.
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(where=str(path), what=f"cannot be read ({reason})", fix=GIVE) from None
