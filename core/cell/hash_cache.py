"""Hashes of large files, remembered: weights of many gigabytes are read once."""

import json
import os
from contextlib import suppress
from pathlib import Path

from core.files import append_line, read_rows, sha256

LARGE = 2**26  # bytes; smaller files are read each time
FILE = "file_hashes.jsonl"


def remembered_sha256(path: Path, base: Path) -> str:
    """sha256 (hex) of a file's content.

    That of a large file is remembered in the study's folder `base`, for its real path with size,
    times of change and inode: whatever replaces or writes a file changes one of them.
    """
    status = path.stat()
    if status.st_size < LARGE:
        return sha256(path)
    key = [
        os.path.realpath(path),
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    ]
    file = base / FILE
    if file.exists():
        for _, row in read_rows(file, [], skip_torn_line=True):
            if row["key"] == key:
                return str(row["sha256"])
    digest = sha256(path)
    with suppress(OSError):  # a disk without room
        append_line(file, json.dumps({"key": key, "sha256": digest}))
    return digest
