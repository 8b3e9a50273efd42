"""Log-probabilities of given tokens by the open engine."""

from typing import Any


def of_prompts(lm: Any, prompts: list[list[int]]) -> list[list[float]]:
    """The log-probability (nats) of each token of each prompt but its first.

    Args:
        lm: The open engine.
        prompts: Token ids.
    """
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    replies = lm.model.generate(asked, sampling, use_tqdm=False)
    return [
        [
            choices[token].logprob
            for choices, token in zip(reply.prompt_logprobs[1:], prompt[1:], strict=True)
        ]
        for reply, prompt in zip(replies, prompts, strict=True)
    ]
