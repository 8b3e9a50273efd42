"""Question sets of judged benchmarks: given to official tasks as local datasets."""

import contextlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from core.cell.context import StageContext
from core.errors import UserError
from core.row_formats import data_file
from eval.patches import datasets_cache, environment
from eval.scorer import QuestionSet, Scorer

TEMPORARY = "temporary-"  # prefix of temporary folders; a killed process leaves them behind
QUESTION_FILES = ("questions", "dimensions")
README = """---
configs:
- config_name: questions
  default: true
  data_files: questions/*.jsonl
- config_name: dimensions
  data_files: dimensions/*.jsonl
---
"""


def load_questions(context: StageContext) -> tuple[Scorer, QuestionSet]:
    """The scorer of a generate or judge cell, and its question set.

    Settings: scorer (a module of eval), rows (the expected number of questions, or None).
    Resources: files {questions: path, and dimensions where the benchmark has them}.

    Raises:
        UserError: A file has bad rows, or the module is not a scorer.
    """
    settings = context.settings
    paths = context.resources["files"]
    scorer = importlib.import_module(f"eval.{settings['scorer']}")
    if not isinstance(scorer, Scorer):
        raise UserError(
            where=f"scorer {settings['scorer']}",
            what="not a scorer of judged benchmarks",
            fix="eval/scorer.py says what its module must define",
        )
    files = {name: data_file(Path(paths[name])) for name in QUESTION_FILES if name in paths}
    question_set = scorer.read(files)
    if settings["rows"] not in (None, len(question_set.questions)):
        raise UserError(
            where=str(paths["questions"]),
            what=f"{len(question_set.questions)} questions, {settings['rows']} are expected",
            fix="fetch it again, or name your own file in the study file",
        )
    return scorer, question_set


def remove_temporary(folder: Path) -> None:
    """Remove the temporary folders that a killed process left in a cell's folder."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover)


@contextlib.contextmanager
def dataset_folder(question_set: QuestionSet, temporary: Path) -> Iterator[str]:
    """A folder that `datasets` loads like ANIMA's repository of the Hub.

    It lies in a temporary folder below `temporary`, with whatever `datasets` caches of it, and is
    removed at the end of the `with` block.
    """
    # Read when `datasets` is imported; they must hold for the rest of the process.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=temporary, prefix=TEMPORARY) as parent:
        folder = Path(parent, "anima_like")
        tables = {"questions": question_set.questions, "dimensions": question_set.dimensions}
        for name, rows in tables.items():
            (folder / name).mkdir(parents=True)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name / f"{name}.jsonl").write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(README)
        with (
            private_home(temporary),
            datasets_cache(Path(parent, "datasets")),
            open(os.devnull, "w") as devnull,
            contextlib.redirect_stdout(devnull),  # each load prints that it comes from the Hub
        ):
            yield str(folder)


@contextlib.contextmanager
def private_home(temporary: Path) -> Iterator[None]:
    """Keep Inspect's caches and traces out of the home directory, in a folder below `temporary`."""
    with tempfile.TemporaryDirectory(dir=temporary, prefix=TEMPORARY) as folder:
        variables = {
            "XDG_CACHE_HOME": folder,
            "XDG_DATA_HOME": folder,
            "INSPECT_TRACE_LEVEL": "ERROR",
        }
        with environment(variables):
            yield
