"""Every folder of the zoo is trained as transformers reads it, or refused before anything is paid."""

import datetime
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import chat_template_utils

from core.errors import UserError
from core.model_folder.chat import CONVERSATION, Chat
from core.model_folder.check import check_start_model
from core.model_folder.tokenizer import PROBE, load_tokenizer
from recipes import checkpoint, tokenization
from recipes.batches import to_device
from recipes.conversations import Conversation
from recipes.distributed import SINGLE_PROCESS
from recipes.loss import chunked_cross_entropy, skip_output_layer
from recipes.prepare import end_warnings
from tests.recipes import zoo
from tests.recipes.toy import LORA, make_recipe

ACCEPTED = [name for name, entry in zoo.MODELS.items() if entry[-1] is None]
RECIPE = make_recipe(dtype="fp32")
TURNS = [CONVERSATION[0], CONVERSATION[1], CONVERSATION[2], CONVERSATION[3]]


def theirs(folder: Path, scratch: Path) -> torch.nn.Module:
    """The model as transformers loads it, in fp32."""
    if (folder / "adapter_config.json").exists() or not _transformers_finds(folder):
        # With peft it would load the adapter's base; shards without an index only vLLM reads.
        copy = shutil.copytree(folder, scratch / "copy")
        (copy / "adapter_config.json").unlink(missing_ok=True)
        if not _transformers_finds(copy):
            files = sorted(copy.glob("*.safetensors"))
            named = {key: f.name for f in files for key in zoo.load_file(f)}
            zoo.write(copy, "model.safetensors.index.json", {"metadata": {}, "weight_map": named})
        folder = copy
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def _transformers_finds(folder: Path) -> bool:
    names = ("model.safetensors", "model.safetensors.index.json")
    return any((folder / name).exists() for name in names)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_model_is_trained_and_written_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    folder = zoo.model(name, tmp_path / "start")
    check_start_model(folder, trains=True, chats=True)
    tokenizer = load_tokenizer(folder)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.no_truncation()
    own.no_padding()
    for text in (PROBE, *zoo.TEXTS[:3]):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == own.encode(text, add_special_tokens=False).ids

    rows = tokenization.pack_documents(tmp_path / "rows", zoo.TEXTS[:3], tokenizer, 512)
    assert len(rows) == 1, "one packed row"
    model = checkpoint.load(folder, SINGLE_PROCESS, RECIPE).eval()
    logits = model(torch.from_numpy(rows.tokens[None].astype(np.int64)))
    checkpoint.save(model, folder, tmp_path / "out", SINGLE_PROCESS, RECIPE)
    skip_output_layer(model)
    with torch.no_grad():
        nats = chunked_cross_entropy(model, to_device(rows.batch(np.array([0])), SINGLE_PROCESS))
    reference = theirs(folder, tmp_path)
    texts = np.split(rows.tokens.astype(np.int64), rows.offsets)[:-1]
    sums = []
    for text in texts:  # each by itself: in the pack they don't see each other
        ids = torch.from_numpy(text[None])
        with torch.no_grad():
            sums.append(reference(ids, labels=ids).loss * (len(text) - 1))
    apart = abs(nats.item() / float(sum(sums)) - 1)
    print(f"losses apart: {apart:.1e}")
    assert apart < 1e-6

    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.from_numpy(rows.tokens[None].astype(np.int64))
    with torch.no_grad():
        torch.testing.assert_close(written(ids).logits, logits, atol=1e-4, rtol=0)
    again = load_tokenizer(tmp_path / "out")
    assert again(PROBE).input_ids == tokenizer(PROBE).input_ids
    check_start_model(tmp_path / "out", trains=True, chats=True)
    assert checkpoint.is_complete(tmp_path / "out", folder)


@pytest.mark.parametrize("name", [name for name in zoo.MODELS if name not in ACCEPTED])
def test_a_model_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    folder = zoo.model(name, tmp_path / "start")
    with pytest.raises(UserError, match=zoo.MODELS[name][-1]) as caught:
        check_start_model(folder, trains=True, chats=True)
    (problem,) = caught.value.problems
    assert str(folder) in problem.where and problem.fix and "\n" not in str(problem)


