"""Answers sampled in vLLM from a model that a training in the same process changes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.inference import vllm_engine

if TYPE_CHECKING:
    from torch import Tensor

DECIMALS = 6  # of log-probabilities: float32 has no more


@dataclass(frozen=True)
class Sample:
    """One sampled answer."""

    tokens: list[int]
    """Token ids, with the token that ends it."""
    log_probs: list[float]
    """Of each token under the model that has sampled it (nats)."""
    text: str
    cut: bool
    """Whether it was cut off at the limit of tokens."""


class Sampler:
    """The open engine, with weights that are replaced in place."""

    def __init__(self, model: Path, settings: dict[str, Any], resources: dict[str, Any]) -> None:
        """Arguments as of `vllm_engine.open_engine`, which may raise UserError."""
        vllm_engine.set_environment()
        if vllm_engine.on_cpu():
            import torch._dynamo

            # Torch was imported before the variable was set: see `set_environment`.
            torch._dynamo.config.disable = True
        self.lm = vllm_engine.open_engine(model, settings, resources)

    def load_weights(self, weights: "Iterator[tuple[str, Tensor]]") -> None:
        """Replace all weights, which have the names of a Hugging Face checkpoint."""
        self.lm.model.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.lm.model.apply_model(_tie_again)

    def sample(
        self, prompts: list[list[int]], seeds: list[int], max_tokens: int, stop: list[int]
    ) -> list[Sample]:
        """One answer to each prompt (token ids), with its seed, at temperature 1.

        An answer ends at the model's own end tokens, at those of `stop`, or at `max_tokens`.
        """
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                min_p=0.0,
                repetition_penalty=1.0,
                max_tokens=max_tokens,
                stop_token_ids=list(stop),
                seed=seed,
                logprobs=0,  # of the sampled token alone
            )
            for seed in seeds
        ]
        batch = [{"prompt_token_ids": prompt} for prompt in prompts]
        answers = self.lm.model.generate(batch, parameters, use_tqdm=False)
        return [_sample(answer.outputs[0]) for answer in answers]


def _tie_again(model: Any) -> None:
    """Give the output layer the embedding that has been reloaded, where they are one weight.

    vLLM's CPU build keeps a packed copy for the output layer, and reloads what has a name alone.
    """
    if model.config.tie_word_embeddings:
        head = model.lm_head.tie_weights(model.model.embed_tokens)
        head.quant_method.process_weights_after_loading(head)


def _sample(output: Any) -> Sample:
    tokens = list(output.token_ids)
    by_position = zip(tokens, output.logprobs, strict=True)
    log_probs = [round(listed[token].logprob, DECIMALS) for token, listed in by_position]
    return Sample(tokens, log_probs, output.text, output.finish_reason == "length")
