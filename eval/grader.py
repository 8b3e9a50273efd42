"""The judge: an Inspect model whose replies are kept in a ledger, paid once, and asked for again where unusable."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cell.context import StageContext, derive_seed
from core.endpoints.client import LedgerClient, RequestFailed, open_client
from core.errors import UserError

if TYPE_CHECKING:
    from inspect_ai.model import Model


RESPONSE: ContextVar[str] = ContextVar("response")  # the one that is being graded: question/epoch


class Grader:
    """Grades from one judge. A grade is known by the judge, its settings, the prompt, the response and the repeat.

    `usable` says whether a reply holds a grade. An unusable reply is asked for again, `asks` times in one run; what is
    then without a grade is missing, and so is one whose call the endpoint refuses. `counts`: grades (given or missing),
    missing, unanswered (calls that failed for good).
    """

    def __init__(
        self, work: StageContext, caller: LedgerClient, usable: Callable[[str], bool], asks: int, total: int
    ) -> None:
        self.caller = caller
        self.counts = Counter(grades=0, missing=0, unanswered=0)
        self.stopped: UserError | None = None
        self.last = ""
        self._work, self._usable, self._asks, self._total = work, usable, asks, total

    async def grade(self, response: str, prompt: str) -> str:
        """The judge's reply to `prompt` about `response`, "" if there is none."""
        repeat = 0
        while (known := self.caller.recorded(prompt, derive_seed(response, repeat))) and not self._usable(known.text):
            repeat += 1
        text = ""
        for draw in range(repeat, repeat + max(self._asks, 1 if known else 0)):
            try:
                answer = await self.caller.complete(response, draw, "grade", prompt, derive_seed(response, draw))
            except RequestFailed as error:
                self.counts["unanswered"] += 1
                self.last = str(error)
                break
            except UserError as error:
                self.stopped = error
                raise
            text = answer.text
            if self._usable(text):
                break
            self.last = text
        self.counts["grades"] += 1
        self.counts["missing"] += not self._usable(text)
        lost = f" ({self.counts['missing']:,} missing)" if self.counts["missing"] else ""
        self._work.progress(self.counts["grades"], self._total, f"grades{lost}")
        return text

    def model(self, concurrency: int) -> "Model":
        """The judge as Inspect's scorers call it, `concurrency` calls at a time."""
        from inspect_ai.model import GenerateConfig, ModelAPI, ModelOutput, ModelUsage, get_model, modelapi

        grader = self

        @modelapi(name="judge")
        class Judge(ModelAPI):
            async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> ModelOutput:
                (message,) = input
                output = ModelOutput.from_content(self.model_name, await grader.grade(RESPONSE.get(), message.text))
                output.usage = ModelUsage()  # the ledger has it; without one Inspect would count by a tokenizer
                return output

        config = GenerateConfig(max_connections=concurrency)
        return get_model(f"judge/{self._work.settings['judge']['model']}", config=config, memoize=False)


@contextmanager
def open_grader(work: StageContext, usable: Callable[[str], bool], total: int) -> Iterator[Grader]:
    """The cell's judge for `total` grades, with what other cells of the study were told of the same samples."""
    settings = work.settings
    sampling = {"temperature": settings["temperature"], "max_tokens": settings["max_tokens"]}
    with open_client(work, settings["judge"], sampling, other_ledgers(work)) as caller:
        yield Grader(work, caller, usable, work.resources["asks"], total)


def other_ledgers(work: StageContext) -> list[Path]:
    """Ledgers of the study's other judge cells over the same samples: another rubric, judge or tolerance."""
    samples = work.inputs["samples"].name
    cells = [cell for cell in sorted(work.folder.parent.iterdir()) if cell != work.folder]
    return [
        cell / "calls.jsonl"
        for cell in cells
        if (cell / "calls.jsonl").exists() and samples in (cell / "config.yaml").read_text(encoding="utf-8")
    ]
