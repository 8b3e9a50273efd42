"""The contract of a scorer: what a module must define to grade a judged benchmark.

A benchmark is one file, `eval/benchmarks/<name>.yaml`. A study uses it by its name. For a judged
benchmark over an existing scorer it holds:

    # Compassion towards people: 18 questions, each with a rubric. Higher is more compassionate.
    scorer: rubric              # a module of eval that is a `Scorer`
    variant: NAME               # one of the module's VARIANTS, where it has any
    rows: 18                    # the number of questions, checked on load; null if not known
    files:                      # what `read` gets, by name: a path, a URL or a dataset of the Hub
      questions: {path: eval/data/human_compassion.jsonl}

`scorer: rubric` grades any file of questions with a rubric of one sentence each, so that most new
benchmarks need no code. Three values of `scorer` are not modules of this kind, and their
benchmarks have no judge: `likelihood` (eval/likelihood.py, choices by their probability; keys
`per_token` and `files: {items}`), `lm_eval` (eval/harness.py, tasks of lm-eval; keys `lm_eval`,
`metric`, `filter`, `num_fewshot` and `files: {data}`) and `probe` (eval/probe.py, hidden states;
keys `pooling`, `folds` and `files: {items}`).

A judged benchmark runs as two cells. `eval.generate` reads `questions` and writes the checkpoint's
answers as an Inspect log. `eval.judge` reads all files and scores that log:

    read -> task -> num_judge_calls -> (Inspect scores; has_grade for each reply of the judge)
         -> to_scores for each response -> official_score over all
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model
    from inspect_ai.scorer import Score

# Of scores.parquet: what each is stands in `eval.judge.scores_table`.
SCORE_COLUMNS = (
    "question",
    "scenario",
    "dimension",
    "epoch",
    "judge",
    "score",
    "missing",
    "response",
)


@dataclass
class QuestionSet:
    """The questions of a benchmark, as `Scorer.read` returns them.

    Attributes:
        questions: One row a question, in the file's order. Every row has `id` (str, unique),
            `question` (str) and `tags` (the dimensions it is graded on, besides "overall"; may be
            empty). Other columns are the scorer's own.
        dimensions: One row a dimension with its rubric; empty where a benchmark has none, or where
            the file was not given.
        scenarios: Question id -> id of the first question of the same scenario. Translations of
            one text are one scenario, which is the unit that the analysis resamples.
        repairs: How often `read` corrected or left out something, by kind.
    """

    questions: list[dict[str, Any]]
    dimensions: list[dict[str, Any]]
    scenarios: dict[str, str]
    repairs: dict[str, int] = field(default_factory=dict)


@runtime_checkable
class Scorer(Protocol):
    """A module of eval that grades one benchmark: `anima`, `moru`, `rubric` or `strong_reject`.

    Attributes:
        VARIANTS: Names that `variant` may have in the benchmark's file; empty where there are none.
        GRADE_FORMAT: What a reply of the judge must hold, for error messages.
    """

    VARIANTS: tuple[str, ...]
    GRADE_FORMAT: str

    def read(self, files: dict[str, Path]) -> QuestionSet:
        """Read and check the benchmark's files.

        Args:
            files: Paths by the names in the benchmark's `files`. The generate cell gives
                `questions` alone, since dimensions have no influence on the answers.

        Raises:
            UserError: One problem for each bad row, all at once.
        """
        ...

    def task(self, question_set: QuestionSet, temporary: Path, grader: "Model | None") -> "Task":
        """The official Inspect task over these questions: dataset, scorer and metrics.

        Args:
            question_set: What `read` returned. Sample ids are those of its questions, in order.
            temporary: An existing folder. Temporary files are made and removed below it.
            grader: The model that grades. None gives a task that is used for its dataset alone.
        """
        ...

    def num_judge_calls(self, question_set: QuestionSet) -> int:
        """How many grades the task's scorer asks the judge for in one epoch."""
        ...

    def has_grade(self, reply: str) -> bool:
        """Whether the task's scorer will find a grade in this reply of the judge.

        A reply without one is asked for again; it is never counted as a wrong answer.
        """
        ...

    def to_scores(self, score: "Score", variant: str | None = None) -> dict[str, float]:
        """The scores of one response by dimension, 0 to 1; NaN where there is no grade.

        The key "overall" and the question's tags are used; a key that is absent counts as NaN.

        Args:
            score: What the task's scorer returned for the response.
            variant: One of VARIANTS. None is the official score.
        """
        ...

    def missing_grades(self, score: "Score", tags: list[str]) -> int:
        """How many of the grades for one response the task's scorer could not use.

        Args:
            score: What the task's scorer returned for the response.
            tags: Those of its question.
        """
        ...

    def official_score(self, log: "EvalLog", variant: str | None = None) -> float | None:
        """The task's own metric on the scale 0 to 1, from the results of a scored log.

        The judge cell requires that it equals the mean over questions of the means over epochs of
        "overall". None where the official metric is another quantity: nothing is compared then.
        """
        ...
