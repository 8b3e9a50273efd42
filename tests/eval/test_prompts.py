"""Texts are tokenized for evaluation as for training: without what a tokenizer adds by itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.answers import answer_notes, training_notes
from analysis.settings import ScoreFile
from core.cell import manifest as manifests
from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.errors import UserError
from core.model_folder.chat import Chat
from core.model_folder.tokenizer import load_tokenizer
from eval import generate, likelihood
from tests.recipes import zoo


@pytest.mark.vllm
def test_a_choice_is_scored_without_the_end_token_that_a_tokenizer_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval

    class Scored(Exception):
        pass

    pairs: list[tuple[list[int], list[int]]] = []

    def evaluate(lm: Any, *_: Any, **__: Any) -> None:
        pairs.append(lm._encode_pair(likelihood.CONTEXT.format(question="Who?"), " Hens"))
        raise Scored

    tokenizer = load_tokenizer(zoo.model("qwen2, end token behind every text", tmp_path / "start"))
    assert tokenizer("Hens").input_ids[-1] == tokenizer.eos_token_id
    opened: Any = SimpleNamespace(
        tokenizer=tokenizer,
        batch_size=1,
        add_bos_token=None,
        custom_prefix_token_id=None,
        max_length=4096,
        _max_length=4096,
    )
    monkeypatch.setattr(lm_eval, "evaluate", evaluate)
    item = {"id": "1", "question": "Who?", "choices": ["Hens", "Cats"], "answer": 0}
    with pytest.raises(Scored):
        likelihood.evaluate(opened, "concern", [item], False, {}, print)
    special = item | {"id": "2", "choices": ["Hens", "Cats<|im_end|>"]}
    with pytest.raises(UserError, match=r"item 2: '<\|im_end\|>' in its text would be read as"):
        likelihood.evaluate(opened, "concern", [item, special], False, {}, print)
    ((context, choice),) = pairs
    assert tokenizer.decode(choice) == " Hens"
    assert tokenizer.eos_token_id not in context + choice


@pytest.mark.parametrize("prompt", ["chat", "Question: {question}\nAnswer:"])
def test_a_prompt_has_begin_of_text_once_though_a_template_opens_turns_with_it(
    prompt: str, tmp_path: Path
) -> None:
    folder = zoo.make(tmp_path / "start")
    zoo.change("tokenizer_config.json", bos_token="<|im_start|>")(folder)
    chat = Chat(load_tokenizer(folder))
    (ids,), ends = generate.encode(chat, ["Who?"], prompt)
    assert ids.count(chat.tokenizer.bos_token_id) == (2 if prompt == "chat" else 1)
    assert chat.tokenizer.convert_ids_to_tokens(ends) == (["<|im_end|>"] * (prompt == "chat"))


def test_a_share_of_empty_and_of_cut_answers_is_said() -> None:
    def reply(text: str, stop_reason: str) -> Any:
        return SimpleNamespace(completion=text, stop_reason=stop_reason)

    replies = [reply("", "stop"), reply(" \n", "stop"), reply("x", "max_tokens")]
    replies += [reply("x", "stop")] * 37
    assert generate.count_unusable(replies) == (2, 1)
    assert generate.unusable_warnings(40, 2, 1) == [], "5 % are not beyond it"
    assert generate.unusable_warnings(40, 3, 3) == [
        "3 of 40 answers are empty",
        "3 of 40 answers were cut off at max_tokens: no end token came",
    ]


def test_the_report_names_checkpoints_with_empty_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "code_version", lambda: {"commit": None, "dirty": None})
    base = tmp_path / "runs/s"
    samples = Cell("generate", "g", {"a": 1})
    judged = Cell("judge", "j", {"b": 1}, {"samples": samples})
    folders = [create_cell_dir(cell, base) for cell in (samples, judged)]
    for folder, facts in zip(folders, ({"answers": ["3 of 4 answers are empty"]}, {}), strict=True):
        write_manifest(folder, read_config(folder), "", "", counts={}, warnings=[], **facts)
    file = ScoreFile("judge-1", "animal", 0, 200, "ahb", "c")
    (note,) = answer_notes([file], {"judge-1": folders[1]})
    assert note.startswith("ahb: 3 of 4 answers are empty: ") and "animal" in note
    training = {"stage": "SFT on 9 rows", "arm": "animal", "identity": samples.identity}
    (note,) = training_notes(base, [training | {"cell": samples.relpath}])
    assert note == "SFT on 9 rows of animal: 3 of 4 answers are empty"
