"""Files: atomic writes, durable appends, hashes, locks, and rows of data files."""

import fcntl
import hashlib
import io
import json
import os
import pwd
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from core.errors import Problem, UserError
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


# The files of a model that transformers and vLLM read, by their names in its folder.
MODEL_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "*.txt",
    "*.py",
    "*.gguf",
    "pytorch_model*.bin",
)


def is_model_file(name: str) -> bool:
    """Whether the file of this name in a model's folder is one that makes the model."""
    folder, _, file = name.rpartition("/")
    return folder in ("", "additional_chat_templates") and any(
        fnmatchcase(file, pattern) for pattern in MODEL_FILES
    )


def content_files(folder: Path) -> dict[str, Path]:
    """The files below a folder that make what it holds, by their names there, sorted.

    Of a model, which has a config.json, those of MODEL_FILES: no README, and none of the records
    that a download leaves. Of any other folder all but hidden ones.
    """
    files = {
        str(path.relative_to(folder)): path for path in folder.rglob("*") if os.path.isfile(path)
    }
    is_model = "config.json" in files
    return {
        name: path
        for name, path in sorted(files.items())
        if not (name.startswith(".") or "/." in name) and (not is_model or is_model_file(name))
    }


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader never sees a part of it.

    A reader, or a kill at any moment, meets the old content or the new one.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with named_errors(path), open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Have an OSError of the block name the file: that of a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def owner(path: Path) -> str:
    """The name of the user who owns a file, or the uid where it has no name.

    Of a file that is missing or can't be seen, the owner of the nearest folder that can.
    """
    # os.path, because a path's own method raises where a folder may not be searched.
    uid = next(p for p in (path, *path.absolute().parents) if os.path.exists(p)).stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def read_record(path: Path | str, **keys: type) -> dict[str, Any] | None:
    """The JSON object in a file that the kit wrote; None where it is missing.

    A damaged file counts as missing and is named on stderr, once in a process: one of a thousand
    must not stop every command. It is damaged too where a value under one of `keys` is not of the
    type given.
    """
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and all(isinstance(value.get(k), t) for k, t in keys.items()):
        return value
    warn_of_damage(Path(path))
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


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark."""
    return path.read_text(encoding="utf-8-sig")


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


def append_line(path: Path, text: str) -> None:
    """Append one line to a file, made where it is missing, or raise OSError and append none.

    What a kill left of a line before stays a line of its own: readers skip it.
    """
    with named_errors(path), open(path, "a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        torn = size > 0 and file.read(1) != b"\n"
        append(file, f"{chr(10) if torn else ''}{text}\n".encode())


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
        OSError: The file can't be opened.
        UserError: Its file system has no locks.
    """
    # NFS wants a file that is open for writing for an exclusive lock.
    descriptor = os.open(path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            is_held = _flock(descriptor, kind, wait)
        except OSError as error:
            raise UserError(
                where=str(path),
                what=f"flock: {error.strerror}",
                fix="--runs on a file system that has locks (Lustre: mount option flock)",
            ) from None
        yield is_held
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


def file_system_time(descriptor: int) -> float:
    """Seconds since 1970 by the clock of the file system that holds an open file.

    All nodes that write to it agree on that, whatever their own clocks say: a server of files (NFS)
    sets this time. Lustre takes it from the node.
    """
    os.utime(descriptor)  # to now
    return os.fstat(descriptor).st_mtime


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
    data file is read. A text file is UTF-8, or UTF-16 or 32 with a byte order mark. Lines end with
    LF or CRLF alone: other separators, such as U+2028, may stand in a string. A byte order mark and
    blank lines are skipped.

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
                    report(number, "not a JSON object", _fix_of_value(value, kind))
                else:
                    yield number, value
    # EOFError, zlib.error: a .gz that was cut short or damaged. ValueError: pyarrow's.
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(where=str(path), what=f"cannot be read ({reason})", fix=GIVE) from None


def _fix_of_value(value: Any, kind: str) -> str:
    if isinstance(value, list) and kind != ".json":
        return "give JSON objects; a file that is a list of them ends in .json"
    return "give JSON objects"
