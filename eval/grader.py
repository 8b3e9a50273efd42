"""The judge as an Inspect model. Its replies are kept in a ledger and asked for again where they
hold no grade."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from core.cell.context import StageContext, derive_seed
from core.endpoints.cell_client import open_client
from core.endpoints.client import LedgerClient
from core.endpoints.sender import RequestFailed
from core.errors import UserError
from eval.scorer import Scorer

if TYPE_CHECKING:
    from inspect_ai.model import Model


# Replies and failed calls, from the first on, after which a judge without one usable grade is taken
# to write another form than the scorer reads.
UNUSABLE_AT_FIRST = 20
RESPONSE: ContextVar[str] = ContextVar("response")  # the response being graded: question/epoch


class Grader:
    """Grades from one judge.

    A grade is identified by the judge, its settings, the prompt, the epoch and the repeat. A
    reply without a grade is asked for again, up to `max_attempts` calls in one run. A grade that
    is then still absent is missing, and so is one whose call failed for good. The model's thoughts
    are not graded, nor is a reply that was cut off. Where the first UNUSABLE_AT_FIRST replies are
    all unusable, no further one is asked for.

    Attributes:
        client: The calls to the judge and their ledger.
        counts: grades (given or missing), missing, unanswered (calls that failed for good).
        stopped: The error after which no further call is made, if there was one.
        last: The end of the last reply without a grade, or the last failure's text.
    """

    def __init__(
        self,
        context: StageContext,
        client: LedgerClient,
        scorer: Scorer,
        max_attempts: int,
        total: int,
        origin: tuple[str, ...] = (),
    ) -> None:
        self.client = client
        self.counts = Counter(grades=0, missing=0, unanswered=0)
        self.stopped: UserError | None = None
        self.last = ""
        self._context = context
        self._scorer = scorer
        self._max_attempts = max_attempts
        self._total = total
        self._unusable = 0  # replies and failed calls
        self._origin = origin
        self._has_graded = False

    async def grade(self, response: str, prompt: str) -> str:
        """The judge's reply to `prompt` about `response`, "" if there is none.

        Raises:
            UserError: The judge can't be used.
        """
        # The prompt holds the question and the answer. Only the epoch tells apart answers of the
        # same text, each of which has grades of its own.
        epoch = response.rpartition("/")[2]

        def request(attempt: int) -> tuple[str, int, str, str, int]:
            return (
                response,
                attempt,
                "grade",
                prompt,
                derive_seed("grade", epoch, attempt, *self._origin),
            )

        repeat = 0
        while (
            entry := await self.client.recorded(*request(repeat))
        ) and not self._scorer.has_grade(entry.answer):
            repeat += 1
        # A grade that a ledger holds is used even where no further call may be made.
        attempts = max(self._max_attempts, 1 if entry else 0)
        text = ""
        for attempt in range(repeat, repeat + attempts):
            if self.stopped:
                raise self.stopped
            try:
                reply = await self.client.complete(*request(attempt))
            except RequestFailed as error:
                self.counts["unanswered"] += 1
                self._is_unusable(str(error))
                break
            except UserError as error:
                self.stopped = error
                raise
            text = reply.answer
            if self._scorer.has_grade(text):
                self._has_graded = True
                break
            self._is_unusable(reply.excerpt)
        self.counts["grades"] += 1
        self.counts["missing"] += not self._scorer.has_grade(text)
        missing = f" ({self.counts['missing']:,} missing)" if self.counts["missing"] else ""
        self._context.progress(self.counts["grades"], self._total, f"grades{missing}")
        return text

    def _is_unusable(self, last: str) -> None:
        """Count a reply without a grade. Raises UserError where none at first has one."""
        self.last = last
        self._unusable += 1
        if not self._has_graded and self._unusable >= UNUSABLE_AT_FIRST:
            self.stopped = self.stopped or UserError(
                where=f"judge {self._context.settings['judge']['model']}",
                what=f"none of its first {UNUSABLE_AT_FIRST} replies holds a grade, which reads "
                f"{self._scorer.GRADE_FORMAT}; it last said {last}",
                fix="see that it can grade in that form and that judge_max_tokens is enough, "
                "or take another judge",
            )
            raise self.stopped

    def model(self, concurrency: int) -> "Model":
        """The judge as Inspect's scorers call it, with at most `concurrency` calls at a time."""
        from inspect_ai.model import (
            GenerateConfig,
            ModelAPI,
            ModelOutput,
            ModelUsage,
            get_model,
            modelapi,
        )

        grader = self

        @modelapi(name="judge")
        class Judge(ModelAPI):
            async def generate(
                self, input: Any, tools: Any, tool_choice: Any, config: Any
            ) -> ModelOutput:
                (message,) = input
                reply = await grader.grade(RESPONSE.get(), message.text)
                output = ModelOutput.from_content(self.model_name, reply)
                # The ledger has the usage; without one Inspect would count with a tokenizer.
                output.usage = ModelUsage()
                return output

        config = GenerateConfig(max_connections=concurrency)
        name = self._context.settings["judge"]["model"]
        return get_model(f"judge/{name}", config=config, memoize=False)


@contextmanager
def open_grader(
    context: StageContext, scorer: Scorer, total: int, origin: tuple[str, ...] = ()
) -> Iterator[Grader]:
    """The cell's judge for `total` grades; the seeds of its requests derive from `origin` too."""
    settings = context.settings
    sampling = {"temperature": settings["temperature"], "max_tokens": settings["max_tokens"]}
    with open_client(context, settings["judge"], sampling) as client:
        yield Grader(context, client, scorer, context.resources["asks"], total, origin)
