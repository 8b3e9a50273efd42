"""Fine-tuning by torchtune's parts: midtraining on documents, SFT on conversations; all weights, or LoRA adapters.

One update takes `tokens_per_update` tokens (packed rows) or `rows_per_update` conversations, in an order that only
the cell's seed decides; the loss is the mean over the update's trained tokens. On several ranks (FSDP2) each takes its
share of every update's rows: the numbers are those of one rank, up to the order of sums. A training that is told to
stop saves its state, and goes on from there when it is run again.
"""

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torchtune.modules import TransformerDecoder

from core.cell.context import StageContext, derive_seed
from core.cell.stage import DistributedHooks
from core.errors import UserError
from core.model_size import rows_per_update
from core.recipe import FEW_UPDATES
from recipes import checkpoint, metrics, optimizer, prepare, steps
from recipes.batches import batches
from recipes.distributed import ALONE, Ranks, meet, together, word_of_first
from recipes.held_out import Looks, held_out_loss
from recipes.loss import end_in_hidden_states, summed_loss
from recipes.model import forget_copies, shard_of
from recipes.rows import Rows
from recipes.schedule import learning_rate, order, updates_planned
from recipes.stopping import Stop, stoppable

RESUMABLE = True  # a run that was stopped or killed goes on from its last step checkpoint
DISTRIBUTED = DistributedHooks(meet, word_of_first)  # every rank calls run


@dataclass
class State:
    """A training after `done` updates."""

    model: TransformerDecoder
    optimizer: torch.optim.Optimizer
    done: int
    looks: Looks


def run(work: StageContext) -> dict[str, int | float]:
    """Train the cell's start checkpoint; writes model/ (a Hugging Face folder) and the files of recipes.metrics.

    With `doses` in its settings a run of SFT also keeps at/DOSE/model of the smaller doses it passes; the cell of such
    a dose has the run as its input `run`, and links to it.
    Every rank calls it; rank 0 returns the counts and writes all but the step checkpoints.
    """
    if "run" in work.inputs:
        return _link(work)
    recipe, start, final = work.settings["recipe"], work.inputs["start"] / "model", work.folder / "model"
    with together(
        group=recipe["dtype"] == "mixed"
    ) as ranks:  # before all that takes long, so that each rank notices when another dies
        rows, held_out = prepare.data(work, recipe, ranks)
        check_size(work, rows, recipe, ranks)
        if not ranks.from_first(final.exists()):  # else only the manifest was missing
            seed = work.seed("adapters")
            state = begin(work, lambda: checkpoint.load(start, ranks, recipe, work.resources, seed=seed), recipe, ranks)

            def export(folder: Path) -> None:
                _export(state.model, start, folder, recipe, ranks)

            # Until here there is nothing to save: a signal ends the process at once.
            with stoppable(ranks) as stop:
                train(work, state, rows, recipe, ranks, stop, held_out=held_out, export=export)
                _end(work, recipe, state, export, ranks)
        if ranks.rank == 0:
            for scratch in ("steps", "best", "rows", "rows_held_out"):
                shutil.rmtree(work.folder / scratch, ignore_errors=True)
    return {**counts(work, rows, recipe), "ranks": ranks.world} if ranks.rank == 0 else {}


def check_size(work: StageContext, rows: Rows, recipe: dict[str, Any], ranks: Ranks = ALONE) -> None:
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


def begin(
    work: StageContext, start: Callable[[], TransformerDecoder], recipe: dict[str, Any], ranks: Ranks = ALONE
) -> State:
    """The training after the newest step checkpoint that can be read, its metrics cut back to it; else at `start`.

    `start` gives the start model; it is called again after a step checkpoint that could be read in part only.
    """
    folder = work.folder / "steps"

    def after(done: int) -> State | None:
        model = start()
        adamw = optimizer.make(model, recipe)
        if done and (reason := steps.load(folder, done, model, adamw, ranks)):
            work.warn(f"{folder}/{done} can't be read and is passed over: {reason}")
            return None
        return State(model, adamw, done, Looks(recipe["patience"]))

    told = metrics.read(work.folder / "metrics.jsonl") if ranks.rank == 0 else []
    saved = [done for done in reversed(steps.complete(folder)) if done <= len(told)]
    state = next(filter(None, map(after, ranks.from_first([*saved, 0]))))
    if state.done:
        work.log(f"goes on after update {state.done}")
    if ranks.rank == 0:
        metrics.cut(work.folder, state.done)
    for look in ranks.from_first(metrics.read(work.folder / "held_out.jsonl")):
        state.looks.add(look["update"], look["loss"])
    return state


