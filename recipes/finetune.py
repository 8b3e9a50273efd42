"""Full fine-tuning by torchtune's parts: midtraining on documents, SFT on conversations.

One update takes `tokens_per_update` tokens (packed rows) or `rows_per_update` conversations, in an order that only
the cell's seed decides; the loss is the mean over the update's trained tokens. Weights, gradients and AdamW's state
are fp32. On several ranks (FSDP2) each takes its share of every update's rows: the numbers are those of one rank, up
to the order of sums. A training that is told to stop saves its state, and goes on from there when it is run again.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE
from torchtune.modules import TransformerDecoder
from torchtune.modules.loss import CEWithChunkedOutputLoss
from transformers import PreTrainedTokenizerBase

from recipes import checkpoint, steps
from recipes.distributed import ALONE, Ranks, meet, together, word_of_first
from recipes.rows import Rows, conversations, load_tokenizer, pack, read_jsonl
from recipes.schedule import learning_rate, micro_batches, order, rows_per_update, updates_planned
from recipes.stopping import Stop, stoppable
from study.cells import write_atomically
from study.errors import UserError
from study.work import Work

CONTINUES = True  # a run that was stopped or killed goes on from its last step checkpoint
RANKS = (meet, word_of_first)  # it runs on several ranks: how rank 0 tells the others when to begin
FEW_UPDATES = 100  # a handful of updates at a small learning rate hardly moves a model


@dataclass
class State:
    """A training after `done` updates."""

    model: TransformerDecoder
    optimizer: torch.optim.Optimizer
    done: int


def run(work: Work) -> dict[str, int | float]:
    """Train the cell's start checkpoint; writes model/ (a Hugging Face folder) and metrics.jsonl.

    Every rank calls it; rank 0 returns the counts and writes all but the step checkpoints.
    """
    recipe, start, final = work.settings["recipe"], work.inputs["start"] / "model", work.folder / "model"
    with together() as ranks:  # before all that takes long, so that each rank notices when another dies
        rows = _rows(work, recipe, load_tokenizer(start))
        check_size(work, rows, recipe, ranks)
        if not ranks.from_first(final.exists()):  # else only the manifest was missing
            state = begin(work, lambda: checkpoint.load(start, ranks), recipe, ranks)
            # Until here there is nothing to save: a signal ends the process at once.
            with stoppable(ranks) as stop:
                train(work, state, rows, recipe, ranks, stop)
                _export(state.model, start, final, ranks)
        if ranks.rank == 0:
            shutil.rmtree(work.folder / "steps", ignore_errors=True)
    return counts(work, rows, recipe) if ranks.rank == 0 else {}


def check_size(work: Work, rows: Rows, recipe: dict[str, Any], ranks: Ranks = ALONE) -> None:
    """Warn of few updates. Raises UserError where there would be none, or a rank would idle through all of them."""
    total, per_update = updates_planned(len(rows), recipe), rows_per_update(recipe)
    if ranks.world > per_update:
        raise UserError(
            f"{work.folder}: an update has {per_update} rows, too few for {ranks.world} ranks; run it on {per_update} "
            "ranks or fewer, or make the recipe's update larger"
        )
    if total == 0:
        raise UserError(f"{work.folder}: the data gives no update at all; give more rows, epochs or a smaller batch")
    if total < FEW_UPDATES and ranks.rank == 0:
        work.warn(f"only {total} updates: under {FEW_UPDATES} hardly moves a model")


def begin(work: Work, start: Callable[[], TransformerDecoder], recipe: dict[str, Any], ranks: Ranks = ALONE) -> State:
    """The training after the newest step checkpoint that can be read, metrics.jsonl cut back to it; else at `start`.

    `start` gives the start model; it is called again after a step checkpoint that could be read in part only.
    """
    folder, metrics, lines = work.folder / "steps", work.folder / "metrics.jsonl", []
    if ranks.rank == 0 and metrics.exists():
        lines = metrics.read_text().splitlines(keepends=True)

    def after(done: int) -> State | None:
        model = start()
        optimizer = torch.optim.AdamW(
            model.parameters(), recipe["lr"], tuple(recipe["betas"]), weight_decay=recipe["weight_decay"], fused=True
        )
        if done and (reason := steps.load(folder, done, model, optimizer, ranks)):
            work.warn(f"{folder}/{done} can't be read and is passed over: {reason}")
            return None
        return State(model, optimizer, done)

    saved = [done for done in reversed(steps.complete(folder)) if done <= len(lines)]
    state = next(filter(None, map(after, ranks.from_first([*saved, 0]))))
    if state.done:
        work.log(f"goes on after update {state.done}")
    if ranks.rank == 0:
        write_atomically(metrics, "".join(lines[: state.done]))
    return state


def train(work: Work, state: State, rows: Rows, recipe: dict[str, Any], ranks: Ranks, stop: Stop) -> None:
    """Do what is left of the updates, on the state in place; each adds a line to metrics.jsonl (loss: nats a token).

    Saves a step checkpoint every `save_minutes`, and one when told to stop; it then ends the process by the signal.
    """
    total, ways = updates_planned(len(rows), recipe), work.resources
    model, optimizer = state.model, state.optimizer
    # Fixed threads: sums, and so weights, must not depend on how many cores this machine has to spare.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    torch.manual_seed(work.seed("torch"))
    torch.use_deterministic_algorithms(True)
    model.train()
    loss_function = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss_function.num_output_chunks)
    saved = time.monotonic()
    # Buffered by line, for whoever watches.
    with open(work.folder / "metrics.jsonl" if ranks.rank == 0 else os.devnull, "a", 1) as metrics:
        for update, which in enumerate(order(len(rows), recipe, work.seed("order")), 1):
            if update <= state.done:
                continue
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(update, total, recipe)
            trained = int((rows.labels[which] != IGNORE).sum())  # tokens of the whole update, whoever has their rows
            mean = torch.zeros((), device=ranks.device)
            for batch in _batches(rows, which, ranks, ways["rows_per_rank"]):
                labels = batch.pop("labels")
                loss = _summed_loss(loss_function, model(**batch), labels) / trained
                (loss * ranks.world).backward()  # FSDP2 takes the mean of the ranks' gradients
                mean += loss.detach()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip_grad_norm"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            line = {
                "update": update,
                "loss": ranks.sum(mean).item(),
                "lr": optimizer.param_groups[0]["lr"],
                "grad_norm": (norm.full_tensor() if isinstance(norm, DTensor) else norm).item(),
            }
            if not math.isfinite(line["loss"]):
                raise UserError(
                    f"{work.folder}: the loss is {line['loss']} at update {update}; lower the learning rate"
                )
            metrics.write(json.dumps(line) + "\n")
            work.progress(update, total, "updates")
            state.done = update
            # One rank's clock or signal is enough: all save after the same update, or none.
            told, due = stop.told(), ranks.max(time.monotonic() - saved >= 60 * ways["save_minutes"])
            if update < total and (told or due):
                if ranks.rank == 0:
                    os.fsync(metrics.fileno())
                began = time.monotonic()
                steps.save(work.folder / "steps", update, model, optimizer, ranks)
                saved = time.monotonic()
                work.log(f"update {update} of {total} is saved ({saved - began:.1f} s)")
                if stop.told():  # before the save or meanwhile
                    stop.obey()
    model.eval()


def _batches(rows: Rows, which: np.ndarray, ranks: Ranks, at_once: int | None) -> Iterator[dict[str, torch.Tensor]]:
    for mine in micro_batches(which, ranks.rank, ranks.world, at_once):
        # Without rows of its own, a rank runs another's untrained: the other ranks need its part of the model.
        batch = rows.batch(mine if len(mine) else which[:1])
        if not len(mine):
            batch["labels"].fill_(IGNORE)
        yield {name: tensor.to(ranks.device) for name, tensor in batch.items()}


def _summed_loss(
    loss_function: CEWithChunkedOutputLoss, logits: list[torch.Tensor], labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy (nats) summed over the trained tokens; 0 where there are none."""
    chunks = zip(logits, labels.chunk(len(logits), dim=1), strict=True)
    return sum(
        (loss_function.compute_cross_entropy(some.flatten(0, 1), said.flatten()) for some, said in chunks),
        start=torch.zeros((), device=labels.device),
    )


