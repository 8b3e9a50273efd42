"""Write the documents of a corpus: call the writer, and call it again for each rejected document.

Every request follows from the settings alone: the prompt from the assigned slots, the seed from
the document and the attempt. The corpus is therefore the same whichever process makes a call and
in whichever order calls finish, and the ledgers of other cells can be used like the cell's own.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.cell.context import StageContext, derive_seed
from core.contamination import read_benchmark_texts
from core.endpoints.cell_client import open_client
from core.endpoints.client import LedgerClient, gather_limited
from core.endpoints.ledger import LedgerEntry
from core.endpoints.sender import RequestFailed
from core.endpoints.thoughts import without_thoughts
from core.errors import UserError
from sdf.gates import GateRules, Rejection, failed_question, first_failed_gate, parse_gates
from sdf.settings import CorpusSettings, Template, WriterSettings
from sdf.slots import render_prompts
from sdf.text_checks import unify_line_ends

# The last one counts, whatever it holds: a number from 1 to 10, or one of another scale.
SCORE = re.compile(
    r"(?<!\w)score\W{0,3}:\W{0,3}(?:(\d+(?:\.\d+)?)(?:\s*/\s*(\d+))?)?", re.IGNORECASE
)
# Documents without an acceptable attempt, at which the cell stops: the cause is then likely common
# to all documents, and every call costs money.
MAX_GIVEN_UP = 5
# Drafts, from the first on, after which a corpus ends whose drafts all fail the same gate.
FIRST_DRAFTS = 10
# A document whose prompt the endpoint never answers is left out: after so many requests that failed
# for good, or after all attempts where the endpoint withheld the answers.
FAILED_DRAFTS = 3
NO_ANSWER_GATES = ("failed", "withheld")
DETAIL_CHARACTERS = 200  # of a provider's words, in messages
LISTED = 10  # numbers of documents, in messages
# Share of a corpus' documents that may be left out so; one document always may.
MAX_LEFT_OUT = 0.05


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
        left_out: document number -> why the endpoint never answered its prompt.
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
        self.left_out: dict[int, Rejection] = {}
        self._given_up: dict[int, Rejection] = {}
        self._ended: UserError | None = None
        self._last_draft = ""  # the end of the last reply
        self._first_gates: list[str | None] = []  # that the first drafts failed; None: accepted

    async def write(self, i: int) -> None:
        """Write document `i`: go on with its next attempt until one passes the gates.

        A document whose attempts are used up counts as given up, or is left out where the endpoint
        answered none of them.

        Raises:
            UserError: MAX_GIVEN_UP documents were given up, too many are left out, the first drafts
                all failed the same gate, or the endpoint fails.
        """
        # A document that was accepted before is written again only if it repeats another one.
        rejection = Rejection("duplicate", "repeats another document")
        gates: list[str] = []
        while (
            gates != ["failed"] * FAILED_DRAFTS and self._next_attempt[i] < self.writer.max_attempts
        ):
            if self._ended:
                raise self._ended  # another document's draft ended the corpus
            attempt = self._next_attempt[i]
            self._next_attempt[i] += 1
            result = await self._write_attempt(i, attempt)
            if isinstance(result, WrittenDocument):
                self._first_gates.append(None)
                self.accepted[i] = result
                return
            rejection = result
            gates.append(rejection.gate)
            self.rejections[rejection.gate] += 1
            self._first_gates.append(rejection.gate)
            self._check_first_drafts(rejection)
        if gates and set(gates) <= {*NO_ANSWER_GATES}:
            self.left_out[i] = rejection
            self._check_left_out()
            return
        self._given_up[i] = rejection
        if len(self._given_up) >= MAX_GIVEN_UP:
            self.check_given_up()

    def _check_first_drafts(self, rejection: Rejection) -> None:
        """Raise UserError if the first drafts all failed the gate that the last one failed."""
        if self._first_gates != [rejection.gate] * FIRST_DRAFTS:
            return
        self._ended = UserError(
            where=str(self.client.ledger),
            what=f"the first {FIRST_DRAFTS} drafts all fail the gate {rejection.gate}, the last "
            f"one by {rejection.detail[:DETAIL_CHARACTERS]}; it ends in {self._last_draft}",
            fix="change the template, max_tokens, the endpoint's `request` or the writer "
            "(finished calls are used again)",
        )
        raise self._ended

    def _check_left_out(self) -> None:
        """Raise UserError if more documents are left out than may be."""
        if len(self.left_out) <= max(1, int(MAX_LEFT_OUT * self.settings.documents)):
            return
        self._ended = UserError(
            where=str(self.client.ledger),
            what=f"the endpoint never answers the prompts of {len(self.left_out)} documents, more "
            f"than {MAX_LEFT_OUT:.0%} ({_by_reason(self.left_out)})",
            fix="change the template or the writer (finished calls are used again)",
        )
        raise self._ended

    def check_given_up(self) -> None:
        """Raise UserError if a document was given up."""
        if not self._given_up:
            return
        self._ended = UserError(
            where=str(self.client.ledger),
            what=f"{len(self._given_up)} documents rejected in each of "
            f"{self.writer.max_attempts} attempts ({_by_reason(self._given_up)})",
            fix="change the template, max_tokens or the writer, or raise max_attempts "
            "(finished calls are used again)",
        )
        raise self._ended

    async def _write_attempt(self, i: int, attempt: int) -> WrittenDocument | Rejection:
        try:
            return await self._draft(i, attempt)
        except RequestFailed as error:
            return Rejection("failed", error.problems[0].what[:DETAIL_CHARACTERS])

    async def _draft(self, i: int, attempt: int) -> WrittenDocument | Rejection:
        entry = await self._complete(i, attempt, self.first_role, self.prompts[i])
        if entry.no_answer:
            return Rejection("withheld", entry.no_answer[:DETAIL_CHARACTERS])
        forms: dict[str, str] = {}
        if "forms" in self.template:
            questions = self._parse_questions(entry)
            if isinstance(questions, Rejection):
                return questions
            forms = questions
            row = self.rows[i] | {"question": forms[self.template["forms"][0]]}
            (prompt,) = render_prompts(self.template, self.writer.slots, [row], "answerer")
            entry = await self._complete(i, attempt, "answerer", prompt)
            if entry.no_answer:
                return Rejection("withheld", entry.no_answer[:DETAIL_CHARACTERS])
        text = unify_line_ends(without_thoughts(entry.text))
        finish_reason = "stop" if entry.finished else entry.finish_reason
        rejection = first_failed_gate(text, finish_reason, self.rules)
        if rejection is None:
            rejection = await self._failed_score(i, attempt, text)
        return rejection or WrittenDocument(text, forms)

    def _parse_questions(self, entry: LedgerEntry) -> dict[str, str] | Rejection:
        """The forms of the question in the asker's reply."""
        match = re.fullmatch(self.template["reply"], entry.answer)
        if not match:
            return Rejection("truncated", "no question in all its forms")
        forms = {form: match[form] for form in self.template["forms"]}
        return failed_question("\n".join(forms.values()), self.rules) or forms

    async def _failed_score(self, i: int, attempt: int, text: str) -> Rejection | None:
        if self.writer.score is None:
            return None
        prompt = self.writer.score.prompt.replace("{document}", text)
        for role in ("score", "score again"):
            entry = await self._complete(i, attempt, role, prompt)
            if (score := _score(entry.answer)) is not None:
                passed = score >= self.writer.score.min_score
                return None if passed else Rejection("score", str(score))
        return Rejection("unscored", repr(entry.text[-60:]))

    async def _complete(self, i: int, attempt: int, role: str, prompt: str) -> LedgerEntry:
        seed = derive_seed(self.settings.seed, i, attempt, role)
        entry = await self.client.complete(i, attempt, role, prompt, seed)
        self._last_draft = entry.excerpt
        return entry


