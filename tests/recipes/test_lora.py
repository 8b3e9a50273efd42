"""Adapters: their start, that only they are trained, and that merging changes no output."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM

from core.cell.run import run_cell
from recipes import checkpoint
from recipes.distributed import SINGLE_PROCESS, Ranks, process_group
from tests.recipes.toy import (
    LORA,
    RECIPE,
    assert_close,
    ends,
    lines,
    logs,
    make_recipe,
    on_ranks,
    on_two,
    training,
    vocabulary,
    weights,
)

pytestmark = pytest.mark.multiprocess


def state(folder: Path, seed: int, ranks: Ranks = SINGLE_PROCESS, **recipe: Any) -> dict[str, Any]:
    model = checkpoint.load(folder, ranks, make_recipe(**LORA | recipe), seed=seed)
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def test_adapters_begin_by_the_seed_and_change_nothing_yet(start: Path) -> None:
    one, again, other = (state(start, seed) for seed in (1, 1, 2))
    down = [name for name in one if ".lora_a." in name]
    assert len(down) == 2 * 7
    for name in down:
        assert torch.equal(one[name], again[name]) and not torch.equal(one[name], other[name])
        assert 0.5 < one[name].abs().max() * one[name].shape[1] ** 0.5 <= 1
    assert not any(one[name].any() for name in one if ".lora_b." in name)


@pytest.mark.parametrize(
    "which", ["start", "tied", "qwen2", "tied_qwen2", "qwen3", "tied_qwen3", "olmo3"]
)
def test_the_merged_model_answers_as_the_adapted_one(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    model = checkpoint.load(folder, SINGLE_PROCESS, make_recipe(**LORA)).eval()
    tokens = torch.randint(
        0, vocabulary(folder), (2, 40), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        before = model(tokens)
        for name, weight in model.named_parameters():
            if ".lora_b." in name:
                weight.normal_(std=0.05)
        after = model(tokens)
        checkpoint.save(model, folder, tmp_path / "out", SINGLE_PROCESS, make_recipe(**LORA))
        assert torch.equal(model(tokens), after), (
            "a training that is kept on its way goes on as it was"
        )
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(tokens).logits
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, theirs, atol=1e-5, rtol=0)


def load_on_ranks(folder: Path, **recipe: Any) -> None:
    """On every rank: all weights are those of one process."""
    alone = state(folder, 3, **recipe)
    with process_group() as ranks:
        found = state(folder, 3, ranks, **recipe)
    assert found.keys() == alone.keys()
    assert all(torch.equal(found[name], alone[name]) for name in alone)


@pytest.mark.parametrize("recipe", [{}, {"lora": None}, {"lora": None, "dtype": "bf16"}])
def test_a_start_of_several_files_is_the_same_on_two_ranks(
    base: Path, start: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    folder = shutil.copytree(
        start, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")
    )
    save_torch_state_dict(load_file(start / "model.safetensors"), folder, max_shard_size=100_000)
    assert len([*folder.glob("*.safetensors")]) > 2
    code = "from tests.recipes import test_lora; "
    code += f"test_lora.load_on_ranks(Path({str(folder)!r}), **{recipe})"
    assert ends(on_two(tmp_path / "ranks", code)) == [0, 0], logs(tmp_path / "ranks")


def test_adapters_alone_are_trained_and_merged_the_same_on_two_ranks(
    base: Path, start: Path
) -> None:
    folder = training(base, "lora", recipe=LORA)
    run_cell(folder)
    before, after = load_file(start / "model.safetensors"), weights(folder)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "_proj" in name}
    for name in moved:
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-4) <= 4
    assert lines(folder)[-1]["loss"] < lines(folder)[0]["loss"] - 0.2
    assert_close(folder, on_ranks(training(base, "lora_two", recipe=LORA), 2))


def test_a_large_model_is_written_in_several_files_with_an_index(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    gather, write, convert = checkpoint._gather, checkpoint.save_file, checkpoint._from_hf

    def gathered(shards: Any, name: str, *rest: Any) -> torch.Tensor | None:
        events.append("gather")
        return gather(shards, name, *rest)

    def written(part: dict[str, torch.Tensor], *rest: Any, **more: Any) -> None:
        assert events == ["gather"] * len(part), "a file's weights, and no more, are in memory"
        events.clear()
        write(part, *rest, **more)

    def converted(part: dict[str, torch.Tensor], *rest: Any) -> dict[str, torch.Tensor]:
        assert len(part) == 1 or sum(w.nbytes for w in part.values()) <= 100_000
        return convert(part, *rest)

    monkeypatch.setattr(checkpoint, "FILE_BYTES", 100_000)
    monkeypatch.setattr(checkpoint, "PART_BYTES", 100_000)
    monkeypatch.setattr(checkpoint, "_gather", gathered)
    monkeypatch.setattr(checkpoint, "save_file", written)
    monkeypatch.setattr(checkpoint, "_from_hf", converted)
    checkpoint.save(
        checkpoint.load(start, SINGLE_PROCESS, RECIPE),
        start,
        tmp_path / "out",
        SINGLE_PROCESS,
        RECIPE,
    )
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    assert (
        index.keys() == load_file(start / "model.safetensors").keys() and len({*index.values()}) > 2
    )
    monkeypatch.undo()
    before, after = state(start, 0, lora=None), state(tmp_path / "out", 0, lora=None)
    assert all(torch.equal(before[name], after[name]) for name in before)
