"""A benchmark's declaration is checked when the study is planned."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.paths import ROOT
from study.spec import declaration, expand
from study.spec.declaration import declaration_problems
from study.spec.load import load_study

TASKS = sorted(path.stem for path in (ROOT / "eval/benchmarks").glob("*.yaml"))
GOOD = """scorer: rubric
direction: higher
rows: 2
files:
  questions: {path: eval/data/insects.jsonl}
"""


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    declaration_problems.cache_clear()
    yield
    declaration_problems.cache_clear()


@pytest.mark.parametrize("task", TASKS)
def test_the_kits_own_have_no_mistake(task: str) -> None:
    assert declaration_problems(task) == ()


WRONG = {
    "scorer: rubric": ("scorer: rubrik", "there is no scorer 'rubrik' (did you mean rubric?)"),
    "direction: higher": ("direction: up", "'up' is not a valid choice"),
    "rows:": ("row:", "unknown key (did you mean rows?)"),
    "rows: 2": ("rows: two", "should be a valid integer"),
    "questions:": ("items:", "rubric reads no such file"),
    "path:": ("pth:", "unknown key (did you mean path?)"),
    "path: eval/data/insects.jsonl": ("hub: a/b", "hub needs revision"),
    "{path: eval/data/insects.jsonl}": ("{}", "needs exactly one of path, hub and url"),
    "files:\n  questions: {path: eval/data/insects.jsonl}": ("files: [a]", "should be a"),
}


@pytest.mark.parametrize("right", WRONG)
def test_each_mistake_has_its_line(
    right: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, what = WRONG[right]
    (tmp_path / "eval/benchmarks").mkdir(parents=True)
    (tmp_path / "eval/rubric.py").write_text("import x\ndef to_scores(a, b):\n    pass\n")
    monkeypatch.setattr(declaration, "ROOT", tmp_path)
    path = tmp_path / "eval/benchmarks/insects.yaml"
    path.write_text(GOOD)
    assert declaration_problems("insects") == ()
    declaration_problems.cache_clear()
    path.write_text(GOOD.replace(right, wrong))
    problems = declaration_problems("insects")
    assert any(what in problem.what for problem in problems), problems
    assert all(problem.where.startswith(f"{path}:") for problem in problems)


def test_results_know_which_scores_are_good() -> None:
    task = "benchmarks.extra={task: %s}"
    for name, direction in (("power_seeking", "lower"), ("concern_for_animals", "higher")):
        study = load_study(ROOT / "studies/tiny.yaml", None, [task % name])
        settings = expand.analysis(study).settings
        assert settings["benchmarks"]["extra"]["direction"] == direction
