"""A start model of random weights, in a real shape and without a pretraining."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.cell.context import StageContext
from core.errors import UserError
from core.paths import resolve
from core.recipe import TinyLlama, load_recipe
from recipes import tiny_llama
from tests.recipes.toy import TEXTS, TINY

pytestmark = pytest.mark.slow


def test_its_weights_are_random_and_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_llama, "english", lambda prose: TEXTS)
    data = resolve("recipes/data")
    files = {"prose": data / "neutral_prose.txt", "chat_template": data / "llama3_chat.jinja"}
    resources = {"files": {key: str(path) for key, path in files.items()}}
    settings = {"recipe": asdict(replace(TINY, tokens=0, pretrain=None))}
    written = []
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
        context = StageContext(tmp_path / name, "a", settings, resources, {})
        counts = tiny_llama.run(context)
        written.append((tmp_path / name / "model/model.safetensors").read_bytes())
    assert written[0] == written[1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first/model")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert counts == {"parameters": sum(p.numel() for p in model.parameters())}
    assert model(torch.tensor([[1, 2, 3]])).logits.std() > 0


@pytest.mark.parametrize("name", ["llama_1b", "llama_8b"])
def test_the_shakedowns_models_have_no_pretraining(name: str) -> None:
    recipe = load_recipe(f"recipes/shakedown/{name}.yaml", TinyLlama)
    assert recipe["tokens"] == 0 and recipe["pretrain"] is None


@pytest.mark.parametrize("line", ["tokens: 512", "pretrain: {seq_len: 256}"])
def test_a_pretraining_needs_both_its_tokens_and_its_recipe(tmp_path: Path, line: str) -> None:
    shape = resolve("recipes/shakedown/llama_1b.yaml").read_text()
    line = line.replace("}", ", epochs: 1, lr: 1.0e-6, tokens_per_step: 256}")
    (tmp_path / "model.yaml").write_text(f"{shape}{line}\n")
    with pytest.raises(UserError, match="need each other"):
        load_recipe(str(tmp_path / "model.yaml"), TinyLlama)
