"""The loss of group-relative policy optimization (GRPO), and advantages within a group.

`grpo`: Shao et al., "DeepSeekMath" (arXiv 2402.03300), the mean over rollouts of their mean over
tokens. `dapo`: Yu et al. (arXiv 2503.14476), the mean over the tokens of all rollouts. `dr_grpo`:
Liu et al., "Understanding R1-Zero-like training" (arXiv 2503.20783), the sum divided by the same
number of tokens for every rollout. As TRL 1.16 computes them.
"""

from dataclasses import dataclass

import torch

from core.grpo_recipe import Loss

SPREAD_FLOOR = 1e-4  # added to a group's standard deviation, as TRL does


@dataclass(frozen=True)
class StepTotals:
    """Totals of all rollouts of an optimizer step, by which its loss is divided."""

    rollouts: int
    tokens: int
    """Sampled tokens of the rollouts together."""
    max_tokens: int
    """The most tokens that one of them may have."""


@dataclass(frozen=True)
class Clip:
    """How far a token's probability may move from that under the policy that sampled it."""

    low: float
    """Ratios below 1 - low have no gradient where the advantage is negative."""
    high: float
    """Ratios above 1 + high have no gradient where the advantage is positive."""


def group_advantages(rewards: torch.Tensor, scale: bool) -> torch.Tensor:
    """Rewards [prompts, samples] less their group's mean, [prompts, samples].

    `scale`: divided by the group's standard deviation (of a sample: n - 1). A group without spread
    has advantages of 0.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale:
        centred = centred / (rewards.std(1, keepdim=True) + SPREAD_FLOOR)
    return torch.where(has_spread(rewards)[:, None], centred, 0.0)


def has_spread(rewards: torch.Tensor) -> torch.Tensor:
    """Of each group of rewards [prompts, samples], whether any two differ: [prompts]."""
    return rewards.amax(1) > rewards.amin(1)


def token_shares(mask: torch.Tensor, kind: Loss, totals: StepTotals) -> torch.Tensor:
    """The weight of each token's loss [n, t], 0 where `mask` [n, t] is 0."""
    if kind == "grpo":
        return mask / mask.sum(1, keepdim=True).clamp(min=1) / totals.rollouts
    if kind == "dapo":
        return mask / max(totals.tokens, 1)
    return mask / (totals.rollouts * totals.max_tokens)


def policy_loss(
    log_probs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    shares: torch.Tensor,
    clip: Clip,
    reference: torch.Tensor | None = None,
    beta: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a micro-batch, a scalar; the losses of a step's micro-batches add up.

    Args:
        log_probs: of the sampled tokens (nats), [n, t].
        old: the same under the policy that sampled them, [n, t].
        advantages: of the rollouts, [n].
        shares: of `token_shares`, [n, t].
        clip: limits of the ratio of new to old probabilities.
        reference: log-probabilities under the reference model, [n, t]; None with `beta` 0.
        beta: factor of the KL divergence from the reference.

    Returns the loss and, without gradients, the KL divergence [n, t]: of a token exp(d) - d - 1,
    where d is the reference's log-probability less the model's (Schulman, "Approximating KL
    divergence", 2020); 0 without a reference.
    """
    ratio = (log_probs - old).exp()
    advantage = advantages[:, None]
    clipped = ratio.clamp(1 - clip.low, 1 + clip.high)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    kl = torch.zeros_like(loss)
    if reference is not None:
        difference = reference - log_probs
        kl = difference.exp() - difference - 1
        loss = loss + beta * kl
    return (loss * shares).sum(), kl.detach()
