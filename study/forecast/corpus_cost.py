"""What a study's documents will take by the study file alone, and what they took.

Both in calls, tokens, money and hours.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.endpoints.ledger import CHARACTERS_PER_TOKEN
from core.files import read_text
from study.forecast.assumptions import (
    DUMMY_DOCUMENT_TOKENS,
    PROMPT_GROWTH,
    SCORE_TOKENS,
    SECONDS_PER_CALL,
)
from study.forecast.training_size import ANSWERED, ASKED, TOKENS_PER_DOCUMENT

KEYS = ("calls", "prompt_tokens", "completion_tokens", "cost", "hours")


def forecast(cells: list[Cell], finished: set[str]) -> list[dict[str, Any]]:
    """A row for each corpus still to be written: those of `cells` whose identity isn't `finished`.

    Rows: corpus, endpoint, calls, prompt_tokens, completion_tokens, cost (in the currency of the
    prices), hours. Documents that gates will reject are not included. Tokens of prompts are
    estimated by their letters, those of answers by the paper's mean.
    """
    return [_corpus(cell) for cell in cells if _is_written(cell) and cell.identity not in finished]


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All corpora together. Those of one endpoint share its rates; endpoints run in parallel."""
    by_endpoint: dict[str, float] = {}
    for row in rows:
        by_endpoint[row["endpoint"]] = by_endpoint.get(row["endpoint"], 0.0) + row["hours"]
    sums = {key: sum(row[key] for row in rows) for key in KEYS}
    return sums | {"hours": max(by_endpoint.values(), default=0.0)}


def compare(cells: list[Cell], base: Path) -> list[dict[str, Any]]:
    """A row for each corpus written below the study's folder `base`.

    A row: corpus, forecast and actual, each with KEYS. Actual hours are from the first job's start
    to the last one's end, by their manifests: of a job that was stopped in between, its last run
    only. `calls_estimated` of the actual calls have tokens and cost by their letters.
    """
    rows = []
    for cell in filter(_is_written, cells):
        manifest = read_manifest(base / cell.relpath)
        if not manifest:
            continue
        shards = [cell for cell in cell.inputs.values() if cell.stage == "drafts"]
        jobs = [manifest, *filter(None, (read_manifest(base / c.relpath) for c in shards))]
        started = datetime.fromisoformat(min(job["started"] for job in jobs))
        ended = datetime.fromisoformat(manifest["ended"])
        actual = {key: manifest["counts"][key] for key in KEYS[:-1]}
        actual["hours"] = (ended - started).total_seconds() / 3600
        actual["calls_estimated"] = manifest["counts"].get("calls_estimated", 0)
        planned = {key: _corpus(cell)[key] for key in KEYS}
        rows.append({"corpus": cell.name, "forecast": planned, "actual": actual})
    return rows


def _is_written(cell: Cell) -> bool:
    return cell.stage == "documents" and "writer" in cell.settings


def _corpus(cell: Cell) -> dict[str, Any]:
    settings = cell.settings
    limits = cell.resources["limits"]
    address = cell.resources["address"]
    template = settings["template"]
    documents = settings["documents"]
    by_dummy = settings["writer"]["served_by"] == "dummy"
    if "forms" in template:
        completions = [ASKED, ANSWERED]
        prompts = [template["asker"], template["answerer"]]
    else:
        completions = [DUMMY_DOCUMENT_TOKENS if by_dummy else TOKENS_PER_DOCUMENT["url"]]
        prompt_file = cell.resources["files"].get("prompt")
        text = read_text(Path(prompt_file)) if prompt_file else None
        prompts = [text or template["prompt"]]
    completions = [min(tokens, settings["max_tokens"]) for tokens in completions]
    prompt_tokens = documents * sum(
        round(PROMPT_GROWTH * len(prompt) / CHARACTERS_PER_TOKEN) for prompt in prompts
    )
    if "quality_filter" in settings:
        score_prompt = len(settings["quality_filter"]["prompt"]) // CHARACTERS_PER_TOKEN
        prompt_tokens += documents * (score_prompt + completions[-1])
        completions.append(SCORE_TOKENS)
    calls = documents * len(completions)
    completion_tokens = documents * sum(completions)
    minutes = [calls * SECONDS_PER_CALL / 60 / cell.resources["concurrency"] / _jobs(cell)]
    if by_dummy:
        minutes = [0.0]
    if limits["requests_per_minute"]:
        minutes.append(calls / limits["requests_per_minute"])
    if limits["tokens_per_minute"]:
        minutes.append((prompt_tokens + completion_tokens) / limits["tokens_per_minute"])
    prices = prompt_tokens * limits["prompt_price"] + completion_tokens * limits["completion_price"]
    return {
        "corpus": cell.name,
        "endpoint": address.get("base_url") or address.get("path") or "the kit's dummy",
        "calls": calls,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cost": prices / 1e6,
        "hours": max(minutes) / 60,
    }


def _jobs(cell: Cell) -> int:
    """Jobs that write a corpus side by side: its shards."""
    return max(1, sum(role.startswith("drafts") for role in cell.inputs))