def _by_reason(documents: Mapping[int, Rejection]) -> str:
    """How many documents have which reason, and their numbers."""
    reasons: dict[Rejection, list[int]] = {}
    for number, rejection in sorted(documents.items()):
        reasons.setdefault(rejection, []).append(number)
    return ", ".join(
        f"{len(numbers)} x {rejection} (document {', '.join(map(str, numbers[:LISTED]))})"
        for rejection, numbers in sorted(reasons.items())
    )


def _score(answer: str) -> int | None:
    """The last score in a reply, 1 to 10."""
    scores = SCORE.findall(answer)
    number, scale = scores[-1] if scores else ("", "")
    is_valid = number in map(str, range(1, 11)) and scale in ("", "10")
    return int(number) if is_valid else None


@contextmanager
def open_corpus_writer(context: StageContext, settings: CorpusSettings) -> Iterator[CorpusWriter]:
    """Open the writer of a cell's documents.

    Its calls are answered from the ledgers of the runs folder, and only then by the endpoint.
    """
    assert settings.writer, "an existing corpus has no writer"
    writer = settings.writer
    rules = load_rules(context, settings.template)
    with open_client(context, writer.endpoint, writer.sampling) as client:
        corpus_writer = CorpusWriter(settings, writer, rules, client)
        yield corpus_writer
        if left_out := corpus_writer.left_out:
            context.facts["left_out"] = {str(i): str(left_out[i]) for i in sorted(left_out)}
            context.warn(
                f"{len(left_out)} documents are left out, since the endpoint never answered their "
                f"prompts ({_by_reason(left_out)})"
            )


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
    if writer.left_out:
        counts["left_out"] = len(writer.left_out)
    return counts | writer.client.paid | rejection_counts(writer.rejections)


def rejection_counts(rejections: Counter[str]) -> dict[str, int]:
    """Rejected attempts in total and by gate."""
    by_gate = {f"rejected_{gate}": n for gate, n in sorted(rejections.items()) if n}
    return {"rejected": rejections.total(), **by_gate}
