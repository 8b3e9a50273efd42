"""`notify` of a cluster profile: who is told of what, and how often. Without Slurm."""

import os
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from core.cell.identity import Cell, create_cell_dir
from slurm.executor import executor, script
from slurm.job import CellJob
from slurm.notify import NOTIFIED, run_command, tell_of_failure, tell_of_results
from slurm.profile import Profile, Resources

pytestmark = pytest.mark.multiprocess

JOB = "12_3"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "s/slurm/jobs"
    folder.mkdir(parents=True)
    return folder


def finish(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"identity": "a"}')


def submitted(logs: Path, out: Path, name: str = "a") -> Path:
    """A failed cell whose job appends what it tells to `out`. Returns its folder."""
    folder = create_cell_dir(Cell("midtrain", name, {"n": name}, {}), logs.parents[1])
    (folder / "log.txt").write_text("midtrain a starts (process 1)\nCUDA out of memory\n")
    command = f'(echo "$NOTIFY_EVENT: $NOTIFY_SUBJECT"; cat) >> {out}'
    job = CellJob(str(logs), (str(folder),), None, "", command)
    DelayedSubmission(job).dump(logs / f"{JOB}_submitted.pkl")
    return folder


def test_the_first_failure_is_told_once(logs: Path, tmp_path: Path) -> None:
    out = tmp_path / "told.txt"
    folder = submitted(logs, out)
    assert tell_of_failure(logs, JOB) == ""
    first = out.read_text()
    assert first.startswith(f"failure: study s: job {JOB} has failed\n{folder}")
    assert "  CUDA out of memory\n" in first and "s/status.html" in first
    submitted(logs, out, "b")
    assert tell_of_failure(logs, JOB) == "" and out.read_text() == first
    (logs.parent / NOTIFIED).unlink()  # as a submission does
    assert tell_of_failure(logs, JOB) == "" and out.read_text().count("failure: ") == 2


def test_a_job_whose_cells_are_finished_is_no_failure(logs: Path, tmp_path: Path) -> None:
    finish(submitted(logs, tmp_path / "told.txt"))
    assert tell_of_failure(logs, JOB) == "" and not (tmp_path / "told.txt").exists()


def test_the_results_are_told_by_the_analysis_alone(tmp_path: Path) -> None:
    out = tmp_path / "told.txt"
    for stage in ("judge", "analysis"):
        folder = create_cell_dir(Cell(stage, "s", {}, {}), tmp_path / "s")
        (folder / "headline.txt").write_text("animal - urban: higher\n")
        tell_of_results(f"cat >> {out}", folder)
        assert not out.exists()
        finish(folder)
        tell_of_results(f"cat >> {out}", folder)
        assert out.exists() == (stage == "analysis")
    assert out.read_text().startswith("animal - urban: higher\n")


def test_a_command_that_fails_is_said_and_no_more() -> None:
    assert run_command("echo no mail here >&2; exit 3", "end", "s", "t") == (
        "notify: exit status 3: no mail here"
    )
    assert run_command("cat >/dev/null", "end", "s", "t\n" * 100_000) == ""


def test_what_a_command_leaves_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    assert run_command(f"cat '{pipe}' >&2 & exit 0", "end", "s", "t") == ""
    pipe.write_text("")  # which ends it


@pytest.mark.usefixtures("fake")
def test_the_batch_script_tells_only_where_the_profile_asks(tmp_path: Path) -> None:
    resources = Resources(minutes=5)
    texts = {}
    for command in (None, "mail me"):
        for requeue in (0, 20):
            profile = Profile({"default": resources}, notify=command, requeue=requeue)
            slurm = executor("n", resources, profile, tmp_path, tmp_path / "logs")
            texts[command, requeue] = script(slurm)
    for requeue in (0, 20):
        assert "slurm.notify" not in texts[None, requeue]
        text = texts["mail me", requeue]
        line = next(line for line in text.splitlines() if "slurm.notify" in line)
        assert line.startswith("[ $status = 0 ] || ") and "! running || " in line
        assert text.index("running() {") < text.index("-m slurm.notify")
        if requeue:  # a job that is queued again has not failed
            assert text.index("-m slurm.retry") < text.index("-m slurm.notify")