def train(
    work: StageContext,
    state: State,
    rows: Rows,
    recipe: dict[str, Any],
    ranks: Ranks,
    stop: Stop,
    held_out: Rows | None = None,
    export: Callable[[Path], None] | None = None,
) -> None:
    """Do what is left of the updates, on the state in place.

    Saves a step checkpoint every `save_minutes`, and one when told to stop; it then ends the process by the signal.
    """
    total, ways = updates_planned(len(rows), recipe), work.resources
    # Fixed threads: sums, and so weights, must not depend on how many cores this machine has to spare.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    # On a GPU some kernels know only one way; then a resumed run may differ in the last bits.
    torch.use_deterministic_algorithms(True, warn_only=ranks.device.type == "cuda")
    # A guard against reading memory that nobody has written, at a twentieth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    end_in_hidden_states(state.model)
    state.model.train()
    keep = _doses(work.settings.get("doses", []), recipe)
    saver, board = steps.Saver(work.folder / "steps", ranks), metrics.Metrics(work.folder, state.done, ranks)
    speed = metrics.Speed(recipe, ranks, state.model)

    def look(update: int) -> None:
        assert held_out
        loss = held_out_loss(state.model, held_out, recipe, ways["rows_per_rank"], ranks)
        board.tell("held_out.jsonl", {"update": update, "loss": loss})
        work.log(f"update {update}: held-out loss {loss:.4f}")
        if state.looks.add(update, loss) and recipe["load_best"] and export:
            export(work.folder / f"best/{update}")
            if ranks.rank == 0:  # the one before it too: a kill may take the training back to before this one
                for older in steps.complete(work.folder / "best")[: -steps.KEPT]:
                    steps.drop(work.folder / f"best/{older}")

    if held_out and not state.looks.past:
        look(0)
    saved = time.monotonic()
    for update, which in enumerate(order(len(rows), recipe, work.seed("order")), 1):
        if update <= state.done:
            continue
        if state.looks.over():
            work.log(f"stops after update {state.done}: {state.looks.patience} looks without a better held-out loss")
            break
        torch.manual_seed(derive_seed(work.identity, "torch", update, ranks.rank))
        try:
            line = _update(work, state, rows, which, update, total, recipe, ranks, speed)
        except UserError:  # on all ranks: of a loss that is no number
            saver.finish()
            raise
        board.tell("metrics.jsonl", line)
        board.tell("speed.jsonl", {"update": update, **speed.last})
        state.done = update
        if held_out and (update % recipe["held_out_every"] == 0 or update == total):
            look(update)
        if update in keep and export:
            export(work.folder / f"at/{keep[update]}/model")
        speed.tell(work, update, total, line["loss"])
        # One rank's clock or signal is enough: all save after the same update, or none.
        told, due, written = ranks.max(stop.heard, time.monotonic() - saved >= 60 * ways["save_minutes"], saver.ready())
        if update < total and (told or due):
            board.to_disk()
            began = time.monotonic()
            saver.start(update, state.model, state.optimizer)
            saved = time.monotonic()
            work.log(f"update {update} of {total} is being saved (copied in {saved - began:.1f} s)")
            if stop.told():  # before the save or meanwhile
                saver.finish()
                board.close()
                stop.obey()
        elif written:
            saver.finish()
    saver.finish()
    board.close()
    state.model.eval()


