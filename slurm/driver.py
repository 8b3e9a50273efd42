"""The job of slurm/study.sbatch in the queue: it submits a study and ends."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from core.errors import UserError
from slurm import slurm_cli
from slurm.slurm_cli import Queued

SCRIPT = "slurm/study.sbatch"


def ask(study_file: Path, runs: Path) -> str | None:
    """`driver_in` the queue as it is now; None too where Slurm does not answer."""
    with suppress(UserError):
        return driver_in(slurm_cli.queue(), study_file, runs)
    return None


def driver_in(queue: list[Queued], study_file: Path, runs: Path) -> str | None:
    """The job that submits the study of this file into the runs folder; None where there is none.

    The script's arguments are paths relative to the checkout that holds the script. Slurm quotes
    nothing: a path may be several words. Where neither the queue nor accounting lists arguments,
    as in 24.11 without slurmdbd, any job of the script is taken for it.
    """
    for job in queue:
        script, has_script, arguments = f"{job.command} ".partition(f"/{SCRIPT} ")
        if not has_script:
            continue
        checkout = Path(script)
        arguments = arguments or slurm_cli.submit_line(job.job).partition(f"{SCRIPT} ")[2]
        if not arguments.strip():
            return job.job
        words = arguments.strip().replace("--runs=", "--runs ").split(" ")
        folder = words[words.index("--runs") + 1 :] if "--runs" in words else ["runs"]
        # The word behind a path is an option, or the study file behind the runs folder.
        if any(
            _is_option(rest) or any(map(_is_option, _behind(rest, study_file, checkout)))
            for rest in _behind(folder, runs, checkout)
        ) and any(
            _is_option(rest)
            for n in range(len(words))
            for rest in _behind(words[n:], study_file, checkout)
        ):
            return job.job
    return None


def _behind(words: list[str], path: Path, checkout: Path) -> Iterator[list[str]]:
    """The words behind a path that the first of them, one or more, are."""
    for n in range(1, len(words) + 1):
        if (checkout / " ".join(words[:n])).resolve() == path.resolve():
            yield words[n:]


def _is_option(words: list[str]) -> bool:
    return not words or words[0].startswith("-")
