"""What a study starts from: models, corpora and data, as cells and as sources on the network."""

import hashlib
import json
import platform
import re
from dataclasses import asdict
from typing import Any

from core.cell.identity import Cell
from core.errors import Problem, UserError
from core.files import fingerprints
from core.paths import resolve
from core.recipe import TinyLlama, split_recipe
from study.spec import benchmarks
from study.spec.fingerprints import (
    LIMITS,
    content_hash,
    endpoint_address,
    endpoint_model,
    load_recipe_once,
    yaml_once,
)
from study.spec.schema import Benchmark, Corpus, Model, Remote, Study
from study.spec.sources import Source, identity, locate


def remote(data: Remote) -> Source:
    """The source of a file that the study file names on Hugging Face or at a URL."""
    if data.url:
        return {"url": data.url, "sha256": data.sha256}
    return {"hub": data.hub, "revision": data.revision, "kind": "dataset", "file": data.file}


def model(study: Study, name: str) -> Cell:
    """The cell of a start model. Reads both ends of each weight file of a model folder."""
    model = study.models[name]
    if model.make:
        recipe = load_recipe_once(model.make, TinyLlama)
        pretrain, runtime = split_recipe(recipe["pretrain"])
        # It is pretrained on the English that comes with this Python.
        english = f"Python {platform.python_version()}"
        settings = {"recipe": {**recipe, "pretrain": pretrain}, "english": english}
        return Cell("model", name, settings, resources=runtime)
    if model.path:
        settings = {"files": fingerprints(model.path)}
        path = resolve(model.path)
    else:
        source = _on_hub(model, "model")
        settings = {"source": identity(source)}
        path = locate(source)
    resources = {"path": str(path)}
    if model.chat_template:
        settings["chat_template_sha256"] = content_hash(model.chat_template)
        resources["chat_template"] = str(resolve(model.chat_template))
    return Cell("model", name, settings, resources=resources)


def _on_hub(named: Model | Corpus, kind: str) -> Source:
    return {"hub": named.hub, "revision": named.revision, "kind": kind}


def sources(study: Study) -> list[Source]:
    """What the study takes from Hugging Face or a URL, each once."""
    named = [_on_hub(model, "model") for model in study.models.values() if model.hub]
    named += [_on_hub(corpus, "dataset") for corpus in study.corpora.values() if corpus.hub]
    for sft in filter(None, [study.sft, *study.sfts.values()]):
        named += [remote(sft.data)] if isinstance(sft.data, Remote) else []
    for bench in study.benchmarks.values():
        named += benchmarks.sources(bench).values()
    for corpus in study.corpora.values():
        named += _decontamination_texts(study, corpus).values()
    named = [source for source in named if "path" not in source]
    return [source for n, source in enumerate(named) if source not in named[:n]]


def excluded_documents(path: str) -> list[int]:
    """The document ids in a file with one id a line, sorted, each once.

    Raises UserError with a problem for each line that is no id.
    """
    lines = resolve(path).read_text(encoding="utf-8").splitlines()
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
            settings, resources = _drafting(study, name)
            settings["preview"] = corpus.preview
            cells.append(Cell("documents", name, settings, {}, resources))
    return cells


def tokenizer_model(study: Study, corpus: str) -> str:
    """The start model whose tokenizer counts a corpus' tokens.

    It is that of the arms that train on the corpus, else of those that train on another, else any.
    Of several the smallest hash decides: names and their order change no corpus.
    """
    arms = [arm for arm in study.arms.values() if arm.midtrain]
    starts = {arm.start for arm in arms if arm.midtrain == corpus} or {arm.start for arm in arms}
    named = sorted(starts or study.models)
    return min(named, key=lambda name: _tokenizer_hash(study, name)) if named[1:] else named[0]


