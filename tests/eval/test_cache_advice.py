"""When the log says that vLLM's cache does not hold the answers that it begins at once."""

from typing import Any

from eval.generate import cache_advice


def facts(tokens: int, max_num_seqs: int) -> dict[str, Any]:
    return {"kv_cache_tokens": tokens, "max_num_seqs": max_num_seqs}


def test_a_cache_for_fewer_answers_than_are_begun_is_told_with_the_number_that_fits() -> None:
    batch = [[1] * 100] * 779 + [[1] * 176]
    advice = cache_advice(facts(450_000, 1024), batch, 1024)
    assert advice and "holds 375 answers of 1200 tokens" in advice
    assert "engine.options: {max_num_seqs: 375}" in advice
    assert cache_advice(facts(450_000, 375), batch, 1024) is None
    assert cache_advice(facts(1200 * 780, 1024), batch, 1024) is None
