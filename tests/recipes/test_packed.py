"""Conversations packed into rows: the loss, tokens and doses of conversations a row each."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE

from core.cell.manifest import read_manifest
from core.cell.run import run_cell
from core.model_folder.chat import Chat
from core.model_folder.tokenizer import load_tokenizer
from core.recipe import Training, training_mistakes
from recipes import checkpoint, tokenization
from recipes.batches import host_batches, to_device
from recipes.conversations import Conversation
from recipes.distributed import SINGLE_PROCESS, Ranks
from recipes.held_out import held_out_loss
from recipes.loss import chunked_cross_entropy, skip_output_layer
from recipes.rows import Rows
from recipes.schedule import pack
from tests.recipes.toy import PACKED, TALKS, assert_close, lines, make_recipe, on_ranks, sft


@pytest.fixture(scope="module")
def rows(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    tokenizer = load_tokenizer(start)
    named = [Conversation(f"talk:{i}", talk) for i, talk in enumerate(TALKS)]
    return tokenization.encode_conversations(
        tmp_path_factory.mktemp("packed") / "rows", named, Chat(tokenizer), PACKED.seq_len
    )


def test_each_conversation_is_in_one_row_and_ranks_have_as_many() -> None:
    rng = np.random.default_rng(0)
    for world in (1, 2, 4, 8):
        for count in (1, 3, 8, 50):
            lengths = rng.integers(2, 129, count)
            groups = pack(lengths, 128, world)
            assert sorted(np.concatenate(groups).tolist()) == list(range(count))
            assert max(lengths[group].sum() for group in groups) <= 128
            assert len(groups) % world == 0 or len(groups) == count
    assert len(pack(np.full(8, 16), 128, 1)) == 1, "eight conversations are one row"
    assert [len(group) for group in pack(np.full(8, 16), 128, 4)] == [2] * 4


def test_a_packed_row_has_the_tokens_labels_and_positions_of_its_conversations(rows: Rows) -> None:
    group = np.array([3, 11, 3])  # one twice, as at the border of two epochs
    batch = rows.packed_batch([group], PACKED.seq_len)
    real = batch["document"][0] >= 0
    single = [rows.batch(group[i : i + 1]) for i in range(3)]
    lengths = rows.lengths(group).tolist()
    for name in ("tokens", "labels", "input_pos"):
        expected = [one[name][0, :length] for one, length in zip(single, lengths, strict=True)]
        assert batch[name][0][real].equal(torch.cat(expected)), name
    assert batch["document"][0][real].tolist() == [
        number for number, length in enumerate(lengths) for _ in range(length)
    ]
    assert (batch["labels"][0][~real] == IGNORE).all() and batch["tokens"].shape[1] == 512


def nats(folder: Path, rows: Rows, packed: bool) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """The summed loss of a step of eight conversations, all gradients, and the padded positions."""
    model = checkpoint.load(folder, SINGLE_PROCESS, PACKED)
    skip_output_layer(model)
    recipe = Training(**{**asdict(PACKED), "packed": packed})
    total = torch.zeros(())
    positions = 0
    for batch in host_batches(rows, np.arange(8), SINGLE_PROCESS, recipe):
        loss = chunked_cross_entropy(model, to_device(batch, SINGLE_PROCESS))
        loss.backward()
        total += loss.detach()
        positions += int((batch["document"] < 0).sum())
    return total, [p.grad for p in model.parameters() if p.grad is not None], positions


@pytest.mark.slow
def test_the_loss_of_a_step_and_its_gradients_are_those_of_unpacked_rows(
    start: Path, rows: Rows
) -> None:
    apart, grads, padding = nats(start, rows, packed=False)
    packed, packed_grads, less_padding = nats(start, rows, packed=True)
    torch.testing.assert_close(packed, apart, rtol=1e-6, atol=0)
    for one, other in zip(packed_grads, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert 0 < less_padding < padding


@pytest.mark.slow
def test_each_tokens_loss_is_that_of_its_conversation_alone(start: Path, rows: Rows) -> None:
    model = checkpoint.load(start, SINGLE_PROCESS, PACKED).eval()
    group = np.array([6, 2, 7])
    (batch,) = host_batches(rows, group, SINGLE_PROCESS, PACKED)
    with torch.no_grad():
        given = to_device(batch, SINGLE_PROCESS)
        packed = model(given["tokens"], mask=given["mask"], input_pos=given["input_pos"])[0]
        for number, index in enumerate(group):
            alone = rows.batch(np.array([index]))
            logits = model(alone["tokens"], input_pos=alone["input_pos"])[0]
            length = rows.lengths(np.array([index]))[0]
            mine = packed[batch["document"][0] == number]
            torch.testing.assert_close(mine, logits[:length], atol=1e-5, rtol=0)


def test_the_held_out_loss_is_the_same(start: Path, rows: Rows) -> None:
    model = checkpoint.load(start, SINGLE_PROCESS, PACKED)
    skip_output_layer(model)
    unpacked = Training(**{**asdict(PACKED), "packed": False, "micro_batch_size": 3})
    losses = [held_out_loss(model, rows, recipe, SINGLE_PROCESS) for recipe in (PACKED, unpacked)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_ranks_share_a_steps_conversations(rows: Rows) -> None:
    """Also three ranks, of which one has nothing: its row trains no token."""
    indices = np.arange(8)
    for world in (1, 2, 3):
        shares = [host_batches(rows, indices, Ranks(rank, world), PACKED) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        trained = sum(int((batch["labels"] != IGNORE).sum()) for share in shares for batch in share)
        tokens = sum(int((batch["document"] >= 0).sum()) for share in shares for batch in share)
        assert trained == rows.num_trained(indices) and tokens == rows.lengths(indices).sum()
    ranks = [host_batches(rows, indices[:1], Ranks(rank, 2), PACKED) for rank in range(2)]
    assert (ranks[1][0]["labels"] == IGNORE).all() and (ranks[1][0]["document"] < 0).all()


def test_documents_end_to_end_are_packed_already() -> None:
    (problem,) = training_mistakes(make_recipe(packed=True))
    assert problem[0] == ("packed",) and "global_batch_size" in problem[1]


@pytest.mark.multiprocess
def test_a_packed_training_goes_the_way_of_an_unpacked_one(base: Path) -> None:
    """With its steps, tokens and dose, alone and on two ranks; only padding is less."""
    apart = sft(base, "apart", packed=False)
    run_cell(apart)
    together = sft(base, "together")
    run_cell(together)
    assert_close(together, apart)
    assert_close(on_ranks(sft(base, "shared"), 2), apart)
    mine, theirs = read_manifest(together), read_manifest(apart)
    assert mine and theirs and mine["identity"] == theirs["identity"]
    for count in ("steps", "rows", "tokens"):
        assert mine["counts"][count] == theirs["counts"][count]
    assert mine["counts"]["rows"] == 12 and len(lines(together)) == 3, "12 rows twice, 8 a step"
    assert mine["counts"]["padding"] < theirs["counts"]["padding"]
