"""Replacements of library internals are undone, and refused for another version."""

import os
import re
from pathlib import Path

import pytest

from core.errors import UserError
from eval import patches

ROOT = Path(__file__).parents[2]


def test_patched_versions_are_the_pinned_ones() -> None:
    for name in ("requirements.txt", "requirements-cpu.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        pins = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", text, re.MULTILINE))
        assert {package: pins[package] for package in patches.PATCHED} == patches.PATCHED


def test_another_version_is_refused_with_the_command_that_installs_the_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(patches.PATCHED, "datasets", "0.0.1")
    with pytest.raises(UserError) as error:
        patches.require_version("datasets")
    [problem] = error.value.problems
    assert problem.fix == "pip install datasets==0.0.1" and problem.where.startswith("datasets ")


def test_environment_and_cache_are_restored_after_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    monkeypatch.setenv("KIT_SET", "before")
    monkeypatch.delenv("KIT_UNSET", raising=False)
    cache = datasets.config.HF_DATASETS_CACHE
    values = {"KIT_SET": "inside", "KIT_UNSET": "inside"}
    with (
        pytest.raises(ValueError),
        patches.environment(values),
        patches.datasets_cache(tmp_path),
    ):
        assert {name: os.environ[name] for name in values} == values
        assert tmp_path == datasets.config.HF_DATASETS_CACHE
        raise ValueError
    assert os.environ["KIT_SET"] == "before" and "KIT_UNSET" not in os.environ
    assert cache == datasets.config.HF_DATASETS_CACHE
