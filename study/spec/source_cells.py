"""What a study starts from: models, corpora and data, as cells and as sources on the network."""

import hashlib
import json
import platform
import re
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.cell.hash_cache import LARGE
from core.cell.identity import Cell
from core.errors import Problem, UserError
from core.paths import resolve
from core.recipe import TinyLlama, split_recipe
from sdf.settings import SourceSettings
from sdf.source_rows import local_rows, read_texts, select_rows
from study.spec import benchmarks
from study.spec.chains import corpora_of, dose_step, steps_of
from study.spec.doses import doses
from study.spec.fingerprints import (
    endpoint_files,
    endpoint_model,
    endpoint_resources,
    load_recipe_once,
    yaml_once,
)
from study.spec.schema import Benchmark, Corpus, Embedder, Model, Remote, Study
from study.spec.sources import (
    Source,
    file_source,
    identities,
    identity,
    model_folder,
    paths,
    remote,
)
from study.spec.template import template_content

# What the toy model is made of besides its recipe.
TOY_FILES: dict[str, Source] = {
    "prose": {"path": "recipes/data/neutral_prose.txt"},
    "chat_template": {"path": "recipes/data/llama3_chat.jinja"},
}


def model(study: Study, name: str) -> Cell:
    """The cell of a start model. Reads a model folder's files (`fingerprint_once`)."""
    model = study.models[name]
    if model.make:
        recipe = load_recipe_once(model.make, TinyLlama)
        pretrain, runtime = split_recipe(recipe["pretrain"]) if recipe["pretrain"] else (None, {})
        # It is pretrained on the English that comes with this Python, and on the kit's prose.
        english = f"Python {platform.python_version()}"
        settings = {"recipe": {**recipe, "pretrain": pretrain}, "english": english}
        settings |= identities(TOY_FILES)
        return Cell("model", name, settings, resources={**runtime, **paths(TOY_FILES)})
    files: dict[str, Source] = {"model": model_folder(model)}
    if model.tokenizer:
        files["tokenizer"] = model_folder(study.models[model.tokenizer])
    arms = [arm for arm in study.arms if study.arms[arm].start == name]
    trains = any(_trains(study, arm) for arm in arms)
    return Cell("model", name, identities(files), resources={**paths(files), "trains": trains})


def _trains(study: Study, arm: str) -> bool:
    """Whether an arm trains its start model at one of its doses."""
    number = dose_step(study.arms[arm])
    others = [step for n, step in enumerate(steps_of(study.arms[arm])) if n != number]
    return bool(others) or any(doses(study, arm))


def _on_hub(named: Model | Corpus, kind: str) -> Source:
    source = {"hub": named.hub, "revision": named.revision, "kind": kind}
    file = getattr(named, "file", None)
    return source | {"file": file} if file else source


def sources(study: Study) -> list[Source]:
    """What the study takes from Hugging Face or a URL, each once."""
    named = [_on_hub(model, "model") for model in study.models.values() if model.hub]
    named += [_on_hub(corpus, "dataset") for corpus in study.corpora.values() if corpus.hub]
    for sft in filter(None, [study.sft, *study.sfts.values()]):
        named += [remote(sft.data)] if isinstance(sft.data, Remote) else []
    named += [_embedder(study.embedder)] if study.embedder else []
    for bench in study.benchmarks.values():
        named += benchmarks.sources(bench).values()
    for corpus in study.corpora.values():
        named += _decontamination_texts(study, corpus).values()
    for arm in study.arms.values():
        by_dose = [files for of_bench in (arm.scores or {}).values() for files in of_bench.values()]
        named += [file_source(file) for files in by_dose for file in files]
    named = [source for source in named if "path" not in source]
    return [source for n, source in enumerate(named) if source not in named[:n]]


