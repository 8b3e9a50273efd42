"""Grades for a checkpoint's answers: the official ANIMA scorer over an Inspect log, with an explicit judge."""

import contextlib
import hashlib
import json
import math
import re
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from eval import questions
from study.endpoints import Endpoint, open_endpoint
from study.errors import UserError
from study.work import Work

if TYPE_CHECKING:
    import pandas as pd
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model

ASKS = 3  # how often one grade is asked for before it is missing
RETRIES = 5  # of a call that failed, after 3, 6, 12 ... seconds: rate limits, and servers that are busy for a minute
CONTINUES = True  # the ledger of a run that was interrupted is used
GRADE = re.compile(r"GRADE\s*:\s*(C|I|correct|incorrect)\b", re.IGNORECASE)


def run(work: Work) -> dict[str, int | float]:
    """Grade the answers of a generate cell; write `scored.eval` and `scores.parquet`.

    Settings: task, judge (endpoint), temperature, max_tokens. Resources: questions and dimensions (JSONL paths),
    address {base_url, key_env}, concurrency (open calls). Inputs: samples.

    `scores.parquet` has one row for each response's overall score and one for each of its dimensions; where the
    judge gave no usable grade the score is NaN and `missing` says why. Usable replies are kept in a ledger while the
    cell runs, so that a cell that was interrupted does not pay for them twice.

    Raises UserError if the judge can't be reached, refuses, or gives no usable grade at all.
    Returns counts: questions, responses, grades, missing_grades, missing_scores (overall), calls (made now).
    """
    from inspect_ai.log import read_eval_log, write_eval_log

    settings, resources = work.settings, work.resources
    for left in work.folder.glob(f"{questions.TEMPORARY}*"):
        shutil.rmtree(left)
    found = questions.read(
        questions.as_planned(resources["questions"], settings["questions_sha256"]),
        questions.as_planned(resources["dimensions"], settings["dimensions_sha256"]),
    )
    mended = {kind: count for kind, count in found.mended.items() if count}
    if mended:
        work.log(f"tags mended in the question set: {mended}")
    log = read_eval_log(work.inputs["samples"] / "samples.eval")
    calls = Calls(work, work.folder / "grades.jsonl")
    with open_endpoint(settings["judge"], resources["address"]) as endpoint:
        check(endpoint, settings)
        judge = open_judge(endpoint, settings, resources["concurrency"], calls)
        log = score(log, found, judge, calls)
    table = scores_table(log, found, endpoint.model)
    overall = table[table.dimension == "overall"]
    grades, missing = (_total(log, name) for name in ("grades_attempted", "grades_unparseable"))
    if missing == grades:
        raise UserError(f"none of {grades} grades is usable; judge {endpoint.model}; its last reply was {calls.last!r}")
    if missing:
        work.warn(f"{missing} of {grades} grades are missing; {calls.failed} calls to the judge failed for good")
    check_overall_mean(log, overall)
    write_eval_log(log, work.folder / "scored.eval")
    table.to_parquet(work.folder / "scores.parquet", index=False)
    calls.ledger.unlink(missing_ok=True)
    return {
        "questions": len(found.questions),
        "responses": len(overall),
        "grades": grades,
        "missing_grades": missing,
        "missing_scores": int(overall.score.isna().sum()),
        "calls": calls.made,
    }


@dataclass
class Calls:
    """Calls to the judge: how many, and the usable replies of an earlier run of this cell, by prompt."""

    work: Work
    ledger: Path
    total: int = 0
    graded: int = 0
    made: int = 0
    failed: int = 0
    last: str = ""
    refused: UserError | None = None
    kept: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ledger.exists():
            for line in self.ledger.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # the line that was being written at the end
                    row = json.loads(line)
                    self.kept.setdefault(row["prompt"], []).append(row["reply"])

    def keep(self, prompt: str, reply: str) -> None:
        with self.ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"prompt": prompt, "reply": reply}) + "\n")


