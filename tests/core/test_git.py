"""The commit in a manifest is that of the code that ran, whatever the shell says to git."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from core.cell.manifest import code_version
from slurm.snapshot import snapshot

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(not shutil.which("git"), reason="no git on this machine"),
]
UNKNOWN = {"commit": None, "dirty": None}


def git(folder: Path, *words: str) -> str:
    settings = ("-c", "user.name=Jane", "-c", "user.email=jane@example.org")
    command = ["git", *settings, "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path, **files: str) -> str:
    """A repository with one commit, whose id is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return git(folder, "rev-parse", "HEAD")


def test_a_repository_named_by_the_shell_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository(tmp_path / "kit", code="1")
    other = repository(tmp_path / "dotfiles", bashrc="2")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "dotfiles/.git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "dotfiles"))
    assert other != commit and code_version(tmp_path / "kit") == {"commit": commit, "dirty": False}
    (tmp_path / "runs/s").mkdir(parents=True)
    copy = snapshot(tmp_path / "kit", tmp_path / "runs/s/slurm")
    assert [path.name for path in copy.iterdir() if path.name != "code.json"] == ["code"]


@pytest.mark.parametrize("ignored", [True, False])
def test_a_copy_below_another_repository_has_no_commit_of_it(tmp_path: Path, ignored: bool) -> None:
    repository(tmp_path, **{".gitignore": "kit\n" if ignored else ""})
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit/code").write_text("1")
    assert code_version(tmp_path / "kit") == UNKNOWN
    copy = snapshot(tmp_path / "kit", tmp_path / "kit/runs/s/slurm")
    assert (copy / "code").read_text() == "1"


def test_a_new_file_is_a_change_though_git_was_told_to_hide_it(tmp_path: Path) -> None:
    repository(tmp_path, code="1")
    git(tmp_path, "config", "status.showUntrackedFiles", "no")
    (tmp_path / "new").write_text("2")
    assert code_version(tmp_path)["dirty"] is True


@pytest.mark.parametrize(
    "settings",
    [
        {"xdg/git/ignore": "*.py\n"},
        {"home/.gitconfig": "[core]\n\tworktree = /nowhere\n\texcludesFile = ~/ignored\n"},
        {"home/.gitconfig": "[a line that is cut off\n"},
        {"xdg/git/config": "[status]\n\tshowUntrackedFiles\n"},
    ],
)
def test_a_persons_settings_of_git_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    """Neither the commit on record, nor whether new files count, nor what jobs run."""
    commit = repository(tmp_path / "kit", code="1")
    for name, text in {"home/ignored": "*\n", **settings}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert code_version(tmp_path / "kit") == {"commit": commit, "dirty": False}
    (tmp_path / "kit/new.py").write_text("2")
    assert code_version(tmp_path / "kit") == {"commit": commit, "dirty": True}
    copy = snapshot(tmp_path / "kit", tmp_path / "runs/s/slurm")
    assert (copy / "new.py").exists()


def test_new_files_of_an_editor_are_no_change(tmp_path: Path) -> None:
    """The copy that jobs run leaves them out."""
    (tmp_path / "a b").mkdir()
    repository(tmp_path, **{"a b/code": "1", ".settings": "a"})
    (tmp_path / "a b/.idea").mkdir()
    (tmp_path / "a b/.idea/x").write_text("2")
    (tmp_path / ".DS_Store").write_text("2")
    assert code_version(tmp_path)["dirty"] is False
    (tmp_path / ".settings").write_text("b")
    assert code_version(tmp_path)["dirty"] is True


def test_links_in_place_of_what_is_ignored_are_no_change(tmp_path: Path) -> None:
    ignored = (Path(__file__).parents[2] / ".gitignore").read_text()
    repository(tmp_path / "kit", **{".gitignore": ignored})
    for name in ("runs", "results", ".venv"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / "kit" / name).symlink_to(tmp_path / "disk" / name)
    assert code_version(tmp_path / "kit")["dirty"] is False


def test_a_packed_commit_carries_its_id(tmp_path: Path) -> None:
    """A zip from a forge is made by `git archive`."""
    attributes = (Path(__file__).parents[2] / ".gitattributes").read_text()
    (tmp_path / "kit/core").mkdir(parents=True)
    shutil.copy(Path(__file__).parents[2] / "core/commit.txt", tmp_path / "kit/core")
    commit = repository(tmp_path / "kit", **{".gitattributes": attributes})
    git(tmp_path / "kit", "archive", "-o", str(tmp_path / "kit.tar"), "HEAD")
    with tarfile.open(tmp_path / "kit.tar") as packed:
        packed.extractall(tmp_path / "unpacked")
    assert code_version(tmp_path / "unpacked") == {"commit": commit, "dirty": None}
