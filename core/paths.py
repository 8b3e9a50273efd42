"""Paths: the checkout, and paths of study files relative to it."""

from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def resolve(path: str) -> Path:
    """A path of a study file: relative to the checkout unless absolute."""
    return ROOT / path


def is_there(path: str, or_folder: bool = False) -> bool:
    """Whether a regular file, or a folder, lies at a path of the study file.

    False of a device or a pipe, which might never end, and of a name that no file can have.
    """
    with suppress(OSError, ValueError):
        return resolve(path).is_file() or (or_folder and resolve(path).is_dir())
    return False
