"""Small look-alikes of the data sets of lm-eval's tasks."""

import json
from pathlib import Path
from typing import Any

import yaml

ANIMALS = ["hen", "fox", "owl", "cow", "bee", "ant", "elk", "eel"]
HELLASWAG = [
    {
        "activity_label": f"Feeding a {animal}",
        "ctx_a": f"The {animal} waits by gate {i}.",
        "ctx_b": "it",
        "endings": [f"eats {i + j} grains{' and more' * j}[step]." for j in range(4)],
        "label": str(i % 4),
    }
    for i, animal in enumerate(ANIMALS * 5)
]
ARC = [
    {
        "question": f"What does a {animal} need?",
        "choices": {
            "text": ["Air", "Tin", "Ink", "Tar"][i % 2 :],
            "label": ["A", "B", "C", "D"][: 4 - i % 2],
        },
        "answerKey": "A",
    }
    for i, animal in enumerate(ANIMALS)
]
MMLU = [
    {
        "question": f"Which comes {i + 1}.?",
        "choices": ANIMALS[:4],
        "answer": i,
        "subject": "animals",
    }
    for i in range(4)
]
GSM8K = [
    {
        "question": f"A {animal} has {i} eggs. Twice that?",
        "answer": f"Twice {i} is {2 * i}.\n#### {2 * i}",
    }
    for i, animal in enumerate(ANIMALS)
]
IFEVAL = [
    {
        "key": 1,
        "prompt": "Name two fish, no commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
    {
        "key": 2,
        "prompt": "Praise hens in English, in at least 40 sentences.",
        "instruction_id_list": [
            "length_constraints:number_sentences",
            "language:response_language",
        ],
        "kwargs": [{"num_sentences": 40, "relation": "at least"}, {"language": "en"}],
    },
]
TRUTHFULQA = [
    {
        "question": f"Do {animal}s feel?",
        "mc1_targets": {"choices": ["Yes.", "No."], "labels": [1, 0]},
        "mc2_targets": {"choices": ["They do.", "Yes.", "No."], "labels": [1, 1, 0]},
    }
    for animal in ANIMALS
]


def make(folder: Path, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> Path:
    """A data set as on the Hub: rows by config and split, and a README with their files."""
    configured = []
    for config, splits in configs.items():
        for split, rows in splits.items():
            path = folder / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = [{"split": split, "path": f"{config}/{split}.jsonl"} for split in splits]
        configured.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configured})}---\n")
    return folder
