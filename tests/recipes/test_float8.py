"""Training with matrix products in float8, as a CPU rounds them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchtune.modules import TransformerDecoder

from core.cell.run import run_cell
from core.errors import UserError
from core.paths import ROOT
from core.recipe import split_recipe, training_mistakes
from recipes import float8
from recipes.distributed import CPU, SINGLE_PROCESS
from recipes.model import build, parallelize
from tests.recipes.toy import (
    RECIPE,
    SHAPE_AS_CONFIG,
    lines,
    make_recipe,
    on_ranks,
    training,
    weights,
)

MIXED = {"dtype": "mixed"}
FLOAT8 = {"dtype": "mixed", "float8": True}
# docs/training.md states this difference of the toy's loss, in nats a token.
EFFECT = 0.05


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """Rows as float8 (e4m3) holds them, each scaled by a power of two to the largest it can."""
    largest = rows.abs().amax(-1, keepdim=True).double()
    scale = 2 ** torch.floor(torch.log2(torch.finfo(torch.float8_e4m3fn).max / largest))
    return (rows * scale).to(torch.float8_e4m3fn).double() / scale


def test_a_product_is_that_of_rounded_rows() -> None:
    torch.manual_seed(0)
    model = build(SHAPE_AS_CONFIG)
    plain = model.layers[0].mlp.w1
    float8.convert(model, CPU)
    linear = model.layers[0].mlp.w1
    assert type(linear) is not type(plain) and linear.weight is plain.weight
    rows = torch.randn(5, plain.in_features, requires_grad=True)
    product = linear(rows)
    expected = rounded(rows.detach()) @ rounded(plain.weight.detach()).T
    torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(product, plain(rows), rtol=1e-3)
    product.sum().backward()
    assert rows.grad is not None and linear.weight.grad is not None


def converted(model: TransformerDecoder) -> set[str]:
    return {name for name, module in model.named_modules() if "Float8" in type(module).__name__}


def test_only_the_blocks_layers_are_converted_and_weights_keep_their_names() -> None:
    model = build(SHAPE_AS_CONFIG)
    names = list(model.state_dict())
    model.layers[0].mlp.w3 = nn.Linear(model.layers[0].mlp.w3.in_features, 24, bias=False)
    float8.convert(model, CPU)
    per_block = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.output_proj")
    per_block += ("mlp.w1", "mlp.w2", "mlp.w3")
    blocks = range(len(model.layers))
    expected = {f"layers.{block}.{name}" for block in blocks for name in per_block}
    # 24 is no multiple of 16.
    assert converted(model) == expected - {"layers.0.mlp.w3"}
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_activation_checkpointing_changes_no_bit(checkpointing: str) -> None:
    results = []
    for setting in ("none", checkpointing):
        torch.manual_seed(0)
        model = build(SHAPE_AS_CONFIG).bfloat16()
        recipe = make_recipe(dtype="bf16", float8=True, activation_checkpointing=setting)
        parallelize(model, recipe, SINGLE_PROCESS)
        tokens = torch.arange(2 * 16).reshape(2, 16) % SHAPE_AS_CONFIG["vocab_size"]
        loss = torch.cat([*model(tokens)]).float().logsumexp(-1).mean()
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) > 1
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.multiprocess
def test_the_loss_of_the_toy_differs_by_what_the_docs_state(base: Path) -> None:
    folders = {}
    for name, recipe in (("mixed", MIXED), ("float8", FLOAT8)):
        folders[name] = training(base, f"effect-{name}", recipe=recipe)
        run_cell(folders[name])
    losses = {name: [line["loss"] for line in lines(folder)] for name, folder in folders.items()}
    difference = max(abs(a - b) for a, b in zip(losses["mixed"], losses["float8"], strict=True))
    print(f"largest difference of the loss: {difference:.4f} nats a token")
    assert 0 < difference < EFFECT
    assert losses["float8"][-1] < losses["float8"][0] - 0.5, "it does not learn"
    ours, plain = weights(folders["float8"]), weights(folders["mixed"])
    assert {name: w.dtype for name, w in ours.items()} == {n: w.dtype for n, w in plain.items()}
    text = (ROOT / "docs/training.md").read_text()
    assert f"less than {EFFECT} nats a token" in text


@pytest.mark.multiprocess
def test_two_ranks_train_what_one_does(base: Path) -> None:
    alone = training(base, "float8-one", recipe=FLOAT8, micro_batch_size=1)
    run_cell(alone)
    two = on_ranks(training(base, "float8-two", recipe=FLOAT8, micro_batch_size=1), 2)
    losses = [[line["loss"] for line in lines(folder)] for folder in (alone, two)]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 0.01


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"float8": True}, "needs dtype mixed or bf16"),
        (FLOAT8 | {"lora": {"rank": 4, "alpha": 8.0}}, "is for full fine-tuning"),
    ],
)
def test_what_float8_does_not_go_with(changes: dict[str, Any], text: str) -> None:
    ((key, problem),) = training_mistakes(make_recipe(**changes))
    assert key == ("float8",) and text in problem


def test_it_is_part_of_an_identity_only_where_it_is_true() -> None:
    plain, _ = split_recipe(asdict(RECIPE))
    with_float8, runtime = split_recipe(asdict(make_recipe(**FLOAT8)))
    assert "float8" not in plain and with_float8["float8"] is True and "float8" not in runtime


def test_a_gpu_without_float8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0))
    with pytest.raises(UserError, match=r"A100.* 8.0, 9.0 is needed: it has no float8") as caught:
        float8.convert(build(SHAPE_AS_CONFIG), torch.device("cuda", 0))
    assert "H100" in str(caught.value)
