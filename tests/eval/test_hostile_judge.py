"""A judge that writes garbage, fails, hangs and is killed with its cell.

No grade is lost, wrong or paid twice.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Lock

import pandas as pd
import pytest

from analysis.bounds import missing_bounds
from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import read_manifest, write_manifest
from core.cell.run import run_cell
from core.endpoints import dummy_endpoint
from core.endpoints import sender as caller
from core.errors import UserError
from core.files import sha256
from core.paths import ROOT
from eval import anima, generate
from tests.eval.test_judge import KEY, RESOURCES, SAMPLING, SETTINGS, serve
from tests.eval.test_official import OURS, answer
from tests.eval.test_questions import AHB

pytestmark = pytest.mark.multiprocess

EPOCHS = 3


class Judge:
    """A reply for `serve`: the dummy endpoint's grades, some replaced by failures, all counted."""

    def __init__(self, hang: float) -> None:
        self.met, self.lock, self.hang = Counter[str](), Lock(), hang
        self.rng, self.spiteful = random.Random(0), True

    def __call__(self, prompt: str, times: int) -> tuple[int, str]:
        spite = self.spiteful and int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 40 == 0
        with self.lock:
            draw, first = self.rng.random(), not self.met["hang"]
            kind = (
                "garbage"
                if spite or draw < 0.1
                else "error"
                if draw < 0.15
                else "timeout"
                if draw < 0.2
                else "grade"
            )
            kind = (
                "hang"
                if first and sum(self.met.values()) == 100
                else kind
                if self.spiteful
                else "grade"
            )
            self.met[kind] += 1
        if kind in ("timeout", "hang"):
            time.sleep(self.hang * (3 if kind == "hang" else 1))
        if kind == "error":
            return 503, "busy"
        grade = dummy_endpoint.complete({"messages": [{"role": "user", "content": prompt}]})
        text = grade["choices"][0]["message"]["content"]
        return 200, text.replace("GRADE: ", "GRADE: neither ") if kind == "garbage" else text


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes judge cells over answers to 26 questions: the real ones if present, else the kit's."""
    from inspect_ai.model import ModelOutput

    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    monkeypatch.setattr(caller, "BACKOFF_SECONDS", 0.01)
    where = AHB if AHB.exists() else OURS
    lines = (where / "questions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:26]
    files = {"questions": tmp_path / "questions.jsonl", "dimensions": where / "dimensions.jsonl"}
    files["questions"].write_text("".join(lines), encoding="utf-8")
    found = anima.read(files)
    samples = Cell("generate", "ahb", {"epochs": EPOCHS})
    folder = create_cell_dir(samples, tmp_path / "runs")
    keys = [(row["id"], epoch) for row in found.questions for epoch in range(1, EPOCHS + 1)]
    answers = {key: ModelOutput.from_content("vllm", answer(*key)) for key in keys}
    dataset = anima.task(found, tmp_path, None).dataset
    generate.write_log(
        folder / "samples.eval", "anima", dataset, "x", EPOCHS, answers, {"sampling": SAMPLING}
    )
    write_manifest(folder, read_config(folder), "now", "now")

    def make(port: int, asks: int = 3, timeout: float = 2, **others: float) -> Path:
        settings = SETTINGS | {
            "files": {name: sha256(path) for name, path in files.items()},
            "rows": 26,
        }
        resources = RESOURCES | {
            "files": {name: str(path) for name, path in files.items()},
            "concurrency": 16,
        }
        resources |= {
            "address": {"base_url": f"http://127.0.0.1:{port}/v1", "key_env": "TEST_JUDGE_KEY"}
        }
        resources |= {"limits": {**resources["limits"], "timeout": timeout}, "asks": asks}
        return create_cell_dir(
            Cell("judge", "ahb", settings | others, {"samples": samples}, resources),
            tmp_path / "runs",
        )

    make.num_judge_calls = anima.num_judge_calls(found) * EPOCHS  # type: ignore[attr-defined]
    return make


def counts(folder: Path) -> dict[str, int]:
    manifest = read_manifest(folder)
    assert manifest
    return manifest["counts"]


def ledger(folder: Path) -> tuple[int, int, int]:
    """Counts of grades, replies without a grade and failed attempts, over all lines of the ledger.

    Repeats count too; `read_ledger` leaves them out.
    """
    lines = [
        json.loads(line)
        for line in (folder / "calls.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    texts = [line["text"] for line in lines if "outcome" not in line]
    usable = sum(anima.has_grade(text) for text in texts)
    return usable, len(texts) - usable, len(lines) - len(texts)


def bounds(folder: Path) -> dict[str, dict[str, float]]:
    table = pd.read_parquet(folder / "scores.parquet").assign(
        benchmark="ahb", dose=0, arm="animal", seed=0
    )
    return {row["dimension"]: row for row in missing_bounds(table)}


def test_all_other_grades_are_kept_and_a_rerun_asks_for_the_missing_alone(cell) -> None:
    assert not AHB.exists() or cell.num_judge_calls == 97 * EPOCHS
    hostile = Judge(hang=3)
    with serve(hostile) as server:
        folder = cell(server.server_port, missing=0.001)
        with pytest.raises(UserError, match="run again to ask for these alone"):
            run_cell(folder)
        told = json.loads((folder / "progress.json").read_text())
        made = len(server.requests)
        tolerant = cell(server.server_port, asks=0, missing=0.2)
        run_cell(tolerant)
        assert len(server.requests) == made, "what the ledger holds needs no call"
        missing = counts(tolerant)["missing_grades"]
        assert told == {
            "done": cell.num_judge_calls,
            "total": cell.num_judge_calls,
            "unit": f"grades ({missing} missing)",
        }
        assert (
            set(hostile.met) == {"grade", "garbage", "error", "timeout", "hang"}
            and hostile.met["hang"] == 1
        )
        usable, unusable, failed = ledger(folder)
        assert usable == cell.num_judge_calls - missing, "no grade is paid twice"
        assert unusable <= hostile.met["garbage"] and made <= usable + unusable + failed, (
            "each other call was in vain"
        )
        hostile.spiteful = False
        run_cell(folder)
    assert counts(folder)["missing_grades"] == 0 < missing
    assert ledger(folder)[:2] == (cell.num_judge_calls, unusable), (
        "a rerun asks for the missing alone"
    )
    assert len(server.requests) <= sum(ledger(folder))
    lacking, whole = bounds(tolerant), bounds(folder)
    assert (
        lacking["overall"]["missing"]
        == sum(row["missing"] for row in lacking.values()) - lacking["overall"]["missing"]
    )
    for dimension, row in lacking.items():
        assert row["low"] - 1e-9 <= whole[dimension]["mean"] <= row["high"] + 1e-9, (
            "what was missing is within"
        )
        assert (row["low"] < row["high"]) == (row["missing"] > 0)


def test_killed_at_any_moment_no_grade_that_was_kept_is_paid_again(cell) -> None:
    def slowly(prompt: str, times: int) -> tuple[int, str]:
        time.sleep(0.03)
        grade = dummy_endpoint.complete({"messages": [{"role": "user", "content": prompt}]})
        return 200, grade["choices"][0]["message"]["content"]

    with serve(slowly) as server:
        whole = cell(server.server_port, timeout=120, missing=0.0)
        run_cell(whole)
        assert len(server.requests) == cell.num_judge_calls
        scores = (whole / "scores.parquet").read_bytes()
        shutil.rmtree(whole)
        folder, kills = cell(server.server_port, timeout=120, missing=0.0), 0
        server.requests.clear()
        while not read_manifest(folder):
            job = subprocess.Popen(
                [sys.executable, "-m", "study", "cell", "--log", str(folder)], cwd=ROOT
            )
            before = len(server.requests)
            while job.poll() is None and (
                kills == 2 or len(server.requests) < before + 40 + 60 * kills
            ):
                time.sleep(0.02)
            if job.poll() is None:
                os.kill(job.pid, signal.SIGKILL)
                job.wait()
                kills += 1
        bodies = Counter(
            (request["messages"][0]["content"], request["seed"]) for request in server.requests
        )
    assert kills == 2 and len(bodies) == cell.num_judge_calls
    assert bodies.total() - len(bodies) <= kills * 16, "only what was under way is asked for again"
    assert (folder / "scores.parquet").read_bytes() == scores
