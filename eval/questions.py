"""Question sets of judged benchmarks: files found as planned, and handed to official tasks as local data sets."""

import contextlib
import importlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from core.cell.context import StageContext
from core.errors import UserError
from core.files import sha256

TEMPORARY = "temporary-"  # the folders that a killed process leaves behind begin like this
README = """---
configs:
- config_name: questions
  default: true
  data_files: questions/*.jsonl
- config_name: dimensions
  data_files: dimensions/*.jsonl
---
"""


@dataclass
class QuestionSet:
    """Mended rows of both files, and what was mended.

    `scenarios` maps a question's id to the id of the first question of the same scenario: translations of one
    text are one scenario. `mended` counts what happened to tags, by kind.
    """

    questions: list[dict[str, Any]]
    dimensions: list[dict[str, Any]]
    scenarios: dict[str, str]
    mended: dict[str, int] = field(default_factory=dict)


def open_set(work: StageContext) -> tuple[ModuleType, QuestionSet]:
    """The module of a cell's scorer, and its question set.

    Settings: scorer, files {name: identity}, rows (how many questions are expected, or None). Resources: files.
    Raises UserError if a file changed since it was planned, is not there, or is not what it should be.
    """
    settings, paths = work.settings, work.resources["files"]
    scorer = importlib.import_module(f"eval.{settings['scorer']}")
    found: QuestionSet = scorer.read(
        {name: as_planned(paths[name], settings["files"][name]) for name in paths}
    )
    if settings["rows"] not in (None, len(found.questions)):
        raise UserError(
            f"{len(found.questions)} questions in {paths['questions']}, {settings['rows']} are expected; "
            "fetch it again, or name your own file in the study file"
        )
    return scorer, found


def as_planned(path: str, identity: Any) -> Path:
    """The path of a data file whose content is part of the cell's identity; of a folder, the one data file in it.

    Raises UserError if it is not there, or changed since (where `identity` is the hash of its content).
    """
    place = Path(path)
    if not place.exists():
        raise UserError(
            f"no file {path}; python -m study fetch STUDY brings it, or correct the path in the study file"
        )
    if isinstance(identity, str) and sha256(place) != identity:
        raise UserError(
            f"{path} changed after this cell was planned; plan the study again, which makes a new cell"
        )
    if place.is_dir():
        held = sorted(
            file for file in place.rglob("*") if file.suffix in (".jsonl", ".parquet", ".csv")
        )
        if len(held) != 1:
            raise UserError(
                f"{len(held)} data files in {path}; one is expected; name your own in the study file"
            )
        return held[0]
    return place


@contextlib.contextmanager
def dataset_folder(found: QuestionSet, near: Path) -> Iterator[str]:
    """A folder that `datasets` loads like ANIMA's repository, in a temporary folder below `near`.

    What `datasets` would cache in the home directory goes there too and disappears with it.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=near, prefix=TEMPORARY) as temporary:
        folder = Path(temporary, "anima_like")
        for name, rows in (("questions", found.questions), ("dimensions", found.dimensions)):
            (folder / name).mkdir(parents=True)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name / f"{name}.jsonl").write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(README)
        with (
            private_home(near),
            mock.patch.object(datasets.config, "HF_DATASETS_CACHE", Path(temporary, "datasets")),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),  # each load says that it comes from the Hub
        ):
            yield str(folder)


@contextlib.contextmanager
def private_home(near: Path) -> Iterator[None]:
    """Keep Inspect's caches and traces out of the home directory: in a temporary folder below `near`."""
    with tempfile.TemporaryDirectory(dir=near, prefix=TEMPORARY) as temporary:
        values = {
            "XDG_CACHE_HOME": temporary,
            "XDG_DATA_HOME": temporary,
            "INSPECT_TRACE_LEVEL": "ERROR",
        }
        with mock.patch.dict(os.environ, values):
            yield
