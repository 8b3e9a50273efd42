"""Paths: the checkout, paths of study files relative to it, and folders that fit."""

import os
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

SOCKET_BYTES = 107
"""Of the path of a Unix socket (sockaddr_un of Linux, without the last zero)."""


def as_seen_on_nodes(path: Path) -> Path:
    """An absolute path as other machines know it.

    A home may be a link that each machine resolves in its own way: below it a path begins with the
    home's name, not with where the link leads here.
    """
    home = Path(os.path.expanduser("~"))  # Path.home() raises where a container has no home
    target = home.resolve()
    return home / path.relative_to(target) if path.is_relative_to(target) else path


ROOT = as_seen_on_nodes(Path(__file__).resolve().parents[1])


@lru_cache(maxsize=4096)  # thousands of cells name the same files
def resolve(path: str) -> Path:
    """A path of a study file: relative to the checkout unless absolute."""
    return ROOT / path


def socket_folder(name_bytes: int) -> str:
    """The folder for temporary files, or /tmp where the path of a socket there would be too long.

    name_bytes: length of the sockets' names.
    """
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) + 1 + name_bytes <= SOCKET_BYTES else "/tmp"


def is_there(path: str, or_folder: bool = False) -> bool:
    """Whether a regular file, or a folder, lies at a path of the study file.

    False of a device or a pipe, which might never end, and of a name that no file can have.
    """
    with suppress(OSError, ValueError):
        return resolve(path).is_file() or (or_folder and resolve(path).is_dir())
    return False
