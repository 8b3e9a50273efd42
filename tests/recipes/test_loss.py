"""The chunked loss and its gradients are those of plain cross-entropy, on one rank and on two."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from torchtune.modules import TransformerDecoder

from benchmarks import linear_loss
from recipes import checkpoint, loss
from recipes.attention import mask
from recipes.distributed import SINGLE_PROCESS, Ranks, process_group
from recipes.loss import chunked_cross_entropy, skip_output_layer
from recipes.model import reshard
from tests.recipes.toy import RECIPE, ends, logs, make_recipe, on_two, vocabulary

Loss = Callable[[TransformerDecoder, dict[str, Any]], torch.Tensor]


def batch(folder: Path, length: int = 40, only: slice = slice(None)) -> dict[str, Any]:
    """Two rows, the first of two documents, the second of one and padding; `only` some of them."""
    tokens = torch.randint(
        0, vocabulary(folder), (2, length), generator=torch.Generator().manual_seed(0)
    )
    at, cut = torch.arange(length), length * 5 // 8
    document = torch.stack([(at >= cut).long(), 2 - 3 * (at >= cut).long()])
    ends = (document != document.roll(-1, 1)) | (document < 0)
    position = torch.stack([at - cut * (at >= cut), at * (at < cut)])
    given = {
        "tokens": tokens,
        "labels": tokens.roll(-1, 1).masked_fill(ends, -100),
        "input_pos": position,
    }
    return {**{name: tensor[only] for name, tensor in given.items()}, "mask": mask(document[only])}


def plain(model: TransformerDecoder, given: dict[str, Any]) -> torch.Tensor:
    logits = model(given["tokens"], mask=given["mask"], input_pos=given["input_pos"])
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), given["labels"].flatten(), reduction="sum"
    )


def results(
    model: TransformerDecoder, given: dict[str, Any], loss: Loss, ranks: Ranks = SINGLE_PROCESS
) -> list[torch.Tensor]:
    """The loss summed over the ranks, and all gradients."""
    model.zero_grad()
    value = loss(model, given)
    (value * ranks.world_size).backward()
    reshard(model)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    whole = [g.full_tensor() if isinstance(g, DTensor) else g.clone() for g in grads]
    assert len(whole) == len([*model.parameters()])
    return [ranks.sum(value.detach()), *whole]


def differences(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> tuple[float, float]:
    """Relative difference of the losses, and the largest of the gradients relative to its norm."""
    loss, *grads = [
        (m - t).norm().item() / t.norm().item() for m, t in zip(mine, theirs, strict=True)
    ]
    return loss, max(grads)


def compare(folder: Path, dtype: str) -> None:
    """On every rank plain and chunked loss agree; in fp32 also with one process of all rows."""
    with process_group(force=True) as ranks:
        model = checkpoint.load(folder, ranks, make_recipe(dtype=dtype))
        given = batch(folder, only=slice(ranks.rank, None, ranks.world_size))
        theirs = results(model, given, plain, ranks)
        skip_output_layer(model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("recipes.loss.CHUNK", 16)
            mine = results(model, given, chunked_cross_entropy, ranks)
    loss, grads = differences(mine, theirs)
    print(f"chunked and plain apart: loss {loss:.1e}, gradients {grads:.1e}", flush=True)
    if dtype == "fp32":
        assert loss < 1e-6 and grads < 1e-6
        loss, grads = differences(
            mine, results(checkpoint.load(folder, SINGLE_PROCESS, RECIPE), batch(folder), plain)
        )
        assert loss < 1e-6 and grads < 2e-6
    else:  # two ways to round to bf16
        assert loss < 1e-3 and grads < 2e-2


@pytest.mark.multiprocess
@pytest.mark.parametrize("dtype", ["fp32", "mixed"])
@pytest.mark.parametrize("which", ["start", "tied"])
def test_it_is_plain_cross_entropy_alone_and_on_two_ranks(
    which: str, dtype: str, request: pytest.FixtureRequest, base: Path
) -> None:
    folder = request.getfixturevalue(which)
    compare(folder, dtype)
    name = base / f"loss_{which}_{dtype}"
    code = (
        f"from tests.recipes import test_loss; test_loss.compare(Path({str(folder)!r}), {dtype!r})"
    )
    assert ends(on_two(name, code)) == [0, 0], logs(name)


def test_a_sum_over_bf16_states_is_not_rounded_to_bf16(
    start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.loss.CHUNK", 64)
    model = checkpoint.load(start, SINGLE_PROCESS, make_recipe(dtype="bf16"))
    given = batch(start, 1000)
    skip_output_layer(model)
    with torch.no_grad():
        hidden = model(given["tokens"], mask=given["mask"], input_pos=given["input_pos"])
        logits = hidden.double() @ model.output.weight.double().T
        exact = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), given["labels"].flatten(), reduction="sum"
        )
        loss = chunked_cross_entropy(model, given)
    assert loss.dtype == torch.float32 and abs(loss / exact - 1) < 1e-4


def test_a_batch_that_trains_nothing_moves_nothing(start: Path) -> None:
    model, given = checkpoint.load(start, SINGLE_PROCESS, RECIPE), batch(start)
    skip_output_layer(model)
    given["labels"].fill_(-100)
    loss, *grads = results(model, given, chunked_cross_entropy)
    assert loss.item() == 0 and not any(g.any() for g in grads)


def test_it_is_torchs_own_linear_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what benchmarks.linear_loss compares, in small."""
    monkeypatch.setattr(loss, "CHUNK", 16)  # restored at the end: the benchmark sets it
    monkeypatch.setattr(linear_loss, "KIT", {"kit": 24})
    sizes = {"tokens": 64, "width": 8, "vocabulary": 40}
    _, value, gradients = linear_loss.loss_and_gradients("kit", **sizes)
    for name in linear_loss.TORCH:
        _, theirs, their_gradients = linear_loss.loss_and_gradients(name, **sizes)
        torch.testing.assert_close(value, theirs, rtol=1e-6, atol=0)
        torch.testing.assert_close(gradients, their_gradients, rtol=1e-5, atol=1e-6)