def check(endpoint: Endpoint, settings: dict[str, Any]) -> None:
    """One small call with the cell's own settings, so that a wrong address, key or model is one line at once."""
    import openai

    client = openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=0, timeout=60)
    messages: Any = [{"role": "user", "content": "Reply with GRADE: C"}]
    try:
        with client:
            client.chat.completions.create(
                model=endpoint.model,
                messages=messages,
                temperature=settings["temperature"],
                max_tokens=settings["max_tokens"],
            )
    except (openai.RateLimitError, openai.InternalServerError, openai.APITimeoutError):
        return  # busy, which the calls themselves wait for
    except openai.APIError as error:
        raise judge_error(endpoint, error) from None


def judge_error(endpoint: Endpoint, error: BaseException) -> UserError:
    """What went wrong with the judge, in one line without the key."""
    text = " ".join(str(error).split()).replace(endpoint.api_key, "***")[:300]
    return UserError(
        f"the judge {endpoint.model} at {endpoint.base_url} can't grade: {type(error).__name__}: {text}; "
        "correct base_url, model or key_env in the study file's endpoints, or start the server"
    )


def open_judge(endpoint: Endpoint, settings: dict[str, Any], concurrency: int, calls: Calls) -> "Model":
    """The judge as an Inspect model that asks again for an unusable grade and takes what the ledger holds already.

    A call that fails for good counts as an unusable grade, which the scorer leaves missing; a judge that is gone or
    refuses the key ends the cell instead.
    """
    import openai
    import tenacity
    from inspect_ai.model import GenerateConfig, ModelOutput, get_model

    judge = get_model(
        f"openai-api/judge/{endpoint.model}",
        base_url=endpoint.base_url,
        api_key=endpoint.api_key,
        memoize=False,
        config=GenerateConfig(
            temperature=settings["temperature"],
            max_tokens=settings["max_tokens"],
            max_connections=concurrency,
            max_retries=RETRIES,
            attempt_timeout=300,
        ),
    )
    ask = judge.generate

    async def grade(messages: Any) -> ModelOutput:
        prompt = hashlib.sha256(messages[0].text.encode()).hexdigest()
        output = None
        if calls.kept.get(prompt):
            output = ModelOutput.from_content(judge.name, calls.kept[prompt].pop())
        for _ in range(0 if output else ASKS):
            calls.made += 1
            try:
                output = await ask(messages)
            except (openai.APIError, tenacity.RetryError, RuntimeError, ValueError) as error:
                cause = _cause(error)
                gone = isinstance(cause, openai.APIConnectionError) and not isinstance(cause, openai.APITimeoutError)
                if gone or isinstance(cause, openai.AuthenticationError | openai.NotFoundError):
                    calls.refused = judge_error(endpoint, cause)
                    raise calls.refused from None
                calls.failed += 1
                output = ModelOutput.from_content(judge.name, f"The call failed: {type(cause).__name__}.")
                break
            if GRADE.search(output.completion):
                calls.keep(prompt, output.completion)
                break
        assert output
        calls.graded += 1
        calls.last = output.completion[:200]
        calls.work.progress(calls.graded, calls.total, "grades")
        return output

    judge.generate = grade  # type: ignore[method-assign, assignment]
    return judge


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def score(log: "EvalLog", found: questions.QuestionSet, judge: "Model", calls: Calls) -> "EvalLog":
    """The log with the official task's scores and metrics.

    Raises UserError if the log's questions are not those of `found`.
    """
    import anyio
    from inspect_ai import score_async
    from inspect_evals.anima.scorer import get_variable_sets

    near = calls.ledger.parent
    task = questions.official_task(found, near, judge)
    dimensions: Any = {row["dimension"]: SimpleNamespace(**row) for row in found.dimensions}
    samples = {sample.id: sample for sample in task.dataset}
    for answered in log.samples or []:
        sample = samples.get(answered.id)
        if sample is None or answered.input != sample.input:
            raise UserError(f"question {answered.id!r} of samples.eval is not in the question set; generate again")
        # Generating knew no dimensions: the mended tags are the judge's matter.
        answered.target = sample.target
        target = json.loads(str(sample.target))
        calls.total += sum(map(len, get_variable_sets(dimensions, target["tags"], target["variables"]).values()))

    if len(log.samples or []) != len(samples) * (log.eval.config.epochs or 1):
        raise UserError(
            f"samples.eval has {len(log.samples or [])} answers for {len(samples)} questions; generate again"
        )

    async def graded() -> "EvalLog":
        async with judge:
            return await score_async(
                log,
                task.scorer or [],
                metrics=task.metrics,
                model="none/none",  # no default model: a grader that was not given would be an error
                action="overwrite",
                display="none",
                copy=False,
            )

    with questions.private_home(near), ungraded_dimensions():
        try:
            return anyio.run(graded)
        except Exception:
            if calls.refused:  # in whatever groups of exceptions it comes out of the event loop
                raise calls.refused from None
            raise


