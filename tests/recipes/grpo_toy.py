"""A training by GRPO that is small enough for tests."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.grpo_recipe import Grpo, split_grpo
from core.recipe import Training
from study.spec.sources import identities
from tests.recipes import toy

PROMPTS = [f"What is {thing}?" for thing in ("rain", "snow", "tea", "a roof")]
DOCUMENTS = Cell("documents", "prompts", {})
RECIPE = Grpo(
    train=Training(
        seq_len=48,
        epochs=60,
        global_batch_size=4,
        max_steps=60,
        lr=3e-3,
        schedule="constant",
        eval_every=20,
    ),
    group_size=8,
    max_tokens=8,
)


def cell(base: Path, runs: Path, grpo: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A cell to train in a runs folder of its own. `grpo`: changes of RECIPE; `changes`: of
    settings, `train` of the recipe's training."""
    train = asdict(RECIPE.train) | changes.pop("train", {})
    recipe, runtime = split_grpo(asdict(RECIPE) | {"train": train} | (grpo or {}))
    runtime |= changes.pop("runtime", {})
    files = changes.pop("files", {})
    settings = {
        **recipe,
        "reward": {"contains": "a"},
        "response_only": False,
        "shuffled": False,
        "engine": {"dtype": "float32"},
        **identities({name: {"path": path} for name, path in files.items()}),
        **changes,
    }
    study = runs / base.name
    start = study / toy.MODEL.relpath
    if not start.exists():
        shutil.copytree(base / toy.MODEL.relpath, start)
        prompts = create_cell_dir(DOCUMENTS, study)
        for name, texts in (("documents", PROMPTS), ("held_out", ["What is a cup?"] * 2)):
            rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (prompts / f"{name}.jsonl").write_text(rows)
        write_manifest(prompts, read_config(prompts), "", "", counts={}, warnings=[])
    resources = {**runtime, "engine": {}, "files": files}
    inputs = {"start": toy.MODEL, "documents": DOCUMENTS}
    return create_cell_dir(Cell("rl", "grpo", settings, inputs, resources), study)


def curve(folder: Path, key: str = "reward") -> list[float]:
    """One number of each step."""
    return [line[key] for line in toy.lines(folder)]
