"""A document a row: a step has so many documents, and one beyond seq_len is cut."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from core.cell.manifest import read_manifest
from core.cell.run import run_cell
from recipes import tokenization
from recipes.batches import host_batches
from recipes.distributed import SINGLE_PROCESS
from recipes.prepare import prepare_rows
from recipes.schedule import num_steps
from tests.recipes import toy

DOCUMENT_ROWS = {"tokens_per_step": None, "global_batch_size": 4}


def test_a_document_is_a_row_and_is_cut_at_seq_len(base: Path, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base / toy.MODEL.relpath / "model")
    longest = max(len(ids) for ids in tokenization.encode_documents(toy.TEXTS, tokenizer))
    rows = tokenization.documents_as_rows(tmp_path / "all", toy.TEXTS, tokenizer, longest)
    assert len(rows) == len(toy.TEXTS) and tokenization.cut_texts(tmp_path / "all") == (0, 0)
    assert int(rows.batch(np.array([0]))["labels"].max()) == tokenizer.eos_token_id
    cut = tokenization.documents_as_rows(tmp_path / "cut", toy.TEXTS, tokenizer, 8)
    whole = [*tokenization.encode_documents(toy.TEXTS, tokenizer)]
    assert [*cut.lengths(np.arange(len(cut)))] == [min(8, len(ids)) for ids in whole]
    assert tokenization.cut_texts(tmp_path / "cut") == (
        sum(len(ids) > 8 for ids in whole),
        sum(max(0, len(ids) - 8) for ids in whole),
    )
    # The last token that is kept predicts nothing.
    assert cut.num_trained(np.arange(len(cut))) == cut.real_tokens - len(cut)


def test_steps_are_those_of_documents(base: Path) -> None:
    """2,700 documents by 16 in 2 epochs are the paper's 338 steps; end to end they are 164 to 182."""
    paper = replace(toy.RECIPE, tokens_per_step=None, global_batch_size=16, epochs=2, seq_len=2048)
    assert num_steps(2700, paper) == 338
    folder = toy.training(base, "documents", recipe=DOCUMENT_ROWS | {"seq_len": 8, "epochs": 1})
    run_cell(folder)
    manifest = read_manifest(folder)
    assert manifest and manifest["counts"]["steps"] == len(toy.TEXTS) // 4
    assert manifest["counts"]["rows"] == len(toy.TEXTS)
    assert any("are cut there" in text for text in manifest["warnings"])


def test_documents_that_share_a_row_are_the_same_step(base: Path) -> None:
    """`packed` lays out a step's documents; which they are and how many tokens stays the same."""
    folder = toy.training(base, "documents-shared", recipe=DOCUMENT_ROWS)
    recipe = toy.make_recipe(**DOCUMENT_ROWS)
    rows, _ = prepare_rows(toy.in_process(folder), recipe, SINGLE_PROCESS)
    indices = np.array([3, 1, 2, 0])
    alone, shared = (
        host_batches(rows, indices, SINGLE_PROCESS, replace(recipe, packed=packed))
        for packed in (False, True)
    )
    assert sum(len(batch["tokens"]) for batch in shared) < len(indices)

    def labels(batches: list[dict[str, torch.Tensor]]) -> list[int]:
        return sorted(int(i) for batch in batches for i in batch["labels"].flatten() if i >= 0)

    assert labels(alone) == labels(shared)
    assert len(labels(alone)) == rows.num_trained(indices)