def _tokenizer_hash(study: Study, name: str) -> str:
    start = study.models[name]
    if start.make:
        return model(study, name).identity
    if start.path:
        return content_hash(f"{start.path}/tokenizer.json")
    text = json.dumps(identity(_on_hub(start, "model")), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def documents(study: Study, name: str, tokenizer: Cell | None, matched_to: Cell | None) -> Cell:
    """The cell that makes a corpus, with the cells that write its shards.

    tokenizer: the cell that makes the model of `tokenizer_model`; None where the model is on disk
    or on the hub. matched_to: the corpus that it is matched to.
    """
    corpus = study.corpora[name]
    drafting, drafting_resources = _drafting(study, name)
    settings = drafting | {key: getattr(corpus, key) for key in ("held_out", "tokens", "tolerance")}
    if corpus.exclude:
        settings["exclude"] = excluded_documents(corpus.exclude)
    resources = drafting_resources
    inputs: dict[str, Cell] = {}
    start = study.models[tokenizer_model(study, name)]
    if tokenizer:
        inputs["tokenizer"] = tokenizer
    elif start.path:
        settings["tokenizer_sha256"] = content_hash(f"{start.path}/tokenizer.json")
        resources = resources | {"tokenizer": str(resolve(start.path))}
    else:
        source = _on_hub(start, "model")
        settings["tokenizer"] = identity(source)
        resources = resources | {"tokenizer": str(locate(source))}
    if matched_to:
        inputs["matched_to"] = matched_to
    for k in range(corpus.shards if corpus.shards > 1 else 0):
        share = drafting | {"share": [k, corpus.shards]}
        label = f"{name}.{k + 1}of{corpus.shards}"
        inputs[f"drafts{k + 1}"] = Cell("drafts", label, share, {}, drafting_resources)
    return Cell("documents", name, settings, inputs, resources)


def _decontamination_texts(study: Study, corpus: Corpus) -> dict[str, Source]:
    """Files whose texts the writer may not quote, by "BENCHMARK.FILE".

    Each content once, in an order that does not depend on the benchmarks' names.
    """
    by_content = {
        json.dumps(identity(source), sort_keys=True): (f"{name}.{key}", source)
        for name in corpus.decontaminate_against
        for key, source in benchmarks.text_files(
            study.benchmarks.get(name) or Benchmark(task=name)
        ).items()
    }
    return dict(entry for _, entry in sorted(by_content.items(), key=lambda item: item[0]))


def _drafting(study: Study, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and resources of whatever takes documents from a corpus' source."""
    corpus = study.corpora[name]
    texts = _decontamination_texts(study, corpus)
    settings: dict[str, Any] = {
        "documents": corpus.documents,
        "seed": 0,  # one corpus for all training seeds
        "dedup_threshold": corpus.dedup_threshold,
        "decontaminate_against": [identity(source) for source in texts.values()],
    }
    resources: dict[str, Any] = {
        "decontaminate_against": {label: str(locate(source)) for label, source in texts.items()}
    }
    if corpus.template:
        settings["template"] = yaml_once(f"sdf/templates/{corpus.template}.yaml")
    if corpus.writer:
        endpoint = study.endpoints[corpus.writer]
        settings["slots"] = yaml_once("sdf/templates/slots.yaml")
        settings["writer"] = endpoint_model(endpoint)
        settings |= {
            key: getattr(corpus, key) for key in ("temperature", "max_tokens", "max_attempts")
        }
        if corpus.quality_filter:
            settings["quality_filter"] = asdict(corpus.quality_filter)
        resources["concurrency"] = study.concurrency
        resources["address"] = endpoint_address(endpoint)
        resources["limits"] = {key: getattr(endpoint, key) for key in LIMITS}
        return settings, resources
    layout = {"column": corpus.column, "split": corpus.split}
    if corpus.path:
        settings["source"] = layout | {"sha256": content_hash(corpus.path)}
        resources["source"] = str(resolve(corpus.path))
    else:
        source = _on_hub(corpus, "dataset")
        settings["source"] = layout | identity(source)
        resources["source"] = str(locate(source))
    return settings, resources
