"""What holds a training near its start: each method changes what it should, and its numbers are
those of transformers."""

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchtune.modules.peft import disable_adapter
from transformers import AutoModelForCausalLM

from core.cell.identity import Cell, create_cell_dir
from core.cell.run import run_cell
from core.model_folder.tokenizer import load_tokenizer
from core.recipe import Training, split_recipe
from recipes import checkpoint
from recipes.attention import mask
from recipes.distributed import SINGLE_PROCESS, Ranks, process_group
from recipes.loss import chunked_loss, output_weight, skip_output_layer
from recipes.model import reshard
from recipes.preservation import Preservation
from tests.recipes import toy

KL = {"kl_to_start": 2.0}
L2 = {"l2_to_start": 3.0}
# By name: all weights, or adapters.
TRAINED: dict[str, dict[str, Any]] = {"all": {}, "lora": toy.LORA}


def batch(folder: Path, only: slice = slice(None)) -> dict[str, Any]:
    """Two rows of one document each, of which the first ten tokens are not trained."""
    size, length = toy.vocabulary(folder), 40
    tokens = torch.randint(0, size, (2, length), generator=torch.Generator().manual_seed(0))
    labels = tokens.roll(-1, 1)
    labels[:, -1] = labels[:, :10] = -100
    given = {"tokens": tokens, "labels": labels}
    given["input_pos"] = torch.arange(length).expand(2, -1)
    given = {name: tensor[only] for name, tensor in given.items()}
    return {**given, "mask": mask(torch.zeros_like(given["tokens"]))}


