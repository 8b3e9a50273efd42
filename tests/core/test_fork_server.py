"""The process that imports for cells, where its executor ends early."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from core.paths import ROOT


@pytest.mark.multiprocess
def test_it_ends_without_a_word_where_its_executor_closed_first(tmp_path: Path) -> None:
    """As when the last cells fail while a server for later ones still imports."""
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    result = subprocess.run(
        [sys.executable, "-m", "core.cell.fork_server", str(theirs.fileno()), str(tmp_path)],
        cwd=ROOT,
        pass_fds=[theirs.fileno()],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
