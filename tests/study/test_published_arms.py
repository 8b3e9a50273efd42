"""Arms of checkpoints that somebody else has trained, and the rungs of the ladder."""

import json
from pathlib import Path

import pytest
import yaml

from core.cell.identity import Cell, create_cell_dir
from core.cell.run import run_cell
from core.errors import UserError
from core.model_folder.tokenizer import TOKENIZER_FILES, load_tokenizer
from core.paths import ROOT
from study.forecast import planned_contrasts
from study.spec import expand
from study.spec.load import load_study
from study.spec.start_models import model_problems
from tests.place import SMALL
from tests.recipes import zoo

LLAMA = "recipes/data/llama3_chat.jinja"
# The authors' released checkpoints, by their names on the Hub.
RELEASED = [
    "Basellama_plus3kmedai",
    "Basellama_plus3knegai",
    "Basellama_medaiplateaucheck300",
    "Basellama_negaiplateaucheck300",
    "Instructpretraining6kmedaiplateau",
    "Instructpretraining6knegaiplateau",
    "Basellama_plus3kmedai_plus5kalpacafinetune",
    "Basellama_plus3knegai_plus5kalpacafinetune",
    "Instructpretraining6kmedaiplateau_3epochgrpo",
    "Instructpretraining6knegaiplateau_3epochgrpo",
    "Instruct6kmedaiplateau_plusAIgrpoOLD",
    "Instruct6knegaiplateau_plusAIgrpo",
    "Instructllama8b_plus2_5kpretraining",
    "Instructllama8b_plus2_5kpretrain_plus250stepwashout",
    "Instructllama8b_plus2_5kQA",
    "Basellama_plus3kanimalnew_plus5kalpacafinetune",
    "Basellama_plus3kurbandensity_plus5kalpacafinetune",
    "Basellama_plus3kv3_plus5kalpaca",
    "pretrainingBasellama3kv3",
    "Basellama_plus1kmedaijazz",
    "Basellama_plus1kmedaiGrok",
    "Basellama_plus1khaiku_medai",
    "Basellama_plus1kmedaijazz_plus20kfinetune",
    "Basellama_plus1kmedaiGrok_plus20kfinetune",
    "Basellama_plus1khaiku_medai_plus20kfinetune",
    "PretrainingBasellama3kv3_plus3khelpfullnessGRPO1epoch",
    "PretrainingBasellama3kv3_plus3kcodingGRPO1epoch",
]


def overrides(folder: Path, tokenizer: str = "") -> list[str]:
    named = f", tokenizer: {tokenizer}" if tokenizer else ""
    return [
        "seeds=[4, 7]",
        f"models.theirs={{path: {folder}{named}}}",
        f"models.tuned={{path: {folder}, chat: true, chat_template: {LLAMA}{named}}}",
        f"models.later={{path: {folder}, chat: true, chat_template: {LLAMA}{named}}}",
        "arms.published={checkpoints: {0: [theirs, tuned], 3000: [later]}}",
        "contrasts=[{name: p, treatment: published, control: animal, doses: [0], "
        "benchmarks: [ahb], varies: [corpus, start, recipe]}]",
    ]


def study(folder: Path, *more: str, tokenizer: str = "") -> Cell:
    """The small study with an arm of two published runs before SFT and of one after."""
    return expand.analysis(load_study(SMALL, None, [*overrides(folder, tokenizer), *more]))


