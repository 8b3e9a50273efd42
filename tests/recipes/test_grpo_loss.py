"""GRPO's loss is TRL's, and what its formula says."""

import json
import math
from typing import Any, get_args

import pytest
import torch

from core.grpo_recipe import Loss
from recipes import grpo_loss
from recipes.grpo_loss import Clip, StepTotals
from tests.recipes import trl_losses

RECORD = json.loads(trl_losses.FILE.read_text())
# All rollouts at once, or in two micro-batches of unlike size.
PARTS = ([slice(0, 6)], [slice(0, 4), slice(4, 6)])


def given() -> dict[str, torch.Tensor]:
    return {
        name: torch.tensor(values, dtype=None if name == "tokens" else torch.float64)
        for name, values in RECORD["rollouts"].items()
    }


def ours(kind: Loss, beta: float, parts: list[slice]) -> tuple[float, torch.Tensor]:
    """The loss, and its gradient with respect to the logits."""
    rollouts = given()
    logits = rollouts["logits"].requires_grad_()
    mask = rollouts["mask"]
    totals = StepTotals(len(mask), int(mask.sum()), RECORD["max_tokens"])
    total = 0.0
    for part in parts:
        tokens = rollouts["tokens"][part, :, None]
        log_probs = logits[part].log_softmax(2).gather(2, tokens)[..., 0]
        shares = grpo_loss.token_shares(mask[part], kind, totals)
        reference = rollouts["reference"][part] if beta else None
        clip = Clip(*RECORD["epsilon"])
        columns = log_probs, rollouts["old"][part], rollouts["advantages"][part]
        loss, _ = grpo_loss.policy_loss(*columns, shares, clip, reference, beta)
        loss.backward()
        total += loss.item()
    assert logits.grad is not None
    return total, logits.grad


@pytest.mark.parametrize("parts", PARTS, ids=["whole", "micro_batches"])
@pytest.mark.parametrize("result", RECORD["results"], ids=lambda r: f"{r['loss_type']}-{r['beta']}")
def test_loss_and_gradients_are_those_of_trl(result: dict[str, Any], parts: list[slice]) -> None:
    loss, gradient = ours(result["loss_type"], result["beta"], parts)
    expected = torch.tensor(result["gradient"], dtype=torch.float64)
    drift = (gradient - expected).abs().max().item()
    print(f"loss {loss:.6f}, off by {abs(loss - result['loss']):.1e}, gradients by {drift:.1e}")
    assert abs(loss - result["loss"]) < 1e-6 and drift < 1e-6
    assert expected.abs().max() > 0.01


def test_the_recorded_rollouts_are_clipped_and_not() -> None:
    """Of tokens of both signs of advantage some are beyond the limits, and lengths are unlike."""
    rollouts = given()
    log_probs = rollouts["logits"].log_softmax(2).gather(2, rollouts["tokens"][..., None])[..., 0]
    ratio = (log_probs - rollouts["old"]).exp()[rollouts["mask"].bool()]
    positive = rollouts["advantages"][:, None].expand(6, 7)[rollouts["mask"].bool()] > 0
    low, high = RECORD["epsilon"]
    for clipped in (positive & (ratio > 1 + high), ~positive & (ratio < 1 - low)):
        assert 0 < clipped.sum() < positive.sum()
    assert len(set(rollouts["mask"].sum(1).tolist())) == 6
    assert {(r["loss_type"], r["beta"]) for r in RECORD["results"]} == {
        (kind, beta) for kind in get_args(Loss) for beta in (0.0, 0.04)
    }


@pytest.mark.parametrize("kind", get_args(Loss))
def test_loss_is_what_the_formula_says(kind: Loss) -> None:
    """Token by token in plain Python floats."""
    rollouts = {name: tensor.tolist() for name, tensor in given().items()}
    low, high = RECORD["epsilon"]
    lengths = [int(sum(row)) for row in rollouts["mask"]]
    total = 0.0
    for row, length in enumerate(lengths):
        advantage = rollouts["advantages"][row]
        losses = []
        for at in range(length):
            logits = rollouts["logits"][row][at]
            log_prob = logits[rollouts["tokens"][row][at]] - math.log(sum(map(math.exp, logits)))
            ratio = math.exp(log_prob - rollouts["old"][row][at])
            bounded = min(max(ratio, 1 - low), 1 + high)
            away = rollouts["reference"][row][at] - log_prob
            kl = math.exp(away) - away - 1
            losses.append(0.04 * kl - min(ratio * advantage, bounded * advantage))
        divisor = {"grpo": length * 6, "dapo": sum(lengths), "dr_grpo": 6 * RECORD["max_tokens"]}
        total += sum(losses) / divisor[kind]
    assert ours(kind, 0.04, PARTS[0])[0] == pytest.approx(total, abs=1e-12)


def test_the_kl_of_a_token_has_no_gradient_and_is_not_negative() -> None:
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    reference = torch.tensor([[-1.5, -1.0]])
    shares = torch.full((1, 2), 0.5)
    advantages = torch.zeros(1)
    arguments = log_probs, log_probs.detach(), advantages, shares, Clip(0.2, 0.2)
    loss, kl = grpo_loss.policy_loss(*arguments, reference, beta=1.0)
    assert kl.tolist() == [pytest.approx([math.exp(-0.5) - 0.5, math.e - 2])]
    assert loss.item() == pytest.approx(kl.mean().item()) and not kl.requires_grad
    assert grpo_loss.policy_loss(*arguments)[1].tolist() == [[0.0, 0.0]]


def test_advantages_of_a_group() -> None:
    rewards = torch.tensor([[0.0, 1.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    scaled = grpo_loss.group_advantages(rewards, scale=True)
    deviation = math.sqrt(2 / 3) + 1e-4
    assert scaled[0].tolist() == pytest.approx([-1 / deviation, 0, 1 / deviation, 0])
    assert grpo_loss.group_advantages(rewards, scale=False)[0].tolist() == [-1, 0, 1, 0]
    assert scaled[1].tolist() == [0, 0, 0, 0]
    assert grpo_loss.has_spread(rewards).tolist() == [True, False]


def test_equal_rewards_that_are_rounded_have_no_advantage() -> None:
    """Their mean may be off in the last bit, which the deviation would blow up."""
    rewards = torch.full((1, 7), 0.1)
    assert not grpo_loss.group_advantages(rewards, scale=True).any()
