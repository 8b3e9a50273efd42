"""Tensor parallelism: two worker processes of vLLM's CPU build, which take half a minute to start."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.inference import vllm_engine as engine
from eval import likelihood
from tests.eval import tiny_checkpoint

pytestmark = [pytest.mark.vllm, pytest.mark.multiprocess, pytest.mark.nightly]

SETTINGS = {"dtype": "float32"}
ITEM = {"id": 7, "question": "What about the hens?", "choices": ["Out.", "In."], "answer": 0}


def evaluate(lm: Any) -> list[dict[str, Any]]:
    return likelihood.evaluate(lm, "concern", [ITEM], False, {}, lambda number: None)[0]


def test_two_workers_say_what_one_does_and_their_errors_are_the_users(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],  # stdout is then a file, as in a job
) -> None:
    # As in a job of several tasks: vLLM's workers must not take themselves for its ranks.
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    one = tiny_checkpoint.make(tmp_path / "one" / "model")
    torn = tiny_checkpoint.make(tmp_path / "torn" / "model") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1000])
    alone = evaluate(engine.open_engine(one, SETTINGS, {"max_model_len": 512}))
    two = {"max_model_len": 512, "tensor_parallel_size": 2}
    with pytest.raises(UserError, match=r"vLLM can't load it: \S*SafetensorError"):
        engine.open_engine(torn.parent, SETTINGS, two)
    lm = engine.open_engine(one, SETTINGS, two)
    assert engine.describe(lm)["devices"] == 2
    together = evaluate(lm)
    assert together[0]["logprobs"] == pytest.approx(alone[0]["logprobs"], abs=1e-5)
    engine.open_engine(one, SETTINGS, {"max_model_len": 256})  # it checks that no worker is left
    engine.close()
