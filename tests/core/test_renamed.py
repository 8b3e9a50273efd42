"""A key of an older version is an error that names the key of today, and only that."""

from pathlib import Path

import pytest
import yaml

from core.errors import UserError
from core.recipe import Training, load_recipe
from core.renamed import RENAMED_KEYS
from study.spec.load import load_study
from tests.place import ROOT

NEW_TO_OLD = {new: old for old, new in RENAMED_KEYS.items()}


def with_old_keys(value: object) -> object:
    if isinstance(value, dict):
        return {old_name(key, value): with_old_keys(item) for key, item in value.items()}
    return [with_old_keys(item) for item in value] if isinstance(value, list) else value


def old_name(key: str, mapping: dict[str, object]) -> str:
    # `benchmarks` of a contrast was `on`; the section of a study file has always been `benchmarks`.
    return key if key == "benchmarks" and "study" in mapping else NEW_TO_OLD.get(key, key)


def test_every_old_key_of_a_study_is_named_with_its_new_name(tmp_path: Path) -> None:
    raw = yaml.safe_load((ROOT / "studies/tiny.yaml").read_text(encoding="utf-8"))
    raw["corpora"]["animal"] |= {
        "max_attempts": 3,
        "decontaminate_against": ["ahb"],
        "quality_filter": {"min_score": 7},
        "dedup_threshold": 0.8,
    }
    raw["arms"]["animal"]["question_variant"] = "leading"
    raw["sft"]["shared_run"] = True
    raw["benchmarks"]["ahb"] |= {"judge_max_missing": 0.1, "judge_max_attempts": 2}
    raw["contrasts"][0] |= {"treatment_dose": 0, "control_dose": 0}
    raw["claim_roles"] = {"animal": "animal"}
    raw["endpoints"]["dummy"]["served_by"] = "kit"
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(with_old_keys(raw)))
    with pytest.raises(UserError) as raised:
        load_study(file)
    told = {problem.what for problem in raised.value.problems}
    recipe_keys = {field for field in Training.__dataclass_fields__}
    expected = {
        f"`{old}` is now `{new}`"
        for old, new in RENAMED_KEYS.items()
        if new not in recipe_keys and old != "at_least"  # inside `score`, which is unknown itself
    }
    assert told == expected | {"`kit` is now `dummy`"}


def test_every_old_key_of_a_recipe_is_named_with_its_new_name(tmp_path: Path) -> None:
    raw = yaml.safe_load((ROOT / "recipes/llama3_1_8b_midtrain.yaml").read_text(encoding="utf-8"))
    raw |= {"max_steps": 3, "global_batch_size": None, "activation_checkpointing": True}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(with_old_keys(raw)))
    with pytest.raises(UserError) as raised:
        load_recipe(str(file), Training)
    told = {problem.what for problem in raised.value.problems}
    keys = {field for field in Training.__dataclass_fields__}
    expected = {f"`{old}` is now `{new}`" for old, new in RENAMED_KEYS.items() if new in keys}
    assert told == expected | {"`true` is now `full`"}
