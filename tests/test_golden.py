"""A change of identities, which would make users compute and pay again, is announced by a version
and the changelog."""

import json
from pathlib import Path

import pytest

from tests import golden


def test_identities_are_those_of_the_version() -> None:
    stored = json.loads(golden.FILE.read_text(encoding="utf-8"))
    advice = "set the next version, say in CHANGELOG.md which cells become new, then python -m tests.golden"
    assert stored["identities"] == golden.identities(), advice
    assert stored["version"] == golden.current_version(), "python -m tests.golden"
    assert golden.new_cells(golden.current_version()), (
        f"CHANGELOG.md: section without {golden.HEADING!r}"
    )


def test_a_changed_identity_is_not_stored_without_a_version_and_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = json.loads(golden.FILE.read_text(encoding="utf-8"))
    changed = dict.fromkeys(stored["identities"], "0" * 64)
    monkeypatch.setattr(golden, "FILE", tmp_path / "tiny.json")
    golden.FILE.write_text(json.dumps({"version": stored["version"], "identities": changed}))
    assert golden.main() == 2 and "set the next version" in capsys.readouterr().err
    golden.FILE.write_text(json.dumps({"version": "0.0.1", "identities": changed}))
    monkeypatch.setattr(golden, "new_cells", lambda version: "model and documents only")
    assert golden.main() == 2 and "does not name analysis" in capsys.readouterr().err
    monkeypatch.undo()
    assert golden.main() == 0
