"""Fine-tuning with torchtune's parts: midtraining on documents, SFT on conversations; full or LoRA.

An optimizer step takes `tokens_per_step` tokens (packed rows) or `global_batch_size` conversations,
in an order that only the cell's seed decides. Its loss is the mean over the step's trained tokens.
On several ranks (FSDP2) each takes its share of every step's rows: the numbers are those of one
rank, up to the order of sums. A training that receives a signal saves its state, and resumes from
it when it is run again.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torchtune.modules import TransformerDecoder

from core.cell import heartbeat
from core.cell.context import StageContext, derive_seed
from core.cell.heartbeat import Heartbeat
from core.cell.stage import DistributedHooks
from core.cores import omp_threads
from core.errors import UserError
from core.recipe import FEW_UPDATES, Training
from recipes import checkpoint, doses, metrics, optimizer, prepare, step_checkpoint
from recipes.batches import HostBatch, StepInput, ahead, host_batches, to_device
from recipes.distributed import (
    SINGLE_PROCESS,
    Ranks,
    process_group,
    rendezvous_store,
    sync_with_rank0,
)
from recipes.held_out import EvalHistory, held_out_loss
from recipes.loss import chunked_loss, skip_output_layer
from recipes.metrics import StepResult
from recipes.model import reshard, shard_index, sync_gradients
from recipes.preemption import SignalGuard, guard_signals
from recipes.preservation import Preservation
from recipes.rows import Rows
from recipes.schedule import batch_indices, learning_rate, num_steps

RESUMABLE = True  # a run that was stopped or killed resumes from its last step checkpoint
DISTRIBUTED = DistributedHooks(rendezvous_store, sync_with_rank0)  # every rank calls run


def run(context: StageContext) -> dict[str, int | float]:
    """Train the cell's start checkpoint; writes model/ (a Hugging Face folder) and metrics.FILES.

    With `doses` in its settings a run of SFT also keeps doses/DOSE/model of the smaller doses that
    it passes; the cell of such a dose has the run as its input `run`, and links to it. Every rank
    calls this; rank 0 returns the counts and writes everything but the step checkpoints.
    """
    if "run" in context.inputs:
        return doses.link(context)
    recipe = Training.from_settings(context.settings["recipe"], context.resources)
    start = context.inputs["start"] / "model"
    # The group is made before all that takes long, so that each rank notices when another dies.
    with process_group(force=recipe.dtype == "mixed") as ranks:
        chat = prepare.chat_of(context)
        rows, held_out = prepare.prepare_rows(context, recipe, ranks, chat)
        check_size(context, rows, recipe, ranks)
        if chat and ranks.rank == 0:
            context.facts["answers"] = prepare.end_warnings(start, recipe, chat)
            for warning in context.facts["answers"]:
                context.warn(warning)
        is_done = ranks.rank == 0 and is_trained(context, start, held_out is not None)
        if not ranks.broadcast(is_done):  # otherwise only the manifest is missing
            end_ids = chat.end_ids() if chat else []
            trains_rows = chat and recipe.lora and recipe.lora.train_special_tokens
            token_ids = chat.template_ids() if chat and trains_rows else []
            trainer = Trainer(context, recipe, rows, start, ranks, held_out, end_ids)
            seed = context.seed("adapters")
            trainer.resume_or_init(lambda: checkpoint.load(start, ranks, recipe, seed, token_ids))
            # Until here there is nothing to save: a signal ends the process at once.
            with guard_signals(ranks) as guard:
                with trainer.heartbeat:
                    trainer.train(guard)
                trainer.finalize()
        if ranks.rank == 0:
            for scratch in ("steps", "best", "rows", "rows_held_out", heartbeat.FOLDER):
                shutil.rmtree(context.folder / scratch, ignore_errors=True)
    if ranks.rank:
        return {}
    return {**metrics.counts(context.folder, len(rows)), "ranks": ranks.world_size}


def is_trained(context: StageContext, start: Path, evaluates: bool) -> bool:
    """Whether the training has ended and all that it writes is there.

    It writes model/ last. Where that is there and something else is missing or cut short, files
    were damaged later: they are removed, and the training begins anew.
    """
    folder = context.folder
    if not (folder / "model").exists():
        return False
    models = ["model", *(f"doses/{dose}/model" for dose in context.settings.get("doses", []))]
    incomplete = [name for name in models if not checkpoint.is_complete(folder / name, start)]
    steps, evaluations, speeds = (len(metrics.read(folder / name)) for name in metrics.FILES)
    if not steps or steps != speeds or (evaluates and not evaluations):
        incomplete += metrics.FILES
    if not incomplete:
        return True
    context.warn(f"incomplete: {', '.join(incomplete)}; the training begins anew")
    for name in ("doses", "best", "steps", "model"):
        step_checkpoint.remove(folder / name)
    return False


def check_size(
    context: StageContext, rows: Sized, recipe: Training, ranks: Ranks = SINGLE_PROCESS
) -> None:
    """Warn of few optimizer steps.

    Raises UserError where there would be no step, or a rank would be idle in all of them.
    """
    total_steps = num_steps(len(rows), recipe)
    rows_per_step = recipe.rows_per_step
    if ranks.world_size > rows_per_step:
        raise UserError(
            where=str(context.folder),
            what=f"an optimizer step has {rows_per_step} rows, too few for "
            f"{ranks.world_size} ranks",
            fix=f"run it on {rows_per_step} ranks or fewer, or make the recipe's batch larger",
        )
    if total_steps == 0:
        raise UserError(
            where=str(context.folder),
            what="the data gives no optimizer step at all",
            fix="give more rows, epochs or a smaller batch",
        )
    if total_steps < FEW_UPDATES and ranks.rank == 0:
        context.warn(
            f"only {total_steps} optimizer steps: under {FEW_UPDATES} hardly moves a model"
        )


class Trainer:
    """One training as each of its ranks runs it. Every method is a collective."""

    model: TransformerDecoder
    optimizer: torch.optim.Optimizer
    step: int
    """Optimizer steps done."""
    history: EvalHistory
    preservation: Preservation

    def __init__(
        self,
        context: StageContext,
        recipe: Training,
        rows: Rows,
        start: Path,
        ranks: Ranks = SINGLE_PROCESS,
        held_out: Rows | None = None,
        end_ids: list[int] | None = None,
    ) -> None:
        """`start`: the model folder whose config, tokenizer and chat template exports take over.

        `end_ids`: ids of tokens that end an answer, which exports add to the model's own.
        """
        self.context = context
        self.recipe = recipe
        self.rows = rows
        self.start = start
        self.ranks = ranks
        self.held_out = held_out
        self.heartbeat = Heartbeat(context.folder, ranks.rank, ranks.world_size)
        self.end_ids = end_ids or []
        self.total_steps = num_steps(len(rows), recipe)
        self.unread: StepResult | None = None
        # On a GPU a step's numbers are read when the next step has begun: waiting would idle it.
        self.reads_later = ranks.device.type == "cuda"
        self.step_of_dose = doses.steps(context, len(rows), recipe)

    def resume_or_init(self, load_start: Callable[[], TransformerDecoder]) -> None:
        """Resume from the newest readable step checkpoint, or begin with the start model.

        `load_start` gives the start model; it is called for each attempt, because a checkpoint that
        can be read in part only leaves a spoiled model behind. The metrics are cut back to the
        step.
        """
        folder = self.context.folder
        num_logged = 0
        if self.ranks.rank == 0:
            num_logged = len(metrics.read(folder / "metrics.jsonl"))
        # A checkpoint ahead of the metrics is not used: their record would have a hole.
        saved = step_checkpoint.list_checkpoints(folder / "steps")
        usable = [step for step in reversed(saved) if step <= num_logged]
        for step in self.ranks.broadcast([*usable, 0]):
            if self._restore(step, load_start):
                break
        if self.step:
            self.context.log(f"resumes after step {self.step}")
        if self.ranks.rank == 0:
            metrics.truncate(folder, self.step)
        self.history = EvalHistory(self.recipe.patience)
        for line in self.ranks.broadcast(metrics.read(folder / "held_out.jsonl")):
            self.history.add(line["step"], line["loss"])

    def _restore(self, step: int, load_start: Callable[[], TransformerDecoder]) -> bool:
        """Whether the state after `step` could be restored; that of step 0 always can."""
        model = load_start()
        adamw = optimizer.build_optimizer(model, self.recipe)
        preservation = Preservation(self.recipe, model, load_start)
        if step:
            folder = self.context.folder / "steps"
            if reason := step_checkpoint.load(folder, step, model, adamw, self.ranks):
                self.context.warn(f"{folder}/{step} can't be read and is skipped: {reason}")
                return False
        self.model = model
        self.preservation = preservation
        self.optimizer = adamw
        self.step = step
        return True

    def train(self, guard: SignalGuard) -> None:
        """Run the remaining optimizer steps.

        Saves a step checkpoint every `checkpoint_minutes`, and one when a signal asks to stop; the
        process then ends by that signal.
        """
        self._set_deterministic()
        skip_output_layer(self.model)
        self.model.train()
        self.saver = step_checkpoint.AsyncSaver(self.context.folder / "steps", self.ranks)
        self.speed = metrics.Speed(self.recipe, self.ranks, self.model)
        opened = metrics.Metrics(self.context.folder, self.step, self.ranks)
        with closing(opened) as self.metrics:
            self._run_steps(guard)
        self.model.eval()

    def _run_steps(self, guard: SignalGuard) -> None:
        if self.held_out and not self.history.losses:
            self.evaluate(0)
        last_save = time.monotonic()
        for given in self.remaining_steps():
            if self.history.should_stop():
                self.context.log(
                    f"stops after step {self.step}: {self.history.patience} evaluations without a "
                    "lower held-out loss"
                )
                break

            result = self.train_step(given)
            self.read_result()  # of the step before
            self.unread = result
            self.step = step = given.step
            evaluates = self.held_out is not None and self._evaluates_at(step)
            passed = [dose for dose, at in self.step_of_dose.items() if at == step]
            if not self.reads_later or evaluates or passed:
                self.read_result()
            with self.heartbeat.paused():
                if evaluates:
                    self.evaluate(step)
                for dose in passed:
                    self.export(self.context.folder / f"doses/{dose}/model")

            # One rank's clock or signal is enough: all save after the same step, or none.
            is_due = time.monotonic() - last_save >= 60 * self.recipe.checkpoint_minutes
            requested, due, written = self.ranks.max(guard.received, is_due, self.saver.ready())
            if step < self.total_steps and (requested or due):
                with self.heartbeat.paused():
                    last_save = self.save()
                if guard.requested():  # before the save or meanwhile
                    self.saver.finish()
                    self.metrics.close()
                    guard.reraise()
            elif written:
                self.saver.finish()
        self.read_result()
        self._log_speed()
        self.saver.finish()

    def remaining_steps(self) -> Iterator[StepInput]:
        """What this rank has to run, from the step after `self.step` on."""
        return ahead(self._steps())

    def _steps(self) -> Iterator[StepInput]:
        first = self.step + 1
        steps = batch_indices(len(self.rows), self.recipe, self.context.seed("order"))
        for step, indices in enumerate(steps, 1):
            if step >= first:
                batches = host_batches(self.rows, indices, self.ranks, self.recipe)
                yield StepInput(step, indices, self.rows.num_trained(indices), batches)

    def _set_deterministic(self) -> None:
        # A fixed number of threads: sums, and so weights, must not depend on this machine's cores.
        torch.set_num_threads(omp_threads())
        # On a GPU some kernels have no deterministic form; a resumed run may differ in the last
        # bits.
        on_gpu = self.ranks.device.type == "cuda"
        torch.use_deterministic_algorithms(self.recipe.deterministic, warn_only=on_gpu)
        # Filling memory guards against reads of uninitialised memory, and costs a twentieth of the
        # time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def _evaluates_at(self, step: int) -> bool:
        every = self.recipe.eval_every
        return step == self.total_steps or (every is not None and step % every == 0)

    def train_step(self, given: StepInput) -> StepResult:
        """One optimizer step. On a GPU nothing in it waits for the GPU."""
        step = given.step
        self.heartbeat.begin(step)
        torch.manual_seed(derive_seed(self.context.identity, "torch", step, self.ranks.rank))
        started = self.speed.begin_step()
        optimizer.set_lr(self.optimizer, learning_rate(step, self.total_steps, self.recipe))
        total_loss, total_kl = torch.zeros(2, device=self.ranks.device).unbind()
        for number, batch in enumerate(given.batches, 1):
            is_last = number == len(given.batches)
            sync_gradients(self.model, self.recipe, self.ranks, is_last)
            loss, kl = self.loss(batch, given)
            (loss * self.ranks.world_size).backward()  # FSDP2 takes the mean over the ranks
            total_loss += loss.detach().float()
            total_kl += kl
        reshard(self.model)
        self.preservation.end_step(self.model)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad_norm)
        # For stochastic rounding: replicas of a shard on several nodes must be rounded alike, or
        # they drift apart.
        shard = shard_index(self.recipe, self.ranks)
        torch.manual_seed(derive_seed(self.context.identity, "rounding", step, shard))
        if given.num_trained:  # else momentum and weight decay would move the weights
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # Filled on the GPU: a copy from the host would wait for it.
        counts = [torch.full_like(total_loss, count) for count in given.sizes()]
        sums = self.ranks.sum(torch.stack([total_loss, total_kl, *counts]))
        whole_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        lr = float(self.optimizer.param_groups[0]["lr"])
        return StepResult.of(given, started, lr, torch.cat([sums, whole_norm.float().view(1)]))

    def loss(self, batch: HostBatch, given: StepInput) -> tuple[torch.Tensor, torch.Tensor]:
        """A micro-batch's part of the step's loss, and of its KL divergence (no gradient)."""
        inputs = to_device(batch, self.ranks)
        reference = self.preservation.reference(self.model, inputs)
        nats, kl = chunked_loss(self.model, inputs, reference)
        trained = max(given.num_trained, 1)  # rows without a trained token: a loss of 0
        return nats / trained, kl / trained

    def notes(self, step: int) -> dict[str, Any]:
        """What a kind of training adds to a step's line of metrics.jsonl."""
        return {}

    def read_result(self) -> None:
        """Wait for the numbers of the step that has run last, if need be, and record them.

        On a GPU the next step has begun meanwhile, unless its weights are saved or evaluated first.
        Raises UserError, on all ranks, where loss or gradient are not finite: the weights are
        spoiled then, and no one has read them.
        """
        if self.unread is None:
            return
        result = self.unread
        self.unread = None
        loss, kl, tokens, positions, norm = result.read()
        line = {"step": result.step, "loss": loss, "lr": result.lr, "grad_norm": norm}
        if factor := self.recipe.kl_to_start:
            line |= {"loss": loss - factor * kl, "kl": kl}
        line |= self.notes(result.step)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.saver.finish()
            raise self._diverged(line, result.indices)
        self._log_speed()
        self.metrics.log("metrics.jsonl", line)
        self.speed.end_step(result.step, tokens, positions, result.started)
        self.speed.report(self.context, result.step, self.total_steps, loss)

    def _log_speed(self) -> None:
        """Write the last step's line of speed.jsonl, with the evaluations since."""
        if line := self.speed.take_line():
            self.metrics.log("speed.jsonl", line)

    def _diverged(self, line: dict[str, Any], indices: np.ndarray) -> UserError:
        rows = ", ".join(map(str, indices[:8])) + (" ..." if len(indices) > 8 else "")
        return UserError(
            where=str(self.context.folder),
            what=f"the loss is {line['loss']} and the gradient norm {line['grad_norm']} at step "
            f"{line['step']}, rows {rows}; the last step checkpoint is kept",
            fix="lower the learning rate, or look at these rows",
        )

    def evaluate(self, step: int) -> None:
        """Evaluate the held-out loss after `step`; keep the weights if `load_best_checkpoint` needs
        them."""
        assert self.held_out
        with self.speed.evaluation():
            loss = held_out_loss(self.model, self.held_out, self.recipe, self.ranks)
        self.metrics.log("held_out.jsonl", {"step": step, "loss": loss})
        self.context.log(f"step {step}: held-out loss {loss:.4f}")
        is_best = self.history.add(step, loss)
        if is_best and self.recipe.load_best_checkpoint:
            folder = self.context.folder / "best"
            self.export(folder / str(step))
            if self.ranks.rank == 0:
                # Keep the one before it too: a kill may set the training back to before this one.
                for older in step_checkpoint.list_checkpoints(folder)[: -step_checkpoint.KEEP]:
                    step_checkpoint.remove(folder / str(older))

    def save(self) -> float:
        """Begin to write a step checkpoint. Returns the time (time.monotonic) of its copy."""
        self.read_result()
        self._log_speed()
        self.metrics.fsync()
        started = time.monotonic()
        self.saver.start(self.step, self.model, self.optimizer)
        copied = time.monotonic()
        self.context.log(
            f"step {self.step} of {self.total_steps} is being saved "
            f"(copied in {copied - started:.1f} s)"
        )
        return copied

    def export(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder, which gets its name when it is complete."""
        temporary = folder.with_name(f".tmp-{folder.name}")
        if self.ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        checkpoint.save(
            self.model,
            self.start,
            temporary,
            self.ranks,
            self.recipe,
            self.end_ids,
            self.context.resources.get("files", {}).get("chat_template"),
        )
        if self.ranks.rank == 0:
            step_checkpoint.commit(temporary, folder)

    def finalize(self) -> None:
        """Write model/: the last weights, or with `load_best_checkpoint` those of the lowest
        held-out loss."""
        folder = self.context.folder
        best = self.history.best() if self.recipe.load_best_checkpoint else None
        if best is None:
            self.export(folder / "model")
        elif self.ranks.rank == 0:
            self.context.log(f"ends with the weights after step {best}: the lowest held-out loss")
            (folder / f"best/{best}").rename(folder / "model")
        self.ranks.barrier()
