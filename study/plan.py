"""A study as cells: which there are, what each needs, in an order in which they can run."""

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from study import benchmarks
from study.cells import Cell
from study.contents import (
    LIMITS,
    content_hash,
    endpoint_address,
    endpoint_model,
    fingerprints,
    is_stand_in,
    load_recipe_once,
    model_name,
    yaml_once,
)
from study.errors import UserError
from study.references import resolve
from study.schema import Benchmark, Corpus, Model, Remote, Sft, Study, TinyLlama, Training
from study.sources import Source, identity, locate

# In the order of the work: a cell's inputs are of earlier stages, or come before it in its own.
STAGES = (
    "model",
    "drafts",
    "documents",
    "midtrain",
    "sft",
    "generate",
    "likelihood",
    "lm_eval",
    "judge",
    "labels",
    "analysis",
)


@dataclass(frozen=True)
class Checkpoint:
    """One model to evaluate: an arm at a dose of SFT; `seed` is None where no training of ours made it."""

    arm: str
    seed: int | None
    dose: int
    cell: Cell
    chat: bool


def doses(study: Study, arm: str) -> list[int]:
    """The doses of SFT at which an arm is evaluated."""
    sft, own = sft_of(study, arm), study.arms[arm].doses
    return [dose for dose in (sft.doses if sft else [0]) if own is None or dose in own]


def sft_of(study: Study, arm: str) -> Sft | None:
    """The instruction tuning of an arm."""
    return study.sfts[name] if (name := study.arms[arm].sft) else study.sft


def checkpoints(study: Study) -> list[Checkpoint]:
    """Every (arm, seed, dose) of the study with the cell that makes it."""
    found = []
    for arm in study.arms:
        for dose in doses(study, arm):
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
    rows, missing, labels, inputs = [], [], [], {}
    shared: dict[str, Cell] = {}
    for checkpoint in checkpoints(study):
        for name in [n for n, b in study.benchmarks.items() if _asked(b, checkpoint)]:
            for judge, cell in benchmarks.scores(study, name, checkpoint.cell, checkpoint.chat).items():
                row: dict[str, Any] = {"arm": checkpoint.arm, "seed": checkpoint.seed, "dose": checkpoint.dose}
                row |= {"benchmark": name, "checkpoint": checkpoint.cell.place}
                if judge != (study.benchmarks[name].judge or ""):
                    row["judge"] = model_name(study, judge)
                if cell.identity in without:
                    missing.append(row)
                    continue
                # Benchmarks that come to the same cell share it, under the first one's name.
                inputs[cell.name] = shared.setdefault(cell.identity, cell)
                rows.append({"role": cell.name, **row})
    for name, bench in study.benchmarks.items():
        if bench.labels and (cell := benchmarks.labels(name, bench.labels)).identity not in without:
            inputs[cell.name] = cell
            labels.append(cell.name)
    settings = {
        "study": study.study,
        "rows": rows,
        "missing": missing,
        "labels": labels,
        "roles": study.roles,
        "contrasts": [asdict(contrast) for contrast in study.contrasts],
        "benchmarks": {
            name: {
                "task": b.task,
                "judge": model_name(study, b.judge),
                "stand_in": is_stand_in(study, b.judge),
                "other_judges": [model_name(study, judge) for judge in b.other_judges] + ["human"] * bool(b.labels),
            }
            for name, b in study.benchmarks.items()
        },
        "writers": [
            {"corpus": name, "model": model_name(study, c.writer), "stand_in": is_stand_in(study, c.writer)}
            for name, c in study.corpora.items()
        ],
    }
    for name in dict.fromkeys(arm.midtrain for arm in study.arms.values() if arm.midtrain):
        corpus = _documents(study, name)
        if corpus.identity not in without:
            inputs[f"corpus-{name}"] = corpus
    return Cell("analysis", study.study, settings, inputs)


def _asked(bench: Benchmark, checkpoint: Checkpoint) -> bool:
    return (bench.arms is None or checkpoint.arm in bench.arms) and (
        bench.doses is None or checkpoint.dose in bench.doses
    )


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


