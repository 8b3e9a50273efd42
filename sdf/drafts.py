"""Stage `drafts`: one job's share of a corpus' calls to the writer, when several jobs share them.

It leaves a ledger, which the stage `documents` reads as its own: the corpus is the same for any number of shares.
"""

from typing import Any

from core.cell.context import StageContext
from sdf.drafting import counts, draft, open_drafting

RESUMABLE = True  # a killed run goes on from its ledger


def run(work: StageContext) -> dict[str, Any]:
    """Write `calls.jsonl`. Settings and resources: those of the stage `documents`, and `share`, [number, of].

    Raises UserError when the endpoint fails for good or documents stay rejected.
    """
    number, shares = work.settings["share"]
    with open_drafting(work) as drafting:
        draft(work, drafting, range(number, work.settings["documents"], shares))
    return {"documents": len(drafting.found), **counts(drafting)}
