"""Settings of the stages `drafts` and `documents`, as typed objects.

The keys are those of a cell's config.yaml. A cell holds the settings of a corpus in the study file
(`Corpus` in study/spec/schema.py), and the content of the template and of slots.yaml.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.cell.context import StageContext
from core.files import read_text
from sdf.slots import SlotRow, assign_slots

Template = Mapping[str, Any]  # the content of a file of sdf/templates
ORIGINAL = "original"  # the form of an existing corpus' questions


@dataclass(frozen=True)
class ScoreGate:
    """The gate `score`: the writer's endpoint grades each document from 1 to 10."""

    min_score: int
    prompt: str  # with {document}


@dataclass(frozen=True)
class WriterSettings:
    """How documents are written: the prompts, the endpoint and the sampling."""

    endpoint: dict[str, Any]  # model, served_by: how to reach the writer
    sampling: dict[str, Any]  # temperature, max_tokens (tokens of one response)
    max_attempts: int  # for each document
    template: Template
    slots: Mapping[str, Any]  # the content of sdf/templates/slots.yaml
    score: ScoreGate | None


@dataclass(frozen=True)
class SourceSettings:
    """Where an existing corpus is read from: a local file, or a dataset of the Hugging Face Hub."""

    column: str  # that holds the text; of questions and answers, the answer
    split: str
    hub: str | None = None
    revision: str | None = None
    question: str | None = None  # column that holds the question
    messages: str | None = None  # column that holds a conversation, in place of `column`
    file: str | None = None  # of a data set of the Hub, in place of the split
    filter: Mapping[str, str] = field(default_factory=dict)  # texts that columns must have
    report_gates: bool = False  # texts that fail a gate are counted, and stay

    @property
    def forms(self) -> list[str]:
        """Forms of the question that it has: as it is in the source, or none."""
        return [ORIGINAL] if self.question or self.messages else []


@dataclass(frozen=True)
class CorpusSettings:
    """One corpus. Exactly one of `writer` and `source` is given."""

    documents: int
    seed: int
    dedup_threshold: float  # cosine similarity of shingles; 0: duplicates are not removed
    template: Template  # of an existing corpus, only its gates are used; may be empty
    writer: WriterSettings | None
    source: SourceSettings | None
    held_out: float  # share of the documents that is never trained on
    exclude: frozenset[int]  # ids of documents that are dropped
    tokens: int | None  # cut to this number; None: as written, or as the matched corpus has
    tolerance: float  # largest shortfall of tokens, as a share of the target
    preview: int | None  # write only this number of documents
    shard: tuple[int, int] | None  # index and number of shards, of a `drafts` cell

    @classmethod
    def of_cell(cls, context: StageContext) -> "CorpusSettings":
        """The settings of a cell. A prompt in a file of the user's is read."""
        settings = context.settings
        template = settings.get("template") or {}
        if prompt_file := context.resources["files"].get("prompt"):
            template = {**template, "prompt": read_text(Path(prompt_file))}
        source = settings.get("source")
        shard = settings.get("share")
        return cls(
            documents=settings["documents"],
            seed=settings["seed"],
            dedup_threshold=settings["dedup_threshold"],
            template=template,
            writer=_parse_writer(settings, template) if "writer" in settings else None,
            source=_parse_source(source) if source else None,
            held_out=settings.get("held_out", 0.0),
            exclude=frozenset(settings.get("exclude", ())),
            tokens=settings.get("tokens"),
            tolerance=settings.get("tolerance", 0.0),
            preview=settings.get("preview"),
            shard=(shard[0], shard[1]) if shard else None,
        )

    def slot_rows(self) -> list[SlotRow]:
        """The slots of each document; empty rows for an existing corpus, which has none."""
        if self.writer is None:
            return [{}] * self.documents
        return assign_slots(
            self.writer.slots, self.documents, self.seed, self.template.get("slots")
        )


def _parse_writer(settings: Mapping[str, Any], template: Template) -> WriterSettings:
    score = settings.get("quality_filter")
    return WriterSettings(
        endpoint=settings["writer"],
        sampling={key: settings[key] for key in ("temperature", "max_tokens")},
        max_attempts=settings["max_attempts"],
        template=template,
        slots=settings["slots"],
        score=ScoreGate(score["min_score"], score["prompt"]) if score else None,
    )


def _parse_source(source: Mapping[str, Any]) -> SourceSettings:
    return SourceSettings(
        column=source["column"],
        split=source["split"],
        hub=source.get("hub"),
        revision=source.get("revision"),
        question=source.get("question"),
        messages=source.get("messages"),
        file=source.get("file"),
        filter=source.get("filter", {}),
        report_gates=source.get("gates") == "report",
    )
