"""Judged question sets in ANIMA's schema: read, mended, and handed to the official task as a local dataset."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from study.cells import sha256
from study.errors import UserError

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.dataset import Dataset
    from inspect_ai.model import Model

QUESTION_COLUMNS = ("id", "question", "tags", "variables", "language", "translation")
DIMENSION_COLUMNS = ("dimension", "guiding_question", "scoring", "observable_indicators", "default_weighting")
# In the paper's question set without a dimension of that name: the dimension was given up, its tag was left behind.
VESTIGIAL_TAGS = {"perspectivetaking"}
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
    text are one scenario. `mended` counts tags by what happened to them: empty, respelled, vestigial.
    """

    questions: list[dict[str, Any]]
    dimensions: list[dict[str, Any]]
    scenarios: dict[str, str]
    mended: dict[str, int] = field(default_factory=lambda: {"empty": 0, "respelled": 0, "vestigial": 0})


def as_planned(path: str, sha256_planned: str) -> Path:
    """The path of a file whose content is part of the cell's identity. Raises UserError if it changed since."""
    if not Path(path).exists():
        raise UserError(f"no file {path}; correct the path in the study file")
    if sha256(Path(path)) != sha256_planned:
        raise UserError(f"{path} changed after this cell was planned; plan the study again, which makes a new cell")
    return Path(path)


def read(questions: Path, dimensions: Path | None = None) -> QuestionSet:
    """Read a question set from JSONL files; ids become strings.

    The stock loader leaves out, silently, every question of which one tag is empty or is spelled differently from
    its dimension. Here tags are matched to dimensions whatever their case, spaces and hyphens, and empty or
    vestigial ones are dropped. Without `dimensions` (generating asks for none) tags keep their spelling.

    Raises UserError with a line for every row that has a missing column, a duplicate id, no tag left, an unknown tag
    or malformed variables.
    """
    mistakes: list[str] = []
    rows = _rows(questions, ("id", "question", "tags"), mistakes)
    known = [row for _, row in _rows(dimensions, DIMENSION_COLUMNS, mistakes)] if dimensions else []
    names = {_plain(row["dimension"]): row["dimension"] for row in known}
    if len(names) < len(known):
        mistakes.append(f"two dimensions of one name; {dimensions}; keep one")
    found = QuestionSet([], known, {})
    lines: dict[str, int] = {}
    for line, row in rows:
        place = f"{questions}, line {line}"
        row = {column: row.get(column) for column in QUESTION_COLUMNS} | {"scenario": row.get("scenario")}
        row["id"] = str(row["id"])
        if row["id"] in lines:
            mistakes.append(f"duplicate id {row['id']!r}; {place}; it is also in line {lines[row['id']]}, rename one")
        lines.setdefault(row["id"], line)
        if any(text.count(":") != 1 for text in (row["variables"] or "").split("\n") if text.strip()):
            mistakes.append(f"malformed variables {row['variables']!r}; {place}; write key:value,value on each line")
        tags = row["tags"] if isinstance(row["tags"], list) else [row["tags"]]
        row["tags"] = _mend(tags, names, found.mended, mistakes, place)
        if not row["tags"]:
            mistakes.append(f"no tag left in question {row['id']!r}; {place}; tag at least one dimension")
        found.questions.append(row)
    if not rows:
        mistakes.append(f"no questions; {questions}; one JSON object per line is expected")
    if mistakes:
        raise UserError(*mistakes)
    first: dict[str, str] = {}
    for row in found.questions:
        text = row.pop("scenario") or row["translation"] or row["question"]
        found.scenarios[row["id"]] = first.setdefault(" ".join(str(text).casefold().split()), row["id"])
    return found


def _rows(path: Path, columns: tuple[str, ...], mistakes: list[str]) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            mistakes.append(f"not JSON ({error.msg}); {path}, line {line}; one object per line is expected")
            continue
        missing = [column for column in columns if not isinstance(row, dict) or row.get(column) is None]
        if missing:
            mistakes.append(f"missing column {', '.join(missing)}; {path}, line {line}; it needs {', '.join(columns)}")
        else:
            rows.append((line, row))
    return rows


def _mend(tags: list[Any], names: dict[str, str], mended: dict[str, int], mistakes: list[str], place: str) -> list[str]:
    kept = []
    for tag in tags:
        plain = _plain(str(tag))
        if not plain:
            mended["empty"] += 1
        elif not names or plain in names:
            name = names.get(plain, tag)
            mended["respelled"] += name != tag
            kept.append(name)
        elif plain in VESTIGIAL_TAGS:
            mended["vestigial"] += 1
        else:
            mistakes.append(f"unknown tag {tag!r}; {place}; the dimensions are {', '.join(names.values())}")
    return list(dict.fromkeys(kept))


def _plain(name: str) -> str:
    return re.sub(r"[\s\-_\u2010-\u2015]", "", name).casefold()


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
        values = {"XDG_CACHE_HOME": temporary, "XDG_DATA_HOME": temporary, "INSPECT_TRACE_LEVEL": "ERROR"}
        with mock.patch.dict(os.environ, values):
            yield


def official_dataset(found: QuestionSet, near: Path) -> "Dataset":
    """The official loader's dataset of all questions, for generating."""
    from inspect_evals.anima.dataset import load_dataset_from_hf

    with dataset_folder(found, near) as folder:
        dataset = load_dataset_from_hf(folder, "local")
    _check_whole(dataset, found)
    return dataset


def official_task(found: QuestionSet, near: Path, grader: "Model") -> "Task":
    """The official ANIMA task (dataset, scorer and metrics) over this question set, graded by `grader`."""
    from inspect_evals.anima import anima

    with dataset_folder(found, near) as folder:
        task = anima(dataset_repo_id=folder, dataset_revision="local", grader_models=[grader])
    _check_whole(task.dataset, found)
    return task


def _check_whole(dataset: "Dataset", found: QuestionSet) -> None:
    ids = [sample.id for sample in dataset]
    if ids != [row["id"] for row in found.questions]:
        raise AssertionError(f"the official loader kept {len(ids)} of {len(found.questions)} questions")
