"""What the unfinished cells of a study will refuse of their start models, asked before they run."""

import importlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

from core.cell.identity import Cell
from core.errors import Problem, UserError
from core.model_folder.config import CHAT_DATE
from core.model_size import start_model
from core.paths import resolve
from study.spec.checkpoint import trainings_of


class Use(NamedTuple):
    """Arguments of `core.model_folder.check.check_start_model`; "" where a file is not given."""

    folder: str
    trains: bool
    chats: bool
    template: str
    date: str
    system: str
    prefill: str
    tokenizer: str


def model_problems(cells: Iterable[Cell]) -> list[Problem]:
    """A problem for each thing that these cells would refuse of a model folder that is here."""
    uses: set[Use] = set()
    rewards: set[str] = set()
    for cell in cells:
        if cell.stage == "rl":
            rewards |= {*_reward_models(cell)}
        source = cell.inputs.get("start") or cell.inputs.get("checkpoint")
        if source is None or cell.stage == "merge":
            continue
        files = cell.resources.get("files", {})
        tuned = [run for run in trainings_of(source) if run.stage in ("sft", "rl")]
        if tuned and not any(files.get(name) for name in ("system", "prefill")):
            continue  # what a tuning starts from is asked of the tuning
        # Afterwards its checkpoint has the template that the tuning was given.
        template = (tuned[-1].resources["files"] if tuned else files).get("chat_template") or ""
        start_files = start_model(source).resources.get("files", {})
        folder, tokenizer = start_files.get("model"), start_files.get("tokenizer") or ""
        if not folder or not (resolve(folder) / "config.json").is_file():
            continue  # the kit makes it, or it is not yet fetched
        trains = "start" in cell.inputs
        conversations = cell.stage in ("sft", "rl") or "question_variant" in cell.settings
        prompts = cell.settings.get("prompt") == "chat" or bool(cell.settings.get("chat"))
        date = cell.settings.get("chat_date", CHAT_DATE)
        if tokenizer and not (resolve(tokenizer) / "tokenizer.json").is_file():
            continue  # not yet fetched
        if trains or prompts:
            system, prefill = (files.get(name) or "" for name in ("system", "prefill"))
            chats = conversations or prompts
            uses.add(
                Use(str(resolve(folder)), trains, chats, template, date, system, prefill, tokenizer)
            )
    if not uses and not rewards:
        return []
    # transformers takes seconds to import.
    checks = importlib.import_module("core.model_folder.check")
    calls = [
        partial(
            checks.check_start_model,
            resolve(use.folder),
            *use[1:-1],
            tokenizer=resolve(use.tokenizer) if use.tokenizer else None,
        )
        for use in sorted(uses)
    ]
    calls += [partial(checks.check_reward_model, resolve(folder)) for folder in sorted(rewards)]
    problems: list[Problem] = []
    for call in calls:
        try:
            call()
        except UserError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    return problems


def _reward_models(cell: Cell) -> Iterator[str]:
    """The folders of a training's reward models that are here."""
    files = cell.resources.get("files", {})
    for role in ("reward", "second_reward"):
        if role in files and (resolve(files[role]) / "config.json").is_file():
            yield files[role]
