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
    listed = audit(Expansion(study).checkpoints(), study.contrasts, study.arms)
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
