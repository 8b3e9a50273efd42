"""Rows of special tokens beside LoRA's adapters: on several ranks as on one, and after a stop."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.cell.run import run_cell
from core.files import sha256
from core.model_folder.chat import Chat
from core.model_folder.tokenizer import load_tokenizer
from core.recipe import Training, split_recipe
from tests.recipes.toy import (
    assert_close,
    assert_same,
    lines,
    on_ranks,
    start_ranks,
    until,
    weights,
)
from tests.recipes.toy import ends as end_statuses

pytestmark = pytest.mark.multiprocess

LORA = {"rank": 4, "alpha": 8.0, "train_special_tokens": True}
RECIPE = Training(seq_len=128, epochs=4, global_batch_size=4, lr=3e-3, warmup_steps=2)
TALKS = [
    [
        {"role": "user", "content": f"Where is cup {number}?"},
        {"role": "assistant", "content": "On the roof. " * (number % 5 + 1)},
    ]
    for number in range(13)
]


def sft(model: Path, folder: Path, **runtime: Any) -> Path:
    """A cell that trains `model` on TALKS, in a runs folder of its own."""
    start = Cell("model", "start", {})
    shutil.copytree(model, create_cell_dir(start, folder) / "model")
    started = folder / start.relpath
    write_manifest(started, read_config(started), "", "", counts={}, warnings=[])
    data = folder / "chat.jsonl"
    data.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in TALKS))
    recipe, default = split_recipe(asdict(RECIPE) | {"lora": LORA | {"dropout": 0.0}})
    settings = {"recipe": recipe, "files": {"data": sha256(data)}, "dose": 13, "seed": 0}
    resources = {"files": {"data": str(data)}, **default, **runtime}
    return create_cell_dir(Cell("sft", "rows", settings, {"start": start}, resources), folder)


def moved_rows(before: Path, after: Path, name: str) -> list[int]:
    rows = load_file(before / "model.safetensors")[name], weights(after)[name]
    return [int(row) for row in (rows[0] != rows[1]).any(1).nonzero()]


@pytest.mark.parametrize("which", ["start", "tied"])
def test_rows_of_special_tokens_are_trained_the_same_on_two_ranks(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """13 rows in fours: one rank is idle in the last step of each pass."""
    model = request.getfixturevalue(which)
    alone = sft(model, tmp_path / "alone/study")
    run_cell(alone)
    two = on_ranks(sft(model, tmp_path / "two/study"), 2)
    assert_close(alone, two)
    ids = Chat(load_tokenizer(model)).template_ids()
    assert len(ids) % 2, "an odd number of rows: the ranks' shards of them differ in size"
    heads = [] if which == "tied" else ["lm_head.weight"]
    for name in ("model.embed_tokens.weight", *heads):
        assert moved_rows(model, alone, name) == moved_rows(model, two, name) == ids
        difference = (weights(alone)[name] - load_file(model / "model.safetensors")[name])[ids]
        assert difference.abs().max() > 1e-3, "far more than the two may differ"


def test_rows_of_special_tokens_resume_on_two_ranks_after_a_kill(
    start: Path, tmp_path: Path
) -> None:
    undisturbed = on_ranks(sft(start, tmp_path / "undisturbed/study"), 2)
    folder = sft(start, tmp_path / "killed/study", checkpoint_minutes=0.0)
    processes = start_ranks(folder, 2)
    until(lambda: len(lines(folder)) > 4, processes)
    for process in processes:
        process.kill()
    end_statuses(processes)
    assert not (folder / "model").exists()
    assert_same(on_ranks(folder, 2), undisturbed)
    assert torch.equal(
        *(weights(cell)["model.embed_tokens.weight"] for cell in (folder, undisturbed))
    )
