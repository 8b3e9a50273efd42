"""Grades for a checkpoint's answers: a benchmark's official scorer over an Inspect log, with an explicit judge."""

import contextlib
import json
import math
import shutil
import statistics
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cell.context import StageContext
from core.errors import UserError
from eval import questions
from eval.grader import RESPONSE, Grader, open_grader

if TYPE_CHECKING:
    import pandas as pd
    from inspect_ai import Task
    from inspect_ai.log import EvalLog, EvalSample

EXAMPLES = 5
RESUMABLE = True  # from the ledger of a run that was interrupted, or that left more grades missing than it may


def run(work: StageContext) -> dict[str, int | float]:
    """Grade the answers of a generate cell; write `scored.eval`, `scores.parquet`, `examples.jsonl` (a few answers, for
    the report) and the ledger `calls.jsonl`.

    Settings: scorer (a module of eval), variant (of it, or None), files {name: identity}, rows (expected, or None),
    judge (endpoint), temperature, max_tokens, missing (the share of grades that may be). Resources: files {name: path},
    address, limits, concurrency (open calls), asks (for one grade, in one run). Inputs: samples.

    `scores.parquet` has one row for each response's overall score and one for each of its dimensions; where the
    judge gave no usable grade the score is NaN and `missing` says why.

    Raises UserError if the judge can't be reached or refuses, or more grades are missing than may be; what was
    graded is kept even then.
    Returns counts: questions, responses, grades, missing_grades, missing_scores (overall), and what they took.
    """
    from inspect_ai.log import read_eval_log, write_eval_log

    settings = work.settings
    for left in work.folder.glob(f"{questions.TEMPORARY}*"):
        shutil.rmtree(left)
    scorer, found = questions.open_set(work)
    if mended := {kind: count for kind, count in found.mended.items() if count}:
        work.log(f"mended in the question set: {mended}")
    log = read_eval_log(work.inputs["samples"] / "samples.eval")
    total = scorer.grades(found) * (log.eval.config.epochs or 1)
    with open_grader(work, scorer.usable, total) as grader:
        log = score(
            log,
            scorer.task(found, work.folder, grader.model(work.resources["concurrency"])),
            grader,
            work,
        )
    variant = {"variant": settings["variant"]} if settings["variant"] else {}
    table = scores_table(log, found, partial(scorer.values, **variant), settings["judge"]["model"])
    check_missing(work, grader)
    overall = table[table.dimension == "overall"]
    check_headline(scorer.headline(log, **variant), overall)
    write_eval_log(log, work.folder / "scored.eval")
    table.to_parquet(work.folder / "scores.parquet", index=False)
    write_examples(log, overall, work.folder / "examples.jsonl")
    calls, counts = grader.caller.counts, grader.counts
    return {
        "questions": len(found.questions),
        "responses": len(overall),
        "grades": counts["grades"],
        "missing_grades": counts["missing"],
        "missing_scores": int(overall.score.isna().sum()),
        **{
            name: calls[name]
            for name in ("calls", "calls_reused", "prompt_tokens", "completion_tokens")
        },
        "cost": round(grader.caller.cost, 6),
    }


def write_examples(log: "EvalLog", overall: "pd.DataFrame", path: Path) -> None:
    """Write the first answers to the first questions, one a line: question, asked, response, score."""
    scores = dict(zip(overall["response"], overall["score"], strict=True))
    lines = []
    for sample in (log.samples or [])[:EXAMPLES]:
        graded = scores[f"{sample.id}/{sample.epoch}"]
        asked = sample.input if isinstance(sample.input, str) else sample.input[-1].text
        line = {"question": str(sample.id), "asked": asked, "response": sample.output.completion}
        lines.append(
            json.dumps(line | {"score": None if math.isnan(graded) else graded}, ensure_ascii=False)
            + "\n"
        )
    path.write_text("".join(lines), encoding="utf-8")


def score(log: "EvalLog", task: "Task", grader: Grader, work: StageContext) -> "EvalLog":
    """The log with the task's scores and metrics.

    Raises UserError if the log's questions are not the task's.
    """
    import anyio
    from inspect_ai import score_async

    samples = {sample.id: sample for sample in task.dataset}
    for answered in log.samples or []:
        sample = samples.get(answered.id)
        if sample is None or answered.input != sample.input:
            raise UserError(
                f"question {answered.id!r} of samples.eval is not in the question set; generate again"
            )
        # Generating knew no dimensions: the mended tags are the judge's matter.
        answered.target, answered.metadata = sample.target, sample.metadata or {}
    if len(log.samples or []) != len(samples) * (log.eval.config.epochs or 1):
        raise UserError(
            f"samples.eval has {len(log.samples or [])} answers for {len(samples)} questions; generate again"
        )

    # As Inspect itself would have them, so that sums agree to the last digit; a log is read in another order.
    place = {key: number for number, key in enumerate(samples)}
    answers = log.samples = sorted(
        log.samples or [], key=lambda sample: (sample.epoch, place[sample.id])
    )
    assert log.results and log.results.total_samples == len(answers)

    @contextlib.asynccontextmanager
    async def one(number: int) -> "AsyncIterator[EvalSample]":
        RESPONSE.set(f"{answers[number].id}/{answers[number].epoch}")
        yield answers[number]

    async def graded() -> "EvalLog":
        async with grader.caller:
            return await score_async(
                log,
                task.scorer or [],
                metrics=task.metrics,
                samples=one,
                model="none/none",  # no default model: a grader that was not given would be an error
                action="overwrite",
                display="none",
                copy=False,
            )

    with questions.private_home(work.folder):
        try:
            return anyio.run(graded)
        except Exception:
            if grader.stopped:  # in whatever groups of exceptions it comes out of the event loop
                raise grader.stopped from None
            raise


def scores_table(
    log: "EvalLog", found: questions.QuestionSet, values: Any, judge: str
) -> "pd.DataFrame":
    """One row per response and dimension, "overall" first: question, scenario, dimension, epoch, judge, score
    (0..1, NaN if missing), missing (None or the reason), response."""
    import pandas as pd

    answered = {(str(sample.id), sample.epoch): sample for sample in log.samples or []}
    rows = []
    for row in found.questions:
        for epoch in range(1, (log.eval.config.epochs or 1) + 1):
            sample = answered[row["id"], epoch]
            (given,) = (sample.scores or {}).values()
            found_values = values(given)
            for dimension in ["overall", *row["tags"]]:
                score = found_values.get(dimension, math.nan)
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


def check_missing(work: StageContext, grader: Grader) -> None:
    """Warn of grades that are missing. Raises UserError when they are more than the settings allow, or all."""
    counts, allowed = grader.counts, work.settings["missing"]
    missing, total = counts["missing"], counts["grades"]
    if not missing:
        return
    text = f"{missing} of {total} grades are missing; judge {work.settings['judge']['model']}"
    said = f"it last said {grader.last[:200]!r}"
    if missing == total:
        raise UserError(
            f"{text}; {said}; see that it can grade and that judge_max_tokens is enough"
        )
    if missing > allowed * total:
        raise UserError(
            f"{text}; {said}; run again to ask for these alone, or raise judge_missing (now {allowed}) to go on without"
        )
    work.warn(f"{text}; {counts['unanswered']} calls failed for good; {said}")


def check_headline(official: float | None, overall: "pd.DataFrame") -> None:
    """The mean of our rows must be the official task's own number: the mean over questions of epoch means."""
    if official is None:
        return
    ours = statistics.fmean(overall.groupby("question").score.mean().dropna())
    if abs(ours - official) > 1e-9:
        raise AssertionError(f"our overall mean {ours} is not the official {official}")
