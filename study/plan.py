"""A study as cells: which there are, what each needs, in an order in which they can run."""

import hashlib
import platform
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from study.cells import Cell, sha256
from study.load import load_recipe, read_yaml
from study.references import resolve
from study.schema import Benchmark, Endpoint, Study, TinyLlama, Training

# In the order of the work: a cell's inputs are of earlier stages, or come before it in its own.
STAGES = ("model", "documents", "midtrain", "sft", "generate", "likelihood", "judge", "analysis")


@dataclass(frozen=True)
class Checkpoint:
    """One model to evaluate: an arm at a dose of SFT; `seed` is None where no training of ours made it."""

    arm: str
    seed: int | None
    dose: int
    cell: Cell
    chat: bool


def checkpoints(study: Study) -> list[Checkpoint]:
    """Every (arm, seed, dose) of the study with the cell that makes it."""
    found = []
    for arm in study.arms:
        for dose in study.sft.doses if study.sft else [0]:
            trained = bool(study.arms[arm].midtrain) or dose > 0
            for seed in study.seeds if trained else [None]:
                cell = _checkpoint(study, arm, seed, dose)
                chat = dose > 0 or study.models[study.arms[arm].start].chat
                found.append(Checkpoint(arm, seed, dose, cell, chat))
    return found


def analysis(study: Study, without: set[str] = frozenset()) -> Cell:  # type: ignore[assignment]
    """The cell at the end, which every other cell serves.

    `without`: identities of score cells to leave out (they are then listed as missing), for a report of an
    unfinished study.
    """
    rows, missing, inputs = [], [], {}
    for checkpoint in checkpoints(study):
        for name in study.benchmarks:
            cell = _scores(study, name, checkpoint)
            row: dict[str, Any] = {"arm": checkpoint.arm, "seed": checkpoint.seed, "dose": checkpoint.dose}
            row["benchmark"] = name
            if cell.identity in without:
                missing.append(row)
                continue
            role = f"{name}-{checkpoint.cell.name}"
            inputs[role] = cell
            rows.append({"role": role, **row})
    settings = {
        "study": study.study,
        "rows": rows,
        "missing": missing,
        "contrasts": [asdict(contrast) for contrast in study.contrasts],
        "benchmarks": {
            name: {"task": b.task, "judge": _model_name(study, b.judge), "stand_in": _is_stand_in(study, b.judge)}
            for name, b in study.benchmarks.items()
        },
        "writers": [
            {"corpus": name, "model": _model_name(study, c.writer), "stand_in": _is_stand_in(study, c.writer)}
            for name, c in study.corpora.items()
        ],
    }
    return Cell("analysis", study.study, settings, inputs)


def in_order(last: Cell) -> list[Cell]:
    """Every cell that `last` needs, none twice, stage by stage, so inputs before their users and `last` at the end."""
    found: dict[str, Cell] = {}

    def walk(cell: Cell) -> None:
        if cell.identity not in found:
            for needed in cell.inputs.values():
                walk(needed)
            found[cell.identity] = cell

    walk(last)
    return sorted(found.values(), key=lambda cell: STAGES.index(cell.stage))


