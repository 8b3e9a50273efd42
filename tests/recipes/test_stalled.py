"""A rank that hangs is named, with its node, long before the collective's time-out."""

import socket
from pathlib import Path

import pytest

from core.cell.heartbeat import stalled
from tests.recipes.toy import ends, lines, start_ranks, training, until

HANGS = """
import time
from core.cell import heartbeat
heartbeat.BEAT_SECONDS, heartbeat.LEAST_SECONDS = 0.2, 1.0
from recipes.finetune import Trainer
train_step = Trainer.train_step
def hang(self, given):
    if given.step == 6 and os.environ["RANK"] == "1":
        time.sleep(600)
    return train_step(self, given)
Trainer.train_step = hang
"""


@pytest.mark.multiprocess
def test_the_rank_that_hangs_is_named(base: Path) -> None:
    folder = training(base, "hangs", recipe={"epochs": 13})
    processes = start_ranks(folder, 2, before=HANGS)
    until(lambda: stalled(folder), processes)
    finding = stalled(folder) or ""
    assert len(lines(folder)) == 5 and finding.startswith("no step for ")
    assert finding.endswith(f"rank 1 on {socket.gethostname()} is still in step 5")
    for process in processes:
        process.kill()
    ends(processes)
