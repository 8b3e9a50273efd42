"""Cells that a person runs on the login node, and those that wait for them."""

from core.cell.identity import Cell
from slurm.profile import Profile


def behind_login(
    cells: list[Cell], selected: list[Cell], settled: set[str], profile: Profile
) -> tuple[list[str], set[str]]:
    """The stages with unfinished cells on the login node, and the `selected` that wait for these.

    A cell that also waits for one that is neither `settled` (finished, queued or submitted now) nor
    selected is not among them: that one has failed.
    """
    login: dict[str, None] = {}
    waiting: set[str] = set()  # those on the login node too
    behind: set[str] = set()
    own = {cell.identity for cell in selected}
    for cell in cells:
        if cell.identity in settled:
            continue
        inputs = [used.identity for used in cell.inputs.values() if used.identity not in settled]
        if profile.is_on_login(cell.stage):
            login[cell.stage] = None
            waiting.add(cell.identity)
        elif cell.identity in own and inputs and waiting.issuperset(inputs):
            waiting.add(cell.identity)
            behind.add(cell.identity)
    return list(login), behind
