"""Grades of a checkpoint's answers: a benchmark's official scorer over an Inspect log, with an
explicit judge."""

import contextlib
import json
import math
import statistics
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core.cell.context import StageContext
from core.errors import UserError
from eval import questions
from eval.grader import RESPONSE, Grader, open_grader
from eval.malformed import malformed_counts, preload_languages
from eval.scorer import QuestionSet, Scorer

if TYPE_CHECKING:
    import pandas as pd
    from inspect_ai import Task
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.scorer import Score

EXAMPLES = 5
CALLS = ("calls", "calls_reused", "prompt_tokens", "completion_tokens", "calls_estimated")
# A run continues from the ledger of one that was interrupted, or that left too many grades missing.
RESUMABLE = True


def run(context: StageContext) -> dict[str, int | float]:
    """Grade the answers of a generate cell.

    Writes `scored.eval` (the scored log), `scores.parquet` (`scores_table`), `examples.jsonl` (a
    few answers, for the report) and the ledger `calls.jsonl`.

    Settings: scorer (a module of eval), variant (of it, or None), files {name: identity}, rows
    (expected, or None), judge (endpoint), temperature, max_tokens, missing (the share of grades
    that may be missing).
    Resources: files {name: path}, address, limits, concurrency (open calls), asks (calls for one
    grade, in one run). Inputs: samples. The manifest's `malformed` has the counts of
    `eval.malformed`.

    Returns counts: questions, responses, missing_scores (overall), grades, missing_grades, and the
    calls, tokens and cost of the judge (calls_estimated: those whose tokens the endpoint did not
    report); of these, `paid_calls` ... are those that no other cell had paid.

    Raises:
        UserError: The judge can't be reached or refuses, or more grades are missing than allowed.
            Grades that were given stay in the ledger.
    """
    from inspect_ai.log import read_eval_log, write_eval_log

    variant = context.settings["variant"]
    questions.remove_temporary(context.folder)
    scorer, question_set = questions.load_questions(context)
    check_variant(scorer, context.settings["scorer"], variant)
    if repairs := {kind: count for kind, count in question_set.repairs.items() if count}:
        context.log(f"repaired in the question set: {repairs}")
    log = read_eval_log(context.inputs["samples"] / "samples.eval")
    log, table, counts = grade(context, scorer, question_set, log)
    overall = table[table.dimension == "overall"]
    check_official(scorer.official_score(log, variant), overall)
    write_eval_log(log, context.folder / "scored.eval")
    table.to_parquet(context.folder / "scores.parquet", index=False)
    write_examples(log, overall, context.folder / "examples.jsonl")
    context.facts["malformed"] = malformed_counts(log)
    return {
        "questions": len(question_set.questions),
        "responses": len(overall),
        "missing_scores": int(overall.score.isna().sum()),
        **counts,
    }


def grade(
    context: StageContext,
    scorer: Scorer,
    question_set: QuestionSet,
    log: "EvalLog",
    origin: tuple[str, ...] = (),
) -> "tuple[EvalLog, pd.DataFrame, dict[str, int | float]]":
    """Grade a log's answers by the cell's judge.

    Args:
        context: The cell, of which the settings and resources of `run` are read.
        scorer: The module of eval that scores.
        question_set: The questions of the log.
        log: Its answers.
        origin: Words from which the requests' seeds derive besides: grades that other cells have
            paid without them are not used.

    Returns:
        The log with scores; `scores_table`; and the counts grades, missing_grades, calls,
        calls_reused, prompt_tokens, completion_tokens, calls_estimated (if any), cost, `paid_...`.

    Raises:
        UserError: As `run`.
    """
    settings = context.settings
    total = scorer.num_judge_calls(question_set) * (log.eval.config.epochs or 1)
    with open_grader(context, scorer, total, origin) as grader:
        model = grader.model(context.resources["concurrency"])
        log = score(log, scorer.task(question_set, context.folder, model), grader, context)
    to_scores = partial(scorer.to_scores, variant=settings["variant"])
    table = scores_table(log, question_set, to_scores, settings["judge"]["model"])
    missing = missing_grades(log, question_set, scorer)
    check_missing(context, grader, scorer, missing)
    calls = grader.client.counts
    counts = {key: calls[key] for key in CALLS if key != "calls_estimated" or calls[key]}
    return (
        log,
        table,
        {
            "grades": grader.counts["grades"],
            "missing_grades": missing,
            **counts,
            "cost": round(grader.client.cost, 6),
            **grader.client.paid,
        },
    )


