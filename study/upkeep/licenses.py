"""Licences of start models: the Hub's names, and what they ask of whoever publishes a tuned one.

Llama's: https://www.llama.com/llama3_1/license/, section 1.b; those of 3.2 and 3.3 ask the same.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.errors import Problem
from study.upkeep.card_cells import FinishedCell, pin

OTHER = "other"
# By the beginning of a model's name on the Hub: a tuned model keeps its start model's licence.
LICENSES = {
    "meta-llama/Llama-3.1": "llama3.1",
    "meta-llama/Meta-Llama-3.1": "llama3.1",
    "meta-llama/Llama-3.2": "llama3.2",
    "meta-llama/Llama-3.3": "llama3.3",
    "Qwen/Qwen3": "apache-2.0",
    "allenai/OLMo-2": "apache-2.0",
    "allenai/Olmo-3": "apache-2.0",
}
LLAMA_NOTICE = (
    "Llama {version} is licensed under the Llama {version} Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
)
NO_DERIVATIVES = re.compile(r"(^|-)nd(-|$)")  # of Creative Commons, as in cc-by-nc-nd-4.0
LICENSE = "LICENSE"  # a file of a model's repository
AGREEMENT = f"{LICENSE}*"


def license_of(models: Iterable[FinishedCell], stated: str = "") -> str:
    """The Hub's name of a checkpoint's licence.

    It is that of the start models where it is on record, else `stated`, else `other`.
    """
    names = {_license(model) for model in models}
    on_record = names.pop() if len(names) == 1 else OTHER
    return on_record if on_record != OTHER else stated or OTHER


def _license(model: FinishedCell) -> str:
    name = str(pin(model, "model").get("hub")).lower()
    starts = (name.startswith(prefix.lower()) for prefix in LICENSES)
    return next((text for text, fits in zip(LICENSES.values(), starts, strict=True) if fits), OTHER)


def header(license: str, models: Iterable[FinishedCell] = ()) -> dict[str, Any]:
    """The fields of a card's header: `other:NAME` is one that the Hub does not list."""
    listed, _, name = license.partition(":")
    fields = {"license": listed, "license_name": name} if name else {"license": license}
    has_copy = bool(name) and LICENSE in agreements(models)
    return fields | ({"license_link": LICENSE} if has_copy else {})


def is_made_here(model: FinishedCell) -> bool:
    """Whether the kit made a start model from nothing."""
    return "recipe" in model.settings


def name_prefix(license: str) -> str:
    """How the name of a model under a licence must begin; empty where any does."""
    return "Llama" if license.startswith("llama") else ""


def notice(license: str) -> str:
    """The text of the file NOTICE that a licence asks for; empty where it asks for none."""
    if not license.startswith("llama"):
        return ""
    return LLAMA_NOTICE.format(version=license.removeprefix("llama"))


def agreements(models: Iterable[FinishedCell]) -> dict[str, Path]:
    """Name -> file of the licences that were fetched with the start models."""
    files: dict[str, Path] = {}
    for model in models:
        record = model.manifest.get("files", {}).get("model")
        folder = Path(record["path"]) if record else None
        for file in sorted(folder.glob(AGREEMENT)) if folder else ():
            files.setdefault(file.name, file)
    return files


def problems(cell: FinishedCell, models: list[FinishedCell], license: str) -> list[Problem]:
    """Why a checkpoint may not be published under a licence, a line for each reason."""
    label = f"{cell.stage} {cell.name}"
    if all(is_made_here(model) for model in models):
        return []
    names = ", ".join(str(pin(model, "model").get("hub") or model.name) for model in models)
    if license == OTHER:
        what = f"the licence of its start model {names} is not on record"
        fix = "state it by --license, such as --license apache-2.0, or other:qwen-research for one "
        return [Problem(label, what, f"{fix}that the Hub does not list")]
    if NO_DERIVATIVES.search(license):
        what = f"the licence {license} of its start model {names} forbids to publish tuned models"
        return [Problem(label, what, "leave it out by --only")]
    if notice(license) and not agreements(models):
        what = f"the licence {license} asks for a copy of the agreement, and {names} has none here"
        return [Problem(label, what, "fetch the model from meta-llama, with its LICENSE")]
    return []
