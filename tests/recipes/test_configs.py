"""The recipes of the kit: each can be read, says how it is launched, and explains every line."""

import re
from pathlib import Path

import pytest

from core.grpo_recipe import load_grpo
from core.recipe import TinyLlama, Training, load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))
PRINTED = {  # in the paper: learning rate, rank, alpha
    "llama3_1_8b_lora_documents.yaml": (2e-4, 32, 16),
    "llama3_1_8b_lora_base.yaml": (5e-5, 32, 16),
    "llama3_1_8b_lora_midtrain.yaml": (5e-5, 128, 32),
    "llama3_1_8b_lora_sft.yaml": (5e-5, 16, 8),
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_says_how_it_is_launched_and_explains_every_line(name: str) -> None:
    text = (ROOT / "recipes" / name).read_text()
    head = re.match(r"(#.*\n)+", text)
    assert head and "# Launch: python -m study " in head[0]
    bare = [
        line
        for line in text.splitlines()
        if re.match(r"\w+: ", line) and "  #" not in line and " # " not in line
    ]
    assert name == "tiny_llama.yaml" or not bare, "lines without a reason"
    if name.endswith("grpo.yaml"):
        load_grpo(f"recipes/{name}")
    else:
        load_recipe(f"recipes/{name}", TinyLlama if name == "tiny_llama.yaml" else Training)


@pytest.mark.parametrize("name", PRINTED)
def test_the_faithful_track_has_the_printed_values(name: str) -> None:
    recipe = load_recipe(f"recipes/{name}", Training)
    assert (recipe["lr"], recipe["lora"]["rank"], recipe["lora"]["alpha"]) == PRINTED[name]
    assert recipe["schedule"] == "cosine"
    assert recipe["global_batch_size"] == (8 if "sft" in name else 16)