def preload() -> None:
    """Import what `run` imports later."""
    import anyio  # noqa: F401
    import inspect_ai.log  # noqa: F401
    import inspect_evals._registry  # noqa: F401 (Inspect imports it to look for the judge)
    import openai  # noqa: F401
    import pandas  # noqa: F401
    import uvicorn  # noqa: F401

    preload_languages()


def check_variant(scorer: Scorer, name: str, variant: str | None) -> None:
    """Raise UserError unless the scorer has this variant; None is the official score."""
    if variant is not None and variant not in scorer.VARIANTS:
        raise UserError(
            where=f"scorer {name}",
            what=f"no variant {variant!r}",
            fix=f"valid: {', '.join(scorer.VARIANTS) or 'none; leave variant out'}",
        )


def write_examples(log: "EvalLog", overall: "pd.DataFrame", path: Path) -> None:
    """Write the log's first answers, one a line: question, asked, response, score."""
    scores = dict(zip(overall["response"], overall["score"], strict=True))
    lines = []
    for sample in (log.samples or [])[:EXAMPLES]:
        value = scores[f"{sample.id}/{sample.epoch}"]
        example = {
            "question": str(sample.id),
            "asked": sample.input if isinstance(sample.input, str) else sample.input[-1].text,
            "response": sample.output.completion,
            "score": None if math.isnan(value) else value,
        }
        lines.append(json.dumps(example, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def score(log: "EvalLog", task: "Task", grader: Grader, context: StageContext) -> "EvalLog":
    """The log with the task's scores and metrics.

    Raises UserError if the log's questions are not the task's.
    """
    import anyio
    from inspect_ai import score_async

    answers = match_answers(log, task)

    @contextlib.asynccontextmanager
    async def sample(number: int) -> "AsyncIterator[EvalSample]":
        RESPONSE.set(f"{answers[number].id}/{answers[number].epoch}")
        yield answers[number]

    async def graded() -> "EvalLog":
        async with grader.client:
            return await score_async(
                log,
                task.scorer or [],
                metrics=task.metrics,
                samples=sample,
                model="none/none",  # no default model: a task without a grader would be an error
                action="overwrite",
                display="none",
                copy=False,
            )

    with questions.private_home(context.folder):
        try:
            return anyio.run(graded)
        except Exception:
            if grader.stopped:  # the event loop may wrap it in groups of exceptions
                raise grader.stopped from None
            raise


def match_answers(log: "EvalLog", task: "Task") -> "list[EvalSample]":
    """The log's samples, with the task's targets and metadata, by epoch and question.

    This is the order in which Inspect itself would score them, so that sums are equal to the last
    digit; the log is read in another order.

    Raises UserError if the log's questions are not the task's.
    """
    epochs = log.eval.config.epochs or 1
    samples = {sample.id: sample for sample in task.dataset}
    for answer in log.samples or []:
        sample = samples.get(answer.id)
        if sample is None or answer.input != sample.input:
            raise UserError(
                where="samples.eval",
                what=f"question {answer.id!r} is not in the question set",
                fix="generate again",
            )
        # The generate cell read no dimensions, so its targets lack the repaired tags.
        answer.target = sample.target
        answer.metadata = sample.metadata or {}
    if len(log.samples or []) != len(samples) * epochs:
        raise UserError(
            where="samples.eval",
            what=f"{len(log.samples or [])} answers for {len(samples)} questions",
            fix="generate again",
        )
    position = {key: number for number, key in enumerate(samples)}
    answers = sorted(log.samples or [], key=lambda answer: (answer.epoch, position[answer.id]))
    log.samples = answers
    assert log.results and log.results.total_samples == len(answers)
    return answers


def scores_table(
    log: "EvalLog",
    question_set: QuestionSet,
    to_scores: "Callable[[Score], dict[str, float]]",
    judge: str,
) -> "pd.DataFrame":
    """One row for each response's overall score, followed by one for each of its dimensions.

    Columns: question, scenario, dimension ("overall" or a tag), epoch (from 1), judge, score (0 to
    1; NaN where the judge gave no usable grade), missing (the reason for NaN, else None), response
    (question/epoch).
    """
    import pandas as pd

    answers = {(str(sample.id), sample.epoch): sample for sample in log.samples or []}
    rows = []
    for question in question_set.questions:
        for epoch in range(1, (log.eval.config.epochs or 1) + 1):
            (inspect_score,) = (answers[question["id"], epoch].scores or {}).values()
            scores = to_scores(inspect_score)
            # A question of one tag has one score, whatever its scorer calls it.
            default = scores.get("overall", math.nan) if len(question["tags"]) == 1 else math.nan
            for dimension in ["overall", *question["tags"]]:
                value = float(scores.get(dimension, default))
                rows.append(
                    {
                        "question": question["id"],
                        "scenario": question_set.scenarios[question["id"]],
                        "dimension": dimension,
                        "epoch": epoch,
                        "judge": judge,
                        "score": value,
                        "missing": (
                            "no usable grade from the judge" if math.isnan(value) else None
                        ),
                        "response": f"{question['id']}/{epoch}",
                    }
                )
    return pd.DataFrame(rows).astype({"missing": "str"})


def missing_grades(log: "EvalLog", question_set: QuestionSet, scorer: Scorer) -> int:
    """How many grades the scores of a log lack."""
    tags = {question["id"]: question["tags"] for question in question_set.questions}
    return sum(
        scorer.missing_grades(inspect_score, tags[str(sample.id)])
        for sample in log.samples or []
        for inspect_score in (sample.scores or {}).values()
    )


def check_missing(context: StageContext, grader: Grader, scorer: Scorer, missing: int) -> None:
    """Warn of missing grades. Raises UserError if all are missing, or more than allowed."""
    allowed = context.settings["missing"]
    total = grader.counts["grades"]
    if not missing:
        return
    judge = f"judge {context.settings['judge']['model']}"
    what = f"{missing} of {total} grades are missing"
    last_reply = f"it last said {grader.last}"
    if missing == total:
        raise UserError(
            where=judge,
            what=f"{what}; a grade reads {scorer.GRADE_FORMAT}; {last_reply}",
            fix="see that it can grade and that judge_max_tokens is enough",
        )
    if missing > allowed * total:
        raise UserError(
            where=judge,
            what=f"{what}; {last_reply}",
            fix="run again to ask for these alone, "
            f"or raise judge_max_missing (now {allowed}) to go on without",
        )
    failed = grader.counts["unanswered"]
    context.warn(f"{what}; {judge}; {failed} calls failed for good; {last_reply}")


def check_official(official: float | None, overall: "pd.DataFrame") -> None:
    """Raise AssertionError unless the mean of the table's rows is the official task's number.

    `overall` holds the rows of the dimension "overall"; their mean is that over questions of the
    means over epochs. Nothing is compared where `official` is None.
    """
    if official is None:
        return
    mean = statistics.fmean(overall.groupby("question").score.mean().dropna())
    if abs(mean - official) > 1e-9:
        raise AssertionError(f"the table's overall mean {mean} is not the official {official}")
