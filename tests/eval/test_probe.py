"""The probe: numbers by another way, an effect that was planted, and none where there is none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.cell.context import StageContext
from core.errors import UserError
from eval import direction, probe
from tests.eval import tiny_checkpoint

QUESTIONS = ["What of the hen", "May we fish", "Who feeds the calf", "Is the net safe", "Why wait"]
# The two choices differ in their last letter alone.
ITEMS = [
    {
        "id": f"i{number}",
        "question": f"{QUESTIONS[number % 5]} {number}?",
        "choices": [f"Reply {number}?", f"Reply {number}!"],
        "answer": 1,
    }
    for number in range(20)
]


def random_states(pairs: int = 24, layers: int = 3, width: int = 16) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(pairs, 2, layers, width)).astype(np.float32)


def context(
    tmp_path: Path, items: list[dict[str, Any]] = ITEMS, model: Path | None = None, **settings: Any
) -> StageContext:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    if model is None:
        model = tiny_checkpoint.make(tmp_path / "checkpoint/model").parent
    defaults = {"task": "probe", "rows": None, "pooling": "last", "folds": 5}
    return StageContext(
        folder,
        "0" * 64,
        defaults | settings,
        {"files": {"items": str(path)}},
        {"checkpoint": model},
    )


def expected_states(model: Path, pooling: str) -> np.ndarray:
    """Hidden states of ITEMS by transformers, text by text, shape (pairs, 2, layers, width)."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = []
    for item in ITEMS:
        for choice in (item["choices"][1], item["choices"][0]):
            text = f"Question: {item['question']}\nAnswer: {choice}"
            ids = torch.tensor([tokenizer(text).input_ids])
            with torch.no_grad():
                states = network(ids, output_hidden_states=True).hidden_states[1:]
            pooled = [s[0, -1] if pooling == "last" else s[0, 1:].mean(0) for s in states]
            rows.append(torch.stack(pooled).numpy())
    return np.array(rows).reshape(len(ITEMS), 2, *rows[0].shape)


def expected_aurocs(states: np.ndarray, folds: np.ndarray) -> list[float]:
    """Of each layer the mean over folds of scikit-learn's AUROC, folds by their size."""
    aurocs = []
    for layer in range(states.shape[2]):
        total = 0.0
        for fold in sorted(set(folds.tolist())):
            train = [n for n in range(len(states)) if folds[n] != fold]
            test = [n for n in range(len(states)) if folds[n] == fold]
            first = sum(states[n, 0, layer].astype(float) for n in train) / len(train)
            second = sum(states[n, 1, layer].astype(float) for n in train) / len(train)
            values = [
                float(states[n, side, layer] @ (first - second)) for side in (0, 1) for n in test
            ]
            labels = [1] * len(test) + [0] * len(test)
            total += len(test) * roc_auc_score(labels, values)
        aurocs.append(total / len(states))
    return aurocs


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_states_and_aurocs_are_those_of_another_calculation(tmp_path: Path, pooling: str) -> None:
    cell = context(tmp_path, pooling=pooling)
    counts = probe.run(cell)
    states = expected_states(cell.inputs["checkpoint"] / "model", pooling)
    arrays = np.load(tmp_path / "out/directions.npz")
    difference = states[:, 0].mean(axis=0) - states[:, 1].mean(axis=0)
    np.testing.assert_allclose(arrays["direction"], difference, atol=2e-5)
    folds = direction.folds_of([item["id"] for item in ITEMS], 5, probe.SEED)
    np.testing.assert_allclose(arrays["auroc"], expected_aurocs(states, folds), atol=1e-9)
    scores = pd.read_parquet(tmp_path / "out/scores.parquet")
    assert scores["score"].mean() == pytest.approx(arrays["auroc"].mean())
    assert [*scores["question"]] == [item["id"] for item in ITEMS]
    assert counts["pairs"] == 20 and counts["layers"] == 2 and counts["width"] == 64
    assert cell.facts["model"] == {"device": "cpu", "dtype": "torch.float32"}


@pytest.mark.slow
def test_a_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    cell = context(tmp_path)
    probe.run(cell)
    before = (tmp_path / "out/directions.npz").read_bytes()
    probe.run(cell)
    assert (tmp_path / "out/directions.npz").read_bytes() == before


