"""Write the documents of a corpus: call the writer, and call it again for each rejected document.

Every request follows from the settings alone: the prompt from the assigned slots, the seed from
the document and the attempt. The corpus is therefore the same whichever process makes a call and
in whichever order calls finish, and the ledgers of other cells can be used like the cell's own.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.cell.context import StageContext, derive_seed
from core.contamination import read_benchmark_texts
from core.endpoints.cell_client import open_client
from core.endpoints.client import LedgerClient, gather_limited
from core.endpoints.ledger import LedgerEntry
from core.errors import UserError
from sdf.gates import GateRules, Rejection, first_failed_gate, parse_gates, quoted_benchmark
from sdf.settings import CorpusSettings, Template, WriterSettings
from sdf.slots import render_prompts
from sdf.text_checks import unify_line_ends

SCORE = re.compile(r"score\W{0,3}:\W{0,3}(10|[1-9])(?!\d|\.\d)", re.IGNORECASE)
# Documents without an acceptable attempt, at which the cell stops: the cause is then likely common
# to all documents, and every call costs money.
MAX_GIVEN_UP = 5


@dataclass(frozen=True)
class WrittenDocument:
    """A document that passed the gates."""

    text: str
    forms: dict[str, str]  # form of the question -> question, if the text is an answer

    @property
    def full_text(self) -> str:
        """The questions and the text."""
        return "\n".join([*self.forms.values(), self.text])


class CorpusWriter:
    """Writes documents until they pass the gates of one document.

    Attributes:
        accepted: document number -> the document that passed.
        rejections: gate -> number of attempts that failed it.
        rows: the slots of each document.
        client: the calls to the writer, and their ledger.
    """

    def __init__(
        self,
        settings: CorpusSettings,
        writer: WriterSettings,
        rules: GateRules,
        client: LedgerClient,
    ) -> None:
        self.settings = settings
        self.writer = writer
        self.template = writer.template
        self.rules = rules
        self.client = client
        self.rows = settings.slot_rows()
        self.first_role = "asker" if "forms" in self.template else "prompt"
        self.prompts = render_prompts(self.template, writer.slots, self.rows, self.first_role)
        self.accepted: dict[int, WrittenDocument] = {}
        self.rejections: Counter[str] = Counter()
        self._next_attempt: Counter[int] = Counter()
        self._given_up: Counter[Rejection] = Counter()

    async def write(self, i: int) -> None:
        """Write document `i`: go on with its next attempt until one passes the gates.

        A document whose attempts are used up counts as given up.

        Raises:
            UserError: MAX_GIVEN_UP documents were given up, or the endpoint fails.
        """
        # A document that was accepted before is written again only if it repeats another one.
        rejection = Rejection("duplicate", "repeats another document")
        while self._next_attempt[i] < self.writer.max_attempts:
            attempt = self._next_attempt[i]
            self._next_attempt[i] += 1
            result = await self._write_attempt(i, attempt)
            if isinstance(result, WrittenDocument):
                self.accepted[i] = result
                return
            rejection = result
            self.rejections[rejection.gate] += 1
        self._given_up[rejection] += 1
        if self._given_up.total() >= MAX_GIVEN_UP:
            self.check_given_up()

    def check_given_up(self) -> None:
        """Raise UserError if a document was given up."""
        if not self._given_up:
            return
        reasons = ", ".join(f"{n} x {rejection}" for rejection, n in sorted(self._given_up.items()))
        raise UserError(
            where=str(self.client.ledger),
            what=f"{self._given_up.total()} documents rejected in each of "
            f"{self.writer.max_attempts} attempts ({reasons})",
            fix="change the template, max_tokens or the writer, or raise max_attempts "
            "(finished calls are used again)",
        )

    async def _write_attempt(self, i: int, attempt: int) -> WrittenDocument | Rejection:
        entry = await self._complete(i, attempt, self.first_role, self.prompts[i])
        forms: dict[str, str] = {}
        if "forms" in self.template:
            questions = self._parse_questions(entry)
            if isinstance(questions, Rejection):
                return questions
            forms = questions
            row = self.rows[i] | {"question": forms[self.template["forms"][0]]}
            (prompt,) = render_prompts(self.template, self.writer.slots, [row], "answerer")
            entry = await self._complete(i, attempt, "answerer", prompt)
        text = unify_line_ends(entry.text.strip())
        rejection = first_failed_gate(text, entry.finish_reason, self.rules)
        if rejection is None:
            rejection = await self._failed_score(i, attempt, text)
        return rejection or WrittenDocument(text, forms)

    def _parse_questions(self, entry: LedgerEntry) -> dict[str, str] | Rejection:
        """The forms of the question in the asker's reply."""
        match = re.fullmatch(self.template["reply"], entry.text.strip())
        if not match or entry.finish_reason != "stop":
            return Rejection("truncated", "no question in all its forms")
        forms = {form: match[form] for form in self.template["forms"]}
        return quoted_benchmark("\n".join(forms.values()), self.rules) or forms

    async def _failed_score(self, i: int, attempt: int, text: str) -> Rejection | None:
        if self.writer.score is None:
            return None
        prompt = self.writer.score.prompt.replace("{document}", text)
        for role in ("score", "score again"):
            entry = await self._complete(i, attempt, role, prompt)
            if match := SCORE.search(entry.text):
                passed = int(match[1]) >= self.writer.score.min_score
                return None if passed else Rejection("score", match[1])
        return Rejection("unscored", repr(entry.text[-60:]))

    async def _complete(self, i: int, attempt: int, role: str, prompt: str) -> LedgerEntry:
        seed = derive_seed(self.settings.seed, i, attempt, role)
        return await self.client.complete(i, attempt, role, prompt, seed)