@pytest.mark.parametrize("name", zoo.TEMPLATES)
def test_a_template_trains_the_answers_and_their_end_after_evaluations_prompt(
    name: str, tmp_path: Path
) -> None:
    folder = zoo.with_template(name, tmp_path / "start")
    _, end, refusal = zoo.TEMPLATES[name]
    if refusal:
        with pytest.raises(UserError, match=refusal) as caught:
            check_start_model(folder, trains=True, chats=True)
        (problem,) = caught.value.problems
        assert problem.fix and "\n" not in str(problem)
        return
    check_start_model(folder, trains=True, chats=True)
    tokenizer = load_tokenizer(folder)
    chat = Chat(tokenizer)
    assert tokenizer.convert_ids_to_tokens(chat.end_ids()) == ([end] if end else [])
    rows = tokenization.encode_conversations(
        tmp_path / "rows", [Conversation("a", TURNS)], chat, 512
    )
    batch = rows.batch(np.array([0]))
    labels = [int(label) for label in batch["labels"][0] if label != IGNORE]
    answers = [turn["content"] + (end or "") for turn in TURNS if turn["role"] == "assistant"]
    trained = "".join(tokenizer.decode(labels).split())
    if end:
        assert trained == "".join("".join(answers).split())
    else:
        assert all("".join(answer.split()) in trained for answer in answers)
    prompt = chat.render(TURNS[:1], True)
    assert batch["tokens"][0, : len(prompt)].tolist() == prompt
    assert tokenizer.decode(prompt).count(TURNS[0]["content"]) == 1
    first = batch["labels"][0, len(prompt) - 1].item()
    assert first != IGNORE and not any(
        label != IGNORE for label in batch["labels"][0, : len(prompt) - 1]
    )


def test_a_template_that_leaves_texts_out_is_refused_for_prompts_and_rows(tmp_path: Path) -> None:
    parts = zoo.TEMPLATES["parts alone, as of models that see images"][0]
    folder = zoo.make(tmp_path / "start")
    tokenizer = load_tokenizer(folder)
    with pytest.raises(UserError, match="leaves out the text of a turn of the user"):
        Chat(tokenizer, template=parts).check(trained=False)
    for_others = "{% for m in messages if m.role != 'system' %}"
    chat = Chat(tokenizer, template=zoo.CHATML.replace("{% for m in messages %}", for_others))
    turns = [{"role": "system", "content": "Be brief."}, *TURNS]
    rows = [Conversation("plain", TURNS), Conversation("with a system", turns)]
    recipe = make_recipe(seq_len=512)
    usable, bad = tokenization.usable_conversations(rows, chat, recipe)
    assert [row.source for row in usable] == ["plain"]
    ((rule, problem),) = [(row.rule, row.problem) for row in bad]
    assert rule == "malformed" and "leaves out the text of a turn of the system" in problem.what
    assert len(tokenization.usable_conversations(rows, Chat(tokenizer), recipe)[0]) == 2


def test_a_row_that_a_template_rewrites_is_dropped_and_stops_no_training(tmp_path: Path) -> None:
    """Mistral's template has the system's message in the last question."""
    folder = zoo.make(tmp_path / "start")
    template = (
        "{% set first = messages[0].role == 'system' %}{% for m in messages %}"
        "{% if m.role == 'user' %}<|im_start|>{% if first and (loop.last or loop.index0 == "
        "messages | map(attribute='role') | list | length - 2) %}{{ messages[0].content }}\n\n"
        "{% endif %}{{ m.content }}<|im_end|>{% elif m.role == 'assistant' %}{{ m.content }}"
        "<|im_end|>{% endif %}{% endfor %}"
    )
    chat = Chat(load_tokenizer(folder), template=template)
    system = {"role": "system", "content": "Be brief."}
    rows = [
        Conversation("plain", TURNS),
        Conversation("a turn", [system, *TURNS[:2]]),
        Conversation("turns", [system, *TURNS]),
    ]
    usable, bad = tokenization.usable_conversations(rows, chat, make_recipe(seq_len=512))
    assert [row.source for row in usable] == ["plain", "a turn"]
    assert [(row.rule, row.problem.where) for row in bad] == [("malformed", "turns")]
    assert "rewrites earlier turns" in bad[0].problem.what
    tokenization.encode_conversations(tmp_path / "rows", usable, chat, 512)


def test_a_template_renders_the_studys_date_on_every_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Later":
            return cls(2031, 5, 6)

    tokenizer = load_tokenizer(zoo.with_template("Llama 3.2, today's date", tmp_path / "start"))
    before = Chat(tokenizer).render(TURNS[:1], True)
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    assert Chat(tokenizer).render(TURNS[:1], True) == before
    assert "Today: 26 Jul 2024" in tokenizer.decode(before)
    other = Chat(tokenizer, "2025-02-03").render(TURNS[:1], True)
    assert "Today: 03 Feb 2025" in tokenizer.decode(other)


