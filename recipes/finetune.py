"""Full fine-tuning by torchtune's parts: midtraining on documents, SFT on conversations.

One update takes `tokens_per_update` tokens (packed rows) or `rows_per_update` conversations, in an order that only
the cell's seed decides; the loss is the mean over the update's trained tokens. Weights, gradients and AdamW's state
are fp32.
"""

import json
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torchtune.modules import TransformerDecoder
from torchtune.modules.loss import CEWithChunkedOutputLoss

from recipes import checkpoint
from recipes.rows import Rows, conversations, load_tokenizer, pack, read_jsonl
from study.errors import UserError
from study.work import Work

FEW_UPDATES = 100  # a handful of updates at a small learning rate hardly moves a model


def run(work: Work) -> dict[str, int | float]:
    """Train the cell's start checkpoint; writes model/ (a Hugging Face folder) and metrics.jsonl."""
    recipe, start = work.settings["recipe"], work.inputs["start"] / "model"
    tokenizer = load_tokenizer(start)
    if "documents" in work.inputs:
        texts = read_jsonl(work.inputs["documents"] / "documents.jsonl", "text")
        rows = pack(texts, tokenizer, recipe["seq_len"])
    else:
        rows = conversations(_dose(work), tokenizer, recipe["seq_len"])
    model = checkpoint.load(start)
    counts = train(work, model, rows, recipe)
    checkpoint.save(model, start, work.folder / "model")
    return counts


def train(work: Work, model: TransformerDecoder, rows: Rows, recipe: dict[str, Any]) -> dict[str, int | float]:
    """Train `model` in place. Returns updates, rows, tokens, the first and the last loss (nats a token).

    Raises UserError where not a single update would be made.
    """
    per_update = _rows_per_update(recipe)
    total = updates_planned(len(rows), recipe["epochs"], per_update)
    if total == 0:
        raise UserError(f"{work.folder}: the data gives no update at all; give more rows, epochs or a smaller batch")
    if total < FEW_UPDATES:
        work.warn(f"only {total} updates: under {FEW_UPDATES} hardly moves a model")
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
    losses = []
    with open(work.folder / "metrics.jsonl", "w", encoding="utf-8") as metrics:
        for update, which in enumerate(order(len(rows), recipe["epochs"], per_update, work.seed("order")), 1):
            batch = rows.batch(which)
            labels = batch.pop("labels")
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(update, total, recipe)
            loss = loss_function(model(**batch), labels)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip_grad_norm"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise UserError(f"{work.folder}: the loss is {losses[-1]} at update {update}; lower the learning rate")
            line = {
                "update": update,
                "loss": losses[-1],
                "lr": optimizer.param_groups[0]["lr"],
                "grad_norm": norm.item(),
            }
            metrics.write(json.dumps(line) + "\n")
            work.progress(update, total, "updates")
    model.eval()
    return {
        "updates": total,
        "rows": len(rows),
        "tokens": rows.real_tokens * recipe["epochs"],
        "first_loss": round(losses[0], 6),
        "last_loss": round(losses[-1], 6),
    }


def updates_planned(rows: int, epochs: int, per_update: int) -> int:
    """Optimizer updates of a training; the last one may be smaller than the others, so that no row is left out."""
    return -(-rows * epochs // per_update)


def order(rows: int, epochs: int, per_update: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of each update. Every epoch is a permutation of its own, made from (seed, epoch) alone."""
    everything = np.concatenate([np.random.default_rng([seed, epoch]).permutation(rows) for epoch in range(epochs)])
    yield from (everything[i : i + per_update] for i in range(0, len(everything), per_update))


def learning_rate(update: int, total: int, recipe: dict[str, Any]) -> float:
    """Learning rate of an update (from 1): linear warm-up that never starts at 0, then constant or cosine to 0."""
    warmup = recipe["warmup_updates"]
    if update <= warmup:
        return recipe["lr"] * update / warmup
    if recipe["schedule"] == "constant":
        return recipe["lr"]
    return recipe["lr"] * 0.5 * (1 + math.cos(math.pi * (update - 1 - warmup) / max(1, total - warmup)))


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
