"""Cards and files of cells uploaded to a hub over real HTTP on the loopback interface."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.cell.publish import results
from core.paths import ROOT
from study.cli import main
from study.upkeep import hub_upload
from tests.hub import TOKEN, Hub
from tests.study.test_archive import base, once
from tests.study.test_cards import as_llama, with_settings

pytestmark = pytest.mark.multiprocess

__all__ = ["base", "once"]  # fixtures
SMALL = ROOT / "tests/small/small.yaml"
CORPORA = ["lab/small-animal", "lab/small-urban"]
MODELS = [f"lab/small-base-{arm}-s0{dose}" for arm in ("animal", "urban") for dose in ("", "-d80")]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path) as running:
        yield running


def cards(
    hub: Hub, base: Path, *words: str, token: str | None = TOKEN
) -> "subprocess.CompletedProcess[str]":
    """`cards` of the small study as a process of its own; no output shows the token."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(hub.home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
        **({"HF_TOKEN": token} if token else {}),
    }
    hub.requests.clear()
    hub.stored.clear()
    command = [sys.executable, "-m", "study", "cards", str(SMALL), "--runs", str(base.parent)]
    ran = subprocess.run(
        [*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    shown = ran.stdout + ran.stderr
    assert "Traceback" not in shown and not (token and token in shown), shown
    assert not any(token and token in text for text in files_text(base))
    return ran


def files_text(base: Path) -> list[str]:
    folder = results(base).with_name("small-cards")
    return [path.read_text() for path in folder.rglob("*.md")]


def files(hub: Hub, kind: str, name: str) -> dict[str, bytes]:
    *_, newest = hub.repos[kind, name].commits.values()
    return newest


def writes(hub: Hub) -> list[str]:
    return [path for method, path in hub.requests if method in ("POST", "PUT")]


def test_a_dry_run_lists_what_would_go_and_asks_nobody(hub: Hub, base: Path) -> None:
    ran = cards(hub, base, "--upload", "--dry-run", "--namespace", "lab", "--json", token=None)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)
    assert {row["repository"] for row in rows} == {*CORPORA, *MODELS} and hub.requests == []
    assert {row["visibility"] for row in rows} == {"private"}
    mine = {row["file"]: row["bytes"] for row in rows if row["repository"] == MODELS[0]}
    assert {*mine} == {"README.md", "model.safetensors"} and mine["model.safetensors"] == 7
    ran = cards(hub, base, "--upload", "--dry-run", "--namespace", "lab", "--public")
    assert "lab/small-animal" in ran.stdout and "public" in ran.stdout


def test_an_upload_sends_cards_weights_and_corpora_once(hub: Hub, base: Path) -> None:
    ran = cards(hub, base, "--upload", "--namespace", "lab", "--json")
    assert ran.returncode == 0, ran.stderr
    assert {row["state"] for row in json.loads(ran.stdout)} == {"sent"}
    assert {repo.access for repo in hub.repos.values()} == {"private"}
    assert {*hub.repos} == {
        *(("dataset", name) for name in CORPORA),
        *(("model", name) for name in MODELS),
    }
    there = files(hub, "model", MODELS[1])
    (folder,) = base.glob("sft/base-animal-s0-d80*")
    assert there["model.safetensors"] == (folder / "model/model.safetensors").read_bytes()
    text = there["README.md"].decode()
    assert "base_model" not in text and "model-index" in text and "Seed 1 of 1" in text
    assert "[`animal`](https://huggingface.co/datasets/lab/small-animal)" in text
    there = files(hub, "dataset", CORPORA[0])
    (corpus,) = base.glob("documents/animal*")
    assert there["corpus/train.parquet"] == (corpus / "corpus/train.parquet").read_bytes()
    assert "documents.jsonl" not in there and "midtraining-canary" in there["README.md"].decode()
    assert hub.stored != []
    ran = cards(hub, base, "--upload", "--namespace", "lab", "--json")
    assert ran.returncode == 0 and {row["state"] for row in json.loads(ran.stdout)} == {
        "there already"
    }
    assert writes(hub) == []


def test_what_differs_is_sent_alone(hub: Hub, base: Path) -> None:
    words = ["--upload", "--namespace", "lab", "--only", "base-animal-s0", "--json"]
    assert cards(hub, base, *words).returncode == 0
    assert [name for _, name in hub.repos] == ["lab/small-base-animal-s0"]
    there = files(hub, "model", MODELS[0])
    hub.add("model", MODELS[0], there | {"README.md": b"edited", "theirs.txt": b"stays"})
    rows = json.loads(cards(hub, base, *words).stdout)
    assert [row["file"] for row in rows if row["state"] == "sent"] == ["README.md"]
    assert hub.stored == [] and files(hub, "model", MODELS[0])["theirs.txt"] == b"stays"
    changed = there | {"model.safetensors": b"WEIGHTS"}  # of the same size
    hub.add("model", MODELS[0], changed)
    rows = json.loads(cards(hub, base, *words).stdout)
    assert [row["file"] for row in rows if row["state"] == "sent"] == ["model.safetensors"]
    assert files(hub, "model", MODELS[0])["model.safetensors"] == b"weights"


@pytest.fixture
def in_process(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub for this process, which read its settings at import."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.mark.usefixtures("in_process")
def test_a_llama_goes_under_its_name_with_its_files(
    hub: Hub, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_llama(monkeypatch, base)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    words = ["--upload", "--namespace", "lab", "--only", "base-animal-s0", "--public"]
    assert main(["cards", str(SMALL), "--runs", str(base.parent), *words]) == 0
    ((kind, name),) = hub.repos
    assert (kind, name) == ("model", "lab/Llama-small-base-animal-s0")
    assert hub.repos[kind, name].access == "open"
    there = files(hub, kind, name)
    assert there["LICENSE"] == b"LLAMA 3.1 COMMUNITY LICENSE AGREEMENT"
    assert there["NOTICE"].startswith(b"Llama 3.1 is licensed under")
    assert b"license: llama3.1" in there["README.md"] and b"Built with Llama" in there["README.md"]


@pytest.mark.usefixtures("in_process")
def test_other_people_s_data_are_neither_uploaded_nor_linked(
    hub: Hub, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_settings(monkeypatch, "documents", {"source": {"hub": "them/texts", "revision": "abc"}})
    words = ["--upload", "--dry-run", "--namespace", "lab"]
    assert main(["cards", str(SMALL), "--runs", str(base.parent), *words]) == 0
    shown = capsys.readouterr().out
    assert "other people's data: animal, urban" in shown and "lab/small-animal" not in shown
    assert MODELS[0] in shown and hub.requests == []
    texts = files_text(base)
    assert any("taken from them/texts abc" in text for text in texts)
    assert not any("huggingface.co/datasets/lab" in text for text in texts)


@pytest.mark.usefixtures("in_process")
def test_all_refusals_at_once_and_before_anything_is_sent(
    hub: Hub, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_llama(monkeypatch, base, agreement=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    shutil.rmtree(results(base))
    (trained,) = base.glob("midtrain/base-urban-s0*")
    (trained / "model/model.safetensors").unlink()
    (corpus,) = base.glob("documents/animal*")
    with open(corpus / "corpus/train.parquet", "ab") as file:
        file.write(b"more")
    words = ["--upload", "--namespace", "lab"]
    assert main(["cards", str(SMALL), "--runs", str(base.parent), *words]) == 2
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert hub.requests == [] and shown.out == ""
    assert len(lines) == 8 and all(line.startswith("error: ") for line in lines), shown.err
    assert "small: is not finished" in lines[0] and "python -m study run" in lines[0]
    assert sum("asks for a copy of the agreement" in line for line in lines) == 4
    assert sum("model.safetensors: is gone" in line for line in lines) == 1
    assert sum("train.parquet: has another content" in line for line in lines) == 1
    assert lines[-1].startswith("error: HF_TOKEN: is not set")


def test_what_the_hub_refuses_is_one_line_a_repository(hub: Hub, base: Path) -> None:
    words = ["--upload", "--namespace", "lab", "--only", "base-*"]
    ran = cards(hub, base, *words, token="hf_wrong")
    assert ran.returncode == 2
    assert ran.stderr.count("the Hub doesn't accept the token") == 4, ran.stderr
    hub.refuses_writes = True
    ran = cards(hub, base, *words)
    assert ran.stderr.count("the token's account may not write there") == 4, ran.stderr
    hub.refuses_writes = False
    hub.fails_commits = {MODELS[0]}
    ran = cards(hub, base, *words)
    assert ran.returncode == 2 and f"error: {MODELS[0]}: HfHubHTTPError" in ran.stderr
    assert "README.md" in files(hub, "model", MODELS[3])  # the others were sent
    hub.fails_commits = set()
    assert cards(hub, base, *words).returncode == 0


def test_options_that_go_together(hub: Hub, base: Path) -> None:
    ran = cards(hub, base, "--dry-run", "--public")
    assert ran.returncode == 2 and ran.stderr.count("has no meaning without --upload") == 2
    ran = cards(hub, base, "--upload")
    assert ran.returncode == 2 and "--namespace: --upload needs it" in ran.stderr
    ran = cards(hub, base, "--upload", "--dry-run", "--namespace", "lab/x", "--only", "animal")
    assert ran.returncode == 2 and "the Hub takes no repository 'lab/x/small-animal'" in ran.stderr
    ran = cards(hub, base, "--only", "anima")
    assert ran.returncode == 2 and "--only anima: is the name of no corpus" in ran.stderr


def test_no_message_of_the_library_shows_the_token() -> None:
    cell = SimpleNamespace(stage="sft", name="x")
    row = hub_upload.Repository("lab/x", "model", cell, {})  # type: ignore[arg-type]
    error = ValueError(f"bad header 'Bearer {TOKEN}' at http://x/put/a?signature=secret")
    line = str(hub_upload._explain(error, row, TOKEN))
    assert TOKEN not in line and "secret" not in line and "***" in line
