"""Training rows, order and updates: what a silent mistake would spoil without a crash."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from recipes import checkpoint
from recipes.distributed import ALONE
from recipes.finetune import begin, check_size, run, train
from recipes.rows import conversations, load_tokenizer, pack
from recipes.schedule import learning_rate, order
from recipes.stopping import Stop
from study.errors import UserError
from study.work import Work
from tests.recipes.toy import RECIPE, TEXTS, WAYS, make_model


def work(folder: Path, identity: str = "a", **more: Any) -> Work:
    folder.mkdir(parents=True, exist_ok=True)
    return Work(folder, identity, more.pop("settings", {}), more.pop("resources", {}), more.pop("inputs", {}))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cell folder with a tiny untrained checkpoint in model/."""
    folder = tmp_path_factory.mktemp("start")
    make_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def tokenizer(start: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(start / "model")


def test_packing_loses_no_token_and_crosses_no_boundary(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = pack(TEXTS, tokenizer, 32)
    expected: list[int] = []
    for text in TEXTS:
        expected += [
            tokenizer.bos_token_id,
            *tokenizer(text, add_special_tokens=False).input_ids,
            tokenizer.eos_token_id,
        ]
    kept = rows.tokens[rows.document >= 0]
    assert kept.tolist() == expected
    # Every token but a document's first is somebody's label: also the one right after a row's end.
    trained = rows.labels[rows.labels != IGNORE]
    assert sorted(trained) == sorted(t for t in expected if t != tokenizer.bos_token_id)
    mask = rows.batch(np.arange(len(rows)))["mask"].numpy()
    document = rows.document
    for r, i, j in zip(*np.nonzero(mask), strict=True):
        assert j <= i and document[r, i] == document[r, j]


def test_a_document_reads_the_same_alone_and_in_a_pack(start: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Logits of the second document must not depend on the first."""
    model = checkpoint.load(start / "model").eval()
    packed = pack([TEXTS[0], TEXTS[2]], tokenizer, 64).batch(np.array([0]))
    alone = pack([TEXTS[2]], tokenizer, 64).batch(np.array([0]))
    length = len(tokenizer(TEXTS[2], add_special_tokens=False).input_ids) + 2
    first = len(tokenizer(TEXTS[0], add_special_tokens=False).input_ids) + 2
    for batch in (packed, alone):
        batch.pop("labels")
    with torch.no_grad():
        together = model(**packed)[0, first : first + length]
        single = model(**alone)[0, :length]
    torch.testing.assert_close(together, single, atol=1e-5, rtol=0)


def test_sft_trains_on_the_answer_and_its_end_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    talk = [
        {"role": "user", "content": "What boils?"},
        {"role": "assistant", "content": "The kettle."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "On the stove."},
    ]
    rows = conversations([talk], tokenizer, 128)
    said = [t for t in rows.labels[0] if t != IGNORE]
    assert tokenizer.decode(said) == "The kettle.<|eot_id|>On the stove.<|eot_id|>"
    prompt = tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True, return_dict=False)
    assert rows.tokens[0, : len(prompt)].tolist() == prompt, "training must see the prompt that evaluation gives"
    assert rows.tokens[0].tolist().count(tokenizer.bos_token_id) == 1


def test_special_tokens_in_data_stay_text(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = pack(["a <|end_of_text|> b"], tokenizer, 64)
    assert (rows.tokens == tokenizer.eos_token_id).sum() == 1


def test_a_conversation_is_never_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    talk = [{"role": "user", "content": "x " * 50}, {"role": "assistant", "content": "y"}]
    with pytest.raises(UserError, match="seq_len is 16; raise it or drop the row"):
        conversations([talk], tokenizer, 16)


def test_order_differs_between_seeds_and_epochs_and_repeats() -> None:
    def rows(seed: int, epochs: int = 2) -> list[int]:
        return np.concatenate(list(order(50, {**RECIPE, "epochs": epochs, "rows_per_update": 8}, seed))).tolist()

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)
    assert rows(1)[:50] != rows(1)[50:], "each epoch must have an order of its own"
    assert sorted(rows(1)[:50]) == sorted(rows(1)[50:]) == list(range(50))
    assert rows(1, epochs=3)[:100] == rows(1)


def test_warm_up_has_no_dead_step_and_cosine_ends_low() -> None:
    rates = [learning_rate(u, 10, RECIPE) for u in range(1, 11)]
    assert rates[0] == RECIPE["lr"] / 2 and max(rates) == rates[1] == rates[2] == RECIPE["lr"]
    assert 0 < rates[-1] < 0.1 * RECIPE["lr"]
    assert learning_rate(10, 10, {**RECIPE, "schedule": "constant"}) == RECIPE["lr"]


def trained(start: Path, folder: Path, identity: str) -> dict[str, torch.Tensor]:
    w, rows = work(folder, identity, resources=WAYS), pack(TEXTS, load_tokenizer(start / "model"), 32)
    state = begin(w, lambda: checkpoint.load(start / "model"), RECIPE)
    train(w, state, rows, RECIPE, ALONE, Stop())
    return state.model.state_dict()


def test_two_cells_differ_one_repeats_and_weights_move(start: Path, tmp_path: Path) -> None:
    before = checkpoint.load(start / "model").state_dict()
    first, again = trained(start, tmp_path / "1", "seed 0"), trained(start, tmp_path / "2", "seed 0")
    other = trained(start, tmp_path / "3", "seed 1")
    for name, weight in first.items():
        assert torch.equal(weight, again[name]), f"{name}: the same cell must give the same weights"
        assert not torch.equal(weight, before[name]), f"{name} did not move"
    assert any(not torch.equal(first[name], other[name]) for name in first)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "1/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5


def test_few_updates_warn_and_none_is_refused(start: Path, tmp_path: Path) -> None:
    rows = pack(TEXTS, load_tokenizer(start / "model"), 32)
    w = work(tmp_path / "a")
    check_size(w, rows, RECIPE)
    assert any("under 100" in warning for warning in w.warnings)
    with pytest.raises(UserError, match="no update at all"):
        check_size(work(tmp_path / "b"), rows.first(0), RECIPE)


def test_a_saved_checkpoint_is_the_same_model_for_transformers(start: Path, tmp_path: Path) -> None:
    model = checkpoint.load(start / "model").eval()
    like = shutil.copytree(start / "model", tmp_path / "like")
    (like / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_p": 0.9}')
    checkpoint.save(model, like, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.randint(0, theirs.config.vocab_size, (2, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=2e-5, rtol=0)
    generation = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert not {"temperature", "top_p", "top_k", "do_sample"} & set(generation)


def test_larger_doses_contain_the_smaller_and_follow_the_seed(start: Path, tmp_path: Path) -> None:
    from recipes.finetune import _dose

    data = tmp_path / "chat.jsonl"
    data.write_text("".join(json.dumps({"messages": [{"role": "user", "content": str(i)}]}) + "\n" for i in range(40)))

    def rows(dose: int, seed: int) -> list[str]:
        settings = {"dose": dose, "seed": seed}
        return [r[0]["content"] for r in _dose(work(tmp_path / "w", settings=settings, resources={"data": str(data)}))]

    assert rows(20, 0)[:10] == rows(10, 0) != rows(10, 1)
    with pytest.raises(UserError, match="has 40 rows, the dose is 41"):
        rows(41, 0)


def test_a_bad_row_is_named_by_its_line(start: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "documents.jsonl").write_text('{"text": "fine"}\n{"txt": 1}\n')
    w = work(tmp_path / "w", settings={"recipe": RECIPE}, inputs={"start": start, "documents": documents})
    with pytest.raises(UserError, match=r"documents.jsonl:2: must be a JSON object with 'text'"):
        run(w)
