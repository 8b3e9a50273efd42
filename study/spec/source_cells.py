"""What a study starts from: models, corpora and data, as cells and as sources on the network."""

import platform
from dataclasses import asdict
from typing import Any

from core.cell.identity import Cell
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
from study.spec.schema import Corpus, Model, Remote, Study
from study.spec.sources import Source, identity, locate


def remote(data: Remote) -> Source:
    if data.url:
        return {"url": data.url, "sha256": data.sha256}
    return {"hub": data.hub, "revision": data.revision, "kind": "dataset", "file": data.file}


def model(study: Study, name: str) -> Cell:
    """The cell of a start model."""
    model = study.models[name]
    if model.make:
        recipe = load_recipe_once(model.make, TinyLlama)
        pretrain, ways = split_recipe(recipe["pretrain"])
        # It is pretrained on the English that comes with this Python.
        english = f"Python {platform.python_version()}"
        settings = {"recipe": {**recipe, "pretrain": pretrain}, "english": english}
        return Cell("model", name, settings, resources=ways)
    if model.path:
        settings, place = {"files": fingerprints(model.path)}, resolve(model.path)
    else:
        settings, place = (
            {"source": identity(_on_hub(model, "model"))},
            locate(_on_hub(model, "model")),
        )
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
        found += [remote(sft.data)] if isinstance(sft.data, Remote) else []
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
            found.append(
                Cell("documents", name, shown | {"preview": corpus.preview}, {}, resources)
            )
    return found


def documents(study: Study, name: str) -> Cell:
    """The cell that makes a corpus."""
    corpus = study.corpora[name]
    settings, resources = _drafting(study, name)
    inputs, whole = {}, {key: getattr(corpus, key) for key in ("held_out", "tokens", "tolerance")}
    starts = [arm.start for arm in study.arms.values() if arm.midtrain == name] or [*study.models]
    start = study.models[starts[0]]
    if start.path:
        whole["tokenizer_sha256"] = content_hash(f"{start.path}/tokenizer.json")
        counted = resources | {"tokenizer": str(resolve(start.path))}
    elif start.hub:
        whole["tokenizer"] = identity(_on_hub(start, "model"))
        counted = resources | {"tokenizer": str(locate(_on_hub(start, "model")))}
    else:
        counted = resources
        inputs["tokenizer"] = model(study, starts[0])
    if corpus.matched_to:
        inputs["matched_to"] = documents(study, corpus.matched_to)
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
        settings |= {
            "slots": yaml_once("sdf/templates/slots.yaml"),
            "writer": endpoint_model(endpoint),
        }
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
    return settings | {"source": source | identity(found)}, resources | {
        "source": str(locate(found))
    }
