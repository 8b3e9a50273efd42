"""A corpus and a judged benchmark by batches, killed three times: the bytes of single calls, and
each request paid once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import read_manifest, write_manifest
from core.cell.run import run_cell
from core.cell.waiting import STATUS, read_waiting
from core.endpoints.ledger import read_ledger
from core.files import sha256
from eval import anima, generate
from study.spec import expand
from study.spec.load import load_study
from tests.batch_endpoint import KEY, Provider, serving
from tests.place import ROOT
from tests.sdf.support import save_word_tokenizer

pytestmark = pytest.mark.multiprocess

DOCUMENTS = 20
EPOCHS = 2
KILLS = [("create", 1), ("retrieve", 2), ("content", 1)]  # (step, how many of them)
MakeCell = Callable[[Path, str, bool], Path]  # (runs folder, base_url, batch)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_KEY", KEY)


def corpus(tmp_path: Path) -> MakeCell:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    save_word_tokenizer(tokenizer)

    def make(runs: Path, base_url: str, batch: bool) -> Path:
        endpoint = {"base_url": base_url, "model": "dummy", "key_env": "BATCH_KEY", "batch": batch}
        overrides = [
            f"endpoints.dummy={endpoint}".replace("True", "true").replace("False", "false"),
            f"models.base={{path: {tokenizer}}}",
            f"corpora.animal.documents={DOCUMENTS}",
            "corpora.animal.tokens=null",
            "corpora.animal.shards=1",
            f"corpora.urban.documents={DOCUMENTS}",
            "corpora.urban.tokens=null",
        ]
        study = load_study(ROOT / "studies/tiny.yaml", None, overrides)
        cells = expand.in_order(expand.analysis(study))
        (cell,) = [c for c in cells if (c.stage, c.name) == ("documents", "animal")]
        return create_cell_dir(cell, runs / "s")

    return make


def judged(tmp_path: Path) -> MakeCell:
    from inspect_ai.model import ModelOutput

    data = ROOT / "eval/data/anima_like"
    files = {name: data / f"{name}.jsonl" for name in ("questions", "dimensions")}
    questions = anima.read(files)
    keys = [(row["id"], epoch) for row in questions.questions for epoch in range(1, EPOCHS + 1)]
    texts = ("Animals feel pain and need care.", "It is a matter of cost.")
    answers = {key: ModelOutput.from_content("vllm", texts[key[1] - 1]) for key in keys}
    dataset = anima.task(questions, tmp_path, None).dataset
    sampling = {"sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8}}

    def make(runs: Path, base_url: str, batch: bool) -> Path:
        samples = Cell("generate", "ahb", {"epochs": EPOCHS})
        folder = create_cell_dir(samples, runs / "s")
        if not read_manifest(folder):
            path = folder / "samples.eval"
            generate.write_log(path, "anima", dataset, "x", EPOCHS, answers, sampling)
            write_manifest(folder, read_config(folder), "now", "now")
        settings = {
            "scorer": "anima",
            "variant": None,
            "rows": None,
            "judge": {"model": "dummy", "served_by": "url"},
            "temperature": 0.0,
            "max_tokens": 256,
            "missing": 0.0,
            "files": {name: sha256(path) for name, path in files.items()},
        }
        address: dict[str, Any] = {"base_url": base_url, "key_env": "BATCH_KEY"}
        rates = {"requests_per_minute": None, "tokens_per_minute": None}
        resources = {
            "files": {name: str(path) for name, path in files.items()},
            "address": address | ({"batch": {"max_requests": 100}} if batch else {}),
            "limits": {**rates, "prompt_price": 1.0, "completion_price": 2.0, "timeout": 60},
            "concurrency": 1000 if batch else 16,
            "asks": 3,
        }
        cell = Cell("judge", "ahb", settings, {"samples": samples}, resources)
        return create_cell_dir(cell, runs / "s")

    return make


def run(folder: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "study", "cell", "--log", str(folder)]
    return subprocess.Popen(command, cwd=ROOT)


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (corpus, ("documents.jsonl", "corpus_stats.json", "corpus/train.parquet")),
        (judged, ("scores.parquet", "examples.jsonl")),
    ],
)
def test_the_same_bytes_as_by_calls_and_each_request_paid_once(
    tmp_path: Path, make: Callable[[Path], MakeCell], outputs: tuple[str, ...]
) -> None:
    cell = make(tmp_path)
    provider = Provider(looks=1)
    jobs: list[subprocess.Popen[bytes]] = []
    kills: list[str] = []

    def kill(step: str) -> None:
        if len(kills) < len(KILLS) and (step, provider.steps[step]) == KILLS[len(kills)]:
            kills.append(step)
            provider.steps.clear()
            os.kill(jobs[-1].pid, signal.SIGKILL)

    with serving(provider) as endpoint:
        plain = cell(tmp_path / "plain", endpoint.base_url, False)
        run_cell(plain)
        assert provider.calls and not provider.batches
        calls = provider.calls
        folder = cell(tmp_path / "runs", endpoint.base_url, True)
        assert folder.name == plain.name, "batches are no part of an identity"
        provider.on_step = kill
        for _ in KILLS:
            jobs.append(run(folder))
            assert jobs[-1].wait() == -signal.SIGKILL, (folder / "log.txt").read_text()
            assert not read_manifest(folder)
        run_cell(folder)
    assert kills == [step for step, _ in KILLS] and provider.calls == calls
    for name in outputs:
        assert (folder / name).read_bytes() == (plain / name).read_bytes(), name
    assert set(provider.payments.values()) == {1}
    entries = read_ledger(folder / "calls.jsonl")[0]
    assert entries.keys() == provider.payments.keys()
    assert entries.keys() == read_ledger(plain / "calls.jsonl")[0].keys()
    manifests = [read_manifest(path) or {} for path in (folder, plain)]
    first, second = (manifest["counts"] for manifest in manifests)
    assert {k: v for k, v in first.items() if k != "calls_reused"} == {
        k: v for k, v in second.items() if k != "calls_reused"
    }
    assert set(manifests[0]["outputs"]) == set(manifests[1]["outputs"])


def test_a_cell_whose_batch_takes_hours_ends_and_is_run_again(tmp_path: Path) -> None:
    cell = corpus(tmp_path)
    provider = Provider(looks=10**9)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    # In the child alone: no patience.
    (tmp_path / "sitecustomize.py").write_text(
        "import core.endpoints.batches as batches\nbatches.PATIENCE = 0.0\n"
    )
    with serving(provider) as endpoint:
        folder = cell(tmp_path / "runs", endpoint.base_url, True)
        command = [sys.executable, "-m", "study", "cell", str(folder)]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == STATUS, result.stdout + result.stderr
        assert "waits for batch batch_1 of 20 requests, sent 20" in result.stdout
        assert "Traceback" not in result.stdout + result.stderr
        record = read_waiting(folder)
        assert record and record.what.startswith("batch batch_1 of 20 requests")
        provider.looks = 0
        run_cell(folder)
    assert not read_waiting(folder) and set(provider.payments.values()) == {1}
    assert "waiting.json" not in (read_manifest(folder) or {})["outputs"]
