"""Whatever stands in a config.json: transformers reads what is accepted, and the rest is a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from core.errors import UserError
from core.model_folder.config import ARCHITECTURES, end_token_ids, read_config
from tests.recipes import zoo

ODD: list[Any] = ["x", "2", [], {}, {"a": 1}, -1, 0, 2.5, True, [None]]
MODELS: dict[str, tuple[bool, dict[str, Any]]] = {
    "LlamaForCausalLM": (False, {}),
    "Qwen2ForCausalLM": (True, {}),
    "Qwen3ForCausalLM": (True, zoo.QWEN3),
    "Olmo3ForCausalLM": (True, {**zoo.OLMO3, "rope_scaling": zoo.OLMO3_YARN}),
}
MORE = ("layer_types", "sliding_window", "head_dim", "rope_scaling", "rope_parameters", "dtype")
MORE += ("pad_token_id", "bos_token_id", "torch_dtype", "use_sliding_window", "attention_bias")


def changed(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config with each value of it, also of RoPE's, replaced by each odd one."""
    for value in ODD:
        for key in dict.fromkeys((*config, *MORE)):
            yield config | {key: value}
        for key in config.get("rope_scaling") or {}:
            yield config | {"rope_scaling": config["rope_scaling"] | {key: value}}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_odd_values_are_refused_in_a_line_or_read_by_transformers(
    name: str, tmp_path: Path
) -> None:
    assert MODELS.keys() == ARCHITECTURES.keys()
    qwen, differences = MODELS[name]
    folder = zoo.make(tmp_path / "model", qwen, differences)
    config = json.loads((folder / "config.json").read_text())
    refused = accepted = 0
    for content in changed(config):
        zoo.write(folder, "config.json", content)
        try:
            read_config(folder)
            end_token_ids(folder)
        except UserError as error:
            refused += 1
            assert all(problem.fix and "\n" not in str(problem) for problem in error.problems)
        else:
            accepted += 1
            AutoConfig.from_pretrained(folder)
    assert refused > 100 and accepted > 9


def test_each_odd_value_has_its_line(tmp_path: Path) -> None:
    folder = zoo.make(tmp_path / "model")
    odd = {"hidden_size": "16", "rope_theta": -1, "eos_token_id": [1, "x"], "rope_scaling": 8}
    zoo.config(**odd)(folder)
    with pytest.raises(UserError) as caught:
        read_config(folder)
    lines = [problem.what.partition(":")[0] for problem in caught.value.problems]
    assert lines == [
        "hidden_size is '16'",
        "rope_theta is -1",
        "rope_scaling is 8",
        "eos_token_id is [1, 'x']",
    ]
