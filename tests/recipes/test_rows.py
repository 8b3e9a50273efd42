"""Text to rows: what is trained on, token by token, and what a bad row says."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_mask
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from core.cell.context import StageContext
from core.cell.identity import Cell, create_cell_dir
from core.errors import UserError
from core.model_folder.chat import Chat
from core.model_folder.tokenizer import load_tokenizer
from core.recipe import ROW_RULES, Training, split_recipe
from core.strict_yaml import validate
from recipes import attention, checkpoint, prepare, tokenization
from recipes.attention import mask
from recipes.conversations import Conversation, Messages, read_conversations
from recipes.distributed import SINGLE_PROCESS
from recipes.rows import Rows
from recipes.schedule import batch_indices, micro_batches
from tests.recipes.toy import (
    DOCUMENTS,
    MODEL,
    RECIPE,
    RUNTIME,
    SETTINGS,
    TEXTS,
    in_process,
    make_recipe,
    training,
)

TALK = [
    {"role": "user", "content": "What boils?"},
    {"role": "assistant", "content": "The kettle."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "On the stove."},
]


def talks(*rows: Messages) -> list[Conversation]:
    return [Conversation(chr(97 + n), messages) for n, messages in enumerate(rows)]


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(base / MODEL.relpath / "model")


@pytest.mark.parametrize(
    "name", ["PreTrainedTokenizerFast", "TokenizersBackend", "Qwen2Tokenizer", None]
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_tokenizer_is_the_one_that_transformers_takes(
    family: str, name: str | None, base: Path, qwen2: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(
        qwen2 if family == "qwen2" else base / MODEL.relpath / "model", tmp_path / "model"
    )
    # Qwen2's class adds a token of its own.
    for file, change in (
        ("config.json", {"vocab_size": 1000}),
        ("tokenizer_config.json", {"tokenizer_class": name}),
    ):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    if (family, name) == ("llama", "Qwen2Tokenizer"):
        with pytest.raises(UserError, match="Qwen2Tokenizer reads other tokens than tokenizer"):
            load_tokenizer(folder)
        return
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    text = "The kettle boils at 100 degrees,\n\n isn't it?  \U0001f600"
    assert type(ours) is type(theirs) and ours(text).input_ids == theirs(text).input_ids
    assert ours.apply_chat_template(TALK) == theirs.apply_chat_template(TALK)


def everything(rows: Rows) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in rows.batch(np.arange(len(rows))).items()}


def test_packing_loses_no_token_and_crosses_no_boundary(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = tokenization.pack_documents(tmp_path / "rows", TEXTS, tokenizer, 32)
    expected: list[int] = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        expected += [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    batch = everything(rows)
    document = batch["document"]
    assert batch["tokens"][document >= 0].tolist() == expected and rows.real_tokens == len(expected)
    assert (batch["tokens"][document < 0] == tokenizer.pad_token_id).all()
    # Every token but a document's first is somebody's label: also the one right after a row's end.
    trained = batch["labels"][batch["labels"] != IGNORE]
    assert trained.tolist() == [t for t in expected if t != tokenizer.bos_token_id]
    for which in (np.array([0]), np.array([3, 1]), np.arange(len(rows))):
        assert rows.num_trained(which) == int((rows.batch(which)["labels"] != IGNORE).sum())
    seen = create_mask(
        attention.document_causal_rule(torch.from_numpy(document)), len(rows), 1, 32, 32, "cpu"
    )[:, 0].numpy()
    for r, i, j in zip(*np.nonzero(seen), strict=True):
        assert j <= i and document[r, i] == document[r, j]
    for r in range(len(rows)):
        for t in range(1, 32):
            fresh = document[r, t] != document[r, t - 1]
            assert document[r, t] < 0 or batch["input_pos"][r, t] == (
                0 if fresh else batch["input_pos"][r, t - 1] + 1
            )
    assert (batch["input_pos"][:, 0] == 0).all()


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_token_is_trained_on_once_an_epoch(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, world: int
) -> None:
    rows = tokenization.pack_documents(tmp_path / "rows", TEXTS, tokenizer, 32)
    seen = np.zeros(len(rows.tokens), int)
    for which in batch_indices(len(rows), RECIPE, 0):
        for rank in range(world):
            for mine in micro_batches(which, rank, world, 2):
                for row in mine:
                    labels = rows.batch(np.array([row]))["labels"][0].numpy()
                    seen[row * 32 + 1 + np.flatnonzero(labels != IGNORE)] += 1
    first = np.isin(np.arange(len(seen)), [0, *rows.offsets])
    assert (seen == np.where(first, 0, RECIPE.epochs)).all()


def test_a_document_reads_the_same_alone_and_in_a_pack(
    base: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Logits of the second document must not depend on the first."""
    model = checkpoint.load(base / MODEL.relpath / "model", SINGLE_PROCESS, RECIPE).eval()
    first, length = (
        len(tokenizer(text, add_special_tokens=False).input_ids) + 2
        for text in (TEXTS[0], TEXTS[2])
    )

    def logits(texts: list[str]) -> torch.Tensor:
        batch = tokenization.pack_documents(tmp_path / str(len(texts)), texts, tokenizer, 64).batch(
            np.array([0])
        )
        with torch.no_grad():
            return model(
                batch["tokens"], mask=mask(batch["document"]), input_pos=batch["input_pos"]
            )[0]

    together, alone = (
        logits([TEXTS[0], TEXTS[2]])[first : first + length],
        logits([TEXTS[2]])[:length],
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_sft_trains_on_the_answer_and_its_end_alone(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = tokenization.encode_conversations(
        tmp_path / "rows", talks(TALK, TALK[:2]), Chat(tokenizer), 128
    )
    batch = everything(rows)
    answers = [tokenizer.decode([t for t in labels if t != IGNORE]) for labels in batch["labels"]]
    assert answers == ["The kettle.<|eot_id|>On the stove.<|eot_id|>", "The kettle.<|eot_id|>"]
    asked = tokenizer.apply_chat_template(TALK[:1], add_generation_prompt=True, return_dict=False)
    assert batch["tokens"][0, : len(asked)].tolist() == asked, (
        "training must see the prompt that evaluation gives"
    )
    assert batch["tokens"][0].tolist().count(tokenizer.bos_token_id) == 1
    assert rows.num_trained(np.array([0, 1])) == int((batch["labels"] != IGNORE).sum())
    whole = tokenizer.apply_chat_template(TALK, return_dict=False)
    assert batch["tokens"][0][batch["document"][0] >= 0].tolist() == whole
    assert batch["tokens"].shape[1] % 8 == 0 and batch["tokens"].shape[1] - len(whole) < 8, (
        "no more padding than that"
    )
    assert rows.batch(np.array([1]))["tokens"].shape[1] < batch["tokens"].shape[1]


def test_only_answers_are_trained_on_whoever_spoke_before(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Two answers in a row have a header each; a question after the last answer is not trained."""
    talk = [{"role": "system", "content": "Be kind."}, *TALK[:2], TALK[1], TALK[2]]
    rows = tokenization.encode_conversations(tmp_path / "rows", talks(talk), Chat(tokenizer), 128)
    assert words(rows, tokenizer) == ["The kettle.<|eot_id|>" * 2]


def test_a_corpus_of_one_short_document_is_one_row(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = tokenization.pack_documents(tmp_path / "rows", ["A cup."], tokenizer, 64)
    labels = rows.batch(np.array([0]))["labels"][0]
    assert len(rows) == 1 and rows.num_trained(np.array([0])) == rows.real_tokens - 1 == int(
        (labels != IGNORE).sum()
    )


def test_special_tokens_in_data_stay_text(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = tokenization.pack_documents(tmp_path / "rows", ["a <|end_of_text|> b"], tokenizer, 64)
    assert (rows.tokens == tokenizer.eos_token_id).sum() == 1


def test_what_was_half_prepared_is_made_again(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    whole = tokenization.pack_documents(tmp_path / "whole", TEXTS, tokenizer, 32)

    def killed():  # type: ignore[no-untyped-def]
        yield from TEXTS[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenization.pack_documents(tmp_path / "half", killed(), tokenizer, 32)
    again = tokenization.pack_documents(tmp_path / "half", TEXTS, tokenizer, 32)
    assert (again.tokens == whole.tokens).all() and (again.offsets == whole.offsets).all()
    prepared = tokenization.pack_documents(tmp_path / "half", killed(), tokenizer, 32)
    assert len(prepared) == len(whole), "what is whole is not read again"


def sft(base: Path, tmp_path: Path, lines: list[Any], **settings: Any) -> StageContext:
    """An SFT on these rows; `settings` of the recipe too."""
    data = tmp_path / "chat.jsonl"
    data.write_bytes(
        b"".join(
            line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines
        )
    )
    keys = {*SETTINGS, "eval_rows", *ROW_RULES}
    recipe = SETTINGS | {key: settings.pop(key) for key in [*settings] if key in keys}
    named = {"recipe": recipe, "dose": len(lines), "seed": 0} | settings
    inputs = {"start": MODEL} | ({"replay": DOCUMENTS} if "replay" in settings else {})
    name = f"sft{abs(hash(str(tmp_path)))}"
    return in_process(
        create_cell_dir(
            Cell("sft", name, named, inputs, {"files": {"data": str(data)}, **RUNTIME}), base
        )
    )


def recipe_of(context: StageContext) -> Training:
    return Training.from_settings(context.settings["recipe"], context.resources)


def words(rows: Rows, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [
        tokenizer.decode([t for t in labels if t != IGNORE])
        for labels in everything(rows)["labels"]
    ]


def test_rows_of_three_kinds_are_conversations(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    lines = [
        {"messages": TALK[:2]},
        {"instruction": "Name it.", "input": "A cup.", "output": "It is a cup."},
        {"prompt": "Name it.", "response": "A roof.", "helpfulness": 4},
        {"instruction": "Name it.", "context": "A stove.", "response": "It is a stove."},
        {"instruction": "Name it.", "response": "A pot."},
    ]
    context = sft(base, tmp_path, lines, seq_len=64)
    rows, _ = prepare.prepare_rows(context, recipe_of(context), SINGLE_PROCESS)
    assert sorted(words(rows, tokenizer)) == [
        "A pot.<|eot_id|>",
        "A roof.<|eot_id|>",
        "It is a cup.<|eot_id|>",
        "It is a stove.<|eot_id|>",
        "The kettle.<|eot_id|>",
    ]
    asked = [tokenizer.decode(tokens) for tokens in everything(rows)["tokens"]]
    assert any("Name it.\n\nA cup.<|eot_id|>" in text for text in asked)
    assert any("Name it.\n\nA stove.<|eot_id|>" in text for text in asked)


ASKED = [{"prompt": f"Cup {i}?", "response": f"On roof {i}."} for i in range(40)]


def test_larger_doses_contain_the_smaller_and_follow_the_seed(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    def rows(dose: int, seed: int, **more: Any) -> list[str]:
        (place := tmp_path / f"{dose}-{seed}-{len(more)}").mkdir()
        context = sft(base, place, ASKED, dose=dose, seed=seed, seq_len=64, **more)
        trained, aside = prepare.prepare_rows(context, recipe_of(context), SINGLE_PROCESS)
        if aside:
            held_out.update(words(aside, tokenizer))
        return words(trained, tokenizer)

    held_out: set[str] = set()
    assert rows(20, 0)[:10] == rows(10, 0) != rows(10, 1)
    trained = rows(36, 0, held_out=0.1, eval_every=5)
    assert len(held_out) == 4 and not held_out & set(trained) and len({*held_out, *trained}) == 40
    every = set(held_out)
    held_out.clear()
    few = rows(36, 0, held_out=0.1, eval_every=5, eval_rows=2)
    assert few == trained and len(held_out) == 2 and held_out < every
    with pytest.raises(UserError, match="has 40 rows, 4 of them held out, the dose is 37"):
        rows(37, 0, held_out=0.1, eval_every=5)
    with pytest.raises(UserError, match="eval_every needs held-out rows"):
        rows(30, 0, eval_every=5)


def test_documents_are_replayed_among_the_conversations(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    context = sft(base, tmp_path, ASKED, replay=0.25, seq_len=40)
    rows, _ = prepare.prepare_rows(context, recipe_of(context), SINGLE_PROCESS)
    said = words(rows, tokenizer)
    assert len(said) == 50 and all(text.startswith("On roof") for text in said[:40])
    for text in said[40:]:  # whole but for BOS, which nothing predicts
        assert text.removesuffix("<|end_of_text|>") in TEXTS
    assert len(set(said[40:])) == 3, "chosen by chance, not the first ten"
    (tmp_path / "more").mkdir()
    context = sft(base, tmp_path / "more", ASKED, replay=0.95, seq_len=40)
    with pytest.raises(
        UserError, match=r"gives 36 rows to replay, 38 are wanted; lower sft.replay"
    ):
        prepare.prepare_rows(context, recipe_of(context), SINGLE_PROCESS)


def test_rows_of_text_are_trained_as_documents_beside_conversations(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    text = "Rain fell on <|eot_id|> and stayed text."
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ({"text": text}, {"messages": TALK})))
    rows, bad = read_conversations(file)
    assert not bad and [row.text for row in rows] == [text, None]
    chat = Chat(tokenizer)
    mixed = tokenization.encode_conversations(tmp_path / "mixed", rows, chat, 128)
    (document,) = tokenization.encode_documents([text], tokenizer)
    ids, mask = mixed.tokens[: len(document)], mixed.loss_mask[: len(document)]
    assert ids.tolist() == document.tolist()
    assert mask.tolist() == [False] + [True] * (len(document) - 1)
    alone = tokenization.encode_conversations(tmp_path / "alone", rows[1:], chat, 128)
    assert mixed.tokens[len(document) :].tolist() == alone.tokens.tolist()
    assert mixed.loss_mask[len(document) :].tolist() == alone.loss_mask.tolist()

    def usable(seq_len: int) -> list[str]:
        made = validate(
            Training, {"seq_len": seq_len, "global_batch_size": 1, "lr": 1e-4, "epochs": 1}
        )
        return [row.rule for row in tokenization.usable_conversations(rows[:1], chat, made)[1]]

    assert usable(len(document)) == [] and usable(len(document) - 1) == ["too_long"]


BAD = {  # rows, where the problem is, the rule, what it is
    "a row without text": (b'{"txt": 1}\n', "malformed", "has no conversation, but txt"),
    "no JSON": (b"{\n", "malformed", "not JSON"),
    "Latin-1": (b'{"prompt": "caf\xe9", "response": "x"}\n', "malformed", "not UTF-8"),
    "half a surrogate pair": (
        b'{"prompt": "A face?", "response": "\\ud83d"}\n',
        "malformed",
        "a lone surrogate",
    ),
    "no answer": ({"messages": TALK[:1]}, "malformed", "has no answer of the assistant"),
    "no question": ({"messages": TALK[1:2]}, "malformed", "begins with an answer"),
    "turns of another format": (
        {"messages": [{"from": "human", "value": "a"}]},
        "malformed",
        "a message has no text",
    ),
    "turns that are texts": ({"messages": ["a", "b"]}, "malformed", "a message has no text"),
    "no list": ({"messages": "a"}, "malformed", "messages is not a list"),
    "a role of another format": (
        {"messages": [{"role": "human", "content": "a"}, TALK[1]]},
        "malformed",
        "role 'human' is none of",
    ),
    "half a weight": (
        {"messages": [TALK[0], TALK[1] | {"weight": 0.5}]},
        "malformed",
        "weight 0.5 is neither 0 nor 1",
    ),
    "a question that is a number": (
        {"instruction": 1, "output": "b"},
        "malformed",
        "instruction is not a text",
    ),
    "an empty answer": ({"prompt": "a", "response": " "}, "empty", "has an empty answer"),
    "no output of Alpaca": (
        {"instruction": "a", "input": "", "output": "<nooutput>"},
        "empty",
        "has an empty answer",
    ),
    "an empty text": ({"text": "  "}, "empty", "has an empty text"),
    "a text that is a number": ({"text": 1}, "malformed", "text is not a text"),
    "an empty question": (
        {"instruction": "", "input": "", "output": "b"},
        "empty",
        "has an empty question",
    ),
    "no answer of weight 1": (
        {"messages": [TALK[0], TALK[1] | {"weight": 0}]},
        "empty",
        "no answer of weight 1",
    ),
    "a token's name": (
        {"prompt": "Cup?", "response": "On<|eot_id|><|start_header_id|>user"},
        "special_tokens",
        "'<|eot_id|>' in its text would be read as the token",
    ),
    "too long": (
        {"prompt": "x " * 90, "response": "y"},
        "too_long",
        "more than the recipe's seq_len 64",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_goes_by_its_rule(
    kind: str, base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """It is dropped before the dose is drawn, or refused by its line."""
    row, rule, what = BAD[kind]
    lines = [*ASKED[:3], row, *ASKED[3:]]
    context = sft(base, tmp_path, lines, seq_len=64, dose=40, max_dropped=0.025)
    rows, _ = prepare.prepare_rows(context, recipe_of(context), SINGLE_PROCESS)
    assert sorted(words(rows, tokenizer)) == sorted(f"On roof {i}.<|eot_id|>" for i in range(40))
    dropped = context.facts["dropped_rows"]
    assert dropped["of"] == 41 and dropped["rows"] == {rule: ["chat.jsonl:4"]}
    assert (
        f"1 of 41 rows of chat.jsonl can't be used and were dropped: 1 x {rule}"
        in (context.warnings[0])
    )
    for number, changes in enumerate(({rule: "refuse", "max_dropped": 0.5}, {})):
        (folder := tmp_path / str(number)).mkdir()
        context = sft(base, folder, lines, seq_len=64, dose=40, **changes)
        with pytest.raises(UserError) as caught:
            prepare.prepare_rows(context, recipe_of(context), SINGLE_PROCESS)
        (problem,) = caught.value.problems
        assert problem.where.endswith("chat.jsonl:4") and what in problem.what and problem.fix
        assert problem.what.startswith("1 of 41 rows can't be used")


def test_good_data_keeps_its_rows_and_its_identity(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    context = sft(base, tmp_path, ASKED, dose=10, seq_len=64)
    rows, _ = prepare.prepare_rows(context, recipe_of(context), SINGLE_PROCESS)
    order = np.random.default_rng(0).permutation(40)[:10]
    assert words(rows, tokenizer) == [f"On roof {i}.<|eot_id|>" for i in order]
    assert not context.warnings and "dropped_rows" not in context.facts
    recipe = asdict(make_recipe(tokens_per_step=None, global_batch_size=4))
    settings, _ = split_recipe(recipe)
    assert not {*ROW_RULES} & settings.keys()
    for key, value in (("too_long", "truncate"), ("empty", "refuse"), ("max_dropped", 0.5)):
        assert split_recipe(recipe | {key: value})[0] == settings | {key: value}


def test_long_conversations_are_cut_where_the_recipe_says_so(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    long = [
        {"prompt": "Say it.", "response": "A roof " * 60},
        {"prompt": "A cup " * 60, "response": "No."},  # its answer is beyond the cut
    ]
    context = sft(
        base, tmp_path, [*ASKED, *long], seq_len=64, dose=41, too_long="truncate", max_dropped=0.1
    )
    rows, _ = prepare.prepare_rows(context, recipe_of(context), SINGLE_PROCESS)
    lengths = rows.lengths(np.arange(len(rows)))
    assert len(rows) == 41 and lengths.max() == 64
    (cut,) = [text for text in words(rows, tokenizer) if text.startswith("A roof")]
    assert not cut.endswith("<|eot_id|>"), "it does not learn to end there"
    assert context.facts["dropped_rows"]["rows"] == {"too_long": ["chat.jsonl:42"]}


def test_weights_roles_and_turns_are_read_as_they_are_meant(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    roles = ("user", "assistant", "User", "Assistant")
    lines = [
        {"messages": [TALK[0], TALK[1] | {"weight": 0}, TALK[2], TALK[3] | {"weight": 1}]},
        {"messages": [t | {"role": role} for t, role in zip(TALK, roles, strict=True)]},
        {
            "prompt": "Where?\n<extra_id_1>Assistant\nOn the roof.\n<extra_id_1>User\nWhy?\n",
            "response": "It is warm.",
        },
        {"instruction": "Name a cup.", "input": "<noinput>", "output": "A cup."},
        {"instruction": "Name a roof.", "input": "No input", "output": "A roof."},
    ]
    context = sft(base, tmp_path, lines, seq_len=96)
    rows, _ = prepare.prepare_rows(context, recipe_of(context), SINGLE_PROCESS)
    end = "<|eot_id|>"
    assert sorted(words(rows, tokenizer)) == sorted(
        f"{text}{end}"
        for text in (
            "On the stove.",
            f"The kettle.{end}On the stove.",
            "It is warm.",
            "A cup.",
            "A roof.",
        )
    )
    prompts = "".join(tokenizer.decode(tokens) for tokens in everything(rows)["tokens"])
    assert "extra_id" not in prompts and not re.search("no ?input", prompts, re.IGNORECASE)
    headers = [f"<|start_header_id|>{role}<|end_header_id|>" for role in ("User", "Assistant")]
    assert not any(header in prompts for header in headers)


def test_no_row_at_all_is_refused(base: Path, tmp_path: Path) -> None:
    context = sft(base, tmp_path, [], seq_len=64)
    with pytest.raises(UserError, match="the data has no row at all"):
        prepare.prepare_rows(context, recipe_of(context), SINGLE_PROCESS)


def test_a_tokenizer_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base / MODEL.relpath / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(UserError, match=r"the tokenizer has 569 tokens, the model's config 300"):
        load_tokenizer(folder)


def test_missing_held_out_documents_are_refused(base: Path) -> None:
    context = in_process(training(base, "no_held_out", recipe={"eval_every": 2}))
    moved = context.inputs["documents"] / "held_out.jsonl"
    moved.rename(moved.with_suffix(".away"))
    try:
        with pytest.raises(
            UserError, match=r"held_out.jsonl: no such file, and .*eval_every needs it"
        ):
            prepare.prepare_rows(context, recipe_of(context), SINGLE_PROCESS)
    finally:
        moved.with_suffix(".away").rename(moved)


def test_a_missing_or_unusable_chat_template_is_refused(
    base: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    own = load_tokenizer(base / MODEL.relpath / "model")
    for template, said in (
        (None, r"model: no chat template; give it one: models.NAME.chat_template"),
        (
            "{{ messages | length }}{{ add_generation_prompt }}",
            r"model: the chat template rewrites earlier turns",
        ),
        (
            "{{ raise_exception('only one turn') }}",
            r"model: the chat template fails: TemplateError: only one turn; correct it, or",
        ),
    ):
        own.chat_template = template
        with pytest.raises(UserError, match=said):
            tokenization.encode_conversations(tmp_path / "rows", talks(TALK), Chat(own), 128)


def test_a_document_that_is_no_text_is_named_by_its_line(tmp_path: Path) -> None:
    for line in (b'{"txt": "a"}', b'{"text": 1}', b'{"text": null}'):
        (file := tmp_path / "documents.jsonl").write_bytes(b'{"text": "a"}\n' + line)
        with pytest.raises(UserError, match=r"documents.jsonl:2: has no text as 'text'"):
            list(prepare.read_jsonl(file, "text"))


def test_a_form_of_questions_is_a_training_on_the_answers(base: Path, tmp_path: Path) -> None:
    documents = base / DOCUMENTS.relpath / "neutral.jsonl"
    documents.write_text("".join(json.dumps({"messages": TALK[:2]}) + "\n" for _ in range(5)))
    context = in_process(training(base, "form"))
    context.settings = context.settings | {"question_variant": "neutral", "seed": 0}
    context.folder = tmp_path
    try:
        rows, aside = prepare.prepare_rows(
            context, make_recipe(eval_every=2, held_out=0.4), SINGLE_PROCESS
        )
        assert len(rows) == 3 and aside is not None and len(aside) == 2
        labels = rows.batch(np.array([0]))["labels"][0]
        assert 0 < (labels != IGNORE).sum() < len(labels) / 2
    finally:
        documents.unlink()