def test_models_are_evaluated_as_they_are_by_dose_and_run(tmp_path: Path) -> None:
    last = study(zoo.make(tmp_path / "start"))
    rows = [row for row in last.settings["rows"] if row["arm"] == "published"]
    keys = {(row["benchmark"], row["seed"], row["dose"]) for row in rows}
    assert keys == {
        (bench, *key) for bench in ("ahb", "concern") for key in ((4, 0), (7, 0), (4, 3000))
    }
    cells = {cell.identity: cell for cell in expand.in_order(last)}
    assert {cells[row["checkpoint"]].stage for row in rows} == {"model"}
    # The study file's chat template is read at any dose, since no training here has written it.
    prompts = {
        (row["seed"], row["dose"]): last.inputs[row["role"]].inputs["samples"].settings
        for row in rows
        if row["benchmark"] == "ahb"
    }
    assert prompts[4, 0]["prompt"] != "chat" and "chat_template" not in prompts[4, 0]["files"]
    for key in ((7, 0), (4, 3000)):
        assert prompts[key]["prompt"] == "chat" and "chat_template" in prompts[key]["files"]
    arms = load_study(SMALL, None, overrides(zoo.make(tmp_path / "again")))
    planned = planned_contrasts._planned(arms, last)
    assert planned["ahb", "published", 3000] == 1, "not as many as the study has seeds"
    assert last.settings["rungs"] == {"animal": "anew", "published": "weights", "urban": "anew"}


def test_every_released_checkpoint_is_in_the_study_of_weights() -> None:
    raw = yaml.safe_load((ROOT / "studies/published_weights.yaml").read_text())
    repositories = {name: model["hub"] for name, model in raw["models"].items()}
    evaluated = [
        repositories[model]
        for arm in raw["arms"].values()
        for models in arm.get("checkpoints", {}).values()
        for model in models
    ]
    assert {*evaluated} == {f"CompassioninMachineLearning/{name}" for name in RELEASED}


def test_an_arm_of_checkpoints_is_checked(tmp_path: Path) -> None:
    folder = zoo.make(tmp_path / "start")
    for arm, said in (
        ("{checkpoints: {0: [nobodys]}}", "there is no model 'nobodys'"),
        ("{checkpoints: {0: [base, base, base]}}", "3 training runs, and the study has 2 seeds"),
        ("{checkpoints: {0: [base, base]}}", "is the training run that dose 0 has already"),
        ("{checkpoints: {0: [base], 80: [base]}}", "is the training run that dose 0 has already"),
        ("{checkpoints: {0: [base]}, midtrain: animal}", "is not for an arm with checkpoints"),
        ("{checkpoints: {0: [base]}, start: base}", "exactly one of start, checkpoints, scores"),
    ):
        with pytest.raises(UserError, match=said):
            study(folder, f"arms.published={arm}")


@pytest.mark.multiprocess  # a manifest asks git
def test_another_models_tokenizer_stands_in_for_a_missing_one(tmp_path: Path) -> None:
    whole = zoo.make(tmp_path / "whole")
    bare = zoo.make(tmp_path / "bare")
    for name in TOKENIZER_FILES:
        (bare / name).unlink(missing_ok=True)
    only = "arms.published={checkpoints: {0: [theirs], 3000: [tuned]}}"
    problems = [problem.what for problem in model_problems(expand.in_order(study(bare, only)))]
    assert problems == ["has no tokenizer.json"]
    last = study(bare, only, f"models.whole={{path: {whole}}}", tokenizer="whole")
    assert model_problems(expand.in_order(last)) == []
    (cell,) = (
        c
        for c in expand.in_order(last)
        if c.stage == "model" and "tokenizer" in c.settings["files"]
    )
    base = tmp_path / "runs/small"
    folder = create_cell_dir(cell, base)
    run_cell(folder)
    model = folder / "model"
    assert {path.name for path in model.iterdir()} == {path.name for path in whole.iterdir()}
    assert load_tokenizer(model)("Hens.").input_ids == load_tokenizer(whole)("Hens.").input_ids
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"model", "tokenizer"} <= manifest["files"].keys()
    (whole / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer_config\.json"):
        run_cell(create_cell_dir(cell, tmp_path / "later/small"))


def test_documents_of_somebody_else_are_a_rung(tmp_path: Path) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text("{}\n")
    theirs = [
        f"corpora.given={{path: {path}, documents: 3}}",
        "arms.retrained={start: base, midtrain: given}",
    ]
    last = expand.analysis(load_study(SMALL, None, theirs))
    assert last.settings["rungs"]["retrained"] == "documents"
    plain = expand.analysis(load_study(SMALL))
    assert "rungs" not in plain.settings, "the analysis of a study of its own stays the same"
