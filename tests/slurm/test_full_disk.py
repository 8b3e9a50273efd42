"""A full disk while a study is submitted: an error that names the file, nothing half-written, and
with room again the same command submits what is missing, once."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.cell.identity import Cell
from core.errors import UserError
from core.files import append_line, write_atomically
from slurm import submissions
from slurm import submit as submit_module
from slurm.profile import Profile, Resources
from slurm.snapshot import snapshot
from slurm.submit import submit
from study import cli
from study.commands.status import look, show
from tests.place import ROOT, SMALL
from tests.slurm.places import CLUSTER, Fake
from tests.slurm.test_shells import LIST, sbatch_ends

PAGE = 4096
DISK = 100 * PAGE
MOUNTED = f"""
set -e
mount -t tmpfs -o size={DISK} tmpfs "$1"
exec "$2" -c 'from tests.slurm.test_full_disk import fill_it; fill_it()' "$1" "$3"
"""


def cells() -> list[Cell]:
    corpora = [Cell("documents", f"c{n}", {"seed": n}) for n in range(2)]
    return [*corpora, Cell("analysis", "s", {}, {cell.name: cell for cell in corpora})]


@pytest.mark.slurm
def test_wherever_the_disk_is_full_the_next_submission_completes_it(
    tmp_path: Path, fake: Fake
) -> None:
    """On a small disk of its own with 0, 1, 2 ... pages of room, until all fits."""
    sbatch_ends(fake, LIST + 'echo "$n"')
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*words, f"mount -t tmpfs tmpfs {disk}"], capture_output=True).returncode:
        pytest.skip("no mounts: needs root")
    arguments = [MOUNTED, "sh", str(disk), sys.executable, str(fake.folder / "queue")]
    result = subprocess.run([*words, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    files = {line.partition(" ")[2] for line in result.stdout.splitlines()}
    print(result.stdout)
    for name in ("code-", "jobs.jsonl", "config.yaml", "last_start.json", "slurm"):
        assert any(name in file for file in files), f"never full at {name}: {files}"
    assert "2 cells were submitted before it; the same command continues" in result.stdout


def fill_it() -> None:
    """Runs in a process of its own, which sees the small disk."""
    disk, queue = map(Path, sys.argv[1:])
    (disk / "kit").mkdir()
    submit_module.ROOT = disk / "kit"
    for n in range(3):
        (disk / f"kit/{n}.py").write_text("x" * PAGE)
    base, room = disk / "runs/s", 0
    profile = Profile(stages={"default": Resources(minutes=5)})
    while True:
        base.mkdir(parents=True)
        queue.write_text("")
        _leave_room(disk, room)
        try:
            submit(cells(), base, profile, "x")
            return
        except UserError as error:
            (line,) = error.lines
        except OSError as error:
            assert error.filename, "it names the file"
            line = f"{error.filename}: {error.strerror}"
        print(room, line)
        assert "No space left on device" in line and "None" not in line
        assert not list((base / "slurm").glob(".code-*")), "no half of a copy"
        assert not list(base.rglob("*.tmp*"))
        look(cells(), base, "s.yaml")
        _leave_room(disk, DISK)
        facts = submit(cells(), base, profile, "x")
        jobs = [line.split("|")[0] for line in queue.read_text().splitlines()]
        assert len(jobs) == 3, f"each cell is queued once: {jobs}"
        assert facts["submitted"] + facts["queued"] == 3
        look(cells(), base, "s.yaml")
        shutil.rmtree(base.parent)
        room += 1


def _leave_room(disk: Path, pages: int) -> None:
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    status = os.statvfs(disk)
    filler.write_bytes(b"x" * max(0, status.f_bavail * status.f_frsize - pages * PAGE))


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk that reports only at fsync that it is full, as NFS does."""

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def test_a_write_that_fails_names_its_file_and_leaves_nothing(tmp_path: Path, full: None) -> None:
    path = tmp_path / "x.json"
    for write in (write_atomically, append_line):
        with pytest.raises(OSError, match=re.escape(str(path))):
            write(path, "text")
    assert not [file for file in tmp_path.iterdir() if file.stat().st_size]
    assert not list(tmp_path.glob("*.tmp*"))


def test_a_line_after_one_that_was_cut_short_is_read(tmp_path: Path) -> None:
    """By a kill, or by a version that did not remove the part that a full disk took."""
    record = tmp_path / submissions.FILE
    submissions.write_submitting(tmp_path, "g1", "x", [["a"]], None)
    record.write_bytes(record.read_bytes() + b'{"event": "submi')
    submissions.write_submitting(tmp_path, "g2", "x", [["b"]], None)
    submissions.write_submitted(tmp_path, "g2", "7")
    groups = submissions.read(tmp_path)
    assert [(group.name, group.job) for group in groups] == [("g1", None), ("g2", "7")]


@pytest.mark.multiprocess
def test_half_a_copy_of_the_code_never_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, folder = tmp_path / "kit", tmp_path / "runs/s/slurm"
    checkout.mkdir()
    (folder / ".code-0123456789ab.77").mkdir(parents=True)  # of a process that was killed
    for n in range(3):
        (checkout / f"{n}.py").write_text("x")
    write = Path.write_bytes

    def stop(path: Path, content: bytes) -> int:
        if path.name == "1.py":
            raise KeyboardInterrupt
        return write(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_bytes", stop)
        snapshot(checkout, folder)
    assert not list(folder.iterdir())
    assert len(list(snapshot(checkout, folder).glob("*.py"))) == 3


@pytest.mark.slurm
def test_the_command_says_which_file_has_no_room(
    fake: Fake, tmp_path: Path, full: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["submit", str(SMALL), "--cluster", str(CLUSTER), "--runs", str(tmp_path / "runs")]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/runs/small/") and "No space left" in line
    assert line.endswith("make room") and "None" not in line and not fake.scripts


@pytest.mark.slurm
def test_status_of_a_record_that_was_cut_anywhere(tmp_path: Path, fake: Fake) -> None:
    base = tmp_path / "runs/s"
    (base / "slurm").mkdir(parents=True)
    all_cells = cells()
    for cell in all_cells:
        submissions.write_submitting(base / "slurm", "g", "x", [[cell.identity]], None)
        submissions.write_submitted(base / "slurm", "g", "7")
    record = base / "slurm" / submissions.FILE
    content = record.read_bytes()
    for size in range(0, len(content), 31):
        record.write_bytes(content[:size])
        assert json.dumps(look(all_cells, base, "s.yaml"))
    assert "next: " in show(look(all_cells, base, "s.yaml"))
