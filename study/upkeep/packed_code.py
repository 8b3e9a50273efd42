"""The code that made an archive's results: the commit's files, and what differed from them."""

from core.git import git, git_bytes
from core.paths import ROOT

KIT, CHANGES = "code/kit.tar", "code/changes.diff"


def code_files(commit: str | None, dirty: bool | None) -> dict[str, bytes]:
    """Name in the archive -> content; empty where git or the commit is not here.

    code/kit.tar holds the files of the commit, with their locks of packages. code/changes.diff is
    how the checkout differs from it now; which of that a cell ran with is not on record.
    """
    if not commit:
        return {}
    kit = git_bytes(ROOT, "archive", "--format=tar", "--prefix=kit/", commit)
    if kit is None:
        return {}
    files = {KIT: kit}
    if dirty is False:
        return files
    changes = git_bytes(ROOT, "diff", "--binary", "--no-ext-diff", "--no-color", commit)
    untracked = git(ROOT, "ls-files", "-o", "--exclude-standard") or ""
    names = "".join(f"not in the commit: {name}\n" for name in untracked.splitlines())
    if text := names.encode() + (changes or b""):
        files[CHANGES] = text
    return files
