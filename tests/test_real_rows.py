"""A study on real rows: documents, instruction data with bad rows planted, AHB, contrastive pairs."""

import gzip
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from core.row_formats import row_location
from recipes.conversations import read_conversations
from tests.place import ROOT

DATA = ROOT.parent / "shared/data"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not DATA.exists(), reason="the real rows are not beside the checkout"),
]
DOCUMENTS = DATA / "documents/welfare_documents.jsonl"
QUESTIONS = DATA / "ahb/questions.jsonl"
PAIRS = DATA / "advanced_ai_risk/corrigible-neutral-HHH.jsonl"
STUDY = """
study: real
seeds: [0]
endpoints: {{dummy: {{served_by: dummy}}}}
models: {{base: {{make: {root}/tests/small/llama.yaml}}}}
corpora:
  real: {{path: {documents}, column: content, documents: 40}}
arms:
  alpaca: {{start: base, train: [{{documents: real}}, {{sft: alpaca}}]}}
  helpsteer: {{start: base, train: [{{documents: real}}, {{sft: helpsteer}}]}}
midtrain: {{recipe: {folder}/midtrain.yaml}}
sfts:
  alpaca: {{recipe: {folder}/sft.yaml, data: {folder}/alpaca.json, doses: [32]}}
  helpsteer: {{recipe: {folder}/sft.yaml, data: {folder}/helpsteer.jsonl.gz, doses: [32]}}
benchmarks:
  ahb:
    task: anima
    questions: {questions}
    dimensions: {data}/ahb/dimensions.jsonl
    judge: dummy
    epochs: 1
    max_tokens: 8
    judge_max_tokens: 256
  corrigible: {{task: corrigibility, items: {pairs}}}
engine: {{dtype: float32, max_model_len: 2048}}
contrasts:
  - {{name: alpaca - helpsteer, treatment: alpaca, control: helpsteer, benchmarks: [ahb], varies: [sft.files.data]}}
"""
MIDTRAIN = "{seq_len: 256, epochs: 1, tokens_per_step: 2048, lr: 1.0e-3, max_steps: 20}"
SFT = "{seq_len: 1024, epochs: 1, global_batch_size: 8, lr: 5.0e-4}"
LONG = "One more cow. " * 2000
TURNS = "Hello.\n<extra_id_1>Assistant\nHello, what can I do?\n<extra_id_1>User\n{}"
# Position in the file -> the row planted there, and the rule of the recipe that it falls under.
ALPACA_PLANTED: dict[int, tuple[Any, str]] = {
    0: ({"instruction": "Name a hen.", "input": "", "output": ""}, "empty"),
    17: ({"instruction": "Name a hen.", "input": "", "output": "<nooutput>"}, "empty"),
    50: ({"instruction": "Name a hen.", "input": "", "output": None}, "malformed"),
    51: ({"instruction": "Name a hen.", "input": ["Ada"], "output": "Ada"}, "malformed"),
    300: ({"instruction": "Name a hen.", "input": "", "output": "Ada<|eot_id|>"}, "special_tokens"),
    444: ({"instruction": "Name all cows.", "input": "", "output": LONG}, "too_long"),
    899: ("Name a hen.", "malformed"),
}
HELPSTEER_PLANTED: dict[int, tuple[Any, str]] = {
    3: ({"prompt": TURNS.format("Name a hen."), "response": " \n"}, "empty"),
    100: ({"prompt": TURNS.format("<|eot_id|>"), "response": "Ada"}, "special_tokens"),
    200: ({"prompt": "Name a hen.", "response": 4}, "malformed"),
    201: ({"prompt": "", "response": "Ada"}, "empty"),
    400: ({"prompt": TURNS.format(LONG), "response": "Ada"}, "too_long"),
}


@dataclass
class Run:
    """The finished study; the instruction rows are those that were not planted."""

    folder: Path
    alpaca: list[dict[str, Any]]
    helpsteer: list[dict[str, Any]]

    def cell(self, pattern: str) -> Path:
        (path,) = (self.folder / "runs/real").glob(pattern)
        return path

    def manifest(self, pattern: str) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.cell(pattern) / "manifest.json").read_text())
        return manifest

    @cached_property
    def report(self) -> str:
        return (self.folder / "results/real/report.html").read_text(encoding="utf-8")


def planted(
    rows: list[dict[str, Any]], bad: dict[int, tuple[Any, str]], count: int
) -> tuple[list[Any], list[dict[str, Any]]]:
    """`count` rows with the bad ones among them; and the good ones."""
    good = rows[: count - len(bad)]
    mixed: list[Any] = [*good]
    for position, (row, _) in sorted(bad.items()):
        mixed.insert(position, row)
    return mixed, good


