"""Write the documents of a corpus that pass the gates: calls to the writer, and further draws for what is rejected.

Whatever is asked follows from the settings alone: prompts by the deal of slots, seeds by document and draw. So the same
calls make the same corpus whoever made them, in whichever order: other jobs' ledgers are as good as one's own.
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
from core.contamination import overlap, read
from core.endpoints.client import LedgerClient, gather_limited, open_client
from core.endpoints.ledger import LedgerEntry
from core.errors import UserError
from sdf.gates import Rules, gate, rejected, rules
from sdf.slots import Row, deal, prompts

SCORE = re.compile(r"score\W{0,3}:\W{0,3}(10|[1-9])(?!\d|\.\d)", re.IGNORECASE)
GIVE_UP_AFTER = 5  # documents without an acceptable draw: the cause is then likely common, and each call costs


@dataclass(frozen=True)
class Draft:
    """An accepted document. `forms` are the question's, by name, where the text is an answer."""

    text: str
    forms: dict[str, str]

    @property
    def whole(self) -> str:
        """Everything in it that was written."""
        return "\n".join([*self.forms.values(), self.text])


class Drafting:
    """The accepted documents so far (`found`, by number) and what was rejected (`rejections`, by gate)."""

    def __init__(self, work: StageContext, caller: LedgerClient) -> None:
        settings = work.settings
        self.settings, self.template = settings, settings["template"]
        self.rows: list[Row] = deal(
            settings["slots"], settings["documents"], settings["seed"], self.template.get("slots")
        )
        self.asker = "asker" if "forms" in self.template else "prompt"
        self.prompts = prompts(self.template, settings["slots"], self.rows, self.asker)
        self.rules = rules_of(work)
        self.found: dict[int, Draft] = {}
        self.rejections: Counter[str] = Counter()
        self.next_draw: Counter[int] = Counter()
        self.given_up: Counter[str] = Counter()
        self.caller = caller

    async def next(self, i: int) -> None:
        """Document i by its next draw that passes the gates of one document; counts it as given up without one."""
        reason = "repeats another document"  # what a document with no draw left was last rejected for
        while (draw := self.next_draw[i]) < self.settings["draws"]:
            self.next_draw[i] += 1
            drawn = await self._draw(i, draw)
            if isinstance(drawn, Draft):
                self.found[i] = drawn
                return
            reason = drawn
            self.rejections[gate(reason)] += 1
        self.given_up[reason] += 1
        if self.given_up.total() >= GIVE_UP_AFTER:
            self.check()

    def check(self) -> None:
        """Raises UserError when documents were given up."""
        if not self.given_up:
            return
        why = ", ".join(f"{count} x {reason}" for reason, count in sorted(self.given_up.items()))
        raise UserError(
            f"{self.given_up.total()} documents rejected in each of {self.settings['draws']} draws ({why}); "
            f"{self.caller.ledger}; mend the template, max_tokens or the writer, or allow more draws "
            "(what was written is used again)"
        )

    async def _draw(self, i: int, draw: int) -> Draft | str:
        """A draft, or the reason why it won't do."""
        answer, forms = await self._ask(i, draw, self.asker, self.prompts[i]), {}
        if "forms" in self.template:
            asked = re.fullmatch(self.template["reply"], answer.text.strip())
            if not asked or answer.finish_reason != "stop":
                return "truncated: no question in all its forms"
            forms = {name: asked[name] for name in self.template["forms"]}
            if self.rules.benchmarks and (piece := overlap("\n".join(forms.values()), self.rules.benchmarks)):
                return f"overlap: {piece!r}"
            row = self.rows[i] | {"question": forms[self.template["forms"][0]]}
            (prompt,) = prompts(self.template, self.settings["slots"], [row], "answerer")
            answer = await self._ask(i, draw, "answerer", prompt)
        text = answer.text.strip()
        return (
            rejected(text, answer.finish_reason, self.rules) or await self._graded(i, draw, text) or Draft(text, forms)
        )

    async def _graded(self, i: int, draw: int, text: str) -> str | None:
        """None, or the reason why the grade of a text won't do."""
        if "score" not in self.settings:
            return None
        prompt = self.settings["score"]["prompt"].replace("{document}", text)
        for role in ("score", "score again"):
            answer = await self._ask(i, draw, role, prompt)
            if found := SCORE.search(answer.text):
                return None if int(found[1]) >= self.settings["score"]["at_least"] else f"score: {found[1]}"
        return f"unscored: {answer.text[-60:]!r}"

    async def _ask(self, i: int, draw: int, role: str, prompt: str) -> LedgerEntry:
        seed = derive_seed(self.settings["seed"], self.template["name"], i, draw, role)
        return await self.caller.complete(i, draw, role, prompt, seed)


@contextmanager
def open_drafting(work: StageContext) -> Iterator[Drafting]:
    """The drafting of a cell's documents, from its ledger, those of the same corpus' other cells, and its writer."""
    sampling = {key: work.settings[key] for key in ("temperature", "max_tokens")}
    with open_client(work, work.settings["writer"], sampling, other_ledgers(work.folder)) as caller:
        yield Drafting(work, caller)


def draft(work: StageContext, drafting: Drafting, ids: Sequence[int]) -> None:
    """Draw each of the documents `ids` until it passes the gates of one document, as often as the settings allow.

    Raises UserError when the endpoint fails for good or documents stay rejected; finished calls are kept even then.
    """

    async def one(i: int) -> None:
        await drafting.next(i)
        work.progress(len(drafting.found), len(ids), "documents")

    async def all_of_them() -> None:
        async with drafting.caller:
            await gather_limited(ids, one, work.resources["concurrency"])

    asyncio.run(all_of_them())
    drafting.check()


def rules_of(work: StageContext) -> Rules:
    """The template's gates, and the texts of the benchmarks that no document may quote."""
    template = work.settings.get("template") or {}
    where = f"sdf/templates/{template.get('name')}.yaml, gates"
    texts = [text for path in work.resources["avoid"] for text in read(Path(path))]
    return rules(template.get("gates") or {}, texts, where)


def corpus_name(cell: Path) -> str:
    """The corpus that a cell's folder belongs to: animal-0123abcd and animal.3of8-4567cdef to animal."""
    return cell.name.rpartition("-")[0].partition(".")[0]


def other_ledgers(folder: Path) -> list[Path]:
    """Ledgers of the same corpus in the study's other cells: its shards, and itself under settings of before."""
    cells = [cell for stage in ("drafts", "documents") for cell in sorted((folder.parents[1] / stage).glob("*"))]
    return [cell / "calls.jsonl" for cell in cells if cell != folder and corpus_name(cell) == corpus_name(folder)]


def counts(drafting: Drafting) -> dict[str, Any]:
    """What writing took so far, the same however many jobs shared it."""
    caller = drafting.caller
    estimated = caller.counts["calls_estimated"]
    return {
        **{name: caller.counts[name] for name in ("calls", "prompt_tokens", "completion_tokens")},
        **({"calls_estimated": estimated} if estimated else {}),
        "cost": round(caller.cost, 6),
        **tally(drafting.rejections),
    }


def tally(rejections: Counter[str]) -> dict[str, int]:
    """What was rejected, in all and by gate, as counts of a cell."""
    by_gate = {f"rejected_{name}": count for name, count in sorted(rejections.items()) if count}
    return {"rejected": rejections.total(), **by_gate}
