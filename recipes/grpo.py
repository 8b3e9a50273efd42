"""Reinforcement learning by GRPO: answers sampled from the model, rewarded, and compared in groups.

Each optimizer step takes `group_size` answers to each of its prompts, which vLLM samples in this
process with the weights that the step before has left (`core.inference.rollouts`). Their rewards
and tokens are appended to rollouts.jsonl before the step is taken. A training that is run again
takes from there what it has: it ends with the same file, and on a CPU with the same weights.

One process: the model and vLLM share a GPU.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE

from core.cell import heartbeat
from core.cell.context import StageContext
from core.errors import Problem, UserError
from core.files import read_rows, write_atomically
from core.grpo_recipe import Grpo
from core.inference import vllm_engine
from core.inference.rollouts import Sampler
from core.model_folder.chat import Chat
from core.model_folder.tokenizer import load_tokenizer, special_names
from core.recipe import MULTIPLE, Training
from recipes import checkpoint, metrics
from recipes.batches import HostBatch, StepInput, to_device
from recipes.conversations import BadRow, check_bad_rows
from recipes.distributed import Ranks, process_group
from recipes.finetune import Trainer, check_size, is_trained
from recipes.grpo_loss import (
    Clip,
    StepTotals,
    group_advantages,
    has_spread,
    policy_loss,
    token_shares,
)
from recipes.loss import output_weight, token_log_probs
from recipes.preemption import guard_signals
from recipes.prepare import list_bad_rows
from recipes.rewards import response_of, reward_of_cell
from recipes.rollouts import Rollout, RolloutFile
from recipes.schedule import batch_indices

RESUMABLE = True
FIXED_SET = "fixed_set.jsonl"
Notes = dict[str, int | float]


def run(context: StageContext) -> dict[str, int | float]:
    """Train the cell's start checkpoint by GRPO; writes model/ (a Hugging Face folder) and

    rollouts.jsonl    recipes.rollouts
    metrics.jsonl     as recipes.metrics; of each step also reward and length (tokens) of its
                      rollouts, response_share (with <response>), groups_without_spread
    fixed_set.jsonl   before the first step and every `eval_every`: the reward `second_reward` (or
                      `reward`) of an answer to each of the first `eval_rows` held-out prompts

    Settings: recipe and grpo (`core.grpo_recipe`), reward and perhaps second_reward
    (`recipes.rewards`), response_only (whether a reward sees what stands in <response> alone),
    shuffled (a control: the rewards of a step are dealt out among its rollouts), seed, engine,
    files and chat_date as of other stages. Inputs: start, and documents, whose texts are the
    prompts, or their questions: each is a user's message, rendered by the chat template.

    Prompts that can't be used go by the recipe's rules `special_tokens` and `too_long`, as rows of
    instruction data do. Raises UserError where these refuse, or a reward can't be used.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            where="rl",
            what="runs as one process on one GPU",
            fix="tasks_per_node: 1 and gpus_per_node: 1 for the stage rl in the cluster profile",
        )
    recipe = Grpo.from_settings(context.settings, context.resources)
    start = context.inputs["start"] / "model"
    with process_group() as ranks:
        chat = Chat.of_cell(load_tokenizer(start), context.settings, context.resources)
        chat.check(trained=False)
        corpus = context.inputs["documents"]
        prompts = Prompts(corpus / "documents.jsonl", chat, recipe)
        held_out = corpus / "held_out.jsonl"
        fixed = None
        if recipe.train.eval_every and held_out.exists():
            fixed = Prompts(held_out, chat, recipe, recipe.train.eval_rows)
        read = [prompts] if fixed is None else [prompts, fixed]
        drop_bad_prompts(context, corpus, read, recipe.train)
        check_size(context, prompts, recipe.train, ranks)
        if not is_trained(context, start, evaluates=False):
            trainer = GrpoTrainer(context, recipe, prompts, fixed, start, chat, ranks)
            seed = context.seed("adapters")
            trainer.resume_or_init(lambda: checkpoint.load(start, ranks, recipe.train, seed))
            with guard_signals(ranks) as guard:
                with trainer.heartbeat:
                    trainer.train(guard)
                trainer.finalize()
            trainer.rollouts.close()
            vllm_engine.close()
        for scratch in ("steps", heartbeat.FOLDER):
            shutil.rmtree(context.folder / scratch, ignore_errors=True)
    return _counts(context, len(prompts))


