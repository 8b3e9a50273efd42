"""Files: atomic writes, durable appends, hashes."""

import hashlib
import io
import os
from pathlib import Path

from core.paths import resolve


def fingerprints(folder: str) -> dict[str, str]:
    """Each file of a model folder by its content; of weight files only size and both ends are read, to plan quickly."""
    found = {}
    for path in sorted(p for p in resolve(folder).rglob("*") if p.is_file()):
        size = path.stat().st_size
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read(2**20))
        found[str(path.relative_to(resolve(folder)))] = f"{size}-{digest.hexdigest()}"
    return found


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill at any moment, meets the old content or the new, never a part."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cut_torn_line(path: Path) -> None:
    """Remove what a kill left behind the last whole line: the next line would be appended to it."""
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def append(file: io.FileIO, lines: bytes) -> None:
    """All of `lines` on the disk, or an OSError and none of them in the file."""
    size, view = os.fstat(file.fileno()).st_size, memoryview(lines)
    try:
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())  # NFS tells only now that the disk is full
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise
