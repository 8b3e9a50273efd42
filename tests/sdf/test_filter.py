"""A corpus of some rows of a file."""

import json
from pathlib import Path

import pytest

from core.endpoints import dummy_endpoint
from core.errors import UserError
from sdf import documents
from tests.sdf.test_documents import existing, rows


def test_only_rows_with_these_texts_are_read(tmp_path: Path) -> None:
    texts = [dummy_endpoint.write(f"a report on animal welfare {n}", n) for n in range(12)]
    path = tmp_path / "given.jsonl"
    given = [
        {"text": text, "kind": "PN"[n % 2], "set": str(n // 6)} for n, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    for values, wanted in (({"kind": "P"}, texts[::2]), ({"kind": "N", "set": "1"}, texts[7::2])):
        context = existing(tmp_path, path, documents=len(wanted))
        context.settings["source"]["filter"] = values
        counts = documents.run(context)
        assert sorted(row["text"] for row in rows(context)) == sorted(wanted)
        assert counts["read"] == len(wanted)
    context = existing(tmp_path, path, documents=1)
    context.settings["source"]["filter"] = {"kind": "Q"}
    with pytest.raises(UserError, match="no row has kind 'Q'; correct filter: kind has N, P"):
        documents.run(context)
    context.settings["source"]["filter"] = {"sort": "P"}
    with pytest.raises(UserError, match="its columns are kind, set, text"):
        documents.run(context)