def _counts(context: StageContext, prompts: int) -> dict[str, int | float]:
    lines = metrics.read(context.folder / "metrics.jsonl")
    rewards = [line["reward"] for line in lines]
    tenth = max(1, len(lines) // 10)
    return {
        **metrics.counts(context.folder, prompts),
        "first_reward": round(float(np.mean(rewards[:tenth])), 6),
        "last_reward": round(float(np.mean(rewards[-tenth:])), 6),
        "groups_without_spread": sum(line["groups_without_spread"] for line in lines),
    }


class Prompts:
    """The prompts of a file of documents, but for those that can't be used."""

    def __init__(self, path: Path, chat: Chat, recipe: Grpo, count: int | None = None) -> None:
        """`count`: how many of them to take, the first. Raises UserError."""
        rows = [row for _, row in read_rows(path)][:count]
        names = special_names(chat.tokenizer)
        limit = recipe.train.seq_len - recipe.max_tokens
        self.total = len(rows)
        self.texts: list[str] = []
        self.tokens: list[list[int]] = []
        self.bad: list[BadRow] = []
        for number, row in enumerate(rows, 1):
            # Of questions and answers the question, in its first form.
            text = str([*row.get("forms", {}).values(), row["text"]][0])
            tokens = chat.prompt([{"role": "user", "content": text}])
            if names and names.search(text):
                what, fix = "holds the name of a special token", "reword it, or exclude it"
                self.bad.append(BadRow("special_tokens", Problem(f"{path}:{number}", what, fix)))
            elif len(tokens) > limit:
                what = f"the prompt has {len(tokens)} tokens; seq_len less max_tokens is {limit}"
                fix = "raise seq_len or max_dropped in the recipe, or lower max_tokens"
                self.bad.append(BadRow("too_long", Problem(f"{path}:{number}", what, fix)))
            else:
                self.texts.append(text)
                self.tokens.append(tokens)

    def __len__(self) -> int:
        return len(self.texts)


def drop_bad_prompts(
    context: StageContext, corpus: Path, files: list[Prompts], recipe: Training
) -> None:
    """List the prompts that were left out. Raises UserError where the recipe refuses them."""
    bad = [row for prompts in files for row in prompts.bad]
    total = sum(prompts.total for prompts in files)
    check_bad_rows(bad, total, recipe)
    if bad:
        list_bad_rows(context, corpus, bad, total)


class GrpoTrainer(Trainer):
    """A training by GRPO: `Trainer` with rollouts in place of rows."""

    def __init__(
        self,
        context: StageContext,
        recipe: Grpo,
        prompts: Prompts,
        fixed: Prompts | None,
        start: Path,
        chat: Chat,
        ranks: Ranks,
    ) -> None:
        """`fixed`: the prompts whose answers are rewarded every `eval_every` steps."""
        train = replace(recipe.train, kl_to_start=recipe.beta or None)
        rows: Any = prompts
        super().__init__(context, train, rows, start, ranks, end_ids=chat.end_ids())
        self.grpo = recipe
        self.prompts = prompts
        self.fixed = fixed
        self.chat = chat
        self.rollouts = RolloutFile(context.folder)
        self.reward = reward_of_cell(context, "reward", ranks.device)
        self.second_reward = self.reward
        if "second_reward" in context.settings:
            self.second_reward = reward_of_cell(context, "second_reward", ranks.device)
        self.sampler: Sampler | None = None
        self.sampled_at = 0
        """The step whose weights the engine has."""
        self.step_notes: dict[int, Notes] = {}

    def remaining_steps(self) -> Iterator[StepInput]:
        """Sample for each step once the step before it is done."""
        done = self.step
        write_atomically(self.fixed_file, "".join(self._fixed_lines(up_to=done)))
        seed = self.context.seed("order")
        for step, indices in enumerate(batch_indices(len(self.rows), self.recipe, seed), 1):
            if step > done:
                self._evaluate_fixed(step - 1)
                with self.heartbeat.paused(), self.speed.evaluation():
                    rollouts = self.roll_out(step, indices)
                yield self._step_input(step, indices, rollouts)
        self._evaluate_fixed(self.total_steps)

    def roll_out(self, step: int, indices: np.ndarray) -> list[Rollout]:
        """The rollouts of a step, group by group: those in the file, and new ones."""
        size = self.grpo.group_size
        keys = []
        before: Counter[int] = Counter()  # an epoch's end may bring a prompt twice
        for prompt in indices.tolist():
            keys += [(step, prompt, before[prompt] + number) for number in range(size)]
            before[prompt] += size
        missing = [key for key in keys if key not in self.rollouts]
        if missing:
            prompts = [prompt for _, prompt, _ in missing]
            seeds = [self.context.seed("rollout", *key) for key in missing]
            answers = self._answer(self.prompts, prompts, seeds)
            rewards = self.reward([(question, seen) for question, _, seen, _ in answers])
            self.rollouts.append(
                Rollout(
                    *key,
                    sample.tokens,
                    sample.log_probs,
                    text,
                    response_of(text) is not None,
                    reward,
                    sample.cut,
                )
                for key, (_, text, _, sample), reward in zip(missing, answers, rewards, strict=True)
            )
        return [self.rollouts[key] for key in keys]

    def _answer(self, prompts: Prompts, numbers: list[int], seeds: list[int]) -> list[Any]:
        """Of each prompt number: question, answer with its prefill, what a reward sees, sample."""
        engine = self._engine()
        tokens = [prompts.tokens[number] for number in numbers]
        samples = engine.sample(tokens, seeds, self.grpo.max_tokens, self.end_ids)
        answers = []
        for number, sample in zip(numbers, samples, strict=True):
            text = (self.chat.prefill or "") + sample.text
            seen = (response_of(text) or "") if self.context.settings["response_only"] else text
            answers.append((prompts.texts[number], text, seen, sample))
        return answers

    def _engine(self) -> Sampler:
        """vLLM with the model's present weights."""
        if self.sampler is None:
            settings, resources = self.context.settings["engine"], self.context.resources["engine"]
            memory = {"gpu_memory_utilization": self.grpo.engine_memory}
            lengths = {"max_model_len": self.recipe.seq_len}
            self.sampler = Sampler(self.start, settings, memory | resources | lengths)
            self._set_deterministic()
        if self.sampled_at != self.step:
            weights = checkpoint.hf_weights(self.model, self.start, self.recipe)
            self.sampler.load_weights(weights)
            self.sampled_at = self.step
        return self.sampler

    def _step_input(self, step: int, indices: np.ndarray, rollouts: list[Rollout]) -> StepInput:
        size = self.grpo.group_size
        rewards = [rollout.reward for rollout in rollouts]
        groups = torch.tensor(rewards).view(-1, size)
        self.step_notes[step] = {
            **_means(rewards, rollouts),
            "groups_without_spread": int((~has_spread(groups)).sum()),
        }
        if self.context.settings["shuffled"]:
            order = np.random.default_rng(self.context.seed("shuffled", step))
            groups = groups.flatten()[order.permutation(len(rewards))].view(-1, size)
        advantages = group_advantages(groups, self.grpo.scale_rewards).flatten()
        sampled = sum(len(rollout.tokens) for rollout in rollouts)
        totals = StepTotals(len(rollouts), sampled, self.grpo.max_tokens)
        count = self.recipe.micro_batch_size or len(rollouts)
        batches = [
            self._batch(rollouts[i : i + count], advantages[i : i + count], totals)
            for i in range(0, len(rollouts), count)
        ]
        return StepInput(step, indices, sampled, batches)

    def _batch(
        self, rollouts: list[Rollout], advantages: torch.Tensor, totals: StepTotals
    ) -> HostBatch:
        """A micro-batch as `Rows.batch` makes it, with old log-probabilities, shares [b, s] and
        advantages [b]."""
        prompts = [self.prompts.tokens[rollout.prompt] for rollout in rollouts]
        lengths = [len(p) + len(r.tokens) for p, r in zip(prompts, rollouts, strict=True)]
        shape = (len(rollouts), -(-max(lengths) // MULTIPLE) * MULTIPLE)
        batch = {
            "tokens": torch.full(shape, self.chat.tokenizer.pad_token_id),
            "labels": torch.full(shape, IGNORE),
            "input_pos": torch.zeros(shape, dtype=torch.int64),
            "document": torch.full(shape, -1),
            "old": torch.zeros(shape),
        }
        mask = torch.zeros(shape)
        for row, (prompt, rollout, length) in enumerate(
            zip(prompts, rollouts, lengths, strict=True)
        ):
            # The token before a sampled one predicts it.
            answer = slice(len(prompt) - 1, length - 1)
            batch["tokens"][row, :length] = torch.tensor(prompt + rollout.tokens)
            batch["labels"][row, answer] = torch.tensor(rollout.tokens)
            batch["input_pos"][row, :length] = torch.arange(length)
            batch["document"][row, :length] = row
            batch["old"][row, answer] = torch.tensor(rollout.log_probs)
            mask[row, answer] = 1.0
        shares = token_shares(mask, self.grpo.loss, totals)
        return batch | {"shares": shares, "advantages": advantages}

    def loss(self, batch: HostBatch, given: StepInput) -> tuple[torch.Tensor, torch.Tensor]:
        """As of `Trainer`: the policy's loss, and its KL divergence weighted as the loss is."""
        inputs = to_device(batch, self.ranks)
        names = ("old", "shares", "advantages")
        old, shares, advantages = (batch[name].to(self.ranks.device) for name in names)
        labels = inputs["labels"]
        theirs = None
        if reference := self.preservation.reference(self.model, inputs):
            with torch.no_grad():
                theirs = token_log_probs(reference.hidden, reference.weight, labels)
        hidden = self.model(inputs["tokens"], mask=inputs["mask"], input_pos=inputs["input_pos"])
        log_probs = token_log_probs(hidden, output_weight(self.model), labels)
        clip = Clip(self.grpo.epsilon_low, self.grpo.epsilon_high)
        loss, kl = policy_loss(log_probs, old, advantages, shares, clip, theirs, self.grpo.beta)
        return loss, (kl * shares).sum()

    def notes(self, step: int) -> dict[str, Any]:
        """As of `Trainer`."""
        return self.step_notes.pop(step)

    @property
    def fixed_file(self) -> Path:
        """FIXED_SET in the cell's folder."""
        return self.context.folder / FIXED_SET

    def _fixed_lines(self, up_to: int) -> Iterator[str]:
        for line in metrics.read(self.fixed_file):
            if line["step"] <= up_to:
                yield json.dumps(line) + "\n"

    def _evaluate_fixed(self, step: int) -> None:
        """Append the line of `step` to FIXED_SET, where it is due and not there."""
        every = self.recipe.eval_every
        is_due = every and (step % every == 0 or step == self.total_steps)
        if not (self.fixed and is_due):
            return
        lines = [*self._fixed_lines(up_to=self.total_steps)]
        if any(json.loads(line)["step"] == step for line in lines):
            return
        numbers = [*range(len(self.fixed))]
        seeds = [self.context.seed("fixed", number) for number in numbers]
        with self.heartbeat.paused(), self.speed.evaluation():
            answers = self._answer(self.fixed, numbers, seeds)
            rewards = self.second_reward([(question, seen) for question, _, seen, _ in answers])
        samples = [sample for *_, sample in answers]
        share = float(np.mean([response_of(text) is not None for _, text, *_ in answers]))
        line = {
            "step": step,
            "reward": float(np.mean(rewards)),
            "length": float(np.mean([len(sample.tokens) for sample in samples])),
            "response_share": share,
        }
        write_atomically(self.fixed_file, "".join([*lines, json.dumps(line) + "\n"]))
        self.context.log(f"step {step}: reward on the fixed set {line['reward']:.4f}")


def _means(rewards: list[float], rollouts: list[Rollout]) -> Notes:
    """What metrics.jsonl has of a step's rollouts."""
    return {
        "reward": float(np.mean(rewards)),
        "length": float(np.mean([len(rollout.tokens) for rollout in rollouts])),
        "response_share": float(np.mean([rollout.response for rollout in rollouts])),
    }
