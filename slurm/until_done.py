"""Submit a study from a login shell until it is finished: where jobs can't submit further jobs."""

import re
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import UserError
from core.stages import STAGES
from slurm import queued_jobs, submissions
from slurm.disk_limit import DiskLimit
from slurm.profile import Profile
from slurm.submit import submit

PAUSE_SECONDS = 60.0
REFUSALS = 10  # in a row, of one reason that does not pass, before a person has to look
# Refusals that pass: a limit that Slurm did not tell, a controller that is busy.
PASSES = re.compile(
    r"MaxSubmit|GrpSubmit|submit limit|job limit|temporarily unable|[Tt]oo many|timed out|"
    r"no answer|[Uu]nable to contact"
)


def until_done(
    cells: list[Cell],
    base: Path,
    profile: Profile,
    cluster: str,
    report: Callable[[str], None],
    pause: float = PAUSE_SECONDS,
    stages: Collection[str] = STAGES,
    disk: DiskLimit | None = None,
    ranks: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Submit what the limits on jobs allow, again and again, until no cell is queued or left over.

    A cell that fails is not submitted again: a person has to look at it first. Cells that need a
    stage on the login node are waited for. Interrupted at any time, the same call continues.

    Args:
        cells: Inputs before their users.
        base: The study's folder.
        profile: The cluster profile.
        cluster: The profile as the user named it.
        report: Called with a line where something has changed.
        pause: Seconds between two looks at the queue.
        stages: Those whose cells are submitted.
        disk: Bounds the trainings on their way.
        ranks: Identity -> rank; cells of smaller ranks come first.

    Returns:
        What the last call of `submit` did. Cells that are not `finished` have failed, or wait for
        one that has.

    Raises:
        UserError: The first submission, or REFUSALS later ones in a row, are refused for a reason
            that does not pass. Or the study was started with another study file meanwhile.
    """
    remaining: set[str] | None = None  # None: all
    code: Path | None = None
    shown = ""
    refusals = 0  # the same one after another
    facts: dict[str, Any] = {}  # empty: the last submission was refused
    while True:
        before = _groups(base)
        try:
            facts = submit(
                cells, base, profile, cluster, code, remaining, False, stages, disk, ranks
            )
        except UserError as error:
            line = f"{error.lines[0]}; tried again in {pause:g} s"
            refusals = refusals + 1 if line == shown else 1
            is_refused = remaining is None or refusals > REFUSALS
            if (is_refused and not PASSES.search(line)) or queued_jobs.is_superseded(base, cells):
                raise
            facts = {}
        else:
            line = (
                f"{facts['finished']} of {facts['cells']} cells finished, "
                f"{facts['queued'] + facts['submitted']} in the queue, {facts['left']} remain"
            )
            if facts["held"]:
                line += f"; Slurm holds {', '.join(facts['held'])}"
            if facts["behind"]:
                stages_there = ", ".join(facts["login"])
                line += f"; {len(facts['behind'])} wait for {stages_there} on the login node"
            line = "; ".join([line, *(f"waits: {wait}" for wait in facts["waits"])])
            code = code or (Path(facts["code"]) if facts["code"] else None)
            if remaining is None:
                remaining = {*facts["remaining"], *facts["behind"]}
        if line != shown:
            report(f"{time.strftime('%H:%M:%S')} {line}")
            shown = line
        if remaining is not None:
            new = _groups(base)
            remaining -= {i for name in new.keys() - before.keys() for i in new[name]}
        if facts and not any(facts[key] for key in ("queued", "submitted", "behind")):
            # Where a cell has failed whose weights stay for it, no other training may find room.
            is_full = disk is not None and facts["finished"] + facts["left"] < facts["cells"]
            if is_full or not facts["left"]:
                return facts
        time.sleep(pause)


def _groups(base: Path) -> dict[str, list[str]]:
    """The arrays on record: name -> identities of its cells."""
    groups = submissions.read(base / "slurm")
    return {group.name: [i for task in group.tasks for i in task] for group in groups}
