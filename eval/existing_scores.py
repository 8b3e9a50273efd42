"""Scores that somebody else has computed: an Inspect log or a table, as scores of this study.

Questions are matched by their text, so that ids and the order of questions may differ. The judge is
read from the log, and must be the one that the benchmark declares: scores of two judges are never
compared.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from core.cell.context import StageContext
from core.errors import UserError
from core.row_formats import UTF8_BOM, open_binary, row_format
from eval import questions
from eval.anima import normalized_name
from eval.judge import check_official
from eval.malformed import malformed_counts
from eval.score_tables import OVERALL, dimension_names, read_table
from eval.scorer import SCORE_COLUMNS, QuestionSet, Scorer

if TYPE_CHECKING:
    import pandas as pd
    from inspect_ai.log import EvalLog, EvalSample

NO_GRADE = "no usable grade in the log"
NO_ANSWER = "not in the file, which has more answers to other questions"
ZIP = b"PK\x03\x04"  # how .eval files begin


def run(context: StageContext) -> dict[str, int | float]:
    """Read one run's scores; write `scores.parquet`, as a judge cell does.

    Settings: scorer (a module of eval), variant (of it, or None), rows (expected questions, or
    None), judge (the name of its model). Resources: files {scores: an Inspect log (.eval or JSON),
    or a table (`eval.score_tables`); questions, and dimensions where the benchmark has them}.

    The manifest gets `scores_of`: format, judge, and of a log model, task, created and epochs.

    Returns counts: questions, questions_absent (of the benchmark, not in the file), responses,
    responses_set_aside (to other questions), responses_absent (see `to_table`), missing_scores.

    Raises:
        UserError: The file can't be read, another judge graded, no question is the benchmark's, or
            an answer has two scores.
    """
    settings = context.settings
    path = Path(context.resources["files"]["scores"])
    scorer, question_set = questions.load_questions(context)
    dimensions = dimension_names(question_set)
    kind = file_format(path)
    log = None
    facts: dict[str, Any] = {}
    if kind in ("eval", "json"):
        log = _read_log(path, kind)
        rows, facts = _log_rows(context, path, log, scorer, dimensions)
        judges = judges_of(log)
    else:
        rows, judges = read_table(path, dimensions)
    judge = check_judge(path, judges, settings["judge"])
    _check_repeated(path, rows)
    matched = match(rows, question_set)
    if not matched:
        raise UserError(
            where=str(path),
            what=f"none of its {len(rows)} scores is of a question of the benchmark",
            fix="name it under the benchmark whose questions were asked",
        )
    table = to_table(matched, question_set, judge)
    overall = table[table["dimension"] == OVERALL]
    table.to_parquet(context.folder / "scores.parquet", index=False)
    asked = set(overall["question"])
    absent = [row["id"] for row in question_set.questions if row["id"] not in asked]
    aside = len({row["response"] for row in rows}) - len({row["response"] for row in matched})
    if absent:
        context.warn(f"questions of the benchmark that are not in it: {', '.join(absent)}")
    if aside:
        context.warn(f"{aside} responses are set aside: they are to no question of the benchmark")
    missing = int(overall["score"].isna().sum())
    if missing == len(overall):
        raise UserError(
            where=str(path),
            what="no response in it has a score that the benchmark's scorer would give",
            fix="name it under the benchmark whose task wrote it",
        )
    if absent_responses := int((overall["missing"] == NO_ANSWER).sum()):
        what = "responses are absent: other questions have more of them; they count as ungraded"
        context.warn(f"{absent_responses} {what}")
    if ungraded := missing - absent_responses:
        context.warn(f"{ungraded} of {len(overall)} responses have no usable grade")
    context.facts["scores_of"] = {"format": kind, "judge": judge, **facts}
    if log:
        used = {row["response"] for row in matched}
        samples = [sample for sample in log.samples or [] if _response(sample) in used]
        context.facts["malformed"] = malformed_counts(log.model_copy(update={"samples": samples}))
    mean = statistics.fmean(overall.groupby("question").score.mean().dropna())
    context.log(f"{len(overall)} responses to {len(asked)} questions, mean {mean:.4f}")
    return {
        "questions": len(asked),
        "questions_absent": len(absent),
        "responses": len(overall) - absent_responses,
        "responses_absent": absent_responses,
        "responses_set_aside": aside,
        "missing_scores": missing,
    }


def file_format(path: Path) -> str:
    """`eval` or `json`: Inspect's logs. Of a table the ending, without a point."""
    with open_binary(path) as file:
        start = file.read(64)
    if start.startswith(ZIP):
        return "eval"
    ending = row_format(path)
    is_object = start.removeprefix(UTF8_BOM).lstrip().startswith(b"{")
    return "json" if is_object and ending in ("", ".json") else ending.removeprefix(".")


