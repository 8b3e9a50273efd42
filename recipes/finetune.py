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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE
from torchtune.modules import TransformerDecoder
from torchtune.modules.loss import CEWithChunkedOutputLoss

from recipes import checkpoint, steps
from recipes.distributed import ALONE, Ranks, meet, together, word_of_first
from recipes.rows import Rows, conversations, load_tokenizer, pack, read_jsonl
from recipes.stopping import Stop, stoppable
from study.cells import write_atomically
from study.errors import UserError
from study.work import Work

CONTINUES = True  # a run that was stopped or killed goes on from its last step checkpoint
RANKS = (meet, word_of_first)  # it runs on several ranks: how rank 0 tells the others when to begin
FEW_UPDATES = 100  # a handful of updates at a small learning rate hardly moves a model


def run(work: Work) -> dict[str, int | float]:
    """Train the cell's start checkpoint; writes model/ (a Hugging Face folder) and metrics.jsonl.

    Every rank calls it; rank 0 returns the counts and writes all but the step checkpoints.
    """
    recipe, start = work.settings["recipe"], work.inputs["start"] / "model"
    tokenizer = load_tokenizer(start)
    if "documents" in work.inputs:
        texts = read_jsonl(work.inputs["documents"] / "documents.jsonl", "text")
        rows = pack(texts, tokenizer, recipe["seq_len"])
    else:
        rows = conversations(_dose(work), tokenizer, recipe["seq_len"])
    with together() as ranks, stoppable() as stop:
        final = work.folder / "model"
        if ranks.from_first(final.exists()):  # only the manifest was missing
            _planned(work, rows, recipe)
        else:
            model = checkpoint.load(start, ranks)
            train(work, model, rows, recipe, ranks, stop)
            _export(model, start, final, ranks)
        if ranks.rank == 0:
            shutil.rmtree(work.folder / "steps", ignore_errors=True)
        if told := ranks.max(stop.told):  # while the model was written
            stop.obey(told, ranks)
    return _counts(work, rows, recipe) if ranks.rank == 0 else {}


def train(
    work: Work,
    model: TransformerDecoder,
    rows: Rows,
    recipe: dict[str, Any],
    ranks: Ranks = ALONE,
    stop: Stop | None = None,
) -> dict[str, int | float]:
    """Train `model` in place. Returns updates, rows, tokens, the first and the last loss (nats a token).

    With `stop`, goes on from the newest of work.folder's step checkpoints, saves one every `save_every` updates and
    one when told to stop; it then ends the process by the signal it was told. Without, it starts and ends here.

    Raises UserError where not a single update would be made.
    """
    per_update, total = _rows_per_update(recipe), _planned(work, rows, recipe, ranks)
    # Fixed threads: sums, and so weights, must not depend on how many cores this machine has to spare.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    torch.manual_seed(work.seed("torch"))
    torch.use_deterministic_algorithms(True)
    model.train()
    loss_function = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss_function.num_output_chunks)
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe["lr"], tuple(recipe["betas"]), weight_decay=recipe["weight_decay"], fused=True
    )
    done = _resume(work, model, optimizer, ranks) if stop else 0
    # Buffered by line, for whoever watches.
    with open(work.folder / "metrics.jsonl" if ranks.rank == 0 else os.devnull, "a" if done else "w", 1) as metrics:
        for update, which in enumerate(order(len(rows), recipe["epochs"], per_update, work.seed("order")), 1):
            if update <= done:
                continue
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(update, total, recipe)
            trained = int((rows.labels[which] != IGNORE).sum())  # tokens of the whole update, whoever has their rows
            mean = torch.zeros((), device=ranks.device)
            for batch in _batches(rows, which, ranks, recipe.get("rows_per_rank")):
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
            told = ranks.max(stop.told) if stop else 0
            if stop and (told or (update < total and update % (recipe.get("save_every") or total) == 0)):
                if ranks.rank == 0:
                    os.fsync(metrics.fileno())
                steps.save(work.folder / "steps", update, model, optimizer, ranks)
            if stop and told:
                work.log(f"told to stop: update {update} of {total} is saved")
                stop.obey(told, ranks)
    model.eval()
    return _counts(work, rows, recipe) if ranks.rank == 0 else {}