@contextlib.contextmanager
def ungraded_dimensions() -> Iterator[None]:
    """Let the official scorer keep a response of which one dimension got no usable grade.

    It computes the overall score from the graded dimensions and then raises KeyError while explaining the others
    (inspect_evals 0.26.0); if it did not, Inspect's mean over epochs would raise it. Both want every dimension in
    the scores: NaN is Inspect's sign for one without a score.
    """
    from inspect_evals.anima import scorer

    explain = scorer._generate_explanation

    def explain_all(*, target_dimensions: list[str], avg_by_dim: dict[str, float], **others: Any) -> str:
        for dimension in target_dimensions:
            avg_by_dim.setdefault(dimension, math.nan)
        return explain(target_dimensions=target_dimensions, avg_by_dim=avg_by_dim, **others)

    with mock.patch.object(scorer, "_generate_explanation", explain_all):
        yield


def scores_table(log: "EvalLog", found: questions.QuestionSet, judge: str) -> "pd.DataFrame":
    """One row per response and dimension, "overall" first: question, scenario, dimension, epoch, judge, score
    (0..1, NaN if missing), missing (None or the reason), response."""
    import pandas as pd

    answered = {(str(sample.id), sample.epoch): sample for sample in log.samples or []}
    rows = []
    for row in found.questions:
        for epoch in range(1, (log.eval.config.epochs or 1) + 1):
            sample = answered.get((row["id"], epoch))
            value = sample.scores["anima_scorer"].value if sample and sample.scores else {}
            for dimension in ["overall", *row["tags"]]:
                score = value.get(dimension, math.nan) if isinstance(value, dict) else math.nan
                rows.append(
                    {
                        "question": row["id"],
                        "scenario": found.scenarios[row["id"]],
                        "dimension": dimension,
                        "epoch": epoch,
                        "judge": judge,
                        "score": float(score),
                        "missing": "no usable grade from the judge" if math.isnan(score) else None,
                        "response": f"{row['id']}/{epoch}",
                    }
                )
    return pd.DataFrame(rows).astype({"missing": "str"})


def check_overall_mean(log: "EvalLog", overall: "pd.DataFrame") -> None:
    """The mean of our rows must be the official task's own headline number: the mean over questions of epoch means."""
    assert log.results
    ours = statistics.fmean(overall.groupby("question").score.mean().dropna())
    official = log.results.scores[0].metrics["overall_mean"].value
    if abs(ours - official) > 1e-9:
        raise AssertionError(f"our overall mean {ours} is not the official {official}")


def _total(log: "EvalLog", name: str) -> int:
    scores = [score for sample in log.samples or [] for score in (sample.scores or {}).values()]
    return sum((score.metadata or {})[name] for score in scores)
