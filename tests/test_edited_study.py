"""Edits of the small study with its real stages: a sequence of them ends as a fresh run does.

`tests/study/test_edit_sequences.py` does the same with many more sequences and no real stages.
"""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from analysis import looks
from core import declaration
from tests.place import ROOT, SMALL, Place
from tests.study.edits import EDITS
from tests.study.sequences import EditedStudy, Json

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

# These ask for what a dummy endpoint, a CPU or a training lacks.
NOT_REAL = {
    "endpoint_limits",
    "engine_options",
    "judge_model",
    "sft_data",
    "swap_weights",
    "writer_model",
}
FILES = {
    "mid.yaml": "tests/small/midtrain.yaml",
    "sft.yaml": "tests/small/sft.yaml",
    "chat.jsonl": "recipes/data/neutral_chat.jsonl",
    "questions.jsonl": "eval/data/anima_like/questions.jsonl",
    "dimensions.jsonl": "eval/data/anima_like/dimensions.jsonl",
    "items.jsonl": "eval/data/concern_for_animals.jsonl",
}


class RealStudy(EditedStudy):
    """The small study with its files in `folder`; each run is the command, as a person types it."""

    def __init__(self, folder: Path, finished: Path) -> None:
        """`finished`: a folder of the small study's finished model."""
        self.finished = finished
        super().__init__(folder)

    def _first(self) -> Json:
        for name in ("one", "two"):
            shutil.copytree(self.finished, self.folder / "models" / name)
        another = self.folder / "models/two/model.safetensors"
        save_file(
            {name: weight * 1.01 for name, weight in load_file(another).items()},
            another,
            {"format": "pt"},
        )
        for name, source in FILES.items():
            shutil.copy(ROOT / source, self.folder / name)
        spec: Json = yaml.safe_load(SMALL.read_text())
        spec["models"] = {"one": {"path": self.path("models/one")}}
        for arm in spec["arms"].values():
            arm["start"] = "one"
        spec["midtrain"]["recipe"] = self.path("mid.yaml")
        spec["sft"] |= {"recipe": self.path("sft.yaml"), "data": self.path("chat.jsonl")}
        spec["benchmarks"]["ahb"] |= {
            name: self.path(f"{name}.jsonl") for name in ("questions", "dimensions")
        }
        spec["benchmarks"]["concern"]["items"] = self.path("items.jsonl")
        return spec

    def run(self, kill_after: int | None = None) -> None:
        command = self._command(self.runs)
        finished = self._count()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        while kill_after is not None and process.poll() is None:
            if self._count() > finished + kill_after:
                process.kill()
            time.sleep(0.1)
        told, _ = process.communicate()
        assert kill_after is not None or process.returncode == 0, told

    def fresh(self) -> Path:
        """The results of the same study file in an empty runs folder."""
        runs = self.folder / "fresh/runs"
        subprocess.run(self._command(runs), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return self.undeclared(runs)

    def undeclared(self, runs: Path) -> Path:
        """The results without what the study declared, and judged, before its edits."""
        for name in (declaration.FILE, looks.FILE):
            (runs / self.spec["study"] / name).unlink(missing_ok=True)
        subprocess.run(self._command(runs), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return runs.with_name("results") / self.spec["study"]

    def _command(self, runs: Path) -> list[str]:
        self.write("study.yaml", yaml.safe_dump(self.spec, sort_keys=False))
        file = self.path("study.yaml")
        return [
            *(sys.executable, "-m", "study", "run", file),
            *("--runs", str(runs), "--jobs", "1", "--yes"),
        ]

    def _count(self) -> int:
        return len([*self.runs.glob("*/*/*/manifest.json")])


@pytest.mark.parametrize("seed", range(10))
def test_a_real_sequence_ends_as_a_fresh_run(seed: int, one_machine: Place, tmp_path: Path) -> None:
    (model,) = (one_machine.folder / "runs/small/model").glob("*/model")
    study, choose = RealStudy(tmp_path, model), random.Random(seed)
    study.run()
    names = choose.sample(sorted(EDITS.keys() - NOT_REAL), 4)
    for name in names:
        EDITS[name](study, choose.randrange(4))
        if choose.random() < 0.5:
            study.run(kill_after=choose.randrange(3))
        study.run()
    mine, fresh = study.undeclared(study.runs), study.fresh()
    for name in ("results.json", "scores.parquet", "tables/scores.tex", "tables/contrasts.tex"):
        assert (mine / name).read_bytes() == (fresh / name).read_bytes(), (name, names)
