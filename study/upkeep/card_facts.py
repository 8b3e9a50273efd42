"""What cards take from the study file besides manifests: names, siblings, overlaps, terms."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.stages import CHECKPOINT_STAGES
from study.spec import benchmarks
from study.spec.expansion import Expansion
from study.spec.fingerprints import endpoint_model
from study.spec.schema import Study

CARDED = ("documents", *CHECKPOINT_STAGES)
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Sibling:
    """A checkpoint of an arm at a dose: those that differ in the training seed alone."""

    arm: str
    dose: int
    seed: int
    identity: str
    is_finished: bool


@dataclass(frozen=True)
class Overlap:
    """How much of a benchmark's text is in a corpus."""

    benchmark: str
    counts: Mapping[str, Any] | None
    """Of the cell that has looked: documents, documents_hit, hits. None: it is not finished."""


@dataclass(frozen=True)
class HubTask:
    """A benchmark's data set on the Hub, and what its eval.yaml calls the task."""

    dataset: str
    revision: str | None
    task: str
    notes: str


@dataclass(frozen=True)
class StudyFacts:
    """The study file's part of the cards.

    Attributes:
        study: Its name.
        names: Identity -> the cell's name in the study file: cells keep that of their making.
        siblings: Identity of a checkpoint -> all seeds of its arm at its dose, in the file's order.
        overlaps: Identity of a corpus -> the benchmarks whose texts were looked for.
        terms: Model of a writer -> the terms of use that the study file states.
        hub_tasks: Benchmark -> its task on the Hub, where the study file names one.
        repositories: Identity -> the name of its repository, with the namespace if there is one.
    """

    study: str
    names: Mapping[str, str] = field(default_factory=dict)
    siblings: Mapping[str, tuple[Sibling, ...]] = field(default_factory=dict)
    overlaps: Mapping[str, tuple[Overlap, ...]] = field(default_factory=dict)
    terms: Mapping[str, str] = field(default_factory=dict)
    hub_tasks: Mapping[str, HubTask] = field(default_factory=dict)
    repositories: Mapping[str, str] = field(default_factory=dict)

    def link(self, identity: str, name: str, kind: str = "model") -> str:
        """`name` as a link to the cell's repository; as it is where that has no namespace."""
        repository = self.repositories.get(identity, "")
        if "/" not in repository:
            return f"`{name}`"
        prefix = "datasets/" if kind == "dataset" else ""
        return f"[`{name}`]({HUB}/{prefix}{repository})"


def facts_of(
    study: Study, base: Path, cells: Iterable[Cell], repositories: Mapping[str, str]
) -> StudyFacts:
    """The facts of a study. `base`: its folder. `cells`: all of it."""
    cells = list(cells)
    return StudyFacts(
        study.study,
        {cell.identity: cell.name for cell in cells},
        _siblings(study, base),
        _overlaps(study, base, cells),
        {
            endpoint_model(endpoint)["model"]: endpoint.terms
            for endpoint in study.endpoints.values()
            if endpoint.terms
        },
        _hub_tasks(study),
        repositories,
    )


def _siblings(study: Study, base: Path) -> dict[str, tuple[Sibling, ...]]:
    rows: dict[tuple[str, int], list[Sibling]] = {}
    for row in Expansion(study, base).checkpoints():
        if row.seed is not None and row.cell.stage in CHECKPOINT_STAGES:
            is_finished = read_manifest(base / row.cell.relpath) is not None
            sibling = Sibling(row.arm, row.dose, row.seed, row.cell.identity, is_finished)
            rows.setdefault((row.arm, row.dose), []).append(sibling)
    siblings: dict[str, tuple[Sibling, ...]] = {}
    for group in rows.values():
        ordered = tuple(sorted(group, key=lambda sibling: study.seeds.index(sibling.seed)))
        for sibling in ordered:
            siblings.setdefault(sibling.identity, ordered)  # of arms that share it, the first
    return siblings


def _overlaps(study: Study, base: Path, cells: Iterable[Cell]) -> dict[str, tuple[Overlap, ...]]:
    cells = list(cells)
    planned = {cell.identity: cell for cell in cells if cell.stage == "contamination"}
    overlaps: dict[str, tuple[Overlap, ...]] = {}
    for corpus in cells:
        if corpus.stage != "documents":
            continue
        rows = []
        for name in sorted(study.benchmarks):
            identity = benchmarks.contamination(study, name, corpus).identity
            if cell := planned.get(identity):
                manifest = read_manifest(base / cell.relpath)
                rows.append(Overlap(name, manifest and manifest["counts"]))
        overlaps[corpus.identity] = tuple(rows)
    return overlaps


def _hub_tasks(study: Study) -> dict[str, HubTask]:
    tasks = {}
    for name, bench in study.benchmarks.items():
        pins = [source for source in benchmarks.sources(bench).values() if source.get("hub")]
        if bench.hub_task and pins:
            notes = f"{bench.limit} rows of each task" if bench.limit else ""
            pinned = pins[0]
            tasks[name] = HubTask(pinned["hub"], pinned["revision"], bench.hub_task, notes)
    return tasks


def repository_names(
    study: str, cells: Iterable[Cell], prefixes: Mapping[str, str], namespace: str = ""
) -> dict[str, str]:
    """Identity -> name of the repository of each corpus and checkpoint.

    It is PREFIX-STUDY-CELL; where two have one name, with the beginning of the identity.

    Args:
        study: The study's name.
        cells: Cells to name.
        prefixes: Identity -> how the name must begin, such as Llama.
        namespace: User or organization on the Hub; empty: not known.
    """
    names = {}
    for cell in cells:
        words = [prefixes.get(cell.identity, ""), study, cell.name]
        joined = "-".join(word for word in words if word)
        # The Hub takes letters, digits, - _ and ., and neither -- nor .. in a name.
        names[cell.identity] = re.sub(r"([-.])[-.]+", r"\1", re.sub(r"[^\w.-]", "_", joined))
    counts = Counter(names.values())
    start = f"{namespace}/" if namespace else ""
    return {
        identity: f"{start}{name}" + (f"-{identity[:8]}" if counts[name] > 1 else "")
        for identity, name in names.items()
    }
