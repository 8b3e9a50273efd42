"""Sequences of edits of a study: whatever was edited, the results are those of a fresh run.

`EditedStudy` holds a study file, its files and a runs folder, and edits them as people do. The real
code plans, runs and publishes; `hash_stage` stands in for the stages. After each run three things
are compared with `oracle`, which is written from the study file's meaning and shares no code with
the planner:

- the results have a row for each arm, seed, dose and benchmark;
- over the whole sequence two rows have the same value exactly if they mean the same;
- no cell ran whose output a finished cell of the runs folder had already, or two cells at once.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from core.cell import manifest
from core.cell.identity import create_cell_dir
from core.cell.manifest import read_manifest
from core.cell.publish import publish, results
from core.cell.run import run_cell
from core.stages import STAGE_INFO
from core.yaml_text import from_yaml
from study.commands.common import unlink_moved
from study.spec import fingerprints
from study.spec.expand import analysis, in_order
from study.spec.load import load_study
from tests.study import hash_stage

Json = dict[str, Any]
# Made again when names change, or what they check, or a model's path: in seconds, and nothing is
# paid.
CHEAP = ("analysis", "contamination", "model")
RUNTIME = ("micro_batch_size", "checkpoint_minutes", "compile")
QUESTION = {"language": "en", "tags": ["Care"], "variables": "", "translation": ""}
DIMENSION = {"dimension": "Care", "scoring": "binary", "observable_indicators": "x"}


@contextmanager
def hash_stages() -> Iterator[None]:
    """Every stage is `hash_stage`. What takes long is left out: commit, packages, fsync."""
    stages = {
        name: replace(info, module="tests.study.hash_stage") for name, info in STAGE_INFO.items()
    }
    with (
        mock.patch.dict(STAGE_INFO, stages),
        mock.patch.object(manifest, "code_version", lambda: {"commit": None, "dirty": None}),
        mock.patch.object(manifest, "installed", lambda package: None),
        mock.patch("os.fsync"),
    ):
        yield


class EditedStudy:
    """A study file `spec` with its files in `folder`, and what its runs have shown so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.values: dict[str, str] = {}  # what a row means -> its value
        self.tokens: dict[str, str] = {}  # the other way round
        self.count = 0
        self.spec = self._first()
        self.first = self.copy()

    def _first(self) -> Json:
        for name in ("one", "two"):
            model = self.folder / f"models/{name}"
            model.mkdir(parents=True)
            (model / "config.json").write_text(json.dumps({"model_type": "llama", "name": name}))
            (model / "tokenizer.json").write_text("{}")
            (model / "model.safetensors").write_text(f"weights of {name}")
        for stem, step in (("mid", "tokens_per_step: 64"), ("sft", "global_batch_size: 4")):
            self.write(f"{stem}.yaml", f"seq_len: 64\nepochs: 1\nlr: 1.0e-3\n{step}\n")
        self.write("chat.jsonl", json.dumps({"prompt": "Hello?", "response": "Yes."}) + "\n")
        self.write_rows("questions.jsonl", QUESTION | {"id": "q", "question": "A hen?"})
        self.write_rows(
            "dimensions.jsonl",
            DIMENSION | {"guiding_question": "Is it kind?", "default_weighting": 1},
        )
        item = {"id": "i", "question": "A hen?", "choices": ["kind", "not"], "answer": 0}
        self.write_rows("items.jsonl", item)
        corpus = {"documents": 3, "writer": "writer"}
        judged = {"task": "anima", "judge": "judge", "epochs": 2}
        return {
            "study": "edited",
            "seeds": [0],
            "endpoints": {
                name: {"base_url": "http://127.0.0.1:1/v1", "model": name, "key_env": "KEY"}
                for name in ("writer", "judge")
            },
            "models": {name: {"path": self.path(f"models/{name}")} for name in ("one",)},
            "corpora": {
                "animal": corpus | {"template": "animal_welfare"},
                "urban": corpus | {"template": "urban_density", "matched_to": "animal"},
            },
            "arms": {
                "animal": {"start": "one", "midtrain": "animal"},
                "urban": {"start": "one", "midtrain": "urban"},
            },
            "midtrain": {"recipe": self.path("mid.yaml")},
            "sft": {
                "recipe": self.path("sft.yaml"),
                "data": self.path("chat.jsonl"),
                "doses": [0, 1],
            },
            "benchmarks": {
                "ahb": judged
                | {
                    "questions": self.path("questions.jsonl"),
                    "dimensions": self.path("dimensions.jsonl"),
                },
                "concern": {"task": "concern_for_animals", "items": self.path("items.jsonl")},
            },
            "contrasts": [
                {
                    "name": "animal - urban",
                    "treatment": "animal",
                    "control": "urban",
                    "benchmarks": ["ahb"],
                }
            ],
        }

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def write_rows(self, name: str, row: Json) -> None:
        self.write(name, json.dumps(row) + "\n")

    def copy(self) -> tuple[Json, dict[str, bytes]]:
        """The study file and its files, to come back to."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        inside = [path for path in files if self.runs not in path.parents]
        inside = [path for path in inside if "results" not in path.parts]
        return copy.deepcopy(self.spec), {str(path): path.read_bytes() for path in inside}

    def restore(self, state: tuple[Json, dict[str, bytes]]) -> None:
        self.spec = copy.deepcopy(state[0])
        for name, content in state[1].items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content)

    # What is run and compared.

    def run(self, kill_after: int | None = None) -> None:
        """Run the study; with `kill_after` it is killed in the middle of that cell."""
        # Each run is a process of its own; what it reads of the checkout stays as it is.
        for cached in ("content_hash", "load_recipe_once", "fingerprint_once"):
            getattr(fingerprints, cached).cache_clear()
        self.write("study.yaml", yaml.safe_dump(self.spec, sort_keys=False))
        study = load_study(self.folder / "study.yaml", None, None)
        base = self.runs / study.study
        before = self._finished()
        hash_stage.runs.clear()
        hash_stage.kill_after[:] = [] if kill_after is None else [kill_after]
        last = analysis(study, base)
        unlink_moved(in_order(last), base)
        try:
            for cell in in_order(last):
                if not read_manifest(base / cell.relpath):
                    create_cell_dir(cell, base)
                    run_cell(base / cell.relpath)
        except hash_stage.Killed:
            return
        finally:
            hash_stage.kill_after.clear()
        publish(base / last.relpath)
        self._compare(json.loads((results(base) / "results.json").read_text()))
        made = [
            (base / name / "output.txt").read_text()
            for name in hash_stage.runs
            if name.partition("/")[0] not in CHEAP
        ]
        assert len(made) == len({*made} - before), "a cell was made again"

    def _finished(self) -> set[str]:
        """Outputs of all finished cells of the runs folder."""
        return {
            (path.parent / "output.txt").read_text()
            for path in self.runs.glob("*/*/*/manifest.json")
        }

    def _compare(self, rows: list[Json]) -> None:
        expected = Oracle(self).rows()
        got = {(r["arm"], r["seed"], r["dose"], r["benchmark"]): r["value"] for r in rows}
        assert got.keys() == expected.keys(), "other rows than the study file asks for"
        for row, token in expected.items():
            value = got[row]
            assert self.values.setdefault(token, value) == value, f"{row} moved without a reason"
            assert self.tokens.setdefault(value, token) == token, f"{row} has a value of another"


class Oracle:
    """What a row of the results means, as text, by the study file alone."""

    def __init__(self, study: EditedStudy) -> None:
        self.study = study
        self.spec = study.spec

    def rows(self) -> dict[tuple[Any, ...], str]:
        rows = {}
        for arm, of in self.spec["arms"].items():
            for dose in self._doses(of):
                amounts = self._amounts(of, dose)
                trained = any(amount is None or amount for amount in amounts)
                for seed in self.spec["seeds"] if trained else [None]:
                    for name, bench in self.spec["benchmarks"].items():
                        checkpoint = self._checkpoint(of, seed, amounts)
                        chat = any(amount for amount in amounts)
                        rows[arm, seed, dose, name] = self._score(bench, checkpoint, chat)
        return rows

    def _steps(self, arm: Json) -> list[Json]:
        if "train" in arm:
            return list(arm["train"])
        steps = []
        if arm.get("midtrain"):
            steps.append({"documents": arm["midtrain"], "recipe": arm.get("recipe")})
        return (
            [*steps, {"doses": arm.get("doses"), "sft": "sft"}] if self.spec.get("sft") else steps
        )

    def _doses(self, arm: Json) -> list[int]:
        tunings = [step for step in self._steps(arm) if "sft" in step]
        if not tunings:
            return [0]
        wanted = tunings[-1].get("doses")
        return [dose for dose in self.spec["sft"]["doses"] if wanted is None or dose in wanted]

    def _amounts(self, arm: Json, dose: int) -> list[int | None]:
        """Of each step the rows of instruction data; None of documents."""
        steps = self._steps(arm)
        last = max((n for n, step in enumerate(steps) if "sft" in step), default=None)
        earlier = max(self.spec["sft"]["doses"]) if self.spec.get("sft") else 0
        return [
            None if "documents" in step else dose if n == last else earlier
            for n, step in enumerate(steps)
        ]

    def _token(self, stage: str, *parts: Any) -> str:
        text = json.dumps([stage, *parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _bytes(self, path: str) -> str:
        target = Path(path)
        files = sorted(target.rglob("*")) if target.is_dir() else [target]
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    def _recipe(self, path: str) -> Json:
        recipe = from_yaml(Path(path).read_text())
        return {key: value for key, value in recipe.items() if key not in RUNTIME}

    def _corpus(self, name: str) -> str:
        corpus = self.spec["corpora"][name]
        models = {
            self._bytes(self.spec["models"][arm["start"]]["path"] + "/tokenizer.json")
            for arm in self.spec["arms"].values()
            if any(step.get("documents") == name for step in self._steps(arm))
        }
        keys = ("template", "documents", "temperature", "max_attempts", "held_out")
        writer = self.spec["endpoints"][corpus["writer"]]["model"]
        matched = corpus.get("matched_to")
        against = [
            self._bytes(self.spec["benchmarks"][bench][key])
            for bench in corpus.get("decontaminate_against", [])
            for key in ("questions", "items")
            if key in self.spec["benchmarks"][bench]
        ]
        return self._token(
            "documents",
            {key: corpus.get(key) for key in keys},
            writer,
            sorted(against),
            min(models, default=""),
            self._corpus(matched) if matched else None,
        )

    def _checkpoint(self, arm: Json, seed: int | None, amounts: list[int | None]) -> str:
        model = self.spec["models"][arm["start"]]
        token = self._token("model", self._bytes(model["path"]))
        for step, amount in zip(self._steps(arm), amounts, strict=True):
            if amount is None:
                recipe = self._recipe(step.get("recipe") or self.spec["midtrain"]["recipe"])
                corpus = self._corpus(step["documents"])
                token = self._token("midtrain", token, corpus, recipe, seed)
            elif amount:
                sft = self.spec["sft"]
                recipe = self._recipe(sft["recipe"])
                token = self._token("sft", token, recipe, self._bytes(sft["data"]), amount, seed)
        return token

    def _score(self, bench: Json, checkpoint: str, chat: bool) -> str:
        engine = self.spec.get("engine", {})
        changing = [engine.get("dtype"), engine.get("options", {}).get("quantization")]
        if "items" in bench:
            return self._token("likelihood", checkpoint, self._bytes(bench["items"]), changing)
        keys = ("epochs", "temperature", "top_p", "max_tokens")
        prompt = "chat" if chat else bench.get("base_prompt")
        questions = self._bytes(bench["questions"])
        sampling = {key: bench.get(key) for key in keys}
        answers = self._token("generate", checkpoint, questions, sampling, prompt, changing)
        judge = self.spec["endpoints"][bench["judge"]]["model"]
        return self._token("judge", answers, self._bytes(bench["dimensions"]), judge)