def updates_planned(rows: int, epochs: int, per_update: int) -> int:
    """Optimizer updates of a training; the last one may be smaller than the others, so that no row is left out."""
    return -(-rows * epochs // per_update)


def order(rows: int, epochs: int, per_update: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of each update. Every epoch is a permutation of its own, made from (seed, epoch) alone."""
    everything = np.concatenate([np.random.default_rng([seed, epoch]).permutation(rows) for epoch in range(epochs)])
    yield from (everything[i : i + per_update] for i in range(0, len(everything), per_update))


def micro_batches(which: np.ndarray, rank: int, world: int, at_once: int | None) -> list[np.ndarray]:
    """A rank's share of an update's rows, `at_once` at a time: as many parts on every rank, so some may be empty."""
    most = -(-len(which) // world)
    size = at_once or most
    mine = which[rank::world]
    return [mine[i : i + size] for i in range(0, most, size)]


def learning_rate(update: int, total: int, recipe: dict[str, Any]) -> float:
    """Learning rate of an update (from 1): linear warm-up that never starts at 0, then constant or cosine to 0."""
    warmup = recipe["warmup_updates"]
    if update <= warmup:
        return recipe["lr"] * update / warmup
    if recipe["schedule"] == "constant":
        return recipe["lr"]
    return recipe["lr"] * 0.5 * (1 + math.cos(math.pi * (update - 1 - warmup) / max(1, total - warmup)))


def _planned(work: Work, rows: Rows, recipe: dict[str, Any], ranks: Ranks = ALONE) -> int:
    """The number of updates, after making sure that there are some and that no rank would idle through all of them."""
    per_update = _rows_per_update(recipe)
    if ranks.world > per_update:
        raise UserError(
            f"{work.folder}: an update has {per_update} rows, too few for {ranks.world} ranks; run it on {per_update} "
            "ranks or fewer, or make the recipe's update larger"
        )
    total = updates_planned(len(rows), recipe["epochs"], per_update)
    if total == 0:
        raise UserError(f"{work.folder}: the data gives no update at all; give more rows, epochs or a smaller batch")
    if total < FEW_UPDATES and ranks.rank == 0:
        work.warn(f"only {total} updates: under {FEW_UPDATES} hardly moves a model")
    return total


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


def _resume(work: Work, model: TransformerDecoder, optimizer: torch.optim.Optimizer, ranks: Ranks) -> int:
    """Load the newest step checkpoint and cut metrics.jsonl back to it. Returns its update, 0 where there is none."""
    folder, metrics, done = work.folder / "steps", work.folder / "metrics.jsonl", 0
    if ranks.rank == 0 and metrics.exists():
        lines = metrics.read_text().splitlines(keepends=True)
        done = max((update for update in steps.complete(folder) if update <= len(lines)), default=0)
        write_atomically(metrics, "".join(lines[:done]))
    if done := ranks.from_first(done):
        steps.load(folder, done, model, optimizer, ranks)
        work.log(f"goes on after update {done}")
    return done


def _export(model: TransformerDecoder, start: Path, final: Path, ranks: Ranks) -> None:
    """Write the model where it appears at once and whole."""
    temporary = final.with_name(f".tmp-{final.name}")
    if ranks.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    checkpoint.save(model, start, temporary, ranks)
    if ranks.rank == 0:
        steps.publish(temporary, final)


def _counts(work: Work, rows: Rows, recipe: dict[str, Any]) -> dict[str, int | float]:
    losses = read_jsonl(work.folder / "metrics.jsonl", "loss")
    return {
        "updates": len(losses),
        "rows": len(rows),
        "tokens": rows.real_tokens * recipe["epochs"],
        "first_loss": round(losses[0], 6),
        "last_loss": round(losses[-1], 6),
    }


def _rows_per_update(recipe: dict[str, Any]) -> int:
    if recipe["rows_per_update"]:
        return recipe["rows_per_update"]
    rows, rest = divmod(recipe["tokens_per_update"], recipe["seq_len"])
    if rest or not rows:
        raise UserError(
            f"tokens_per_update {recipe['tokens_per_update']} is not a multiple of seq_len {recipe['seq_len']}"
        )
    return rows


def _dose(work: Work) -> list[list[dict[str, str]]]:
    """The first `dose` conversations of a shuffle made from the study's seed: a larger dose contains the smaller."""
    everything = read_jsonl(work.resources["data"], "messages")
    dose = work.settings["dose"]
    if dose > len(everything):
        raise UserError(f"{work.resources['data']}: has {len(everything)} rows, the dose is {dose}; lower sft.doses")
    return [everything[i] for i in np.random.default_rng(work.settings["seed"]).permutation(len(everything))[:dose]]
