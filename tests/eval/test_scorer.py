"""Every scorer module keeps the contract, and every benchmark names one."""

import inspect
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from core.cell.context import StageContext
from core.errors import UserError
from core.files import sha256
from eval import anima, judge, moru, rubric, strong_reject
from eval.questions import load_questions
from eval.scorer import Scorer
from study.spec.declaration import FILES_OF
from tests.eval.test_questions import jsonl

SCORERS = {"anima": anima, "moru": moru, "rubric": rubric, "strong_reject": strong_reject}
WITHOUT_JUDGE = FILES_OF  # scorers that read other files than a judged benchmark's
METHODS = [
    name for name, _ in inspect.getmembers(Scorer, inspect.isfunction) if not name.startswith("_")
]


@pytest.mark.parametrize("module", SCORERS.values(), ids=SCORERS)
def test_a_scorer_module_has_the_functions_of_the_protocol(module: ModuleType) -> None:
    assert isinstance(module, Scorer) and isinstance(module.VARIANTS, tuple)
    assert module.GRADE_FORMAT
    assert len(METHODS) == 7
    for name in METHODS:
        parameters = list(inspect.signature(getattr(Scorer, name)).parameters.values())[1:]
        given = inspect.signature(getattr(module, name)).parameters.values()
        assert [(p.name, p.default) for p in given] == [(p.name, p.default) for p in parameters]


def test_every_benchmark_names_a_scorer_and_one_of_its_variants() -> None:
    paths = list((Path(__file__).parents[2] / "eval/benchmarks").glob("*.yaml"))
    assert len(paths) > 10
    for path in paths:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
        if declared["scorer"] not in WITHOUT_JUDGE:
            judge.check_variant(
                SCORERS[declared["scorer"]], declared["scorer"], declared.get("variant")
            )
    with pytest.raises(UserError, match="no variant 'harsh'; valid: official, content_only"):
        judge.check_variant(strong_reject, "strong_reject", "harsh")


def test_a_module_that_is_not_a_scorer_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [{"id": 0, "question": "Q?", "rubric": "It is kind."}])
    settings = {"scorer": "rubric", "files": {"questions": sha256(path)}, "rows": 1}
    resources = {"files": {"questions": str(path)}}
    scorer, question_set = load_questions(StageContext(tmp_path, "a", settings, resources, {}))
    assert scorer is rubric and scorer.num_judge_calls(question_set) == 1
    settings["scorer"] = "labels"
    with pytest.raises(UserError, match="scorer labels: not a scorer"):
        load_questions(StageContext(tmp_path, "a", settings, resources, {}))
