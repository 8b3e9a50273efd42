"""How tests/data/trl_losses.json was made: TRL's own GRPO loss on rollouts of random numbers.

    python -m tests.recipes.trl_losses

It needs trl 1.16.0, which the kit does not: install it with --no-deps into a folder of its own that
stands in PYTHONPATH. Losses and gradients are those of `GRPOTrainer._compute_loss`, in float64.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

FILE = Path(__file__).parents[1] / "data/trl_losses.json"
LOSSES = ("grpo", "dapo", "dr_grpo")
LENGTHS = [7, 3, 5, 1, 6, 4]  # tokens of the answers
VOCABULARY = 5
BETA = 0.04
EPSILON_LOW, EPSILON_HIGH = 0.2, 0.28


def rollouts() -> dict[str, torch.Tensor]:
    """Two groups of three rollouts, whose tokens have become up to 1.8 times as likely, or less."""
    generator = torch.Generator().manual_seed(28)
    shape = (len(LENGTHS), max(LENGTHS))
    logits = torch.randn(*shape, VOCABULARY, generator=generator, dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, shape, generator=generator)
    log_probs = logits.log_softmax(2).gather(2, tokens[..., None])[..., 0]
    moved = 0.6 * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
    away = 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return {
        "logits": logits,
        "tokens": tokens,
        "old": log_probs + moved,
        "reference": log_probs + away,
        "mask": (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).double(),
        "advantages": torch.tensor([1.1, -0.3, -0.8, -1.2, 0.7, 0.5], dtype=torch.float64),
    }


def trl_loss(kind: str, given: dict[str, torch.Tensor], beta: float) -> tuple[float, Any]:
    """TRL's loss, and its gradient with respect to the logits."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    logits = given["logits"].clone().requires_grad_()
    predicted = logits.log_softmax(2)
    log_probs = predicted.gather(2, given["tokens"][..., None])[..., 0]
    entropies = -(predicted.exp() * predicted).sum(2).detach()

    class Metrics(dict[str, list[float]]):
        def __missing__(self, key: str) -> list[float]:
            return []

    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (log_probs, entropies, None),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda tensor: tensor, reduce=lambda tensor, **k: tensor
        ),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        _metrics={"train": Metrics()},
        loss_type=kind,
        beta=beta,
        epsilon_low=EPSILON_LOW,
        epsilon_high=EPSILON_HIGH,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        max_completion_length=8,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
    )
    prompts = torch.zeros(len(LENGTHS), 2, dtype=torch.long)
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": given["tokens"],
        "completion_mask": given["mask"],
        "advantages": given["advantages"],
        "old_per_token_logps": given["old"],
        "ref_per_token_logps": given["reference"],
        "num_items_in_batch": given["mask"].sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    assert logits.grad is not None
    return loss.item(), logits.grad.tolist()


def main() -> None:
    """Write FILE."""
    given = rollouts()
    results = []
    for kind in LOSSES:
        for beta in (0.0, BETA):
            loss, gradient = trl_loss(kind, given, beta)
            results.append({"loss_type": kind, "beta": beta, "loss": loss, "gradient": gradient})
    record = {
        "made_by": "python -m tests.recipes.trl_losses",
        "trl": "1.16.0",
        "epsilon": [EPSILON_LOW, EPSILON_HIGH],
        "max_tokens": 8,
        "rollouts": {name: tensor.tolist() for name, tensor in given.items()},
        "results": results,
    }
    FILE.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
