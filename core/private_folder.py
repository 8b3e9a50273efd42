"""Folders whose files are unpickled: whoever may write there runs code as the user who reads."""

import os
from pathlib import Path

from core.errors import UserError


def make_private(folder: Path) -> None:
    """Make a folder, where it is missing, that nobody else may enter, whatever the umask."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def deny_writing(path: Path) -> None:
    """Let nobody else write to a folder or file, whatever the umask was; others may still read it.

    Raises UserError where it is another user's.
    """
    if path.stat().st_uid == os.geteuid():
        path.chmod(path.stat().st_mode & ~0o022)
    check_private(path)


def check_private(folder: Path) -> None:
    """Raise UserError unless the folder is the user's own and nobody else may write to it."""
    status = folder.stat()
    if status.st_uid == os.geteuid() and not status.st_mode & 0o022:
        return
    owner = "it is another user's" if status.st_uid != os.geteuid() else "others may write to it"
    raise UserError(
        where=str(folder),
        what=f"{owner}, and what is read there could run as you",
        fix=f"if nobody has changed it: chmod -R go-w {folder}; else remove it to begin anew",
    )
