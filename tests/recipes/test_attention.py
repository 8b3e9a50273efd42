"""A token sees those before it in its own document, by whichever kernel."""

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from recipes import attention
from recipes.attention import by_document, document_causal_rule, mask
from recipes.distributed import SINGLE_PROCESS
from recipes.model import build, parallelize
from tests.recipes.toy import SHAPE_AS_CONFIG, make_recipe

# One goes on in the next row, unseen there.
PACKED = torch.tensor([[0] * 7 + [1] * 9, [1] * 4 + [2] * 8 + [-1] * 4, [3] * 16])
SINGLE = torch.tensor(
    [[5] * 9 + [-1] * 7, [6] * 16, [-1] * 16]
)  # also a row that a rank has no text for


def by_hand(document: torch.Tensor) -> torch.Tensor:
    rows, length = document.shape
    return torch.tensor(
        [
            [[j <= i and d[i] == d[j] for j in range(length)] for i in range(length)]
            for d in document.tolist()
        ]
    ).view(rows, length, length)


@pytest.mark.slow
def test_flex_attention_and_documents_on_their_own_give_what_the_dense_mask_gives() -> None:
    dense = by_hand(PACKED)
    assert torch.equal(create_mask(document_causal_rule(PACKED), 3, 1, 16, 16, "cpu")[:, 0], dense)
    documents = mask(PACKED)
    assert isinstance(documents, torch.Tensor) and torch.equal(documents, PACKED)
    states = torch.randn(3, 3, 4, 16, 8, requires_grad=True)
    theirs = scaled_dot_product_attention(*states, dense[:, None])
    (expected,) = torch.autograd.grad(theirs.square().sum(), states)
    blocks = create_block_mask(document_causal_rule(PACKED), 3, None, 16, 16, device="cpu")
    flex = flex_attention(*states.detach(), block_mask=blocks)
    assert isinstance(flex, torch.Tensor) and flex.isfinite().all(), "padding must see something"
    torch.testing.assert_close(flex, theirs, atol=1e-6, rtol=0)
    own = by_document(*states, documents)
    torch.testing.assert_close(own, theirs, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        torch.autograd.grad(own.square().sum(), states)[0], expected, atol=1e-5, rtol=0
    )


def test_rows_of_one_text_each_need_no_mask() -> None:
    assert mask(SINGLE) is None
    q, k, v = torch.randn(3, 3, 4, 16, 8).unbind()
    causal = scaled_dot_product_attention(q, k, v, is_causal=True)
    masked = scaled_dot_product_attention(q, k, v, by_hand(SINGLE)[:, None])
    assert causal.isfinite().all()
    real = (SINGLE >= 0)[:, None, :, None]
    torch.testing.assert_close(causal * real, masked * real, atol=1e-6, rtol=0)


@pytest.mark.multiprocess
@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize(
    "masks", [[None, None], [PACKED, PACKED.flip(0)]], ids=["flex", "documents"]
)
def test_a_block_is_compiled_around_the_attention_that_is_not(
    masks: list[torch.Tensor | None], checkpointing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchtune hides flex attention from the compiler, the kit its own; the rest is compiled."""
    compiling = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiling(self, backend="eager"))
    config = {**SHAPE_AS_CONFIG, "num_hidden_layers": 12}
    model = build(config)
    recipe = make_recipe(compile=True, activation_checkpointing=checkpointing)
    parallelize(model, recipe, SINGLE_PROCESS)

    @torch.compiler.disable(recursive=False)
    def hidden_attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any
    ) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)

    monkeypatch.setattr(attention, "_torchtune_attention", hidden_attention)
    torch._dynamo.reset()
    counters.clear()
    for documents in masks:
        model(torch.zeros_like(PACKED), mask=documents).sum().backward()
    stats = counters["stats"]
    assert stats["calls_captured"] > 50, "a block's products, norms and the like"
    assert stats["unique_graphs"] < 8 and not counters["recompile_limit"], (
        "12 blocks share their graphs"
    )