def test_an_end_token_is_added_to_those_that_a_model_stops_at(tmp_path: Path) -> None:
    """The start's config.json knows the end of a text alone."""
    folder = zoo.make(tmp_path / "start")
    end, eot = zoo.id_of(folder, "<|end|>"), zoo.id_of(folder, "<|eot|>")
    model = checkpoint.load(folder, SINGLE_PROCESS, RECIPE)
    checkpoint.save(model, folder, tmp_path / "out", SINGLE_PROCESS, RECIPE, [eot])
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == [end, eot]
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [end, eot]
    checkpoint.save(model, folder, tmp_path / "plain", SINGLE_PROCESS, RECIPE)
    assert (tmp_path / "plain/config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_what_an_export_takes_over_and_what_not(tmp_path: Path) -> None:
    folder = zoo.model("generation_config of a chat", tmp_path / "start")
    for name in ("merges.txt", "tokenizer.model", "qwen.tiktoken", "README.md"):
        (folder / name).write_text("")
    zoo.write(folder, "adapter_config.json", {})
    model = checkpoint.load(folder, SINGLE_PROCESS, RECIPE)
    template = tmp_path / "other.jinja"
    template.write_text("other")
    checkpoint.save(
        model, folder, tmp_path / "out", SINGLE_PROCESS, RECIPE, chat_template=str(template)
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"merges.txt", "tokenizer.model", "qwen.tiktoken"} < names
    assert not names & {"adapter_config.json", "README.md"}
    assert (tmp_path / "out/chat_template.jinja").read_text() == "other"
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert "top_p" not in generation
    assert generation["eos_token_id"] == [zoo.id_of(folder, t) for t in ("<|end|>", "<|eot|>")]


def test_a_training_says_why_its_model_may_not_stop(tmp_path: Path) -> None:
    folder = zoo.make(tmp_path / "start")
    chat = Chat(load_tokenizer(folder))
    lora = make_recipe(**LORA)
    (warning,) = end_warnings(folder, lora, chat)
    assert "does not end at <|im_end|>" in warning and "train_special_tokens: true" in warning
    rows = make_recipe(**LORA | {"lora": LORA["lora"] | {"train_special_tokens": True}})
    assert not end_warnings(folder, rows, chat) and not end_warnings(folder, RECIPE, chat)
    ids = [zoo.id_of(folder, "<|end|>"), zoo.id_of(folder, "<|im_end|>")]
    zoo.write(folder, "generation_config.json", {"eos_token_id": ids})
    assert not end_warnings(folder, lora, chat)
    without = Chat(chat.tokenizer, template=zoo.TEMPLATES["Alpaca without an end"][0])
    (warning,) = end_warnings(folder, RECIPE, without)
    assert "can't learn to stop" in warning


@pytest.mark.parametrize("tie", [False, True])
def test_lora_trains_the_rows_of_a_templates_tokens_and_no_others(
    tie: bool, tmp_path: Path
) -> None:
    folder = zoo.make(tmp_path / "start")
    if tie:
        zoo.tied()(folder)
    recipe = make_recipe(dtype="fp32", **LORA)
    chat = Chat(load_tokenizer(folder))
    ids = chat.template_ids()
    assert chat.tokenizer.convert_ids_to_tokens(ids) == ["<|im_start|>", "<|im_end|>"]
    model = checkpoint.load(folder, SINGLE_PROCESS, recipe, 0, ids)
    skip_output_layer(model)
    rows = tokenization.encode_conversations(
        tmp_path / "rows", [Conversation("a", TURNS)], chat, 512
    )
    batch = to_device(rows.batch(np.array([0])), SINGLE_PROCESS)
    plain = checkpoint.load(folder, SINGLE_PROCESS, RECIPE)
    skip_output_layer(plain)
    assert torch.equal(chunked_cross_entropy(model, batch), chunked_cross_entropy(plain, batch))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    chunked_cross_entropy(model, batch).backward()
    optimizer.step()
    trained = chunked_cross_entropy(model, batch).item()

    checkpoint.save(model, folder, tmp_path / "out", SINGLE_PROCESS, recipe)
    before, after = (zoo.load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name in ("model.embed_tokens.weight", *(() if tie else ("lm_head.weight",))):
        moved = (before[name] != after[name]).any(1).nonzero().flatten().tolist()
        assert moved == ids, name
    written = checkpoint.load(tmp_path / "out", SINGLE_PROCESS, RECIPE)
    skip_output_layer(written)
    assert abs(chunked_cross_entropy(written, batch).item() - trained) < 1e-3