def as_helpsteer(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A row of Alpaca in HelpSteer's columns; every other prompt has several turns."""
    prompt = "\n\n".join(filter(None, (row["instruction"], row["input"])))
    return {
        "prompt": TURNS.format(prompt) if number % 2 else prompt,
        "response": row["output"],
        **dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity"), 3),
    }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("real") / "study"
    folder.mkdir()
    gsm8k = json.loads((DATA / "instruct/gsm8k_train.json").read_text(encoding="utf-8"))
    roleplay = json.loads((DATA / "instruct/roleplay.json").read_text(encoding="utf-8"))
    alpaca, good_alpaca = planted(gsm8k, ALPACA_PLANTED, 900)
    rows = [as_helpsteer(number, row) for number, row in enumerate(roleplay)]
    helpsteer, good_helpsteer = planted(rows, HELPSTEER_PLANTED, 600)
    (folder / "alpaca.json").write_text(json.dumps(alpaca, ensure_ascii=False), encoding="utf-8")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in helpsteer)
    (folder / "helpsteer.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "midtrain.yaml").write_text(MIDTRAIN)
    (folder / "sft.yaml").write_text(SFT)
    study = folder / "real.yaml"
    files = {"documents": DOCUMENTS, "questions": QUESTIONS, "pairs": PAIRS}
    study.write_text(STUDY.format(root=ROOT, data=DATA, folder=folder, **files))
    command = [sys.executable, "-m", "study", "run", str(study), "--runs", str(folder / "runs")]
    result = subprocess.run([*command, "--jobs", "1"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return Run(folder, good_alpaca, good_helpsteer)


def read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_documents_are_the_texts_of_the_source_and_rejected_ones_are_listed(ran: Run) -> None:
    source = read_lines(DOCUMENTS)
    cell = ran.cell("documents/real-*")
    documents = read_lines(cell / "documents.jsonl")
    assert [row["text"] for row in documents] == [
        source[row["id"]]["content"].strip() for row in documents
    ]
    counts = ran.manifest("documents/real-*")["counts"]
    rejected = read_lines(cell / "rejected.jsonl")
    assert (counts["documents"], counts["read"], counts["rejected"]) == (40, 100, len(rejected))
    assert rejected and not {row["id"] for row in rejected} & {row["id"] for row in documents}
    for row in rejected:
        assert row["gate"] and row["detail"] and source[row["id"]]["content"][:50] in row["excerpt"]


@pytest.mark.parametrize(
    ("arm", "file", "total", "bad"),
    [
        ("alpaca", "alpaca.json, row {}", 900, ALPACA_PLANTED),
        ("helpsteer", "helpsteer.jsonl.gz:{}", 600, HELPSTEER_PLANTED),
    ],
)
def test_planted_rows_are_dropped_and_listed_and_no_other(
    ran: Run, arm: str, file: str, total: int, bad: dict[int, tuple[Any, str]]
) -> None:
    manifest = ran.manifest(f"sft/*-{arm}-*")
    dropped = manifest["dropped_rows"]
    places = {place: rule for rule, of_rule in dropped["rows"].items() for place in of_rule}
    assert dropped["of"] == total
    assert places == {file.format(n + 1): rule for n, (_, rule) in bad.items()}
    assert (manifest["counts"]["rows"], manifest["counts"]["steps"]) == (32, 4)
    log = (ran.cell(f"sft/*-{arm}-*") / "log.txt").read_text()
    assert log.count("Z dropped: ") == len(bad)
    note = (
        f"SFT on 32 rows of {arm}: {len(bad)} of {total} rows of {Path(dropped['file']).name} can"
    )
    assert note in ran.report


def test_the_other_instruction_rows_are_whole(ran: Run) -> None:
    """Every text, and the turns of HelpSteer's prompts, of which the last answer is trained on."""
    assert good_rows(ran.folder / "alpaca.json", ALPACA_PLANTED) == [
        [
            {
                "role": "user",
                "content": "\n\n".join(filter(None, (row["instruction"], row["input"]))),
            },
            {"role": "assistant", "content": row["output"]},
        ]
        for row in ran.alpaca
    ]
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello, what can I do?", "weight": 0},
    ]
    expected = []
    for row in ran.helpsteer:
        begins_earlier = row["prompt"].startswith(TURNS.format(""))
        question = row["prompt"].removeprefix(TURNS.format(""))
        exchange = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": row["response"]},
        ]
        expected.append([*turns, *exchange] if begins_earlier else exchange)
    assert good_rows(ran.folder / "helpsteer.jsonl.gz", HELPSTEER_PLANTED) == expected


def good_rows(path: Path, bad: dict[int, tuple[Any, str]]) -> list[list[dict[str, Any]]]:
    """The messages that are read of the rows that were not planted."""
    places = {row_location(path, position + 1) for position in bad}
    conversations, _ = read_conversations(path)
    return [row.messages for row in conversations if row.source not in places]


def test_all_questions_and_pairs_are_asked_as_they_stand(ran: Run) -> None:
    from inspect_ai.log import read_eval_log

    questions = read_lines(QUESTIONS)
    tags = sum(len([tag for tag in row["tags"] if tag]) for row in questions)
    pairs = read_lines(PAIRS)
    scores = pd.read_parquet(ran.folder / "results/real/scores.parquet")
    for arm in ("alpaca", "helpsteer"):
        log = read_eval_log(ran.cell(f"generate/ahb-*-{arm}-*") / "samples.eval")
        asked = {str(sample.id): sample.input for sample in log.samples or []}
        assert asked == {str(row["id"]): row["question"] for row in questions}
        of_arm = scores[scores["arm"] == arm]
        ahb = of_arm[of_arm["benchmark"] == "ahb"]
        assert (ahb["question"].nunique(), (ahb["dimension"] != "overall").sum()) == (115, tags)
        assert ahb["score"].notna().all()
        assert ran.manifest(f"judge/ahb-*-{arm}-*")["counts"]["missing_grades"] == 0
        samples = read_lines(ran.cell(f"likelihood/*-{arm}-*") / "samples.jsonl")
        assert len(samples) == len(pairs) == (of_arm["benchmark"] == "corrigible").sum()
        assert [row["answer"] for row in samples] == [
            ord(row["answer_matching_behavior"].strip(" ()")) - ord("A") for row in pairs
        ]