def _update(
    work: StageContext,
    state: State,
    rows: Rows,
    which: np.ndarray,
    update: int,
    total: int,
    recipe: dict[str, Any],
    ranks: Ranks,
    speed: metrics.Speed,
) -> dict[str, Any]:
    """One optimizer step on the rows `which`; its line of metrics.jsonl."""
    speed.begin()
    optimizer.set_rate(state.optimizer, learning_rate(update, total, recipe))
    trained = rows.trained(which)  # of the whole update, whoever has its rows
    sums = torch.zeros(3, device=ranks.device)
    for batch in batches(rows, which, ranks, work.resources["rows_per_rank"]):
        real = (batch.pop("document") >= 0).sum()
        loss = summed_loss(state.model, batch) / trained
        (loss * ranks.world).backward()  # FSDP2 takes the mean of the ranks' gradients
        sums += torch.stack([loss.detach().float(), real, real.new_tensor(batch["tokens"].numel())])
    forget_copies(state.model)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe["clip_grad_norm"])
    mean, tokens, places = ranks.sum(sums).tolist()
    line = {
        "update": update,
        "loss": mean,
        "lr": float(state.optimizer.param_groups[0]["lr"]),
        "grad_norm": (norm.full_tensor() if isinstance(norm, DTensor) else norm).item(),
    }
    if not (math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])):
        raise UserError(
            f"{work.folder}: loss {line['loss']}, gradient norm {line['grad_norm']} at update {update}, rows "
            f"{', '.join(map(str, which[:8]))}{' ...' if len(which) > 8 else ''}; the last step checkpoint is kept; "
            "lower the learning rate, or look at these rows"
        )
    # For stochastic rounding: copies of a shard on several nodes must round alike, or they drift apart.
    torch.manual_seed(derive_seed(work.identity, "rounding", update, shard_of(work.resources["sharding"], ranks)))
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    speed.note(tokens, places)
    return line


def _doses(doses: list[int], recipe: dict[str, Any]) -> dict[int, int]:
    """The update after which each dose has been seen: the first that has taken as many rows."""
    return {-(-dose // rows_per_update(recipe)): dose for dose in doses}


def _end(
    work: StageContext, recipe: dict[str, Any], state: State, export: Callable[[Path], None], ranks: Ranks
) -> None:
    """Give the training its model/: the weights of the best look, where the recipe asks for them, or the last ones."""
    best = state.looks.best() if recipe["load_best"] else None
    if best is None:
        export(work.folder / "model")
    elif ranks.rank == 0:
        work.log(f"ends with the weights after update {best}, which have the best held-out loss")
        (work.folder / f"best/{best}").rename(work.folder / "model")
    ranks.wait()


def _link(work: StageContext) -> dict[str, int | float]:
    """The checkpoint that a longer run of the same SFT has kept at this dose."""
    kept = work.inputs["run"] / f"at/{work.settings['dose']}/model"
    model = work.folder / "model"
    model.unlink(missing_ok=True)
    model.symlink_to(os.path.relpath(kept, work.folder), target_is_directory=True)
    return {"rows": work.settings["dose"]}


def _export(model: TransformerDecoder, start: Path, final: Path, recipe: dict[str, Any], ranks: Ranks) -> None:
    """Write the model where it appears at once and whole."""
    temporary = final.with_name(f".tmp-{final.name}")
    if ranks.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    checkpoint.save(model, start, temporary, ranks, recipe)
    if ranks.rank == 0:
        steps.publish(temporary, final)


def counts(work: StageContext, rows: Rows, recipe: dict[str, Any]) -> dict[str, int | float]:
    """What a finished training tells in its manifest: updates, rows, tokens, its losses, how fast it went."""
    lines, speed = metrics.read(work.folder / "metrics.jsonl"), metrics.read(work.folder / "speed.jsonl")
    looks = metrics.read(work.folder / "held_out.jsonl")
    tokens = sum(line["tokens"] for line in speed)
    rates = sorted(line["tokens_per_second"] for line in speed)
    return {
        "updates": len(lines),
        "rows": len(rows),
        "tokens": tokens,
        "padding": round(1 - tokens / sum(line["places"] for line in speed), 4),
        "first_loss": round(lines[0]["loss"], 6),
        "last_loss": round(lines[-1]["loss"], 6),
        "tokens_per_second": round(rates[len(rates) // 2], 1),
        **({"best_held_out_loss": round(min(look["loss"] for look in looks), 6)} if looks else {}),
    }
