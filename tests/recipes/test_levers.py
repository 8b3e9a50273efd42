"""What makes a training faster changes no result: each setting beside the plain training."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torchtune.modules import TransformerDecoder

from core.cell.run import run_cell
from core.errors import UserError
from recipes import finetune, step_checkpoint
from recipes.attention import block_mask, mask
from recipes.batches import ahead
from recipes.distributed import SINGLE_PROCESS, Ranks, process_group
from recipes.loss import cross_entropy_and_grad
from recipes.model import build, parallelize, shard, sync_gradients
from tests.recipes.test_attention import PACKED, SINGLE
from tests.recipes.toy import (
    SHAPE_AS_CONFIG,
    assert_close,
    assert_same,
    in_process,
    lines,
    make_recipe,
    on_ranks,
    training,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_losss_gradient_by_a_comparison_is_that_by_a_scatter(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 30) * 5
    labels = torch.randint(0, 30, (50,)).masked_fill(torch.arange(50) % 4 == 0, -100)
    nats, grad = cross_entropy_and_grad(logits.clone(), labels, dtype)
    same_nats, same_grad = cross_entropy_and_grad(logits.clone(), labels, dtype, fused=True)
    assert nats.equal(same_nats) and grad.equal(same_grad) and grad.dtype == dtype


def test_the_next_batch_is_made_while_one_is_used() -> None:
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            if number == 1:
                second.set()
            yield number
        raise KeyError("a row that can't be read")

    used = ahead(items())
    assert next(used) == 0
    assert second.wait(10), "nothing has asked for it"
    assert [next(used), next(used)] == [1, 2]
    with pytest.raises(KeyError):
        next(used)


@pytest.fixture
def read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    begin = finetune.Trainer.__init__

    def later(self: finetune.Trainer, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        self.reads_later = True

    monkeypatch.setattr(finetune.Trainer, "__init__", later)


@pytest.mark.multiprocess
def test_numbers_read_a_step_later_are_the_same(
    base: Path, alone: Path, read_later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread: list[int] = []
    step = finetune.Trainer.train_step

    def spied(self: finetune.Trainer, given: Any) -> Any:
        unread.append(given.step - 1 - len(lines(self.context.folder)))
        return step(self, given)

    monkeypatch.setattr(finetune.Trainer, "train_step", spied)
    folder = training(base, "later")
    run_cell(folder)
    assert_same(folder, alone)
    assert set(unread[1:]) == {1}, "a step begins before the numbers of the one before it are read"


@pytest.mark.parametrize("minutes", [0.0, 30.0])
def test_a_loss_that_is_no_number_is_refused_before_its_weights_are_saved(
    base: Path, read_later: None, minutes: float
) -> None:
    recipe = {"lr": 1.0, "weight_decay": 1e30, "schedule": "constant", "warmup_steps": 0}
    folder = training(base, f"later_nan{minutes}", recipe=recipe, checkpoint_minutes=minutes)
    with pytest.raises(UserError) as caught:
        finetune.run(in_process(folder))
    bad = len(lines(folder)) + 1
    assert f"at step {bad}, rows " in str(caught.value) and not (folder / "model").exists()
    saved = step_checkpoint.list_checkpoints(folder / "steps")
    assert all(step < bad for step in saved) and bool(saved) == (minutes == 0)


@pytest.mark.multiprocess
def test_gradients_summed_once_a_step_are_the_same_on_two_ranks(base: Path, alone: Path) -> None:
    folder = training(base, "once", micro_batch_size=1, gradient_sync="step")
    assert_close(on_ranks(folder, 2), alone)


@pytest.mark.multiprocess
def test_hybrid_sharding_sums_between_nodes_once_a_step(base: Path, alone: Path) -> None:
    """Two nodes of two ranks, each with three micro-batches of a row."""
    nodes = 'os.environ["LOCAL_WORLD_SIZE"] = "2"'
    folder = training(base, "hybrid_fp32", micro_batch_size=1, sharding="hybrid")
    assert_close(on_ranks(folder, 4, before=nodes), alone)


def groups_of(module: FSDPModule) -> list[Any]:
    """The groups of weights that FSDP gathers together: one in torch 2.10, of the CUDA 12 set."""
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [state._fsdp_param_group] if state._fsdp_param_group else []


def reduces(model: TransformerDecoder) -> list[tuple[bool, bool]]:
    """Of each FSDP module, whether a backward pass would sum gradients, within and between nodes."""
    return [
        (group.reduce_grads, group.all_reduce_grads)
        for module in model.modules()
        if isinstance(module, FSDPModule)
        for group in groups_of(module)
    ]


def test_which_passes_sum_gradients() -> None:
    with process_group(force=True) as ranks, torch.device("meta"):
        model = build(SHAPE_AS_CONFIG)
        recipe = make_recipe(dtype="mixed")
        shard(model, recipe, ranks)
        two = Ranks(0, 2)
        once = make_recipe(gradient_sync="step")
        for given, of, last, expected in (
            (recipe, two, False, (True, False)),
            (recipe, two, True, (True, True)),
            (once, two, False, (False, False)),
            (once, two, True, (True, True)),
            (recipe, ranks, False, (False, False)),
            (recipe, ranks, True, (True, True)),
        ):
            sync_gradients(model, given, of, last)
            assert set(reduces(model)) == {expected}


def small_model(**recipe: Any) -> TransformerDecoder:
    torch.manual_seed(0)
    model = build(SHAPE_AS_CONFIG)
    parallelize(model, make_recipe(**recipe), SINGLE_PROCESS)
    return model


@pytest.mark.slow
def test_flex_attention_leaves_keys_grouped_and_gives_what_documents_alone_give() -> None:
    """Forward: torch's flex attention has no backward pass on CPUs (test_gpu.py has it)."""
    model = small_model()
    assert model.layers[0].attn.num_heads == 2 * model.layers[0].attn.num_kv_heads
    tokens = torch.randint(0, SHAPE_AS_CONFIG["vocab_size"], PACKED.shape)
    with torch.no_grad():
        expected = model(tokens, mask=mask(PACKED))
        seen = Heads()
        with seen:
            flex = model(tokens, mask=block_mask(PACKED))
    torch.testing.assert_close(flex, expected, atol=1e-5, rtol=0)
    assert seen.key_heads == {1}