def excluded_documents(path: str) -> list[int]:
    """The document ids in a file with one id a line, sorted, each once.

    Raises UserError with a problem for each line that is no id.
    """
    lines = resolve(path).read_text(encoding="utf-8-sig", errors="replace").split("\n")
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    problems = [
        Problem(f"{path}:{number}", f"{line!r} is no document id", "give one number a line")
        for number, line in numbered
        if not re.fullmatch("[0-9]+", line)
    ]
    if problems:
        raise UserError.of(problems)
    return sorted({int(line) for _, line in numbered})


def previews(study: Study) -> list[Cell]:
    """The cells that write a few documents of a corpus to be looked at.

    None where the study asks for no preview.
    """
    cells = []
    for name, corpus in study.corpora.items():
        if corpus.preview:
            # The same requests as the corpus', so its first documents are then paid for.
            settings, resources = _drafting(study, name, 0)
            settings["preview"] = corpus.preview
            cells.append(Cell("documents", name, settings, {}, resources))
    return cells


def tokenizer_model(study: Study, corpus: str) -> str:
    """The start model whose tokenizer counts a corpus' tokens.

    It is that of the arms that train on the corpus, else of those that train on another, else any.
    Of several the smallest hash decides: names and their order change no corpus.
    """
    arms = [arm for arm in study.arms.values() if corpora_of(study, arm)]
    of_corpus = [arm for arm in arms if corpus in corpora_of(study, arm)] or arms
    starts = {arm.start for arm in of_corpus if arm.start}
    named = sorted(starts or study.models)
    return min(named, key=lambda name: _tokenizer_hash(study, name)) if named[1:] else named[0]


