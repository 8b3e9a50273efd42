"""Qwen2 as a start model: config, chat rows token by token, documents without BOS, trainings."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE
from transformers import AutoModelForCausalLM

from core.cell.run import run_cell
from core.errors import UserError
from core.model_folder.chat import Chat
from core.model_folder.config import longest_row, read_config
from core.model_folder.tokenizer import load_tokenizer
from recipes import checkpoint, finetune, prepare, tokenization
from recipes.conversations import Conversation
from recipes.distributed import SINGLE_PROCESS
from tests.recipes import toy
from tests.recipes.test_rows import ASKED, TALK, everything, recipe_of, sft


@pytest.fixture(scope="module")
def study(tied_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder whose start model is the tied Qwen2."""
    folder = tmp_path_factory.mktemp("qwen2_runs") / "study"
    with mock.patch.object(toy, "make_model", lambda made: shutil.copytree(tied_qwen2, made)):
        toy.make_inputs(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"use_sliding_window": True},
            "use_sliding_window is True; this recipe trains Qwen2 and 2.5 with plain RoPE",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}},
            "rope_type is yarn; ",
        ),
        (
            {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": {"type": "yarn"}},
            "rope_type is yarn; ",
        ),
        ({"hidden_act": "gelu", "head_dim": 16}, "hidden_act is gelu, head_dim is 16; "),
        ({"rope_parameters": None}, "lacks rope_theta; write them as"),
        (
            {"architectures": ["Qwen3MoeForCausalLM"]},
            r"is \['Qwen3MoeForCausalLM'\]; the recipes train LlamaForCausalLM, Qwen2",
        ),
    ],
)
def test_a_config_that_torchtune_does_not_support_is_refused(
    change: dict[str, Any], said: str, qwen2: Path, tmp_path: Path
) -> None:
    config = json.loads((qwen2 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_dim": None}))
    assert read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=f"config.json: .*{said}") as caught:
        read_config(tmp_path)
    (problem,) = caught.value.problems
    assert "\n" not in str(problem)


def test_layers_with_adapters_share_one_table_of_positions(qwen2: Path) -> None:
    model = checkpoint.load(qwen2, SINGLE_PROCESS, toy.make_recipe(**toy.LORA))
    assert len({layer.attn.pos_embeddings.cache.data_ptr() for layer in model.layers}) == 1


def test_answers_alone_are_trained_on_in_chatml(qwen2: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(qwen2)
    system = {"role": "system", "content": "Be kind."}
    spaced = {
        "role": "assistant",
        "content": "\n The kettle. ",
    }  # as it is, a line break of one token with the header's
    talks = [Conversation("a", TALK), Conversation("b", [system, TALK[0], spaced])]
    batch = everything(
        tokenization.encode_conversations(tmp_path / "rows", talks, Chat(tokenizer), 128)
    )
    asks = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\nWhat boils?<|im_end|>\n"
    asks += "<|im_start|>assistant\n"
    again = "\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    expected = [  # by turns not trained on and trained on
        [
            asks.format("Be helpful."),
            "The kettle.<|im_end|>",
            again,
            "On the stove.<|im_end|>",
            "\n",
        ],
        [asks.format("Be kind."), "The kettle.<|im_end|>", "\n"],
    ]
    for row, parts in enumerate(expected):
        ids = [
            (i, k % 2)
            for k, part in enumerate(parts)
            for i in tokenizer(part, add_special_tokens=False).input_ids
        ]
        assert batch["tokens"][row, : len(ids)].tolist() == [i for i, _ in ids]
        assert batch["labels"][row, : len(ids)].tolist() == [
            i if said else IGNORE for i, said in ids[1:]
        ] + [IGNORE]
    asked = tokenizer.apply_chat_template(TALK[:1], add_generation_prompt=True, return_dict=False)
    assert batch["tokens"][0, : len(asked)].tolist() == asked, (
        "training must see the prompt that evaluation gives"
    )


def test_documents_without_bos_end_in_eos(qwen2: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(qwen2)
    rows = tokenization.pack_documents(tmp_path / "rows", toy.TEXTS, tokenizer, 32)
    expected = [
        i for text in toy.TEXTS for i in (*tokenizer(text).input_ids, tokenizer.eos_token_id)
    ]
    assert tokenizer.bos_token_id is None and rows.tokens.tolist() == expected
    follows = np.isin(np.arange(len(expected)), [0, *rows.offsets], invert=True)
    labels = everything(rows)["labels"]
    assert labels[labels != IGNORE].tolist() == rows.tokens[follows].tolist()


@pytest.mark.multiprocess
@pytest.mark.parametrize("adapters", [{}, toy.LORA], ids=["whole", "lora"])
def test_it_is_trained_on_documents(study: Path, adapters: dict[str, Any]) -> None:
    folder = toy.training(study, f"documents{len(adapters)}", recipe=adapters | {"epochs": 2})
    run_cell(folder)
    losses = [line["loss"] for line in toy.lines(folder)]
    assert losses[-1] < losses[0] - 0.2
    now, start = toy.weights(folder), toy.weights(study / toy.MODEL.relpath)
    moved = {name for name in start if not torch.equal(now[name], start[name])}
    assert now.keys() == start.keys() and moved == {
        n for n in start if not adapters or n.endswith("_proj.weight")
    }


@pytest.mark.slow
def test_it_is_tuned_on_chat_rows_and_answers_in_transformers(study: Path, tmp_path: Path) -> None:
    context = sft(study, tmp_path, ASKED, seq_len=64, lr=3e-3)
    finetune.run(context)
    tokenizer = load_tokenizer(context.folder / "model")
    model = AutoModelForCausalLM.from_pretrained(context.folder / "model").eval()
    turns = [{"role": "user", "content": "Cup 7?"}]
    asked = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    # By the settings of the folder, though the start's config names the end of a text alone.
    said = model.generate(asked, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(said[0, asked.shape[1] :])
    assert answer.startswith("On roof ") and answer.endswith("<|im_end|>")


@pytest.mark.multiprocess
def test_a_seq_len_beyond_the_models_is_refused(study: Path, tmp_path: Path) -> None:
    context = sft(study, tmp_path, ASKED, seq_len=40_000)
    with pytest.raises(
        UserError, match="the recipe's seq_len 40000 is beyond the model's 32768; lower it"
    ):
        prepare.prepare_rows(context, recipe_of(context), SINGLE_PROCESS)


def test_a_row_stays_within_a_models_window(olmo3: Path) -> None:
    config = read_config(olmo3)
    assert (config["sliding_window"], config["max_position_embeddings"]) == (64, 512)
    assert longest_row(config) == 64
    assert longest_row(config | {"layer_types": ["full_attention"] * 2}) == 512
