"""Fetching from a hub over real HTTP.

Each run is a process of its own, as huggingface_hub reads its settings at import.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import Problem
from study.spec import sources
from tests.hub import TOKEN, Hub

ROOT = Path(__file__).parents[2]
CODE = """
import json, signal, sys
from pathlib import Path
from core.errors import UserError
from study.upkeep.fetch import fetch
plain = signal.signal
def telling(number, handler):  # what hears a signal leaves a file when it has
    def hear(*of):
        try:
            handler(*of)
        finally:
            (Path(sys.argv[2]).parents[1] / "heard").touch()
    return plain(number, hear if callable(handler) else handler)
signal.signal = telling
try:
    print(json.dumps(fetch(json.loads(sys.argv[1]), Path(sys.argv[2]), check=len(sys.argv) > 3)))
except UserError as error:
    sys.exit("\\n".join(error.lines))
except KeyboardInterrupt:
    sys.exit(130)
"""
MEGABYTES = 2**20
WEIGHTS = bytes(range(256)) * 100
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer.model": b"pieces",
    "chat_template.jinja": b"{{ messages }}",
}
NOT_WANTED = {
    "original/consolidated.00.pth": b"again",
    "original/params.json": b"{}",
    "consolidated.safetensors": b"again",
    "pytorch_model.bin": b"again",
    "pytorch_model.bin.index.json": b"{}",
    "modeling.py": b"import os",
    "README.md": b"read me",
}
ROWS = b'{"text": "one"}\n{"text": "two"}\n'
DATA = {
    "README.md": b"# data",
    "data/train.jsonl": ROWS,
    "data/odd [1].jsonl": b'{"text": "three"}\n',
    "other/x.csv": b"a\n",
}


def missing(asked: list[sources.Source]) -> list[Problem]:
    return sources.missing(asked, "studies/x.yaml")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and a cache in `tmp_path` in which this process and those of `run` look."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    with Hub(tmp_path) as running:
        yield running


def start(hub: Hub, asked: list[dict], *more: str, **environment: str) -> subprocess.Popen:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(hub.home / "hf"),
        "NO_PROXY": "*",
        **environment,
    }
    words = [
        sys.executable,
        "-c",
        CODE,
        json.dumps(asked),
        str(hub.home / "runs/fetched.json"),
        *more,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=ROOT, env=inherited | settings, **pipes)


def run(
    hub: Hub, asked: list[dict], *more: str, **environment: str
) -> tuple[list[dict], list[str]]:
    """What fetch returned, and the lines on stderr, where each mistake is one."""
    hub.requests.clear()
    process = start(hub, asked, *more, **environment)
    out, err = process.communicate(timeout=60)
    lines = err.splitlines()
    assert "Traceback" not in err, err
    assert all(secret not in out + err for secret in (TOKEN, "hf_wrong")), "a token was shown"
    return json.loads(out) if process.returncode == 0 else [], lines


def model(
    hub: Hub, name: str = "owner/model", files: dict = MODEL | NOT_WANTED, **options: str
) -> dict:
    return {"hub": name, "revision": hub.add("model", name, files, **options), "kind": "model"}


def data(hub: Hub, **more: str) -> dict:
    return {
        "hub": "owner/data",
        "revision": hub.add("dataset", "owner/data", DATA),
        "kind": "dataset",
        **more,
    }


def record(hub: Hub) -> list[dict]:
    return json.loads((hub.home / "runs/fetched.json").read_text())["sources"]


def found(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
