"""Rungs of the ladder end to end: repositories in the forms that were published, from a hub.

Column `output`, chat rows, a card without a licence, a model folder without a tokenizer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.endpoints import dummy_endpoint
from core.model_folder.tokenizer import TOKENIZER_FILES
from core.paths import ROOT
from study.spec.load import load_study
from tests.hub import Hub
from tests.recipes import zoo

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]
CARD = b"# Uploaded model\n\n- **Developed by:** owner\n"
SIZES = {"hidden_size": 64}  # vLLM's CPU build has no heads of 8
STUDY: dict[str, Any] = {
    "study": "theirs",
    "seeds": [0, 1],
    "endpoints": {"dummy": {"served_by": "dummy"}},
    "models": {
        "base": {"hub": "owner/base", "chat": True},
        "documents": {"hub": "owner/documents", "tokenizer": "base"},
        "tuned": {"hub": "owner/tuned", "tokenizer": "base", "chat": True},
    },
    "corpora": {
        "animal": {"hub": "owner/animal", "column": "output", "documents": 20, "gates": "report"},
        "qa": {"hub": "owner/qa", "messages": "messages", "documents": 20, "gates": "report"},
    },
    "midtrain": {"recipe": "tests/small/midtrain.yaml"},
    "arms": {
        "untrained": {"start": "base"},
        "weights": {"checkpoints": {0: ["documents"], 80: ["tuned"]}},
        "weights_qa": {"checkpoints": {0: ["tuned"]}},
        "retrained": {"start": "base", "midtrain": "animal"},
        "retrained_qa": {
            "start": "base",
            "midtrain": "qa",
            "question_variant": "original",
            "recipe": "tests/small/sft.yaml",
        },
    },
    "benchmarks": {
        "ahb": {
            "task": "anima",
            "questions": "eval/data/anima_like/questions.jsonl",
            "dimensions": "eval/data/anima_like/dimensions.jsonl",
            "judge": "dummy",
            "max_tokens": 16,
            "judge_max_tokens": 256,
        }
    },
    "engine": {"dtype": "float32", "max_model_len": 1024},
    "contrasts": [
        {
            "name": f"{arm} documents - QA",
            "treatment": arm,
            "control": f"{arm}_qa",
            "benchmarks": ["ahb"],
            "doses": [0],
            "varies": ["corpus", "recipe", "start"],
        }
        for arm in ("weights", "retrained")
    ],
    "claim_roles": {
        "documents": "retrained",
        "qa": "retrained_qa",
        "before_sft": 0,
        "anima": "ahb",
    },
    "ladder": [{"documents": "weights", "qa": "weights_qa"}],
}


def files_of(folder: Path, tokenizer: bool) -> dict[str, bytes]:
    return {"README.md": CARD} | {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if tokenizer or path.name not in TOKENIZER_FILES
    }


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def command(hub: Hub, *words: str, **more: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(hub.home / "hf"), "NO_PROXY": "*", **more}
    run = subprocess.run(
        [sys.executable, "-m", "study", *words],
        cwd=ROOT,
        env=inherited | settings,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout


def test_their_weights_and_documents_become_rungs_of_one_ladder(tmp_path: Path) -> None:
    texts = [dummy_endpoint.write(f"a report on animal welfare {n}", n) for n in range(24)]
    chats = [
        [
            {"role": "user", "content": f"Is pen {n} fair?"},
            {"role": "assistant", "content": f"Hen {n} needs more room."},
        ]
        for n in range(len(texts))
    ]
    with Hub(tmp_path) as hub:
        for name in ("base", "documents", "tuned"):
            folder = zoo.make(tmp_path / name, changes=SIZES)
            hub.add("model", f"owner/{name}", files_of(folder, tokenizer=name == "base"))
        documents = [{"instruction": None, "output": text} for text in texts]
        pairs = [{"messages": chat} for chat in chats]
        for name, rows in (("animal", documents), ("qa", pairs)):
            hub.add(
                "dataset", f"owner/{name}", {"README.md": CARD, "train.jsonl": json_lines(rows)}
            )
        path = tmp_path / "theirs.yaml"
        path.write_text("# Theirs.\n" + yaml.safe_dump(STUDY, sort_keys=False))
        named = [str(path), "--runs", str(tmp_path / "runs")]
        command(hub, "fetch", *named, "--pin")
        assert load_study(path).corpora["qa"].revision
        command(hub, "fetch", *named)
    command(hub, "run", *named, "--jobs", "1", HF_HUB_OFFLINE="1")
    folder = tmp_path / "results/theirs"
    results = json.loads((folder / "results.json").read_text())
    assert results["rungs"] == {
        "retrained": "documents",
        "retrained_qa": "documents",
        "untrained": "anew",
        "weights": "weights",
        "weights_qa": "weights",
    }
    scored = {(row["arm"], row["dose"], row["seed"]) for row in results["scores"]}
    assert scored == {
        ("untrained", 0, None),
        ("weights", 0, 0),
        ("weights", 80, 0),
        ("weights_qa", 0, 0),
        *((arm, 0, seed) for arm in ("retrained", "retrained_qa") for seed in (0, 1)),
    }
    (row,) = (row for row in results["ladder"] if row["id"] == "e2.before_sft")
    assert row["weights"] and row["documents"] and not row["anew"]
    assert {
        name: row["verdict"] for name, row in zip(("w", "r"), results["contrasts"], strict=True)
    }["w"] == "none", "one run of each arm"
    report = (folder / "report.html").read_text()
    for text in ("their weights, evaluated again", "their documents, trained again"):
        for output in (report, (folder / "headline.txt").read_text()):
            assert text in output.lower() or text in output
    command(hub, "verify", *named)
    command(hub, "status", *named)