# Keys of a training recipe that a user may change while a training is half done: it goes on in the same folder.
WAYS = ("rows_per_rank", "save_minutes", "activation_checkpointing", "compile", "sharding")


def apart(recipe: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A training recipe's settings, and its ways of running."""
    return {k: v for k, v in recipe.items() if k not in WAYS}, {k: recipe[k] for k in WAYS}


def _training(stage: str, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    recipe, size = load_recipe_once(path, Training), {"midtrain": "tokens_per_update", "sft": "rows_per_update"}[stage]
    if not recipe[size]:
        raise UserError(f"{path}: a recipe for {stage} needs {size}; give it, or name another recipe")
    return apart(recipe)


def _checkpoint(study: Study, arm: str, seed: int | None, dose: int) -> Cell:
    found, sft = study.arms[arm], sft_of(study, arm)
    start, corpus, form = found.start, found.midtrain, found.form
    cell, name = _model(study, start), start
    if corpus:
        path = found.recipe or (study.midtrain and study.midtrain.recipe)
        assert seed is not None and path
        recipe, ways = _training("sft" if form else "midtrain", path)
        name += f"-{corpus}{'_' + form if form else ''}{'_' + Path(path).stem if found.recipe else ''}"
        settings = {"recipe": recipe, "seed": seed} | ({"form": form} if form else {})
        inputs = {"start": cell, "documents": _documents(study, corpus)}
        cell = Cell("midtrain", f"{name}-s{seed}", settings, inputs, ways)
    if dose:
        assert sft and seed is not None
        recipe, ways = _training("sft", sft.recipe)
        name += f"{'-' + found.sft if found.sft else ''}-s{seed}"
        data, place = _sft_data(sft)
        settings = {"recipe": recipe, **data, "dose": dose, "seed": seed}
        *passed, last = sorted({dose for dose in sft.doses if dose}) if sft.one_run else [dose]
        if passed:
            if recipe["epochs"] != 1 or recipe["patience"] or recipe["load_best"]:
                raise UserError(
                    f"{sft.recipe}: sft.one_run keeps a model at each dose as it passes, so the recipe must have "
                    "epochs: 1 and neither patience nor load_best; change it, or leave one_run out"
                )
            settings |= {"dose": last, "doses": passed}
        inputs, ways = {"start": cell}, {"data": place, **ways}
        if sft.replay and corpus:
            settings, inputs = settings | {"replay": sft.replay}, inputs | {"replay": _documents(study, corpus)}
        cell = Cell("sft", f"{name}-d{last}", settings, inputs, ways)
        if dose != last:
            cell = Cell("sft", f"{name}-d{dose}", {"dose": dose}, {"run": cell})
    return cell


def _sft_data(sft: Sft) -> tuple[dict[str, Any], str]:
    """What of an SFT's data is identity, and where it lies."""
    if isinstance(sft.data, str):
        return {"data_sha256": content_hash(sft.data)}, str(resolve(sft.data))
    source = _remote(sft.data)
    return {"data": identity(source)}, str(locate(source))


def _remote(data: Remote) -> Source:
    if data.url:
        return {"url": data.url, "sha256": data.sha256}
    return {"hub": data.hub, "revision": data.revision, "kind": "dataset", "file": data.file}


def _model(study: Study, name: str) -> Cell:
    model = study.models[name]
    if model.make:
        recipe = load_recipe_once(model.make, TinyLlama)
        pretrain, ways = apart(recipe["pretrain"])
        # It is pretrained on the English that comes with this Python.
        english = f"Python {platform.python_version()}"
        settings = {"recipe": {**recipe, "pretrain": pretrain}, "english": english}
        return Cell("model", name, settings, resources=ways)
    if model.path:
        settings, place = {"files": fingerprints(model.path)}, resolve(model.path)
    else:
        settings, place = {"source": identity(_on_hub(model, "model"))}, locate(_on_hub(model, "model"))
    resources = {"path": str(place)}
    if template := model.chat_template:
        settings, resources = (
            settings | {"chat_template_sha256": content_hash(template)},
            resources | {"chat_template": str(resolve(template))},
        )
    return Cell("model", name, settings, resources=resources)


def _on_hub(what: Model | Corpus, kind: str) -> Source:
    return {"hub": what.hub, "revision": what.revision, "kind": kind}


def sources(study: Study) -> list[Source]:
    """What the study takes from Hugging Face or a URL."""
    found = [_on_hub(model, "model") for model in study.models.values() if model.hub]
    found += [_on_hub(corpus, "dataset") for corpus in study.corpora.values() if corpus.hub]
    for sft in filter(None, [study.sft, *study.sfts.values()]):
        found += [_remote(sft.data)] if isinstance(sft.data, Remote) else []
    for bench in study.benchmarks.values():
        found += [source for source in benchmarks.sources(bench).values() if "path" not in source]
    return [source for n, source in enumerate(found) if source not in found[:n]]


def previews(study: Study) -> list[Cell]:
    """The cells that write a few documents of a corpus to be looked at, where the study asks for that."""
    found = []
    for name, corpus in study.corpora.items():
        if corpus.preview:
            # The same requests as the corpus', so its first documents are then paid for.
            shown, resources = _drafting(study, name)
            found.append(Cell("documents", name, shown | {"preview": corpus.preview}, {}, resources))
    return found


def _documents(study: Study, name: str) -> Cell:
    corpus = study.corpora[name]
    settings, resources = _drafting(study, name)
    inputs, whole = {}, {key: getattr(corpus, key) for key in ("held_out", "tokens", "tolerance")}
    starts = [arm.start for arm in study.arms.values() if arm.midtrain == name] or [*study.models]
    model = study.models[starts[0]]
    if model.path:
        whole["tokenizer_sha256"] = content_hash(f"{model.path}/tokenizer.json")
        counted = resources | {"tokenizer": str(resolve(model.path))}
    elif model.hub:
        whole["tokenizer"] = identity(_on_hub(model, "model"))
        counted = resources | {"tokenizer": str(locate(_on_hub(model, "model")))}
    else:
        counted = resources
        inputs["tokenizer"] = _model(study, starts[0])
    if corpus.matched_to:
        inputs["matched_to"] = _documents(study, corpus.matched_to)
    for k in range(corpus.shards if corpus.shards > 1 else 0):
        share = settings | {"share": [k, corpus.shards]}
        label = f"{name}.{k + 1}of{corpus.shards}"
        inputs[f"drafts{k + 1}"] = Cell("drafts", label, share, {}, resources)
    return Cell("documents", name, settings | whole, inputs, counted)


def _drafting(study: Study, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and resources of whatever takes documents from a corpus' source."""
    corpus = study.corpora[name]
    files = benchmarks.texts(study, corpus.avoid)
    settings: dict[str, Any] = {
        "documents": corpus.documents,
        "seed": 0,  # one corpus for all training seeds
        "near_duplicates": corpus.near_duplicates,
        "avoid": {place: identity(source) for place, source in files.items()},
    }
    resources: dict[str, Any] = {"avoid": [str(locate(source)) for source in files.values()]}
    if corpus.template:
        settings["template"] = yaml_once(f"sdf/templates/{corpus.template}.yaml")
    if corpus.writer:
        endpoint = study.endpoints[corpus.writer]
        settings |= {"slots": yaml_once("sdf/templates/slots.yaml"), "writer": endpoint_model(endpoint)}
        settings |= {key: getattr(corpus, key) for key in ("temperature", "max_tokens", "draws")}
        if corpus.score:
            settings["score"] = asdict(corpus.score)
        limits = {key: getattr(endpoint, key) for key in LIMITS}
        return settings, resources | {
            "concurrency": study.concurrency,
            "address": endpoint_address(endpoint),
            "limits": limits,
        }
    source = {"column": corpus.column, "split": corpus.split}
    if corpus.path:
        return settings | {"source": source | {"sha256": content_hash(corpus.path)}}, resources | {
            "source": str(resolve(corpus.path))
        }
    found = _on_hub(corpus, "dataset")
    return settings | {"source": source | identity(found)}, resources | {"source": str(locate(found))}