def updates(cell: Cell) -> tuple[int, int] | None:
    """Optimizer updates and tokens trained on in a training cell; None for any other.

    A midtraining is estimated from its number of documents, an SFT's tokens from its rows.
    """
    recipe = cell.settings.get("recipe")
    if recipe is None:
        return None
    if cell.stage == "model":
        pretrain = recipe["pretrain"]
        return -(-recipe["tokens"] // pretrain["tokens_per_update"]), recipe["tokens"]
    if cell.stage == "sft":
        rows = cell.settings["dose"] * recipe["epochs"]
        return -(-rows // recipe["rows_per_update"]), rows * TOKENS_PER_CHAT_ROW
    documents = cell.inputs["documents"].settings
    tokens = documents["documents"] * TOKENS_PER_DOCUMENT[documents["writer"]["served_by"]]
    rows = -(-tokens // recipe["seq_len"]) * recipe["epochs"]
    return -(-rows * recipe["seq_len"] // recipe["tokens_per_update"]), tokens * recipe["epochs"]


# Estimates, used until the counts are in a manifest: the paper's documents have 1,000-1,200 tokens; the stand-in's are
# shorter, and a toy tokenizer cuts them finely.
TOKENS_PER_DOCUMENT = {"kit": 333, "url": 1100}
TOKENS_PER_CHAT_ROW = 70


# Keys of a training recipe that a user may change while a training is half done: it goes on in the same folder.
WAYS = ("rows_per_rank", "save_minutes")


def _apart(recipe: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A training recipe's settings, and its ways of running."""
    return {k: v for k, v in recipe.items() if k not in WAYS}, {k: recipe[k] for k in WAYS}


def _checkpoint(study: Study, arm: str, seed: int | None, dose: int) -> Cell:
    start, corpus = study.arms[arm].start, study.arms[arm].midtrain
    cell = _model(study, start)
    if corpus:
        assert study.midtrain and seed is not None
        recipe, ways = _apart(load_recipe_once(study.midtrain.recipe, Training))
        cell = Cell(
            "midtrain",
            f"{start}-{corpus}-s{seed}",
            {"recipe": recipe, "seed": seed},
            {"start": cell, "documents": _documents(study, corpus)},
            ways,
        )
    if dose:
        assert study.sft and seed is not None
        recipe, ways = _apart(load_recipe_once(study.sft.recipe, Training))
        cell = Cell(
            "sft",
            f"{start}{'-' + corpus if corpus else ''}-s{seed}-d{dose}",
            {"recipe": recipe, "data_sha256": _hash(study.sft.data), "dose": dose, "seed": seed},
            {"start": cell},
            {"data": str(resolve(study.sft.data)), **ways},
        )
    return cell


def _model(study: Study, name: str) -> Cell:
    model = study.models[name]
    if model.make:
        recipe = load_recipe_once(model.make, TinyLlama)
        pretrain, ways = _apart(recipe["pretrain"])
        # It is pretrained on the English that comes with this Python.
        english = f"Python {platform.python_version()}"
        settings = {"recipe": {**recipe, "pretrain": pretrain}, "english": english}
        return Cell("model", name, settings, resources=ways)
    assert model.path
    return Cell("model", name, {"files": _fingerprints(model.path)}, resources={"path": str(resolve(model.path))})


def _documents(study: Study, name: str) -> Cell:
    corpus = study.corpora[name]
    settings = {
        "template": _yaml_once(f"sdf/templates/{corpus.template}.yaml"),
        "slots": _yaml_once("sdf/templates/slots.yaml"),
        "documents": corpus.documents,
        "seed": 0,  # one corpus for all training seeds
        "writer": _endpoint(study.endpoints[corpus.writer]),
        "temperature": corpus.temperature,
        "max_tokens": corpus.max_tokens,
        "tolerance": corpus.tolerance,
    }
    inputs = {"matched_to": _documents(study, corpus.matched_to)} if corpus.matched_to else {}
    resources = {"concurrency": study.concurrency, "address": _address(study.endpoints[corpus.writer])}
    return Cell("documents", name, settings, inputs, resources)


def _scores(study: Study, name: str, checkpoint: Checkpoint) -> Cell:
    bench = study.benchmarks[name]
    label = f"{name}-{checkpoint.cell.name}"
    engine, inputs = asdict(study.engine), {"checkpoint": checkpoint.cell}
    if bench.task == "concern_for_animals":
        assert bench.items
        settings = {"task": bench.task, "items_sha256": _hash(bench.items), "engine": engine}
        return Cell("likelihood", label, settings, inputs, {"items": str(resolve(bench.items))})
    assert bench.questions
    return _judge(study, bench, label, Cell(
        "generate",
        label,
        {
            "task": bench.task,
            "questions_sha256": _hash(bench.questions),
            "sampling": {k: getattr(bench, k) for k in ("temperature", "top_p", "max_tokens", "epochs")},
            "prompt": "chat" if checkpoint.chat else bench.base_prompt,
            "engine": engine,
        },
        inputs,
        {"questions": str(resolve(bench.questions))},
    ))  # fmt: skip


def _judge(study: Study, bench: Benchmark, label: str, samples: Cell) -> Cell:
    assert bench.judge and bench.questions and bench.dimensions
    return Cell(
        "judge",
        label,
        {
            "task": bench.task,
            "questions_sha256": _hash(bench.questions),
            "dimensions_sha256": _hash(bench.dimensions),
            "judge": _endpoint(study.endpoints[bench.judge]),
            "temperature": bench.judge_temperature,
            "max_tokens": bench.judge_max_tokens,
        },
        {"samples": samples},
        {
            "questions": str(resolve(bench.questions)),
            "dimensions": str(resolve(bench.dimensions)),
            "concurrency": study.concurrency,
            "address": _address(study.endpoints[bench.judge]),
        },
    )


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    """What of an endpoint is identity: the model, not the address or the key."""
    if endpoint.served_by == "kit":
        # The stand-in's sentences and rules are its weights: other rules, another model.
        return {"served_by": "kit", "model": "stand-in", "rules_sha256": _hash("study/stand_in.yaml")}
    return {"served_by": "url", "model": endpoint.model}


def _address(endpoint: Endpoint) -> dict[str, Any]:
    return {"base_url": endpoint.base_url, "key_env": endpoint.key_env}


def _model_name(study: Study, endpoint: str | None) -> str | None:
    return _endpoint(study.endpoints[endpoint])["model"] if endpoint else None


def _is_stand_in(study: Study, endpoint: str | None) -> bool:
    return endpoint is not None and study.endpoints[endpoint].served_by == "kit"


@lru_cache
def _hash(path: str) -> str:
    return sha256(resolve(path))


def _fingerprints(folder: str) -> dict[str, str]:
    """Each file of a model folder by its content; of weight files only size and both ends are read, to plan quickly."""
    found = {}
    for path in sorted(p for p in resolve(folder).rglob("*") if p.is_file()):
        size = path.stat().st_size
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read(2**20))
        found[str(path.relative_to(resolve(folder)))] = f"{size}-{digest.hexdigest()}"
    return found


@lru_cache
def _yaml_once(path: str) -> Any:
    return read_yaml(resolve(path))[0]


load_recipe_once = lru_cache(load_recipe)
