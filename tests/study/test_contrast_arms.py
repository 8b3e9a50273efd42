"""What a contrast varies: a recipe or a start that differs besides is a mistake of the study file."""

import json

import pytest

from core.errors import UserError
from core.paths import ROOT
from study.cli import main
from study.spec import expand
from study.spec.contrast_arms import audit
from study.spec.expansion import Expansion
from study.spec.load import load_study
from tests.place import SMALL

LORA = ROOT / "studies/paper_lora.yaml"
# One of the two arms had the default recipe.
CONFOUNDED = ["arms.instruct_urban.recipe=recipes/llama3_1_8b_lora_midtrain.yaml"]


def rows(file: object, *overrides: str) -> dict[str, tuple[str, list[str]]]:
    """Of each contrast the differences as text, and the keys that it does not declare."""
    study = load_study(file, None, [*overrides])  # type: ignore[arg-type]
    listed = audit(Expansion(study).checkpoints(), study)
    return {row.contrast.name: (str(row), [more.key for more in row.undeclared]) for row in listed}


def test_two_recipes_confound_two_corpora(capsys: pytest.CaptureFixture[str]) -> None:
    listed = rows(LORA, *CONFOUNDED)
    keys = ["recipe.lr", "recipe.optimizer", "recipe.lora.rank", "recipe.lora.alpha"]
    confounded = {name: more for name, (_, more) in listed.items() if more}
    assert confounded == {
        "E3 animal - urban (Instruct)": keys,
        "E3 animal - urban (Instruct) on all 115": keys,
    }
    assert listed["E3 animal - urban (Instruct)"][0] == (
        "corpus animal | urban (template, matched_to); recipe.lr 0.0002 | 5e-05; "
        "recipe.optimizer adamw | adamw_8bit; recipe.lora.rank 32 | 128; "
        "recipe.lora.alpha 16.0 | 32.0"
    )
    assert main(["plan", str(LORA), "--contrasts", "--set", *CONFOUNDED]) == 2
    said = capsys.readouterr()
    assert said.out.count(": CONFOUNDED\n") == 2
    assert "varies: [corpus, recipe.lr, recipe.optimizer, recipe.lora.rank," in said.err


@pytest.mark.parametrize("name", ["paper", "paper_lora", "pilot", "shakedown", "tiny"])
def test_no_contrast_of_ours_is_confounded(name: str) -> None:
    for text, more in rows(ROOT / f"studies/{name}.yaml").values():
        assert text != "nothing differs" and not more


def test_a_confounded_study_does_not_run_until_it_declares_it() -> None:
    recipe = "arms.animal.recipe=tests/small/sft.yaml"
    changed = [recipe, "arms.animal.question_variant=leading", "corpora.animal.template=qa_pairs"]
    study = load_study(SMALL, None, changed)
    with pytest.raises(UserError) as error:
        expand.analysis(study)
    keys = [problem.fix.partition("varies: ")[2] for problem in error.value.problems]
    assert keys and all(key.startswith("[corpus, recipe.") for key in keys)
    declared = [f"contrasts.{i}.varies={key}" for i, key in enumerate(keys)]
    expand.analysis(load_study(SMALL, None, [*changed, *declared]))


def test_start_replay_and_dose_are_told_apart() -> None:
    paper = ROOT / "studies/paper.yaml"
    listed = rows(
        paper,
        "contrasts=[{name: start, treatment: base_animal, control: instruct_animal, "
        "benchmarks: [ahb]}, {name: replay, treatment: base_animal_replay, control: base_animal, "
        "benchmarks: [ahb]}, {name: dose, treatment: base_helpsteer, control: base, "
        "treatment_dose: 4000, control_dose: 0, benchmarks: [ahb]}, {name: data, treatment: "
        "base_helpsteer, control: base, benchmarks: [ahb], varies: [sft]}]",
    )
    text, more = listed["start"]
    assert text.startswith("start base | instruct (") and not more
    assert listed["replay"] == ("sft.replay 0.1 | none", [])
    assert listed["dose"] == ("dose 4000 | 0", [])
    text, more = listed["data"]
    assert text.startswith("sft.files.data.url https://") and not more


def test_the_audit_is_told_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", str(SMALL), "--contrasts", "--json"])
    (first, *_) = json.loads(capsys.readouterr().out)
    assert first["differences"][0]["key"] == "corpus" and first["confounded"] == []


def test_a_unit_that_is_none_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"contrasts.0.varies.0"):
        load_study(SMALL, None, ["contrasts.0.varies=[corpora]"])


