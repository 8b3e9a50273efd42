"""What the unfinished cells of a study will refuse of their start models, asked before they run."""

import importlib
from collections.abc import Iterable

from core.cell.identity import Cell
from core.errors import Problem, UserError
from core.model_folder.config import CHAT_DATE
from core.model_size import start_model
from core.paths import resolve


def model_problems(cells: Iterable[Cell]) -> list[Problem]:
    """A problem for each thing that these cells would refuse of a model folder that is here."""
    uses: set[tuple[str, bool, bool, str, str]] = set()
    for cell in cells:
        source = cell.inputs.get("start") or cell.inputs.get("checkpoint")
        if source is None or source.stage == "sft":
            continue  # what an SFT starts from is asked of the SFT
        folder = start_model(source).resources.get("files", {}).get("model")
        if not folder or not (resolve(folder) / "config.json").is_file():
            continue  # the kit makes it, or it is not yet fetched
        trains = "start" in cell.inputs
        conversations = cell.stage == "sft" or "question_variant" in cell.settings
        prompts = cell.settings.get("prompt") == "chat" or bool(cell.settings.get("chat"))
        template = cell.resources.get("files", {}).get("chat_template") or ""
        date = cell.settings.get("chat_date", CHAT_DATE)
        if trains or prompts:
            uses.add((str(resolve(folder)), trains, conversations or prompts, template, date))
    if not uses:
        return []
    # transformers takes seconds to import.
    check = importlib.import_module("core.model_folder.check").check_start_model
    problems: list[Problem] = []
    for folder, trains, chats, template, date in sorted(uses):
        try:
            check(resolve(folder), trains, chats, template, date)
        except UserError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    return problems
