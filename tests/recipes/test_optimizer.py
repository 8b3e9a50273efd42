"""AdamW in every precision: what moves, what goes on after a kill, and that copies stay copies."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.cell.run import run_cell
from recipes import finetune
from tests.recipes.toy import (
    LORA,
    MODEL,
    assert_same,
    ends,
    lines,
    on_ranks,
    start_ranks,
    training,
    until,
    weights,
)

pytestmark = pytest.mark.multiprocess


def small_steps(base: Path, name: str, **recipe: Any) -> float:
    """Share of the weights that move in 20 updates at a small learning rate."""
    folder = training(
        base, name, recipe={"lr": 1e-5, "warmup_steps": 0, "schedule": "constant"} | recipe
    )
    run_cell(folder)
    before = load_file(base / MODEL.relpath / "model/model.safetensors")
    moved = sum(
        (weights(folder)[n] != w.to(torch.bfloat16).float()).sum().item() for n, w in before.items()
    )
    return moved / sum(w.numel() for w in before.values())


def test_bf16_moves_small_steps_by_stochastic_rounding(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stochastic = small_steps(base, "bf16", dtype="bf16")
    monkeypatch.setattr(
        finetune.optimizer,
        "build_optimizer",
        lambda model, recipe: torch.optim.AdamW(model.parameters(), recipe.lr),
    )
    nearest = small_steps(base, "bf16_nearest", dtype="bf16")
    print(f"weights that moved: {stochastic:.1%} by chance, {nearest:.1%} to the nearest")
    assert stochastic > 2 * nearest


BF16, IN_8BIT, MIXED = {"dtype": "bf16"}, {"optimizer": "adamw_8bit"}, {"dtype": "mixed"}


@pytest.mark.parametrize(
    ("recipe", "world"),
    [(MIXED, 1), (BF16, 1), (IN_8BIT, 1), (LORA, 1), (MIXED, 2), (BF16, 2), (IN_8BIT, 2)],
)
def test_killed_and_resumed_is_bitwise_the_undisturbed_in_every_precision(
    base: Path, recipe: dict[str, Any], world: int
) -> None:
    name = f"{world}-{'-'.join(map(str, recipe.values()))}"
    whole = on_ranks(training(base, f"whole-{name}", recipe=recipe), world)
    folder = training(base, f"killed-{name}", recipe=recipe, checkpoint_minutes=0.0)
    processes = start_ranks(folder, world)
    until(lambda: len(lines(folder)) > 9, processes)
    for process in processes:
        process.kill()
    ends(processes)
    assert not (folder / "model").exists()
    assert_same(on_ranks(folder, world), whole)


@pytest.mark.parametrize("recipe", [BF16, IN_8BIT])
def test_killed_on_two_ranks_it_goes_on_alone(base: Path, recipe: dict[str, Any]) -> None:
    """The state of a shard may be in 8 bits where that of the full weight is not, or reversed."""
    folder = training(
        base, f"fewer-{'-'.join(recipe.values())}", recipe=recipe, checkpoint_minutes=0.0
    )
    processes = start_ranks(folder, 2)
    until(lambda: len(lines(folder)) > 9, processes)
    for process in processes:
        process.kill()
    ends(processes)
    before = lines(folder)[:8]
    on_ranks(folder, 1)
    assert lines(folder)[:8] == before, "it must not begin anew"
    assert lines(folder)[-1]["loss"] < before[0]["loss"] - 0.5


def test_copies_of_a_shard_round_alike(base: Path, tmp_path: Path) -> None:
    """Two nodes of two ranks, each node with all of the model."""
    keep = f"""
import torch
from recipes import finetune
finalize = finetune.Trainer.finalize
def keep(trainer):
    local = [p.to_local() for p in trainer.model.parameters()]
    torch.save(local, f"{tmp_path}/{{trainer.ranks.rank}}.pt")
    finalize(trainer)
finetune.Trainer.finalize = keep
os.environ["LOCAL_WORLD_SIZE"] = "2"
"""
    on_ranks(training(base, "hybrid_bf16", recipe=BF16, sharding="hybrid"), 4, before=keep)
    kept = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    for one, other in ((0, 2), (1, 3)):
        assert all(torch.equal(a, b) for a, b in zip(kept[one], kept[other], strict=True))