@contextmanager
def open_corpus_writer(context: StageContext, settings: CorpusSettings) -> Iterator[CorpusWriter]:
    """Open the writer of a cell's documents.

    Its calls are answered from the ledgers of the runs folder, and only then by the endpoint.
    """
    assert settings.writer, "an existing corpus has no writer"
    writer = settings.writer
    rules = load_rules(context, settings.template)
    with open_client(context, writer.endpoint, writer.sampling) as client:
        yield CorpusWriter(settings, writer, rules, client)


def write_documents(context: StageContext, writer: CorpusWriter, ids: Sequence[int]) -> None:
    """Write the documents `ids` until each passes the gates of one document.

    Raises:
        UserError: the endpoint fails for good, or documents stay rejected. Finished calls are in
            the ledger even then.
    """

    async def write(i: int) -> None:
        await writer.write(i)
        context.progress(len(writer.accepted), len(ids), "documents")

    async def write_all() -> None:
        async with writer.client:
            await gather_limited(ids, write, context.resources["concurrency"])

    asyncio.run(write_all())
    writer.check_given_up()


def load_rules(context: StageContext, template: Template) -> GateRules:
    """The gates of a template, with the texts of the benchmarks that no document may quote."""
    benchmark_texts = [
        text
        for key in context.settings["decontaminate_against"]
        for text in read_benchmark_texts(Path(context.resources["files"][key]))
    ]
    where = f"sdf/templates/{template.get('name')}.yaml, gates"
    return parse_gates(template.get("gates") or {}, benchmark_texts, where)


def manifest_counts(writer: CorpusWriter) -> dict[str, Any]:
    """Calls, tokens, cost and rejections so far: the same for any number of shards.

    Only PAID depends on which calls other cells had made.
    """
    calls = writer.client.counts
    counts: dict[str, Any] = {
        name: calls[name] for name in ("calls", "prompt_tokens", "completion_tokens")
    }
    if calls["calls_estimated"]:
        counts["calls_estimated"] = calls["calls_estimated"]
    counts["cost"] = round(writer.client.cost, 6)
    return counts | writer.client.paid | rejection_counts(writer.rejections)


def rejection_counts(rejections: Counter[str]) -> dict[str, int]:
    """Rejected attempts in total and by gate."""
    by_gate = {f"rejected_{gate}": n for gate, n in sorted(rejections.items()) if n}
    return {"rejected": rejections.total(), **by_gate}
