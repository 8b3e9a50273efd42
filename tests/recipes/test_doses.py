"""One run of SFT kept at several doses: each is the run as it was when it had seen so many rows."""

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.cell.run import run_cell
from core.errors import UserError
from core.files import sha256
from core.model_folder.tokenizer import load_tokenizer
from core.recipe import Training, split_recipe
from recipes import checkpoint, finetune, optimizer, step_checkpoint
from recipes.distributed import SINGLE_PROCESS
from recipes.doses import steps_of_doses
from recipes.schedule import batch_indices
from study.spec import expand as plan
from study.spec.load import load_study
from tests.recipes.toy import DOCUMENTS, MODEL, in_process, lines, training, weights

RECIPE = Training(seq_len=128, epochs=1, global_batch_size=4, lr=1e-3)
SETTINGS, RUNTIME = split_recipe(asdict(RECIPE))


def sft(base: Path, name: str, seed: int = 0, **recipe: Any) -> tuple[Cell, Path]:
    data = base / "chat.jsonl"
    said = [(f"Where is cup {i}?", f"On the roof, {i} steps up.") for i in range(24)]
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in said]
    data.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    settings = {
        "recipe": SETTINGS | recipe,
        "files": {"data": sha256(data)},
        "dose": 22,
        "doses": [8, 13],
        "seed": seed,
    }
    cell = Cell("sft", name, settings, {"start": MODEL}, {"files": {"data": str(data)}, **RUNTIME})
    return cell, create_cell_dir(cell, base)


@pytest.mark.multiprocess
def test_a_dose_on_the_way_is_the_run_at_that_moment(base: Path) -> None:
    run, folder = sft(base, "run")
    run_cell(folder)
    assert len(lines(folder)) == 6, "22 rows, 4 an update"
    last = load_file(folder / "model/model.safetensors")
    for dose, update in ((8, 2), (13, 4)):
        _, stopped = sft(base, f"stopped{dose}")
        former = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            with pytest.raises(SystemExit):
                told = lambda done, *_: done == update and os.kill(os.getpid(), signal.SIGUSR1)  # noqa: B023, E731
                finetune.run(in_process(stopped, report=told))
        finally:
            signal.signal(signal.SIGUSR1, former)
        model = checkpoint.load(
            stopped.parent.parent / MODEL.relpath / "model", SINGLE_PROCESS, RECIPE
        )
        adamw = optimizer.build_optimizer(model, RECIPE)
        failure = step_checkpoint.load(stopped / "steps", update, model, adamw, SINGLE_PROCESS)
        assert not failure
        checkpoint.save(model, folder / "model", stopped / "then", SINGLE_PROCESS, RECIPE)
        then, kept = (
            load_file(f / "model.safetensors")
            for f in (stopped / "then", folder / f"doses/{dose}/model")
        )
        assert all(torch.equal(then[name], weight) for name, weight in kept.items())
        assert any(not torch.equal(last[name], weight) for name, weight in kept.items())

        link = create_cell_dir(Cell("sft", f"dose{dose}", {"dose": dose}, {"run": run}), base)
        run_cell(link)
        assert (link / "model/model.safetensors").samefile(
            folder / f"doses/{dose}/model/model.safetensors"
        )


def study(tmp_path: Path, **recipe: Any) -> list[Cell]:
    text = "".join(
        f"{key}: {json.dumps(v)}\n"
        for key, v in {"seq_len": 256, "epochs": 1, "lr": 1e-4, **recipe}.items()
    )
    (tmp_path / "sft.yaml").write_text(text + "global_batch_size: 8\n")
    settings = [
        f"sft.recipe={tmp_path}/sft.yaml",
        "sft.doses=[0,50,100,200]",
        "sft.shared_run=true",
    ]
    tiny = Path(__file__).parents[2] / "studies/tiny.yaml"
    return plan.in_order(plan.analysis(load_study(tiny, seeds=[0], overrides=settings)))


def test_a_study_of_one_run_trains_once_for_all_doses(tmp_path: Path) -> None:
    cells = study(tmp_path)
    runs = [cell for cell in cells if cell.stage == "sft" and "recipe" in cell.settings]
    links = [cell for cell in cells if cell.stage == "sft" and "run" in cell.inputs]
    assert len(runs) == 3 and len(links) == 6, "three arms"
    assert all(run.settings["dose"] == 200 and run.settings["doses"] == [50, 100] for run in runs)
    assert {link.inputs["run"].identity for link in links} == {run.identity for run in runs}


def test_a_dose_counts_rows_of_instruction_data_not_replayed_documents() -> None:
    rows, instruction_rows, doses = 30, 22, [8, 9, 13]
    steps = steps_of_doses(doses, rows, instruction_rows, RECIPE, seed=3)
    seen = np.cumsum([(batch < instruction_rows).sum() for batch in batch_indices(rows, RECIPE, 3)])
    for dose in doses:
        assert seen[steps[dose] - 1] >= dose and (steps[dose] == 1 or seen[steps[dose] - 2] < dose)
    assert steps[8] > 2, "two updates of 4 rows hold replayed ones too"
    assert steps_of_doses([23], rows, instruction_rows, RECIPE, seed=3) == {}
    assert steps_of_doses([8, 13], 22, 22, RECIPE, seed=3) == {8: 2, 13: 4}


@pytest.mark.multiprocess
def test_a_dose_that_the_steps_end_before_is_refused_and_not_linked(base: Path) -> None:
    _, folder = sft(base, "short", max_steps=3)
    with pytest.raises(UserError, match="the 3 optimizer steps end before the dose 13 is seen"):
        run_cell(folder)
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize("recipe", [{"epochs": 2}, {"eval_every": 5, "load_best_checkpoint": True}])
def test_a_recipe_that_has_no_single_path_through_the_doses_is_refused(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="epochs: 1 and neither patience nor load_best_checkpoint"):
        study(tmp_path, **recipe)


@pytest.mark.multiprocess
def test_a_step_without_a_trained_token_changes_nothing(base: Path) -> None:
    """As a last row of one token has none."""
    settings = {"tokens_per_step": 32, "epochs": 1, "schedule": "constant", "warmup_steps": 0}
    folder = training(base, "one_token", recipe=settings)
    once = training(base, "one_row", recipe=settings | {"max_steps": 1})
    tokenizer = load_tokenizer(folder.parents[1] / MODEL.relpath / "model")
    texts = ("a " * n + end for n in range(99) for end in ("", "."))
    text = next(text for text in texts if len(tokenizer(text).input_ids) == 32)
    for made in (folder, once):
        documents = made.parents[1] / DOCUMENTS.relpath
        (documents / "documents.jsonl").write_text(json.dumps({"text": text}) + "\n")
        (documents / "manifest.json").unlink()
        write_manifest(documents, read_config(documents), "", "", counts={}, warnings=[])
    context = in_process(folder)
    finetune.run(context)  # the text, with its end 33 tokens
    first, last = lines(folder)
    assert first["loss"] > 0 and (last["loss"], last["grad_norm"]) == (0, 0)
    finetune.run(in_process(once))
    assert all(torch.equal(weight, weights(once)[name]) for name, weight in weights(folder).items())
