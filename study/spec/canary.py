"""The cells in which a study's judges grade the canary: answers with published grades."""

from typing import Any

from core.cell.identity import Cell
from core.errors import UserError
from study.spec.fingerprints import (
    endpoint_address,
    endpoint_files,
    endpoint_limits,
    endpoint_model,
    open_requests,
)
from study.spec.schema import Benchmark, Study
from study.spec.sources import Source, identities, paths

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
    endpoint = study.endpoints[judge]
    files = FILES | endpoint_files(endpoint, "judge")
    settings: dict[str, Any] = {
        "scorer": SCORER,
        "variant": None,
        "rows": None,
        "judge": endpoint_model(endpoint),
        "temperature": bench.judge_temperature,
        "max_tokens": bench.judge_max_tokens,
        "missing": bench.judge_max_missing,
        "study": study.study,
        **identities(files),
    }
    resources = {
        **paths(files),
        "address": endpoint_address(endpoint),
        "limits": endpoint_limits(endpoint),
        "concurrency": open_requests(study, endpoint),
        "asks": bench.judge_max_attempts,
    }
    return Cell("canary", judge, settings, {}, resources)
