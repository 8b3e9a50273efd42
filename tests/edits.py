"""What each edit of a study makes new: python -m tests.edits

The study is that of tests/small with a judge at a URL, and every cell of it is finished. After an
edit those cells count that are in no study of the runs folder, without those of stage
contamination.
"""

import copy
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.files import write_atomically
from core.paths import ROOT
from study.spec import expand
from study.spec.load import load_study
from study.spec.study_declaration import declare

Raw = dict[str, Any]
Edit = Callable[[Raw], None]
LOCAL = {"base_url": "http://localhost:8000/v1", "model": "grader", "key_env": "KEY"}


def base_study(folder: Path) -> Raw:
    """The study before any edit, with data files of its own in `folder`."""
    raw: Raw = yaml.safe_load((ROOT / "tests/small/small.yaml").read_text())
    raw["endpoints"]["grader"] = dict(LOCAL)
    raw["benchmarks"]["ahb"]["judge"] = "grader"
    for bench, key in (("ahb", "questions"), ("ahb", "dimensions"), ("concern", "items")):
        source = ROOT / raw["benchmarks"][bench][key]
        raw["benchmarks"][bench][key] = shutil.copy(source, folder)
    for stage in ("midtrain", "sft"):
        raw[stage]["recipe"] = shutil.copy(ROOT / raw[stage]["recipe"], folder)
    return raw


def expanded(raw: Raw, runs: Path) -> list[Cell]:
    """The study's cells, with what is in the runs folder."""
    file = runs.with_name("study.yaml")
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    study = load_study(file)
    return expand.in_order(expand.analysis(study, runs / study.study))


def finish(raw: Raw, runs: Path) -> None:
    """Make all cells of the study finished, as far as a plan can see."""
    cells = expanded(raw, runs)
    declare(load_study(runs.with_name("study.yaml")), runs / raw["study"], cells)
    for cell in unfinished(raw, runs):
        folder = runs / raw["study"] / cell.relpath
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "manifest.json", f'{{"identity": "{cell.identity}"}}')


def unfinished(raw: Raw, runs: Path) -> list[Cell]:
    """The cells of the study that no study of the runs folder has finished."""
    base = runs / raw["study"]
    return [cell for cell in expanded(raw, runs) if not read_manifest(base / cell.relpath)]


def count_new(raw: Raw, edit: Edit, runs: Path) -> int:
    """How many cells an edit of the finished study makes new."""
    edited = copy.deepcopy(raw)
    edit(edited)
    return sum(cell.stage != "contamination" for cell in unfinished(edited, runs))


def setting(path: str, value: Any) -> Edit:
    """Set one key of the study file."""

    def edit(raw: Raw) -> None:
        *parents, last = path.split(".")
        target = raw
        for key in parents:
            target = target.setdefault(key, {})
        target[last] = value

    return edit


def text(path: str, change: Callable[[str], str]) -> Edit:
    """Change the text of a file that the study file names."""

    def edit(raw: Raw) -> None:
        *parents, last = path.split(".")
        target = raw
        for key in parents:
            target = target[key]
        # Another name, because a process reads a file once.
        file = Path(target[last])
        changed = file.with_stem(f"{file.stem}_changed")
        changed.write_text(change(file.read_text()))
        target[last] = str(changed)

    return edit


def word(path: str) -> Edit:
    """Change a word in a file that the study file names."""
    return text(path, lambda content: content.replace(" the ", " that ", 1))


def line(path: str, added: str) -> Edit:
    """Add a line to a file that the study file names."""
    return text(path, lambda content: f"{content}\n{added}\n")


def renamed(kind: str, old: str, new: str) -> Edit:
    """Rename an entry of a section, and every value that is its name."""

    def replace(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replace(item) for key, item in value.items()}
        if isinstance(value, list):
            return [replace(item) for item in value]
        return new if value == old else value

    # Values that name an entry of each section, by section.
    users = {
        "endpoints": ("corpora", "benchmarks"),
        "models": ("arms",),
        "corpora": ("arms", "corpora"),
        "arms": ("contrasts",),
        "benchmarks": ("contrasts",),
    }
    keys = {"arms": "start" if kind == "models" else "midtrain"}

    def edit(raw: Raw) -> None:
        raw[kind] = {new if name == old else name: entry for name, entry in raw[kind].items()}
        for section in users[kind]:
            if section == "arms":
                for arm in raw["arms"].values():
                    arm |= {k: replace(v) for k, v in arm.items() if k == keys["arms"]}
            else:
                raw[section] = replace(raw[section])

    return edit


