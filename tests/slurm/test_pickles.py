"""Jobs unpickle what they run: nobody else may write there, whatever the umask was."""

import os
import subprocess
from pathlib import Path

import pytest

from slurm.executor import executor
from slurm.executor import script as batch_script
from slurm.profile import Profile, Resources
from tests.slurm.places import Fake, Kit

OTHERS = 0o022


@pytest.mark.slurm
def test_pickles_and_their_folder_are_not_writable_by_others(fake: Fake, kit: Kit) -> None:
    umask = os.umask(0)
    try:
        assert kit.done("submit")["submitted"]
    finally:
        os.umask(umask)
    folder = kit.base / "slurm/jobs"
    pickles = [*folder.glob("*.pkl")]
    assert pickles and not any(path.stat().st_mode & OTHERS for path in (folder, *pickles))
    assert folder.stat().st_mode & 0o055 == 0o055, "others may read status and logs"


@pytest.mark.multiprocess
@pytest.mark.parametrize(("mode", "status"), [(0o755, 0), (0o775, 1), (0o757, 1)])
@pytest.mark.usefixtures("fake")
def test_a_job_reads_no_pickle_where_others_may_write(
    mode: int, status: int, tmp_path: Path
) -> None:
    logs = tmp_path / "a job's logs"
    logs.mkdir()
    logs.chmod(mode)
    profile = Profile(stages={"default": Resources(10)})
    slurm = executor("midtrain", Resources(10), profile, tmp_path, logs)
    lines = batch_script(slurm).splitlines()
    (check,) = [line for line in lines if "-maxdepth" in line]
    assert lines.index(check) < next(n for n, line in enumerate(lines) if "_submitted.pkl" in line)
    ran = subprocess.run(["bash", "-c", check], capture_output=True, text=True)
    assert ran.returncode == status
    assert not status or "what is read there could run as you" in ran.stderr
