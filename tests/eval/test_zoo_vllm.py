"""vLLM reads the exports of the zoo's models as transformers and the trainer do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.inference import vllm_engine as engine
from core.model_folder.tokenizer import load_tokenizer
from eval import generate
from recipes import checkpoint
from recipes.distributed import SINGLE_PROCESS
from tests.recipes import zoo
from tests.recipes.toy import make_recipe

RECIPE = make_recipe(dtype="fp32")
SETTINGS = {"dtype": "float32"}
SIZES = {"hidden_size": 64}  # vLLM's CPU build has no heads of 8
# vLLM runs transformers' OLMo 3 and changes its class for good: one a process.
NOT_TWICE = ("olmo3 v5, plain RoPE", "olmo3 v5, YaRN")
# One of each kind on every day.
DAILY = ("rope_scaling counts before rope_parameters", "tied, head equal in another shard", "qwen3")


def names() -> list[Any]:
    accepted = [
        name
        for name, entry in zoo.MODELS.items()
        if entry[-1] is None and entry[1].get("head_dim", 32) >= 32 and name not in NOT_TWICE
    ]
    return [
        pytest.param(name, marks=[] if name in DAILY else [pytest.mark.nightly])
        for name in accepted
    ]


@pytest.mark.vllm
@pytest.mark.parametrize("name", names())
def test_an_export_has_the_same_log_probabilities(name: str, tmp_path: Path) -> None:
    from vllm import SamplingParams, TokensPrompt

    folder = zoo.model(name, tmp_path / "start", **SIZES)
    model = checkpoint.load(folder, SINGLE_PROCESS, RECIPE)
    checkpoint.save(model, folder, tmp_path / "out", SINGLE_PROCESS, RECIPE)
    ids = load_tokenizer(folder)(zoo.TEXTS[0], add_special_tokens=False).input_ids
    # Before the engine: where vLLM runs transformers' model, it changes the class.
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        logprobs = written(torch.tensor([ids])).logits[0].log_softmax(-1)
        ours = model(torch.tensor([ids]))[0].log_softmax(-1)
    lm = engine.open_engine(tmp_path / "out", SETTINGS, {"max_model_len": 256})
    assert lm.tokenizer(zoo.TEXTS[0], add_special_tokens=False).input_ids == ids
    once = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    (reply,) = lm.model.generate([TokensPrompt(prompt_token_ids=ids)], once, use_tqdm=False)
    theirs = [
        step[token].logprob for step, token in zip(reply.prompt_logprobs[1:], ids[1:], strict=True)
    ]
    at = torch.arange(len(ids) - 1), torch.tensor(ids[1:])
    assert theirs == pytest.approx(logprobs[at].tolist(), abs=1e-4)
    assert theirs == pytest.approx(ours[at].tolist(), abs=1e-4)


@pytest.mark.vllm
def test_an_answer_ends_at_the_templates_token_by_the_folders_own_settings(tmp_path: Path) -> None:
    """The start names the end of a text alone; a model that always writes the turn's end."""
    folder = zoo.make(tmp_path / "start", changes=SIZES)
    end = zoo.id_of(folder, "<|im_end|>")

    def always_ends(weights: dict[str, torch.Tensor]) -> None:
        """Blocks that add nothing, so that the sum of positive embeddings decides."""
        for name, weight in weights.items():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                weight.zero_()
        weights["model.embed_tokens.weight"].abs_()
        weights["lm_head.weight"][end] = 1.0

    zoo.weights(always_ends)(folder)
    model = checkpoint.load(folder, SINGLE_PROCESS, RECIPE)
    checkpoint.save(model, folder, tmp_path / "out", SINGLE_PROCESS, RECIPE, [end])
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    prompt = torch.tensor([[5, 6, 7]])
    answer = written.generate(prompt, max_new_tokens=9, do_sample=False)[0, 3:]
    assert answer.tolist() == [end]
    lm = engine.open_engine(tmp_path / "out", SETTINGS, {"max_model_len": 256})
    sampling = generate.Sampling(temperature=0, top_p=1, max_tokens=9)
    (reply,) = generate.complete(lm, [[5, 6, 7]], [0], sampling, [], {}, str)
    assert reply.stop_reason == "stop" and reply.usage and reply.usage.output_tokens == 1
