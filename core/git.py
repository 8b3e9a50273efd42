"""What git says of a checkout, whatever the shell or a folder above it says to git."""

import os
import subprocess
from pathlib import Path

_SETTINGS = (
    # New files are code too, whatever the user's settings show of them.
    *("-c", "status.showUntrackedFiles=normal"),
    # A checkout of a colleague's: its code is run anyway.
    *("-c", "safe.directory=*", "-c", "core.fsmonitor=false"),
)


def git(checkout: Path, *words: str) -> str | None:
    """The output of a git command in `checkout`.

    None where git is missing or fails, or where the repository is another's: a folder above holds
    it, and it has no file of the checkout.
    """
    output = git_bytes(checkout, *words)
    return None if output is None else output.decode(errors="surrogateescape")


def git_bytes(checkout: Path, *words: str) -> bytes | None:
    """As `git`, for output that is no text."""
    top = _output(checkout, "rev-parse", "--show-toplevel")
    if top is None:
        return None
    is_top = Path(os.fsdecode(top.strip())) == checkout.resolve()
    if not is_top and not _output(checkout, "ls-files", "--", "."):
        return None
    return _output(checkout, *words)


def _output(checkout: Path, *words: str) -> bytes | None:
    # Dotfile managers set GIT_DIR, hooks GIT_INDEX_FILE.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    # A person's own configuration may hide new files (core.excludesFile, git/ignore), and a mistake
    # in it ends every command. By HOME, because versions before 2.32 read no GIT_CONFIG_GLOBAL.
    environment |= dict.fromkeys(("HOME", "XDG_CONFIG_HOME"), os.devnull)
    environment["GIT_CONFIG_NOSYSTEM"] = "1"
    command = ["git", "-C", str(checkout), *_SETTINGS, *words]
    try:
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