class Heads(torch.overrides.TorchFunctionMode):
    """Notes the heads of the keys that flex attention is given."""

    def __init__(self) -> None:
        self.key_heads: set[int] = set()
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "flex_attention":
            self.key_heads.add(args[1].shape[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_a_block_with_flex_attention_is_compiled_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiling = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiling(self, backend="eager"))
    model = build({**SHAPE_AS_CONFIG, "num_hidden_layers": 12})
    parallelize(model, make_recipe(compile=True), SINGLE_PROCESS)
    tokens = torch.zeros_like(PACKED)
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        for documents in (PACKED, PACKED.flip(0), PACKED.roll(1, 0)):
            model(tokens, mask=block_mask(documents))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2, "shared by all blocks and masks"


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_selective_checkpointing_repeats_no_product() -> None:
    tokens = torch.randint(0, SHAPE_AS_CONFIG["vocab_size"], SINGLE.shape)
    counts: dict[str, int] = {}
    grads: dict[str, list[torch.Tensor]] = {}
    for kind in ("none", "selective", "full"):
        model = small_model(activation_checkpointing=kind)
        with Products() as products:
            model(tokens).square().mean().backward()
        counts[kind] = products.count
        grads[kind] = [p.grad for p in model.parameters() if p.grad is not None]
    # Recomputing ends with what is needed: not with the last product of a block.
    assert counts["none"] == counts["selective"] == counts["full"] - 2 * 6, "seven a block"
    for kind in ("selective", "full"):
        assert all(a.equal(b) for a, b in zip(grads[kind], grads["none"], strict=True))


@pytest.mark.slow
def test_selective_checkpointing_in_a_compiled_block_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the partitioner that decides what a compiled block keeps, without generating code."""
    compiling = torch.nn.Module.compile
    backend = "aot_eager_decomp_partition"
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiling(self, backend=backend))
    tokens = torch.randint(0, SHAPE_AS_CONFIG["vocab_size"], SINGLE.shape)
    results = []
    for recipe in ({}, {"compile": True, "activation_checkpointing": "selective"}):
        torch._dynamo.reset()
        counters.clear()
        model = small_model(**recipe)
        loss = model(tokens).square().mean()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert counters["stats"]["calls_captured"] and not counters["graph_break"]
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_algorithms_are_a_setting(
    base: Path, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, **_: asked.append(mode))
    folder = training(
        base, f"deterministic_{deterministic}", None, {"max_steps": 1}, deterministic=deterministic
    )
    finetune.run(in_process(folder))
    assert asked == [deterministic]


def test_the_last_block_stays_gathered_and_each_is_gathered_ahead() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with torch.device("meta"):
            model = build(SHAPE_AS_CONFIG)
        shard(model, make_recipe(), Ranks(0, 2))
        states = [layer._get_fsdp_state() for layer in model.layers]
        gathered_again = [groups_of(layer)[0].post_forward_mesh_info for layer in model.layers]
        assert gathered_again[0] is not None and gathered_again[-1] is None
        assert states[0]._states_to_forward_prefetch == [states[1]]
    finally:
        dist.destroy_process_group()