MODEL = "make: tests/small/llama.yaml"
LLAMA = "recipes/data/llama3_chat.jinja"
CHATML = "recipes/data/chatml.jinja"
DATA = "recipe: recipes/llama3_1_8b_lora_sft.yaml, data: recipes/data/neutral_chat.jsonl"
ANIMAL = "{documents: animal, arm: of_animal}"
URBAN = "{documents: urban, arm: of_urban}"
# What is planted: the treatment arm, the control arm, the dose of both, and what the audit says.
PLANTED = {
    "a chat template before any training": (
        "{start: chatty, doses: [0]}",
        "{start: other, doses: [0]}",
        0,
        "start.chat_template llama3_chat | chatml",
    ),
    "a model that is prompted by its chat template": (
        "{start: chatty, doses: [0]}",
        "{start: base, doses: [0]}",
        0,
        "start.chat True | False",
    ),
    "a chat template of a training on conversations": (
        "{start: quiet, midtrain: qa, question_variant: leading, recipe: tests/small/sft.yaml}",
        "{start: quiet2, midtrain: qa, question_variant: leading, recipe: tests/small/sft.yaml}",
        0,
        "start.chat_template llama3_chat | chatml",
    ),
    "a longer shared run": (
        "{start: base, sft: to_80}",
        "{start: base, sft: to_64}",
        40,
        "sft.shared_run 80 | 64",
    ),
    "a merge with another arm": (
        f"{{start: base, train: [{ANIMAL}, {URBAN}, {{merge: of_animal, weight: 0.5}}]}}",
        "{start: base, train: [{documents: animal}, {documents: urban}, "
        "{merge: urban, weight: 0.5}]}",
        0,
        "step3.merge.arm base-animal-s0 | base-urban-s0-d80 (dose, files, recipe, documents, start)",
    ),
    "a replay of other documents": (
        "{start: base, train: [{documents: animal}, "
        "{sft: sft, replay: 0.5, replay_corpus: urban}]}",
        "{start: base, train: [{documents: animal}, {sft: sft, replay: 0.5}]}",
        80,
        "sft.replay_corpus urban | animal (template, matched_to)",
    ),
    "documents, replayed": (
        "{start: base, train: [{documents: animal}, {sft: sft, replay: 0.5}]}",
        "{start: base, train: [{documents: urban}, {sft: sft, replay: 0.5}]}",
        80,
        "corpus animal | urban (template, matched_to)",
    ),
    "documents of arms that are merged with a step of their own": (
        f"{{start: base, train: [{ANIMAL}, {{sft: sft}}, {{merge: of_animal, weight: 0.5}}]}}",
        f"{{start: base, train: [{URBAN}, {{sft: sft}}, {{merge: of_urban, weight: 0.5}}]}}",
        80,
        "step1.corpus animal | urban (template, matched_to)",
    ),
    "documents of arms that are averaged over seeds": (
        f"{{start: base, train: [{ANIMAL}, {{average: seeds}}]}}",
        f"{{start: base, train: [{URBAN}, {{average: seeds}}]}}",
        0,
        "step1.corpus animal | urban (template, matched_to)",
    ),
    "replicates, which differ from the second seed on": (
        "{start: base, midtrain: twice}",
        "{start: base, midtrain: once}",
        0,
        "corpus twice | twice (seed)",
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_is_all_that_the_audit_finds(planted: str) -> None:
    treatment, control, dose, text = PLANTED[planted]
    written = "template: animal_welfare, documents: 60, writer: dummy"
    listed = rows(
        SMALL,
        "seeds=[0, 1]",
        f"models.chatty={{{MODEL}, chat: true, chat_template: {LLAMA}}}",
        f"models.other={{{MODEL}, chat: true, chat_template: {CHATML}}}",
        f"models.quiet={{{MODEL}, chat_template: {LLAMA}}}",
        f"models.quiet2={{{MODEL}, chat_template: {CHATML}}}",
        "corpora.qa={template: qa_pairs, documents: 40, writer: dummy}",
        f"corpora.twice={{{written}, replicates: 2}}",
        f"corpora.once={{{written}}}",
        f"sfts.to_80={{{DATA}, doses: [0, 40, 80], shared_run: true}}",
        f"sfts.to_64={{{DATA}, doses: [0, 40, 64], shared_run: true}}",
        f"arms.x={treatment}",
        f"arms.y={control}",
        f"contrasts=[{{name: c, treatment: x, control: y, doses: [{dose}], benchmarks: [ahb]}}]",
    )
    assert listed == {"c": (text, [])}


def test_doses_that_are_equal_are_no_unit_of_their_own() -> None:
    contrast = (
        "{name: c, treatment: animal, control: urban, benchmarks: [ahb], treatment_dose: 80, "
    )
    listed = rows(SMALL, f"contrasts=[{contrast}control_dose: 80}}]")
    assert listed == {"c": ("corpus animal | urban (template, matched_to)", [])}
    _, more = rows(SMALL, f"contrasts=[{contrast}control_dose: 0}}]")["c"]
    assert more == ["corpus"]
