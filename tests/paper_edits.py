"""What each edit of the paper's study keeps and loses: python -m tests.paper_edits

Every cell of studies/paper.yaml counts as finished. After an edit a finished cell is kept, lost (no
longer used) or new (to be made). GPU-hours are those of `plan`. Cells of the stages contamination
and drafts are not counted: the latter are read by documents cells alone.
"""

import copy
import shutil
import sys
import tempfile
from pathlib import Path

import yaml
from tabulate import tabulate

from core.cell.identity import Cell
from core.paths import ROOT
from study.forecast.cell_cost import estimates
from tests.edits import Edit, Raw, expanded, line, renamed, reversed_order, setting, turned_keys

PAPER = ROOT / "studies/paper.yaml"
HEADERS = ["edit", "new cells", "right", "GPU-hours kept", "lost", "to be made"]


def paper_study(folder: Path) -> Raw:
    """The paper's study with recipes of its own in `folder`, which edits may change."""
    raw: Raw = yaml.safe_load(PAPER.read_text())
    for stage in ("midtrain", "sft"):
        raw[stage]["recipe"] = shutil.copy(ROOT / raw[stage]["recipe"], folder)
    for sft in raw["sfts"].values():
        sft["recipe"] = raw["sft"]["recipe"]
    return raw


def one_more_dose(raw: Raw) -> None:
    raw["sft"]["doses"] = [*raw["sft"]["doses"], 1000]
    for arm in ("base_animal", "base_urban"):
        raw["arms"][arm]["doses"] = raw["sft"]["doses"]


def one_arm_fewer(raw: Raw) -> None:
    del raw["arms"]["base_random"]
    raw["contrasts"] = [c for c in raw["contrasts"] if c["control"] != "base_random"]


def one_benchmark_fewer(raw: Raw) -> None:
    del raw["benchmarks"]["gsm8k"]


def named_recipe(raw: Raw) -> None:
    raw["arms"]["base_animal"]["recipe"] = raw["midtrain"]["recipe"]


# (edit, its function, cells that are new, where that does not depend on the study's size)
EDITS: list[tuple[str, Edit, int | None]] = [
    ("no edit", lambda raw: None, 0),
    ("a comment in a recipe", line("midtrain.recipe", "# slower"), 0),
    ("order of the sections", turned_keys, 0),
    ("order of arms", reversed_order("arms"), 0),
    ("order of corpora, benchmarks", reversed_order("corpora", "benchmarks"), 0),
    ("an endpoint's name", renamed("endpoints", "grok", "writer_2"), 0),
    ("prices", setting("endpoints.gemini.prompt_price", 0.3), 0),
    ("concurrency", setting("concurrency", 3), 0),
    ("checkpoint minutes", line("midtrain.recipe", "checkpoint_minutes: 5"), 0),
    ("margin", lambda raw: raw["contrasts"][0].update(margin=0.1), 1),
    ("family", lambda raw: raw["contrasts"][0].update(family="second"), 1),
    ("exclusions", setting("benchmarks.ahb.exclude", ["1"]), 1),
    ("fewer doses", setting("arms.base_human.doses", [0]), 1),
    ("one arm fewer", one_arm_fewer, 1),
    ("an arm's name", renamed("arms", "base_random", "any_text"), 1),
    ("one more seed", setting("seeds", [0, 1, 2, 3, 4, 5]), None),
    ("one more dose of two arms", one_more_dose, None),
    ("one more untrained arm's dose", setting("arms.base.doses", [0, 800, 4000]), None),
    ("answers' epochs of ahb", setting("benchmarks.ahb.epochs", 31), None),
    ("judge of ahb", setting("benchmarks.ahb.judge", "haiku"), None),
    ("one more benchmark", setting("benchmarks.concern", {"task": "concern_for_animals"}), None),
    ("one fewer benchmark", one_benchmark_fewer, 1),
    ("a renamed benchmark", renamed("benchmarks", "arc", "science"), 1),
    ("a renamed corpus", renamed("corpora", "human", "people"), 1),
    ("a renamed model", renamed("models", "base", "start"), 0),
    ("a renamed study", setting("study", "large"), 1),
    ("max_model_len", setting("engine.max_model_len", 8192), 0),
    ("engine.options: speed", setting("engine.options", {"tensor_parallel_size": 2}), 0),
    ("engine.options: answers", setting("engine.options", {"quantization": "fp8"}), None),
    ("shards", setting("corpora.animal.shards", 8), 0),
    ("a recipe named outright that is the study's own", named_recipe, 0),
]


def row(raw: Raw, edit: Edit, right: int | None, runs: Path) -> list[int | float | None]:
    """A line of the table: new cells, the right number, GPU-hours kept, lost, to be made."""
    edited = copy.deepcopy(raw)
    edit(edited)
    before, after = (_gpu_hours(expanded(study, runs)) for study in (raw, edited))
    kept, lost, new = before.keys() & after, before.keys() - after, after.keys() - before
    hours = (
        sum(table[name] for name in sorted(names))
        for table, names in ((before, kept), (before, lost), (after, new))
    )
    return [len(new), right, *hours]


def _gpu_hours(cells: list[Cell]) -> dict[str, float]:
    counted = [cell for cell in cells if cell.stage not in ("contamination", "drafts")]
    amounts = estimates(counted, Path("nothing"), {})
    return {name: row["gpu_hours"] for name, row in amounts.items()}


def main() -> int:
    """Print the table; 1 where a count is not the right one."""
    with tempfile.TemporaryDirectory() as folder:
        raw = paper_study(Path(folder))
        rows = [
            [name, *row(raw, edit, right, Path(folder) / "runs")] for name, edit, right in EDITS
        ]
    print(tabulate(rows, headers=HEADERS, floatfmt=",.1f", tablefmt="github"))
    return int(any(right not in (None, count) for _, count, right, *_ in rows))


if __name__ == "__main__":
    sys.exit(main())
