"""The cells in which a study's judges grade the canary: answers with published grades."""

from core.cell.identity import Cell
from core.errors import UserError
from study.spec.benchmarks import grading
from study.spec.schema import Benchmark, Study
from study.spec.sources import Source

FILES: dict[str, Source] = {
    "questions": {"path": "eval/data/judge_canary/answers.jsonl"},
    "dimensions": {"path": "eval/data/anima_like/dimensions.jsonl"},
}
SCORER = "anima"


def canaries(study: Study) -> list[Cell]:
    """A cell for each judge of the study, deciding or not; none where it asks for no canary.

    A judge of several benchmarks grades as in the first of them by name. The study's name is part
    of the identity: another study's judge is asked anew, however alike the two are.

    Raises UserError where the study has no judge.
    """
    if not study.canary:
        return []
    benchmarks: dict[str, Benchmark] = {}
    for _, bench in sorted(study.benchmarks.items()):
        for judge in filter(None, (bench.judge, *bench.other_judges)):
            benchmarks.setdefault(judge, bench)
    if not benchmarks:
        what = "no benchmark of the study has a judge"
        raise UserError(where="canary", what=what, fix="leave it out, or add a judged benchmark")
    return [_canary(study, judge, bench) for judge, bench in sorted(benchmarks.items())]


def _canary(study: Study, judge: str, bench: Benchmark) -> Cell:
    settings, resources = grading(study, bench, judge, FILES)
    settings |= {"scorer": SCORER, "variant": None, "rows": None, "study": study.study}
    return Cell("canary", judge, settings, {}, resources)
