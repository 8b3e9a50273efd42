"""Damaged records of jobs and cells: the rest is read, and such cells are unfinished."""

from pathlib import Path

import pytest

from slurm import submissions
from tests.slurm.places import Fake, Kit

DAMAGED = ["[]", "{", "null", "5", '{"a": 1}', '{"event": "submitted", "time": "x"}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_record_that_is_no_event_of_ours_is_left_out(text: str, tmp_path: Path) -> None:
    submissions.write_submitting(tmp_path, "g", "x", [["cell"]], None)
    with (tmp_path / submissions.FILE).open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")
    submissions.write_submitted(tmp_path, "g", "7")
    (group,) = submissions.read(tmp_path)
    assert group.job == "7" and group.tasks == [["cell"]]
    assert submissions.broken_chain(tmp_path, [group], []) is None
    assert submissions.excluded_nodes(tmp_path) == set()


@pytest.mark.slurm
def test_damaged_files_of_cells_leave_them_unfinished(fake: Fake, kit: Kit) -> None:
    kit.done("submit")
    cells = sorted(path.parent for path in kit.base.glob("*/*/config.yaml"))
    assert len(cells) > 5
    for number, folder in enumerate(cells):
        text = DAMAGED[number % len(DAMAGED)]
        for name in ("progress.json", "pruned.json", "manifest.json"):
            (folder / name).write_text(text)
    for command in ("status", "plan"):
        kit.done(command)
    assert kit.done("plan")["cells"], "all of them are still to be made"
