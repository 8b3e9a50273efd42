"""What a training records while it runs.

metrics.jsonl    a line for each optimizer step: loss (nats a token), lr, grad_norm, with
                 kl_to_start also kl (nats a token, which the loss does not count); the same in
                 every run of the training
held_out.jsonl   a line for each evaluation of the held-out loss
speed.jsonl      a line for each optimizer step: tokens, positions (padding included), seconds,
                 tokens_per_second, mfu, peak_gb, eval_seconds (of the evaluations after the step,
                 and at step 1 of that before it)
tensorboard/     the same for `tensorboard --logdir runs`
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from torchtune.modules import TransformerDecoder

from core.cell.context import StageContext
from core.files import read_rows, write_atomically
from core.recipe import Training
from recipes.batches import StepInput
from recipes.distributed import Ranks
from recipes.model import flops_per_token, peak_flops

FILES = ("metrics.jsonl", "held_out.jsonl", "speed.jsonl")


def read(path: Path) -> list[dict[str, Any]]:
    """The complete lines of one of FILES; none where there is no file.

    A line that a kill cut short is left out.
    """
    if not path.exists():
        return []
    return [row for _, row in read_rows(path, skip_torn_line=True)]


def truncate(folder: Path, step: int) -> None:
    """Remove the lines of optimizer steps after `step`: these steps will be run again."""
    for name in FILES:
        lines = [line for line in read(folder / name) if line["step"] <= step]
        write_atomically(folder / name, "".join(json.dumps(line) + "\n" for line in lines))


def counts(folder: Path, rows: int) -> dict[str, int | float]:
    """What the manifest of a finished training states: steps, rows, tokens, losses, throughput."""
    lines = read(folder / "metrics.jsonl")
    speed = read(folder / "speed.jsonl")
    evaluations = read(folder / "held_out.jsonl")
    tokens = sum(line["tokens"] for line in speed)
    positions = sum(line["positions"] for line in speed)
    rates = sorted(line["tokens_per_second"] for line in speed)
    numbers: dict[str, int | float] = {
        "steps": len(lines),
        "rows": rows,
        "tokens": tokens,
        "padding": round(1 - tokens / positions, 4),
        "first_loss": round(lines[0]["loss"], 6),
        "last_loss": round(lines[-1]["loss"], 6),
        "tokens_per_second": round(rates[len(rates) // 2], 1),
    }
    if evaluations:
        numbers["eval_seconds"] = round(sum(line.get("eval_seconds", 0) for line in speed), 3)
        numbers["best_held_out_loss"] = round(min(line["loss"] for line in evaluations), 6)
    return numbers


class Metrics:
    """The open FILES of a training that resumes after `step`. Only rank 0 writes."""

    def __init__(self, folder: Path, step: int, ranks: Ranks) -> None:
        is_writer = ranks.rank == 0
        self.files = {}
        for name in FILES:
            path = folder / name if is_writer else Path(os.devnull)
            self.files[name] = path.open("a", 1)  # buffered by line, for whoever reads along
        self.board = None
        if is_writer:
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, name: str, line: dict[str, Any]) -> None:
        """Append a line, which has its `step` (optimizer step), to one of FILES."""
        self.files[name].write(json.dumps(line) + "\n")
        for key, value in line.items():
            if key != "step" and self.board:
                tag = f"{name.removesuffix('.jsonl')}/{key}"
                self.board.add_scalar(tag, value, line["step"])

    def fsync(self) -> None:
        """Return when all lines are on the disk: a step checkpoint must not be ahead of them."""
        if self.board:
            for file in self.files.values():
                os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()
        if self.board:
            self.board.close()


@dataclass(frozen=True)
class StepResult:
    """The numbers of an optimizer step, which a GPU may still compute."""

    step: int
    indices: np.ndarray
    started: float
    """When the step began, by time.monotonic."""
    lr: float
    numbers: torch.Tensor
    """Loss, KL to the start, tokens, positions and gradient norm, in the host's memory."""
    computed: torch.cuda.Event | None
    """Recorded once they are there."""

    @classmethod
    def of(cls, given: StepInput, started: float, lr: float, numbers: torch.Tensor) -> "StepResult":
        """The result of the step that `given` was run in. Begins to copy `numbers` to the host."""
        computed = torch.cuda.Event() if numbers.is_cuda else None
        copied = numbers.to("cpu", non_blocking=True)
        if computed:
            computed.record()
        return cls(given.step, given.indices, started, lr, copied, computed)

    def read(self) -> list[float]:
        """The numbers. Waits until they are computed."""
        if self.computed:
            self.computed.synchronize()
        numbers: list[float] = self.numbers.tolist()
        return numbers


class Speed:
    """Throughput of a training, which it logs every LOG_SECONDS."""

    LOG_SECONDS = 30.0

    def __init__(self, recipe: Training, ranks: Ranks, model: TransformerDecoder) -> None:
        now = time.monotonic()
        self.device = ranks.device
        self.started = now
        self.ended = now
        self.logged = now
        self.steps = 0
        self.last: dict[str, float] = {}
        """The last step's figures, as in speed.jsonl."""
        self.line: dict[str, float] | None = None
        """The last step's line of speed.jsonl, until it is written."""
        self.eval_seconds = 0.0
        """Seconds of evaluations that no line of speed.jsonl has yet."""
        self.peak_tokens_per_second: float | None = None
        """What all GPUs could do at their peak FLOP/s; None where that is not known."""
        if peak := peak_flops(ranks.device):
            flops = flops_per_token(model, recipe.seq_len)
            self.peak_tokens_per_second = ranks.world_size * peak / flops

    def begin_step(self) -> float:
        """The moment at which a step begins."""
        return time.monotonic()

    def end_step(self, step: int, tokens: float, positions: float, started: float) -> None:
        """Record a step of `tokens` in `positions`, the rest of which are padding.

        Its time begins where it has `started`, or where the step before it was recorded, if that is
        later. Evaluations, saves and exports between them are not its time.
        """
        now = time.monotonic()
        seconds = now - max(started, self.ended)
        self.ended = now
        self.steps += 1
        self.last = {
            "tokens": int(tokens),
            "positions": int(positions),
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
        }
        if self.peak_tokens_per_second:
            self.last["mfu"] = tokens / seconds / self.peak_tokens_per_second
        if self.device.type == "cuda":
            self.last["peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        self.line = {"step": step, **self.last}

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Count the time of the `with` block as that of an evaluation."""
        started = time.monotonic()
        yield
        self.eval_seconds += time.monotonic() - started

    def take_line(self) -> dict[str, float] | None:
        """The last step's line of speed.jsonl; None where it was taken."""
        line = self.line
        self.line = None
        if line and self.eval_seconds:
            line["eval_seconds"] = self.eval_seconds
            self.eval_seconds = 0.0
        return line

    def report(self, context: StageContext, step: int, total_steps: int, loss: float) -> None:
        """Report progress, and from time to time log loss, throughput and the remaining minutes."""
        context.progress(step, total_steps, "steps")
        now = time.monotonic()
        if now - self.logged < self.LOG_SECONDS and step != total_steps:
            return
        self.logged = now
        remaining = (now - self.started) / self.steps * (total_steps - step)
        mfu = f", MFU {self.last['mfu']:.1%}" if self.peak_tokens_per_second else ""
        context.log(
            f"step {step} of {total_steps}: loss {loss:.4f}, "
            f"{self.last['tokens_per_second']:,.0f} tokens/s{mfu}, {remaining / 60:.0f} min left"
        )
