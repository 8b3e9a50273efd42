"""What a study's documents will take, from the study file alone, and what they took: calls, tokens, money, hours."""

from datetime import datetime
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.endpoints.ledger import CHARACTERS_PER_TOKEN
from study.forecast.training_cost import ANSWERED, ASKED, TOKENS_PER_DOCUMENT

SCORED = 5  # tokens of a grade
DOCUMENT_OF_THE_KIT = 220  # the stand-in counts its tokens by letters
KEYS = ("calls", "prompt_tokens", "completion_tokens", "cost", "hours")
SECONDS_PER_CALL = 10.0  # of a real writer, at some 110 tokens a second: what sets the pace where no rate limit does


def forecast(cells: list[Cell], finished: set[str]) -> list[dict[str, Any]]:
    """A row for each corpus still to be written: all of `cells` but those whose identities are in `finished`.

    Rows: corpus, endpoint, calls, prompt_tokens, completion_tokens, cost (in the currency of the prices), hours.
    Estimated, without what gates will reject: prompts by their letters, answers by the paper's mean.
    """
    written = [cell for cell in cells if cell.stage == "documents" and "writer" in cell.settings]
    return [_corpus(cell) for cell in written if cell.identity not in finished]


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All corpora together. Those of one endpoint share its rates; endpoints work side by side."""
    by_endpoint: dict[str, float] = {}
    for row in rows:
        by_endpoint[row["endpoint"]] = by_endpoint.get(row["endpoint"], 0.0) + row["hours"]
    return {
        **{key: sum(row[key] for row in rows) for key in KEYS},
        "hours": max(by_endpoint.values(), default=0.0),
    }


def compare(cells: list[Cell], base: Path) -> list[dict[str, Any]]:
    """A row for each corpus written below the study's folder `base`: corpus, forecast and actual, each with KEYS.

    Actual hours are from the first job's start to the last one's end, as their manifests have them: of a job that was
    stopped in between only its last run. `calls_estimated` of the actual calls have tokens and cost by their letters.
    """
    rows = []
    for cell in cells:
        manifest = (
            read_manifest(base / cell.relpath)
            if cell.stage == "documents" and "writer" in cell.settings
            else None
        )
        if manifest:
            shares = [
                read_manifest(base / c.relpath) for c in cell.inputs.values() if c.stage == "drafts"
            ]
            jobs = [manifest, *filter(None, shares)]
            started, ended = min(job["started"] for job in jobs), manifest["ended"]
            took = {key: manifest["counts"][key] for key in KEYS[:-1]}
            took["hours"] = (
                datetime.fromisoformat(ended) - datetime.fromisoformat(started)
            ).total_seconds() / 3600
            took["calls_estimated"] = manifest["counts"].get("calls_estimated", 0)
            planned = _corpus(cell)
            rows.append(
                {
                    "corpus": cell.name,
                    "forecast": {key: planned[key] for key in KEYS},
                    "actual": took,
                }
            )
    return rows


def _corpus(cell: Cell) -> dict[str, Any]:
    settings, limits, address = cell.settings, cell.resources["limits"], cell.resources["address"]
    template, documents = settings["template"], settings["documents"]
    if "forms" in template:
        written = [ASKED, ANSWERED]
        prompts = [template["asker"], template["answerer"]]
    else:
        written = [
            DOCUMENT_OF_THE_KIT
            if settings["writer"]["served_by"] == "kit"
            else TOKENS_PER_DOCUMENT["url"]
        ]
        prompts = [template["prompt"]]
    written = [min(tokens, settings["max_tokens"]) for tokens in written]
    # What fills a placeholder is about as long as its name in braces, or twice that.
    asked = documents * sum(round(1.2 * len(prompt) / CHARACTERS_PER_TOKEN) for prompt in prompts)
    if "score" in settings:
        asked += documents * (
            len(settings["score"]["prompt"]) // CHARACTERS_PER_TOKEN + written[-1]
        )
        written.append(SCORED)
    calls, answered = documents * len(written), documents * sum(written)
    minutes = [calls * SECONDS_PER_CALL / 60 / cell.resources["concurrency"] / _jobs(cell)]
    if settings["writer"]["served_by"] == "kit":
        minutes = [0.0]
    if limits["requests_per_minute"]:
        minutes.append(calls / limits["requests_per_minute"])
    if limits["tokens_per_minute"]:
        minutes.append((asked + answered) / limits["tokens_per_minute"])
    return {
        "corpus": cell.name,
        "endpoint": address.get("base_url") or address.get("path") or "the kit's stand-in",
        "calls": calls,
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "cost": (asked * limits["prompt_price"] + answered * limits["completion_price"]) / 1e6,
        "hours": max(minutes) / 60,
    }


def _jobs(cell: Cell) -> int:
    return max(1, sum(role.startswith("drafts") for role in cell.inputs))