def _read_log(path: Path, kind: Any) -> "EvalLog":
    from inspect_ai.log import read_eval_log

    try:
        return read_eval_log(str(path), resolve_attachments=True, format=kind)
    except Exception as error:  # zipfile's, pydantic's, JSON's and Inspect's own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(where=str(path), what=f"no log of Inspect: {reason}") from None


def _log_rows(
    context: StageContext,
    path: Path,
    log: "EvalLog",
    scorer: Scorer,
    dimensions: Mapping[str, str],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Its scores, one row for each response and dimension, and the facts about the log.

    An answer that ended in an error, or that somebody has declared invalid, has no score, as in
    Inspect's own metrics.
    """
    variant = context.settings["variant"]
    samples = log.samples or []
    if not any(sample.scores for sample in samples):
        raise UserError(
            where=str(path), what="no sample has a score", fix=f"inspect score {quote(str(path))}"
        )
    rows = []
    for sample in samples:
        scores: dict[str, float] = {}
        if sample.scores and not (sample.error or sample.invalidation):
            scores = scorer.to_scores(_score_of(path, sample), variant)
        response = _response(sample)
        text = _question(sample)
        for dimension in scores or [OVERALL]:
            rows.append(
                {
                    "question": text,
                    "epoch": sample.epoch,
                    "dimension": dimensions.get(normalized_name(dimension), dimension),
                    "score": float(scores.get(dimension, math.nan)),
                    "response": response,
                }
            )
    if log.status != "success":
        context.warn(f"its status is {log.status}: it may lack answers")
    elif (reducers := log.eval.config.epochs_reducer or ["mean"]) != ["mean"]:
        context.warn(f"its own score reduces epochs by {', '.join(reducers)}, the mean counts here")
    else:
        _check_official(path, log, scorer, variant, rows)
    return rows, {
        "model": log.eval.model,
        "task": log.eval.task,
        "created": str(log.eval.created),
        "epochs": log.eval.config.epochs or 1,
    }


def _check_official(
    path: Path, log: "EvalLog", scorer: Scorer, variant: str | None, rows: list[dict[str, Any]]
) -> None:
    """Raise UserError unless the mean of a log's answers is the score that it states."""
    import pandas as pd

    overall = pd.DataFrame(row for row in rows if row["dimension"] == OVERALL)
    try:
        check_official(_official(scorer, log, variant), overall)
    except AssertionError as error:
        raise UserError(
            where=str(path),
            what=f"contradicts itself: {error}",
            fix=f"inspect score {quote(str(path))}",
        ) from None


def _response(sample: "EvalSample") -> str:
    return f"{sample.id}/{sample.epoch}"


def _official(scorer: Scorer, log: "EvalLog", variant: str | None) -> float | None:
    """The task's own number in the log; None where a log of another version has none."""
    try:
        return scorer.official_score(log, variant)
    except (AssertionError, IndexError, KeyError):
        return None


def _score_of(path: Path, sample: "EvalSample") -> Any:
    scores = [*(sample.scores or {}).values()]
    if len(scores) != 1:
        raise UserError(
            where=str(path),
            what=f"sample {sample.id} has {len(scores)} scores, one is expected",
            fix="score the log with the benchmark's own scorer alone",
        )
    return scores[0]


def _question(sample: "EvalSample") -> str:
    if isinstance(sample.input, str):
        return sample.input
    asked = [message.text for message in sample.input if message.role == "user"]
    return asked[-1] if asked else ""


def judges_of(log: "EvalLog") -> list[str]:
    """The models that graded a log: its grader role, else the task's, else whatever else was used.

    Without any of these Inspect grades with the model under test.
    """
    roles = log.eval.model_roles or {}
    if grader := roles.get("grader"):
        graders = grader if isinstance(grader, list) else [grader]
        return [config.model for config in graders]
    named = log.eval.task_args.get("grader_models")
    if isinstance(named, list) and named and all(isinstance(name, str) for name in named):
        return named
    used = [name for name in log.stats.model_usage if name != log.eval.model]
    return used or [log.eval.model]


def _check_repeated(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Raise UserError where an answer has two scores on one dimension."""
    counts = Counter((row["response"], row["dimension"]) for row in rows)
    repeated = [key for key, count in counts.items() if count > 1]
    if repeated:
        response, dimension = repeated[0]
        question, _, epoch = response.rpartition("/")
        raise UserError(
            where=str(path),
            what=f"{len(repeated)} answers have two scores or more; first: question "
            f"{question[:60]!r}, epoch {epoch}, {dimension}",
            fix="keep one score, or number the answers by epoch",
        )


def check_judge(path: Path, judges: list[str], declared: str) -> str:
    """The declared judge's name; without the name of a provider it is one of the file's.

    Raises UserError where another model graded, several did, or a table has no column `judge`.
    """
    if len(judges) == 1 and judges[0].rpartition("/")[2] == declared.rpartition("/")[2]:
        return declared
    graded = f"was graded by {', '.join(judges)}" if judges else "does not say who graded it"
    raise UserError(
        where=str(path),
        what=f"{graded}, and the benchmark's judge is {declared}",
        fix="declare a benchmark with that judge for it"
        if judges
        else "add a column judge to the table",
    )


def match(rows: Iterable[dict[str, Any]], question_set: QuestionSet) -> list[dict[str, Any]]:
    """The rows of the benchmark's questions, with its ids: by their text, else by their id."""
    by_text = {
        _normalized(question["question"]): question["id"]
        for question in reversed(question_set.questions)
    }
    ids = {question["id"] for question in question_set.questions}
    matched = []
    for row in rows:
        key = by_text.get(_normalized(row["question"]))
        if key is None and row["question"] in ids:
            key = row["question"]
        if key is not None:
            matched.append({**row, "question": key})
    return matched


def _normalized(text: str) -> str:
    return " ".join(text.split())


def to_table(rows: list[dict[str, Any]], question_set: QuestionSet, judge: str) -> "pd.DataFrame":
    """The long table of `eval.judge.scores_table`; each response has an overall score.

    Where a table gives those of dimensions alone, it is their mean. A question with fewer answers
    than most has the others as responses without a grade: what a run lost is seldom lost by chance.
    """
    import pandas as pd

    table = pd.DataFrame(rows)
    complete = set(table.loc[table["dimension"] == OVERALL, "response"])
    rest = table[~table["response"].isin(complete)]
    if len(rest):
        keys = ["question", "epoch", "response"]
        means = rest.groupby(keys)["score"].mean().reset_index().assign(dimension=OVERALL)
        table = pd.concat([table, means], ignore_index=True)
    # A question of one tag has one score: that of the tag too (`eval.judge.scores_table`).
    tags = {question["id"]: question["tags"] for question in question_set.questions}
    given = {*zip(table["response"], table["dimension"], strict=True)}
    copies = [
        {**row, "dimension": tags[row["question"]][0]}
        for row in table[table["dimension"] == OVERALL].to_dict("records")
        if len(tags[row["question"]]) == 1
        and (row["response"], tags[row["question"]][0]) not in given
    ]
    table = pd.concat([table, pd.DataFrame(copies)], ignore_index=True)
    # Two questions of a file may have the same text: their answers are epochs of one question.
    first = table.drop_duplicates(["question", "response"])
    numbers = first.groupby("question").cumcount() + 1
    epochs = dict(zip(zip(first["question"], first["response"], strict=True), numbers, strict=True))
    pairs = zip(table["question"], table["response"], strict=True)
    table["epoch"] = [int(epochs[pair]) for pair in pairs]
    table = pd.concat([table, _absent(table, first)], ignore_index=True)
    order = {question["id"]: number for number, question in enumerate(question_set.questions)}
    table["position"] = table["question"].map(order)
    table["is_part"] = table["dimension"] != OVERALL
    table = table.sort_values(["position", "epoch", "is_part"], kind="stable", ignore_index=True)
    table["scenario"] = table["question"].map(question_set.scenarios)
    table["judge"] = judge
    reason = table["missing"].fillna(NO_GRADE)
    table["missing"] = reason.where(table["score"].isna(), None)
    table["response"] = table["question"] + "/" + table["epoch"].astype(str)
    return table[[*SCORE_COLUMNS]].astype({"missing": "str"})


def _absent(table: "pd.DataFrame", responses: "pd.DataFrame") -> "pd.DataFrame":
    """Rows without a score for the answers that a question lacks, by the most common number."""
    import pandas as pd

    counts = responses["question"].value_counts()
    usual = int(counts.mode().max())
    rows = [
        {"question": question, "epoch": epoch, "dimension": OVERALL, "missing": NO_ANSWER}
        for question, count in counts.items()
        for epoch in range(count + 1, usual + 1)
    ]
    return pd.DataFrame(rows, columns=[*table.columns.union(["missing"], sort=False)])


def preload() -> None:
    """Import what `run` imports later."""
    import inspect_ai.log  # noqa: F401
    import pandas  # noqa: F401