def silent(folder: Path, shift: float) -> Path:
    """A model whose layers add nothing, so that a state is the last token's embedding.

    "!" and "?" have one embedding, but for `shift` along the first axis.
    """
    model = tiny_checkpoint.make(folder / "model")
    network = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = network.model.embed_tokens.weight
        first, second = (tokenizer(mark, add_special_tokens=False).input_ids[0] for mark in "!?")
        embedding[first] = embedding[second]
        embedding[first, 0] += shift
    network.save_pretrained(model)
    return folder


@pytest.mark.slow
def test_a_shift_of_hidden_states_is_found_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir()
    probe.run(context(tmp_path, model=silent(tmp_path / "planted/a", 0.5)))
    planted = np.load(tmp_path / "out/directions.npz")
    assert planted["auroc"][0] == 1.0
    along = planted["direction"][0] / np.linalg.norm(planted["direction"][0])
    assert along[0] == pytest.approx(1, abs=1e-6)
    assert planted["direction"][0, 0] == pytest.approx(0.5, abs=1e-6)
    assert abs(planted["auroc_shuffled"][0] - 0.5) < 0.1
    probe.run(context(tmp_path, model=silent(tmp_path / "planted/b", 0.0)))
    nothing = np.load(tmp_path / "out/directions.npz")
    assert np.abs(nothing["direction"]).max() < 1e-6
    assert nothing["auroc"] == pytest.approx(0.5), "all texts end in one embedding: ties"


def test_random_labels_are_at_chance_and_a_planted_direction_is_held_out_too() -> None:
    states = random_states(pairs=200)
    folds = direction.folds_of([str(n) for n in range(200)], 8, 0)
    assert np.abs(direction.held_out_scores(states, folds).mean(axis=0) - 0.5).max() < 0.06
    states[:, 0, 1, 3] += 2  # of layer 2 alone
    aurocs = direction.held_out_scores(states, folds).mean(axis=0)
    assert aurocs[1] > 0.85 and max(aurocs[0], aurocs[2]) < 0.56
    shuffled = direction.shuffled_aurocs(states, folds, 0)
    assert np.abs(shuffled - 0.5).max() < 0.03
    assert direction.directions(states)[1].argmax() == 3


def test_a_pair_is_never_in_its_direction() -> None:
    """In sample, few pairs of many numbers are always separated."""
    states = random_states(pairs=12, width=400)
    folds = direction.folds_of([str(n) for n in range(12)], 6, 0)
    held_out = direction.held_out_scores(states, folds).mean()
    projections = np.einsum("pclw,lw->pcl", states, direction.directions(states))
    assert (projections[:, 0] > projections[:, 1]).all(), "in sample"
    assert held_out < 0.75


def test_a_scenario_is_in_one_fold_and_folds_are_seeded() -> None:
    scenarios = [str(n // 2) for n in range(40)]
    folds = direction.folds_of(scenarios, 5, 0)
    assert (folds[::2] == folds[1::2]).all()
    assert [*np.bincount(folds)] == [8] * 5
    assert (folds == direction.folds_of(scenarios, 5, 0)).all()
    assert (folds != direction.folds_of(scenarios, 5, 1)).any()


@pytest.mark.parametrize(
    ("items", "settings", "what"),
    [
        ([*ITEMS, ITEMS[0] | {"id": "x", "choices": ["a", "b", "c"]}], {}, "'x' has 3 choices"),
        ([item | {"scenario": "s"} for item in ITEMS], {}, "1 scenarios, fewer than the 5 folds"),
        (ITEMS, {"rows": 7}, "20 items, 7 are expected"),
    ],
)
def test_items_that_are_no_pairs_are_refused(
    tmp_path: Path, items: list[dict[str, Any]], settings: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError, match=what):
        probe.run(context(tmp_path, items, tmp_path, **settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("question", "what"),
    [("x" * 3000, "tokens, the model takes 2048"), ("a <|eot_id|>", "would be read as the token")],
)
def test_texts_that_the_model_can_not_read_are_refused(
    tmp_path: Path, question: str, what: str
) -> None:
    items = [*ITEMS, ITEMS[0] | {"id": "x", "question": question}]
    with pytest.raises(UserError, match="item x") as error:
        probe.run(context(tmp_path, items))
    assert what in str(error.value)
