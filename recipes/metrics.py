"""What a training tells while it runs.

metrics.jsonl    a line for each update: loss (nats a token), lr, grad_norm; the same in every run of the training
held_out.jsonl   a line for each look at the loss on held-out text
speed.jsonl      a line for each update: tokens, places (with padding), seconds, tokens_per_second, mfu, peak_gb
tensorboard/     the same for `tensorboard --logdir runs`
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from torchtune.modules import TransformerDecoder

from core.cell.context import StageContext
from core.files import write_atomically
from recipes.distributed import Ranks
from recipes.model import flops_per_token, peak_flops

FILES = ("metrics.jsonl", "held_out.jsonl", "speed.jsonl")


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of one of these files; none where there is no file. A line cut short by a kill is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def cut(folder: Path, done: int) -> None:
    """Forget what was told of updates after `done`: they will be done again."""
    for name in FILES:
        kept = [line for line in read(folder / name) if line["update"] <= done]
        write_atomically(folder / name, "".join(json.dumps(line) + "\n" for line in kept))


class Metrics:
    """Open files of a training that goes on after update `done`; only rank 0 writes."""

    def __init__(self, folder: Path, done: int, ranks: Ranks) -> None:
        first = ranks.rank == 0
        # Buffered by line, for whoever watches.
        self.files = {name: (folder / name if first else Path(os.devnull)).open("a", 1) for name in FILES}
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1) if first else None

    def tell(self, name: str, line: dict[str, Any]) -> None:
        """Add a line, which has its `update`, to one of FILES."""
        self.files[name].write(json.dumps(line) + "\n")
        for key, value in line.items():
            if key != "update" and self.board:
                self.board.add_scalar(f"{name.removesuffix('.jsonl')}/{key}", value, line["update"])

    def to_disk(self) -> None:
        """Return when all lines are on the disk: a step checkpoint must not be ahead of them."""
        for file in self.files.values() if self.board else ():
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        if self.board:
            self.board.close()


class Speed:
    """How fast a training goes; it says so in the log every half minute."""

    EVERY = 30.0

    def __init__(self, recipe: dict[str, Any], ranks: Ranks, model: TransformerDecoder) -> None:
        self.device, self.began, self.first = ranks.device, time.monotonic(), time.monotonic()
        self.last: dict[str, float] = {}
        peak = peak_flops(ranks.device)
        self.full = ranks.world * peak / flops_per_token(model, recipe["seq_len"]) if peak else None
        self.said, self.updates = self.began, 0

    def begin(self) -> None:
        """An update begins; looks, saves and exports before it are not its time."""
        self.began = time.monotonic()

    def note(self, tokens: float, places: float) -> None:
        """An update is done, in which the model saw so many tokens on so many places, some of them padding."""
        seconds = time.monotonic() - self.began
        self.updates += 1
        self.last = {
            "tokens": int(tokens),
            "places": int(places),
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
        }
        if self.full:
            self.last["mfu"] = tokens / seconds / self.full
            self.last["peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9

    def tell(self, work: StageContext, update: int, total: int, loss: float) -> None:
        work.progress(update, total, "updates")
        if time.monotonic() - self.said >= self.EVERY or update == total:
            self.said = time.monotonic()
            left = (self.said - self.first) / self.updates * (total - update)
            mfu = f", MFU {self.last['mfu']:.1%}" if self.full else ""
            work.log(
                f"update {update} of {total}: loss {loss:.4f}, {self.last['tokens_per_second']:,.0f} tokens/s{mfu}, "
                f"{left / 60:.0f} min left"
            )