def _export(model: TransformerDecoder, start: Path, final: Path, ranks: Ranks) -> None:
    """Write the model where it appears at once and whole."""
    temporary = final.with_name(f".tmp-{final.name}")
    if ranks.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    checkpoint.save(model, start, temporary, ranks)
    if ranks.rank == 0:
        steps.publish(temporary, final)


def counts(work: Work, rows: Rows, recipe: dict[str, Any]) -> dict[str, int | float]:
    """What a finished training tells in its manifest: updates, rows, tokens, its first and its last loss."""
    losses = read_jsonl(work.folder / "metrics.jsonl", "loss")
    return {
        "updates": len(losses),
        "rows": len(rows),
        "tokens": rows.real_tokens * recipe["epochs"],
        "first_loss": round(losses[0], 6),
        "last_loss": round(losses[-1], 6),
    }


def _rows(work: Work, recipe: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Rows:
    if "documents" in work.inputs:
        return pack(read_jsonl(work.inputs["documents"] / "documents.jsonl", "text"), tokenizer, recipe["seq_len"])
    return conversations(_dose(work), tokenizer, recipe["seq_len"])


def _dose(work: Work) -> list[list[dict[str, str]]]:
    """The first `dose` conversations of a shuffle made from the study's seed: a larger dose contains the smaller."""
    everything = read_jsonl(work.resources["data"], "messages")
    dose = work.settings["dose"]
    if dose > len(everything):
        raise UserError(f"{work.resources['data']}: has {len(everything)} rows, the dose is {dose}; lower sft.doses")
    return [everything[i] for i in np.random.default_rng(work.settings["seed"]).permutation(len(everything))[:dose]]