def _tokenizer_hash(study: Study, name: str) -> str:
    start = study.models[name]
    if start.make:
        return model(study, name).identity
    if start.path:
        return str(identity(_tokenizer_file(study, start)))
    text = json.dumps(identity(_on_hub(start, "model")), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def replicate_name(study: Study, name: str, replicate: int) -> str:
    """`animal.replicate1`; `animal` where the corpus is written once. No name has a dot."""
    return name if study.corpora[name].replicates == 1 else f"{name}.replicate{replicate}"


def corpus_name(cell: Cell) -> str:
    """The corpus of a documents cell, by its name in the study file."""
    return cell.name.partition(".")[0]


def documents(
    study: Study, name: str, replicate: int, tokenizer: Cell | None, matched_to: Cell | None
) -> Cell:
    """The cell that makes a replicate of a corpus, with the cells that write its shards.

    tokenizer: the cell that makes the model of `tokenizer_model`; None where the model is on disk
    or on the hub. matched_to: the same replicate of the corpus that it is matched to.
    """
    corpus = study.corpora[name]
    label = replicate_name(study, name, replicate)
    drafting, drafting_resources = _drafting(study, name, replicate)
    settings = drafting | {key: getattr(corpus, key) for key in ("held_out", "tokens", "tolerance")}
    if corpus.exclude:
        settings["exclude"] = excluded_documents(corpus.exclude)
    resources = drafting_resources
    inputs: dict[str, Cell] = {}
    start = study.models[tokenizer_model(study, name)]
    if tokenizer:
        inputs["tokenizer"] = tokenizer
    else:
        source = _tokenizer_file(study, start)
        settings["files"] = settings["files"] | identities({"tokenizer": source})["files"]
        resources = resources | {
            "files": resources["files"] | paths({"tokenizer": source})["files"]
        }
    if matched_to:
        inputs["matched_to"] = matched_to
    for k in range(corpus.shards if corpus.shards > 1 else 0):
        share = drafting | {"share": [k, corpus.shards]}
        shard_label = f"{label}.{k + 1}of{corpus.shards}"
        inputs[f"drafts{k + 1}"] = Cell("drafts", shard_label, share, {}, drafting_resources)
    return Cell("documents", label, settings, inputs, resources)


def embeddings(study: Study, documents: Cell) -> Cell | None:
    """The cell that embeds a corpus' documents; None where the study names no model for it."""
    if study.embedder is None:
        return None
    source = _embedder(study.embedder)
    name = study.embedder.hub or Path(str(study.embedder.path)).name
    settings = {"name": name, **identities({"embedder": source})}
    resources = paths({"embedder": source})
    return Cell("embeddings", documents.name, settings, {"documents": documents}, resources)


def _embedder(embedder: Embedder) -> Source:
    if embedder.path:
        return {"path": embedder.path}
    return {"hub": embedder.hub, "revision": embedder.revision, "kind": "model"}


def _decontamination_texts(study: Study, corpus: Corpus) -> dict[str, Source]:
    """Files whose texts the writer may not quote, by "benchmark1", "benchmark2" ...

    Each content once, numbered in an order that does not depend on the benchmarks' names: the keys
    are a part of the corpus' identity.
    """
    by_content = {
        json.dumps(identity(source), sort_keys=True): source
        for name in corpus.decontaminate_against
        for source in benchmarks.text_files(
            study.benchmarks.get(name) or Benchmark(task=name)
        ).values()
    }
    ordered = (source for _, source in sorted(by_content.items()))
    return {f"benchmark{number}": source for number, source in enumerate(ordered, 1)}


def _tokenizer_file(study: Study, model: Model) -> Source:
    name = "tokenizer.json"
    if model.tokenizer:
        model = study.models[model.tokenizer]
    if model.path:
        return {"path": f"{model.path}/{name}"}
    return _on_hub(model, "model") | {"file": name}


@lru_cache
def _check_texts(
    path: str,
    column: str,
    question: str | None,
    messages: str | None,
    values: tuple[tuple[str, str], ...],
) -> None:
    """Refuse a corpus' file as its cell would. A large one is left to the cell: it takes minutes.

    It is read once in a process.
    """
    file = resolve(path)
    if file.is_dir() or file.stat().st_size < LARGE:
        source = SourceSettings(column, "train", question=question, messages=messages)
        read_texts(select_rows(local_rows(file), dict(values), str(file)), source, str(file))


def _drafting(study: Study, name: str, replicate: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and resources of whatever takes documents from a corpus' source."""
    corpus = study.corpora[name]
    benchmark_texts = _decontamination_texts(study, corpus)
    files = dict(benchmark_texts)
    settings: dict[str, Any] = {
        "documents": corpus.documents,
        "seed": replicate,  # slots, requests and held-out documents derive from it
        "dedup_threshold": corpus.dedup_threshold,
        "decontaminate_against": [*benchmark_texts],  # keys of its files
    }
    # Names for the dataset card.
    resources: dict[str, Any] = {"decontaminate_against": corpus.decontaminate_against}
    if corpus.template:
        own_prompt = corpus.prompt_file is not None
        settings["template"] = template_content(corpus.template, corpus.ending, own_prompt)
    if corpus.prompt_file:
        files["prompt"] = {"path": corpus.prompt_file}
    if corpus.writer:
        endpoint = study.endpoints[corpus.writer]
        settings["slots"] = yaml_once("sdf/templates/slots.yaml")
        settings["writer"] = endpoint_model(endpoint)
        settings |= {
            key: getattr(corpus, key) for key in ("temperature", "max_tokens", "max_attempts")
        }
        if corpus.quality_filter:
            settings["quality_filter"] = asdict(corpus.quality_filter)
        resources |= endpoint_resources(study, endpoint)
        files |= endpoint_files(endpoint, "writer")
    else:
        settings["source"] = {"column": corpus.column, "split": corpus.split}
        given: dict[str, Any] = {"question": corpus.question, "messages": corpus.messages}
        given |= {"file": corpus.file, "filter": corpus.filter}
        settings["source"] |= {key: value for key, value in given.items() if value}
        if corpus.gates != "reject":
            settings["source"]["gates"] = corpus.gates
        if corpus.path:
            files["source"] = {"path": corpus.path}
            columns = (corpus.column, corpus.question, corpus.messages)
            _check_texts(corpus.path, *columns, tuple(sorted(corpus.filter.items())))
        else:
            files["source"] = _on_hub(corpus, "dataset")
            settings["source"] |= {"hub": corpus.hub, "revision": corpus.revision}
    return settings | identities(files), resources | paths(files)