def reversed_order(*sections: str) -> Edit:
    """Turn the order of the entries of sections."""

    def edit(raw: Raw) -> None:
        for section in sections:
            raw[section] = dict(reversed(raw[section].items()))

    return edit


def turned_keys(raw: Raw) -> None:
    entries = list(raw.items())
    raw.clear()
    raw.update(reversed(entries))


def one_benchmark_fewer(raw: Raw) -> None:
    del raw["benchmarks"]["concern"]
    raw["contrasts"][0]["benchmarks"] = ["ahb"]


def one_arm_fewer(raw: Raw) -> None:
    del raw["arms"]["urban"], raw["contrasts"]


def other_judge(raw: Raw) -> None:
    raw["endpoints"]["judge"] = {"base_url": "http://a", "model": "m", "key_env": "KEY"}
    raw["benchmarks"]["ahb"]["judge"] = "judge"


def named_recipe(raw: Raw) -> None:
    raw["arms"]["animal"]["recipe"] = raw["midtrain"]["recipe"]


# (edit, its function, cells that are new)
EDITS: list[tuple[str, Edit, int]] = [
    ("no edit", lambda raw: None, 0),
    ("a comment in a recipe", line("midtrain.recipe", "# slower"), 0),
    ("order of the sections", turned_keys, 0),
    ("order of arms", reversed_order("arms"), 0),
    ("order of corpora, benchmarks", reversed_order("corpora", "benchmarks"), 0),
    ("an endpoint's name", renamed("endpoints", "grader", "judge_2"), 0),
    ("an endpoint's port", setting("endpoints.grader.base_url", "http://localhost:8001/v1"), 0),
    ("prices", setting("endpoints.grader.prompt_price", 0.1), 0),
    ("concurrency", setting("concurrency", 3), 0),
    ("micro-batch", line("midtrain.recipe", "micro_batch_size: 1"), 0),
    ("checkpoint minutes", line("midtrain.recipe", "checkpoint_minutes: 5"), 0),
    ("margin", lambda raw: raw["contrasts"][0].update(margin=0.1), 1),
    ("family", lambda raw: raw["contrasts"][0].update(family="second"), 1),
    ("roles", setting("claim_roles", {"animal": "animal"}), 1),
    ("exclusions", setting("benchmarks.concern.exclude", ["1"]), 1),
    ("fewer doses", setting("sft.doses", [0]), 1),
    ("fewer arms", one_arm_fewer, 1),
    ("an arm's name", renamed("arms", "urban", "city"), 1),
    ("one more seed", setting("seeds", [0, 1]), 17),
    ("one more dose", setting("sft.doses", [0, 40, 80]), 9),
    ("one more untrained arm", setting("arms.untrained", {"start": "base"}), 8),
    ("rubric", word("benchmarks.ahb.dimensions"), 5),
    ("the judge's model", other_judge, 5),
    ("answers' epochs", setting("benchmarks.ahb.epochs", 3), 9),
    ("answers' temperature", setting("benchmarks.ahb.temperature", 0.5), 9),
    ("one more benchmark", setting("benchmarks.prefers", {"task": "preference"}), 5),
    ("one fewer benchmark", one_benchmark_fewer, 1),
    ("a renamed benchmark", renamed("benchmarks", "ahb", "harm"), 1),
    ("a word in a file of items", word("benchmarks.concern.items"), 5),
    ("a word in a file of questions", word("benchmarks.ahb.questions"), 9),
    ("a renamed corpus", renamed("corpora", "animal", "beasts"), 1),
    ("a renamed model", renamed("models", "base", "start"), 0),  # no result shows it
    ("a renamed study", setting("study", "large"), 1),
    ("max_model_len", setting("engine.max_model_len", 1024), 0),
    ("engine.options: speed", setting("engine.options", {"tensor_parallel_size": 2}), 0),
    ("engine.options: answers", setting("engine.options", {"quantization": "fp8"}), 13),
    ("benchmarks to write without", setting("corpora.animal.decontaminate_against", ["ahb"]), 19),
    ("shards 1 to 2", setting("corpora.animal.shards", 2), 0),
    ("a recipe named outright that is the study's own", named_recipe, 0),
]


def main() -> int:
    """Print the table; 1 where a count is not the right one."""
    with tempfile.TemporaryDirectory() as folder:
        raw = base_study(Path(folder))
        runs = Path(folder) / "runs"
        finish(raw, runs)
        rows = [(name, count_new(raw, edit, runs), right) for name, edit, right in EDITS]
    print(tabulate(rows, headers=["edit", "new cells", "right"], tablefmt="github"))
    return int(any(found != right for _, found, right in rows))


if __name__ == "__main__":
    sys.exit(main())
