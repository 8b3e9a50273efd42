"""The batches of a study that are out at a provider, and their end before their time."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import utc
from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.endpoints.batch_api import BatchApi
from core.endpoints.batch_ledger import Batch, read_batches
from core.endpoints.connect import open_endpoint
from core.endpoints.ledger import LEDGER
from core.endpoints.sender import Sender
from core.stages import CALLING_STAGES


@dataclass(frozen=True)
class OpenBatch:
    """A batch whose answers are not in its cell's ledger yet."""

    cell: Cell
    batch: Batch

    def as_json(self) -> dict[str, Any]:
        """The row of `--json`."""
        return {
            "cell": self.cell.relpath,
            "batch": self.batch.batch_id,
            "requests": len(self.batch.requests),
            "sent": utc.text(self.batch.time),
            "endpoint": self.cell.resources["address"].get("base_url"),
        }

    def __str__(self) -> str:
        row = self.as_json()
        return (
            f"{row['cell']}: batch {row['batch']} of {row['requests']} requests at "
            f"{row['endpoint']}, sent {row['sent']}"
        )


def open_batches(cells: list[Cell], base: Path) -> list[OpenBatch]:
    """The batches that the unfinished cells of a study wait for."""
    return [
        OpenBatch(cell, batch)
        for cell in cells
        if cell.stage in CALLING_STAGES and not read_manifest(base / cell.relpath)
        for batch in read_batches(base / cell.relpath / LEDGER).values()
        if batch.batch_id and not batch.ended
    ]


def cancel_batches(batches: list[OpenBatch]) -> None:
    """Ask the providers to end these batches.

    Raises:
        UserError: A key is missing, or a provider refuses.
    """
    for row in batches:
        asyncio.run(_cancel(row))


async def _cancel(row: OpenBatch) -> None:
    settings = row.cell.settings
    limits = row.cell.resources["limits"]
    model = settings["judge" if row.cell.stage == "judge" else "writer"]
    with open_endpoint(model, row.cell.resources["address"]) as endpoint:
        sender = Sender(lambda: endpoint, None, limits["timeout"], lambda: None)
        try:
            await BatchApi(sender.connected, limits["timeout"]).cancel(str(row.batch.batch_id))
        finally:
            await sender.close()
