"""The client of a cell: endpoint, ledger and rate limit, by its settings and resources."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from core.cell.context import StageContext
from core.endpoints.batches import BatchSettings
from core.endpoints.call_index import CallIndex
from core.endpoints.client import LedgerClient
from core.endpoints.connect import open_endpoint
from core.endpoints.ledger import LEDGER
from core.endpoints.rate_limit import RateLimiter
from core.endpoints.request_form import RequestForm


@contextmanager
def open_client(
    context: StageContext,
    endpoint: dict[str, Any],
    sampling: dict[str, Any],
) -> Iterator[LedgerClient]:
    """A cell's client, to be entered by `async with`; its ledger is `calls.jsonl`.

    Responses in the ledgers of all cells of the runs folder are used. Nothing is started, and no
    key is asked for, before the first request that no ledger holds. All jobs of the study that
    call one address share one rate limit. At the end the cell's manifest gets `answered_by`, the
    models that answered as the endpoint reports them, and a warning where they are not the one that
    was asked for, or where tokens are estimated.

    Args:
        context: The cell. Resources: `address` (`core.endpoints.connect.open_endpoint`; its
            `request` has the arguments of `core.endpoints.request_form.RequestForm`; `batch`, where
            requests are sent as batches, those of `core.endpoints.batches.BatchSettings`), and
            `limits`: requests_per_minute, tokens_per_minute, prompt_price and completion_price (per
            million tokens), timeout (seconds).
        endpoint: `model`, `served_by`, and what else identifies the model.
        sampling: What goes into every request.
    """
    address = context.resources["address"]
    limits = context.resources["limits"]
    server = address.get("base_url") or endpoint["model"]
    name = hashlib.sha256(server.encode()).hexdigest()[:16]
    path = context.folder.parents[1] / f"rate_limits/{name}.json"
    with ExitStack() as stack:
        opened = open_endpoint(endpoint, address, context.folder / "server.log")
        client = LedgerClient(
            endpoint,
            cache(lambda: stack.enter_context(opened)),
            sampling,
            context.folder / LEDGER,
            CallIndex(context.folder.parents[2]),
            RateLimiter(path, limits["requests_per_minute"], limits["tokens_per_minute"]),
            (limits["prompt_price"], limits["completion_price"]),
            limits["timeout"],
            RequestForm(**address.get("request", {})),
            BatchSettings(**address["batch"]) if "batch" in address else None,
            context.log,
        )
        try:
            yield client
        finally:
            if client.answered_by:
                context.facts["answered_by"] = dict(client.answered_by.most_common())
            for remark in client.remarks:
                context.warn(remark)
