"""A finished study of two arms at two doses, made by hand of real cells, for tests."""

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from core.cell import manifest as cells
from core.cell.external_files import check_planned
from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.cell.publish import publish
from core.files import sha256
from study.spec.expand import in_order
from study.upkeep.changes import find_changes, notes
from study.upkeep.provenance import lineage, published

STUDY = "studies/small.yaml --runs elsewhere"  # as the user typed it


@dataclass
class Small:
    """A finished study of two arms at two doses, made by hand of real cells."""

    base: Path
    outside: Path
    last: Cell
    cells: list[Cell] = field(default_factory=list)

    def folder(self, start: str) -> Path:
        (found,) = [
            self.base / cell.relpath for cell in self.cells if cell.relpath.startswith(start)
        ]
        return found

    def relpath(self, start: str) -> str:
        return self.folder(start).relative_to(self.base).as_posix()

    def changes(self) -> list[dict[str, str]]:
        return find_changes(self.lineage(), self.base, STUDY)

    def notes(self) -> list[str]:
        return notes(self.lineage(), self.base)

    def lineage(self, hashes: bool = True) -> list[dict[str, Any]]:
        return lineage(published(self.base, STUDY), self.base, hashes)


def changes_of(base: Path) -> list[dict[str, str]]:
    return find_changes(lineage(published(base, STUDY), base), base, STUDY)


# What an archive reads of the results of a study without contrasts.
RESULTS: dict[str, Any] = {
    "scores": [],
    "contrasts": [],
    "declaration": None,
    "benchmarks": {},
    "writers": [],
}


def files_of(cell: Cell) -> dict[str, str]:
    """What a cell of the stage leaves, with a text of its own."""
    text = f"{cell.stage} {cell.name}"
    weights = {"model/model.safetensors": f"weights {cell.name:>30}", "model/config.json": "{}"}
    table = {
        "results.json": json.dumps(RESULTS),
        **{f"tables/{n}.tex": f"{text} {n}" for n in ("scores", "contrasts", "corpora", "all")},
        "tables/scores.tabular.tex": text,
        "tables/scores.csv": text,
    }
    training = {**weights, "metrics.jsonl": text}
    return {
        "model": weights,
        "documents": {"documents.jsonl": text, "corpus_stats.json": "{}"},
        "midtrain": training,
        "sft": training,
        "generate": {"samples.eval": text},
        "judge": {"scores.parquet": text, "calls.jsonl": text},
        "analysis": table,
    }[cell.stage]


def mark_finished(base: Path, cell: Cell, started: str = "", **facts: Any) -> Path:
    """Write the cell's config and a manifest of what is in its folder; returns the folder."""
    folder = create_cell_dir(cell, base)
    config = read_config(folder)
    facts = {"counts": {}, "warnings": [], "files": check_planned(folder, config)} | facts
    write_manifest(folder, config, started, started, **facts)
    return folder


def finish(base: Path, cell: Cell, started: str = "2026-01-01", **more: str) -> Path:
    folder = create_cell_dir(cell, base)
    for name, text in {**files_of(cell), **more}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    counts = (
        {"documents": 9}
        if cell.stage == "documents"
        else {"steps": 7}
        if cell.stage == "sft"
        else {}
    )
    return mark_finished(base, cell, started, counts=counts)


def score_cells(checkpoint: Cell, questions: Path, benchmark: str = "ahb") -> Cell:
    files = {"files": {"questions": sha256(questions)}, "epochs": len(benchmark)}
    places = {"files": {"questions": str(questions)}}
    samples = Cell(
        "generate", f"{benchmark}-{checkpoint.name}", files, {"checkpoint": checkpoint}, places
    )
    judge = {
        "rows": None,
        "judge": {"served_by": "dummy", "model": "dummy"},
        "benchmark": benchmark,
    }
    return Cell("judge", samples.name, judge, {"samples": samples})


def study(
    outside: Path,
    arms: tuple[str, ...] = ("animal", "urban"),
    benchmarks: tuple[str, ...] = ("ahb",),
) -> Cell:
    """The analysis of the study. `outside`: the folder of its questions and chat data."""
    questions, data = outside / "questions.jsonl", outside / "chat.jsonl"
    model = Cell("model", "base", {"recipe": {}})
    inputs, rows = {}, []
    for arm in arms:
        avoid = {
            "decontaminate_against": ["ahb.questions"],
            "files": {"ahb.questions": sha256(questions)},
            "writer": {"model": "dummy"},
            "topic": arm,
        }
        corpus = Cell(
            "documents",
            arm,
            avoid,
            {"tokenizer": model},
            {"files": {"ahb.questions": str(questions)}},
        )
        inputs[f"corpus-{arm}"] = corpus
        trained = Cell(
            "midtrain", f"base-{arm}-s0", {"seed": 0}, {"start": model, "documents": corpus}
        )
        tuned = {"files": {"data": sha256(data)}, "dose": 80, "seed": 0}
        where = {"files": {"data": str(data)}}
        sft = Cell("sft", f"base-{arm}-s0-d80", tuned, {"start": trained}, where)
        for dose, checkpoint in ((0, trained), (80, sft)):
            for benchmark in benchmarks:
                cell = score_cells(checkpoint, questions, benchmark)
                inputs[cell.name] = cell
                rows.append(
                    {"role": cell.name, "arm": arm, "seed": 0, "dose": dose, "benchmark": benchmark}
                )
    contrasts = [
        {"name": "animal - urban", "treatment": "animal", "control": "urban", "benchmarks": ["ahb"]}
    ]
    return Cell("analysis", "small", {"rows": rows, "contrasts": contrasts}, inputs)


CODE = cells.code_version()  # asked of git once
OUTSIDE = ("questions.jsonl", "chat.jsonl")


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "code_version", lambda: CODE)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Made once; each test has a copy of its cells and results."""
    folder = tmp_path_factory.mktemp("original")
    outside, base = folder / "outside", folder / "runs/small"
    outside.mkdir()
    for name in OUTSIDE:
        (outside / name).write_text(name)
    last = study(outside)
    every = in_order(last)
    said = {"benchmark": "ahb", "arm": "animal", "seed": 0, "dose": 80, "score": 0.25, "n": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "code_version", lambda: CODE)
        for cell in every:
            finish(
                base,
                cell,
                **({"results.json": json.dumps({"scores": [said]})} if cell is last else {}),
            )
    publish(base / last.relpath)
    return Small(base, outside, last, every)


@pytest.fixture
def small(original: Small, tmp_path: Path, cheap: None) -> Small:
    for name in OUTSIDE:
        (original.outside / name).write_text(name)
    for folder in ("runs", "results"):
        shutil.copytree(original.base.parents[1] / folder, tmp_path / folder)
    return replace(original, base=tmp_path / "runs/small")