def other_model(start: Path, folder: Path) -> Path:
    """A model unlike the start, whose predictions differ clearly."""
    shutil.copytree(start, folder)
    weights = load_file(start / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for weight in weights.values():
        weight += 1.5 * weight.std() * torch.randn(weight.shape, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def expected_kl(start: Path, trained: Path) -> float:
    """sum(q log(q / p)) over the trained tokens by transformers, q of `start`, p of `trained`."""
    given = batch(start)
    log_q, log_p = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(given["tokens"])
        .logits.detach()
        .log_softmax(-1)
        for folder in (start, trained)
    )
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    return float(kl[given["labels"] != -100].sum())


def our_kl(start: Path, trained: Path, ranks: Ranks) -> tuple[float, float]:
    """Of a model with all weights trained: loss with KL less the loss alone, and KL, over all
    ranks."""
    recipe = toy.make_recipe(**KL)
    model = checkpoint.load(trained, ranks, recipe)
    skip_output_layer(model)
    preservation = Preservation(recipe, model, lambda: checkpoint.load(start, ranks, recipe))
    given = batch(start, slice(ranks.rank, None, ranks.world_size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipes.loss.CHUNK", 16)
        both, kl = chunked_loss(model, given, preservation.reference(model, given))
        both.backward()
        reshard(model)
        preservation.end_step(model)
        loss, _ = chunked_loss(model, given)
    return ranks.sum((both - loss).detach()).item(), ranks.sum(kl).item()


def compare(start: Path, trained: Path) -> None:
    with process_group(force=True) as ranks:
        added, kl = our_kl(start, trained, ranks)
    expected = expected_kl(start, trained)
    print(f"KL {kl:.6f}, of transformers {expected:.6f}", flush=True)
    assert expected > 1 and abs(kl / expected - 1) < 1e-5
    assert abs(added / (KL["kl_to_start"] * expected) - 1) < 1e-4


@pytest.mark.multiprocess
@pytest.mark.parametrize("which", ["start", "tied"])
def test_the_kl_is_that_of_transformers_alone_and_on_two_ranks(
    which: str, request: pytest.FixtureRequest, base: Path, tmp_path: Path
) -> None:
    start = request.getfixturevalue(which)
    trained = other_model(start, tmp_path / "other")
    compare(start, trained)
    name = base / f"kl_{which}"
    code = "from tests.recipes import test_preservation as t; "
    code += f"t.compare(Path({str(start)!r}), Path({str(trained)!r}))"
    assert toy.ends(toy.on_two(name, code)) == [0, 0], toy.logs(name)


def lora_compare(start: Path, exported: Path, token_ids: list[int]) -> None:
    """The start is the same weights without their adapters, on any number of ranks."""
    lora = toy.LORA["lora"] | {"train_special_tokens": bool(token_ids)}
    recipe = toy.make_recipe(**KL, lora=lora)
    with process_group(force=True) as ranks:
        model = checkpoint.load(start, ranks, recipe, 0, token_ids)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if ".lora_b." in name or name.endswith("lora_rows"):
                    noise = torch.randn(weight.shape, generator=generator) * 0.5
                    local = weight.to_local() if hasattr(weight, "to_local") else weight
                    shares = noise.chunk(ranks.world_size)
                    local.copy_(shares[ranks.rank] if ranks.world_size > 1 else noise)
        checkpoint.save(model, start, exported, ranks, recipe)
        skip_output_layer(model)
        preservation = Preservation(recipe, model, pytest.fail)
        given = batch(start, slice(ranks.rank, None, ranks.world_size))
        reference = preservation.reference(model, given)
        _, kl = chunked_loss(model, given, reference)
        total = ranks.sum(kl).item()
        ranks.barrier()
    expected = expected_kl(start, exported)
    print(f"KL {total:.6f}, of transformers {expected:.6f}", flush=True)
    assert expected > 0.1 and abs(total / expected - 1) < 1e-5


@pytest.mark.multiprocess
@pytest.mark.parametrize("token_ids", [[], [5, 6]])
def test_lora_s_start_is_the_model_without_its_adapters(
    token_ids: list[int], start: Path, base: Path, tmp_path: Path
) -> None:
    lora_compare(start, tmp_path / "exported", token_ids)
    name = base / f"kl_lora_{len(token_ids)}"
    code = "from tests.recipes import test_preservation as t; t.lora_compare("
    code += f"Path({str(start)!r}), Path({str(tmp_path / 'two')!r}), {token_ids})"
    assert toy.ends(toy.on_two(name, code)) == [0, 0], toy.logs(name)


def test_gradients_are_those_of_the_plain_formula(start: Path, tmp_path: Path) -> None:
    trained = other_model(start, tmp_path / "other")
    recipe = toy.make_recipe(**KL)
    model, frozen = (checkpoint.load(f, SINGLE_PROCESS, recipe) for f in (trained, start))
    given = batch(start)
    inputs = {"mask": given["mask"], "input_pos": given["input_pos"]}
    is_trained = (given["labels"] != -100).flatten()
    log_p = model(given["tokens"], **inputs).flatten(0, 1).log_softmax(-1)[is_trained]
    log_q = frozen(given["tokens"], **inputs).flatten(0, 1).log_softmax(-1)[is_trained].detach()
    kl = (log_q.exp() * (log_q - log_p)).sum()
    labels = given["labels"].flatten()[is_trained]
    loss = torch.nn.functional.nll_loss(log_p, labels, reduction="sum")
    (loss + KL["kl_to_start"] * kl).backward()
    plain = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    skip_output_layer(model)
    preservation = Preservation(
        recipe, model, lambda: checkpoint.load(start, SINGLE_PROCESS, recipe)
    )
    both, _ = chunked_loss(model, given, preservation.reference(model, given))
    both.backward()
    for weight, expected in zip(model.parameters(), plain, strict=True):
        assert weight.grad is not None
        assert (weight.grad - expected).norm() < 1e-5 * expected.norm()


def test_l2_of_adapters_is_that_of_their_product(start: Path) -> None:
    recipe = toy.make_recipe(**L2, lora=toy.LORA["lora"])
    model = checkpoint.load(start, SINGLE_PROCESS, recipe)
    torch.manual_seed(0)
    adapters = [w for w in model.parameters() if w.requires_grad]
    for weight in adapters:
        torch.nn.init.normal_(weight)
    scale = toy.LORA["lora"]["alpha"] / toy.LORA["lora"]["rank"]
    state = dict(model.named_parameters())
    distance = sum(
        (scale * state[name.replace("lora_a", "lora_b")] @ weight).square().sum()
        for name, weight in state.items()
        if ".lora_a." in name
    )
    expected = torch.autograd.grad(L2["l2_to_start"] / 2 * distance, adapters)
    for weight in adapters:
        weight.grad = torch.zeros_like(weight)
    Preservation(recipe, model, pytest.fail).end_step(model)
    for weight, gradient in zip(adapters, expected, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-4)


def kl_on_documents(start: Path, trained: Path) -> float:
    """KL of a trained model's predictions from the start's on what it was trained on, in nats."""
    tokenizer = load_tokenizer(start)
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (start, trained)]
    total = 0.0
    for text in sorted(set(toy.TEXTS)):
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            log_q, log_p = (model(ids).logits.log_softmax(-1) for model in models)
        total += float((log_q.exp() * (log_q - log_p)).sum())
    return total


def trained(base: Path, name: str, **recipe: Any) -> Path:
    folder = toy.training(base, name, recipe=recipe)
    run_cell(folder)
    return folder


def distance(start: Path, folder: Path) -> float:
    """The norm of what a training has changed."""
    before = load_file(start / "model.safetensors")
    squares = [(w - before[name]).square().sum() for name, w in toy.weights(folder).items()]
    return float(torch.stack(squares).sum().sqrt())


@pytest.mark.multiprocess
@pytest.mark.parametrize("which", TRAINED)
def test_l2_keeps_weights_and_kl_keeps_predictions_near_the_start(
    which: str, base: Path, start: Path
) -> None:
    changes = TRAINED[which]
    plain = trained(base, f"plain_{which}", **changes)
    l2 = trained(base, f"l2_{which}", **changes, **L2)
    kl = trained(base, f"kl_{which}", **changes, kl_to_start=20.0)
    away = [distance(start, folder) for folder in (plain, l2, kl)]
    apart = [kl_on_documents(start, folder / "model") for folder in (plain, l2, kl)]
    print("distance of plain, L2, KL:", away, "KL:", apart)
    assert away[1] < 0.8 * away[0], "L2 keeps the weights"
    assert apart[2] < 0.5 * apart[0], "KL keeps the predictions"
    losses = [toy.lines(folder)[-1]["loss"] for folder in (plain, kl)]
    assert losses[0] < losses[1], "which the loss pays for"
    recorded = [line["kl"] for line in toy.lines(kl)]
    assert recorded[0] == pytest.approx(0, abs=1e-6) and recorded[-1] > 0
    assert all("kl" not in line for line in toy.lines(plain))


@pytest.mark.multiprocess
@pytest.mark.parametrize("which", TRAINED)
def test_two_ranks_and_a_killed_run_give_the_same(which: str, base: Path) -> None:
    changes = TRAINED[which] | L2 | KL
    undisturbed = trained(base, f"both_{which}", **changes)
    on_two = toy.training(base, f"both_two_{which}", recipe=changes)
    toy.assert_close(undisturbed, toy.on_ranks(on_two, 2))
    folder = toy.training(base, f"both_killed_{which}", recipe=changes, checkpoint_minutes=0.0)
    processes = toy.start_ranks(folder, 1)
    toy.until(lambda: len(toy.lines(folder)) > 6, processes)
    for process in processes:
        process.kill()
    toy.ends(processes)
    assert not (folder / "model").exists()
    run_cell(folder)
    toy.assert_same(undisturbed, folder)


def documents_loss(model: Path) -> float:
    """Mean nats a token over the toy's documents, by transformers."""
    tokenizer = load_tokenizer(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    losses = []
    for text in sorted(set(toy.TEXTS)):
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            losses.append(loaded(ids, labels=ids).loss.item())
    return math.fsum(losses) / len(losses)


def tuned(base: Path, start: Cell, name: str, replay: float = 0.0) -> Cell:
    """An SFT of 80 rows on other words than the documents'."""
    rows = [{"prompt": f"Tell {i}?", "response": f"Seven {i} of nine."} for i in range(80)]
    data = base / "chat.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Training(seq_len=64, epochs=3, lr=3e-3, global_batch_size=8)
    settings, runtime = split_recipe(asdict(recipe))
    inputs = {"start": start}
    given: dict[str, Any] = {"recipe": settings, "dose": 80, "seed": 0}
    if replay:
        given["replay"] = replay
        inputs["replay"] = toy.DOCUMENTS
    cell = Cell("sft", name, given, inputs, runtime | {"files": {"data": str(data)}})
    run_cell(create_cell_dir(cell, base))
    return cell


@pytest.mark.multiprocess
def test_replay_and_a_merge_keep_what_the_documents_taught(base: Path, alone: Path) -> None:
    study = alone.parents[1]
    before = Cell(
        "midtrain",
        "alone",
        {"recipe": toy.SETTINGS},
        {"start": toy.MODEL, "documents": toy.DOCUMENTS},
        toy.RUNTIME,
    )
    taught = tuned(study, before, "taught", replay=0.4)
    after = tuned(study, taught, "after")
    replayed = tuned(study, taught, "replayed", replay=0.4)
    merge = Cell("merge", "half", {"weights": [0.5, 0.5]}, {"start": after, "other1": taught})
    run_cell(create_cell_dir(merge, study))
    losses = [documents_loss(study / c.relpath / "model") for c in (taught, after, replayed, merge)]
    print("loss on the documents before, after, with replay, merged:", losses)
    assert losses[0] < losses[1], "SFT alone forgets"
    assert losses[2] < losses[1] and losses[0] < losses[3] < losses[1]


def test_output_weight_has_no_rows_without_adapters(start: Path) -> None:
    lora = toy.LORA["lora"] | {"train_special_tokens": True}
    model = checkpoint.load(start, SINGLE_PROCESS, toy.make_recipe(lora=lora), 0, [5])
    torch.nn.init.normal_(model.output.lora_rows)
    with disable_adapter(model):
        off = output_weight(model)
    assert torch.equal(off, model.output.weight) and not torch.equal(off, output_weight(model))
