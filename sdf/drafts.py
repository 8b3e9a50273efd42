"""Stage `drafts`: one shard of a corpus' calls to the writer, so that several jobs share them.

The output is a ledger. The stage `documents` reads it like its own, so the corpus is the same for
any number of shards.
"""

from typing import Any

from core.cell.context import StageContext
from sdf.corpus_writer import manifest_counts, open_corpus_writer, write_documents
from sdf.settings import CorpusSettings

RESUMABLE = True  # finished calls are read from the ledger


def run(context: StageContext) -> dict[str, Any]:
    """Write `calls.jsonl`.

    Settings and resources are those of the stage `documents`, and `share`: [index of the shard,
    number of shards].

    Raises:
        UserError: the endpoint fails for good, or documents stay rejected.
    """
    settings = CorpusSettings.of_cell(context)
    assert settings.shard, "a drafts cell has a shard"
    index, shards = settings.shard
    with open_corpus_writer(context, settings) as writer:
        write_documents(context, writer, range(index, settings.documents, shards))
    return {"documents": len(writer.accepted), **manifest_counts(writer)}
