"""Tell a person that a study has its first failure, or that its results are there.

    python -m slurm.notify LOGS

The job's batch script calls it when srun has failed and the job is not queued again: a process that
was killed can't tell anybody. The analysis tells of the results itself.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmJobEnvironment

from core.cell.failures import end, explain
from core.cell.manifest import read_manifest
from core.cell.status_page import PAGE

NOTIFIED = "failure_notified"  # in the study's folder of jobs; `submit` removes it
TIMEOUT_SECONDS = 60.0
LAST_LINES = 5
MOST_BYTES = 2000  # of what the command says


def run_command(command: str, event: str, subject: str, text: str) -> str:
    """Run the shell line of a cluster profile; returns what went wrong, empty where nothing did.

    The text is on its standard input. In its environment are NOTIFY_EVENT, NOTIFY_SUBJECT.

    Args:
        command: The shell line.
        event: failure or end.
        subject: One line.
        text: The message.
    """
    variables = {"NOTIFY_EVENT": event, "NOTIFY_SUBJECT": subject}
    # A file and no pipe, whose end would be waited for where the line leaves something behind (&).
    with tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                command,
                shell=True,
                input=text.encode(errors="replace"),
                env=os.environ | variables,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                timeout=TIMEOUT_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"notify: {error}"
        if not done.returncode:
            return ""
        errors.seek(0)
        said = errors.read(MOST_BYTES).decode(errors="replace").strip()
    return f"notify: exit status {done.returncode}: {said}"


def tell_of_results(command: str, folder: Path) -> None:
    """Tell that the results are there, where the cell in `folder` is the finished analysis."""
    if folder.parent.name != "analysis" or not read_manifest(folder):
        return
    base = folder.parents[1]
    text = f"{(folder / 'headline.txt').read_text(encoding='utf-8')}\n{base / PAGE}\n"
    if problem := run_command(command, "end", f"study {base.name}: results are there", text):
        print(problem, file=sys.stderr, flush=True)


def tell_of_failure(logs: Path, job: str) -> str:
    """Tell of a failed job, if it is the first since the study was submitted.

    Args:
        logs: The folder of the study's jobs.
        job: The job's id.

    Returns:
        What went wrong with the command; empty where nothing did.
    """
    call = DelayedSubmission.load(logs / f"{job}_submitted.pkl").function
    command = getattr(call, "notify", None)
    unfinished = [Path(folder) for folder in getattr(call, "folders", ())]
    unfinished = [folder for folder in unfinished if not read_manifest(folder)]
    if not command or not unfinished:
        return ""
    base = unfinished[0].parents[1]
    try:
        (base / "slurm" / NOTIFIED).touch(exist_ok=False)
    except FileExistsError:
        return ""
    lines = []
    for folder in unfinished:
        log = end(folder / "log.txt")
        failure, _ = explain([log])
        cause = f": {failure.name}; {failure.fix}" if failure else ""
        lines += [f"{folder}{cause}", *(f"  {line}" for line in log[-LAST_LINES:])]
    subject = f"study {base.name}: job {job} has failed"
    return run_command(command, "failure", subject, "\n".join([*lines, "", str(base / PAGE), ""]))


if __name__ == "__main__":
    if trouble := tell_of_failure(Path(sys.argv[1]), SlurmJobEnvironment().job_id):
        print(trouble, file=sys.stderr)
