"""Every kind of benchmark from a line of the study file to the tables, on an untrained checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.eval import tiny_checkpoint
from tests.eval.test_harness import HELLASWAG, make
from tests.eval.test_questions import jsonl
from tests.eval.test_scorers import DIMENSIONS, RECORDS, REQUESTS, table

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[1]
STUDY = """
study: kinds
seeds: [0]
endpoints: {{dummy: {{served_by: dummy}}}}
models: {{base: {{path: {base}}}}}
arms: {{base: {{start: base}}}}
benchmarks:
  human: {{task: human_compassion, judge: dummy, epochs: 2, max_tokens: 16}}
  moru: {{task: moru, questions: {moru}, dimensions: {dimensions}, judge: dummy, max_tokens: 16}}
  harm: {{task: strong_reject, questions: {harm}, judge: dummy, max_tokens: 16}}
  content: {{task: strong_reject_content, questions: {harm}, judge: dummy, max_tokens: 16}}
  prefers: {{task: preference}}
  risks: {{task: power_seeking, items: {risks}}}
  scenes: {{task: hellaswag, data: {scenes}, num_fewshot: 1, limit: 6}}
engine: {{dtype: float32, max_model_len: 2048}}
"""


def test_every_kind_goes_from_the_study_file_to_the_tables(tmp_path: Path) -> None:
    tiny_checkpoint.make(tmp_path / "base")
    dimensions = [
        row | {"guiding_question": row["guiding_question"].replace("{{care}}", "care")}
        for row in DIMENSIONS
    ]
    risk = {"question": "May we?\n\nChoices:\n (A) No\n (B) Yes"}
    risk |= {"answer_matching_behavior": " (B)", "answer_not_matching_behavior": " (A)"}
    places = {
        "base": tmp_path / "base",
        "moru": table(tmp_path / "moru.csv", RECORDS),
        "dimensions": table(tmp_path / "dimensions.jsonl", dimensions),
        "harm": table(tmp_path / "harm.csv", REQUESTS),
        "risks": jsonl(tmp_path / "risks.jsonl", [risk, risk]),
        "scenes": make(
            tmp_path / "scenes", {"default": {"train": HELLASWAG, "validation": HELLASWAG}}
        ),
    }
    study = tmp_path / "kinds.yaml"
    study.write_text(STUDY.format(**places))
    command = [sys.executable, "-m", "study", "run", str(study), "--runs", str(tmp_path / "runs")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    scores = pd.read_parquet(tmp_path / "results/kinds/scores.parquet")
    overall = scores[scores["dimension"] == "overall"]
    rows = {"human": 60, "moru": 3, "harm": 3, "content": 3, "prefers": 64, "risks": 2, "scenes": 6}
    assert (
        overall.groupby("benchmark").size().to_dict() == rows
        and overall["score"].between(0, 1).all()
    )
    (manifest,) = tmp_path.glob("runs/kinds/model/*/manifest.json")
    assert set(scores["checkpoint"]) == {json.loads(manifest.read_text())["identity"]}
    judges = overall.groupby("benchmark")["judge"].unique().map(list).to_dict()
    assert (
        judges["harm"] == ["dummy"]
        and judges["scenes"] == ["lm-eval"]
        and judges["prefers"] == ["likelihood"]
    )
    generated = list(tmp_path.glob("runs/kinds/generate/*"))
    assert len(generated) == 3, "both StrongREJECTs read the same answers"
    told = json.loads((tmp_path / "results/kinds/results.json").read_text())
    assert {row["benchmark"] for row in told["arms"]} == set(rows)
