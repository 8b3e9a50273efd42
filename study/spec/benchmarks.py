"""Benchmarks: what eval/benchmarks declares of each, and the cells that score a checkpoint on it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import UserError
from core.paths import resolve
from study.spec.checks import OWN_FILES
from study.spec.fingerprints import (
    LIMITS,
    content_hash,
    endpoint_address,
    endpoint_model,
    yaml_once,
)
from study.spec.schema import Benchmark, Study
from study.spec.sources import Source, identity, locate


def declaration(bench: Benchmark) -> dict[str, Any]:
    """What eval/benchmarks says of the task, but for its files: scorer, and what that needs."""
    declared = {"rows": None, "variant": None} | yaml_once(f"eval/benchmarks/{bench.task}.yaml")
    own = any(getattr(bench, name) for name in OWN_FILES)
    return declared | (
        {"rows": None} if own else {}
    )  # how many its own files have is the user's affair


def sources(bench: Benchmark) -> dict[str, Source]:
    """The benchmark's files by name: the study's own where it names them, else the declared ones."""
    declared = yaml_once(f"eval/benchmarks/{bench.task}.yaml")["files"]
    return {
        name: {"path": own} if (own := getattr(bench, name)) else _kind(source)
        for name, source in declared.items()
    }


def _kind(source: Source) -> Source:
    return source | {"kind": "dataset"} if "hub" in source else source


def num_questions(bench: Benchmark) -> int | None:
    """How many questions a judged benchmark has; None where that is not known here, or no judge grades it."""
    if "questions" not in (files := sources(bench)):
        return None
    path = locate(files["questions"])
    rows = (
        path.read_text(encoding="utf-8").splitlines()
        if path.is_file() and path.suffix == ".jsonl"
        else []
    )
    return declaration(bench)["rows"] or len(rows) or None


def texts(study: Study, names: list[str] | None) -> dict[str, Source]:
    """Files with the texts of these benchmarks, or of all: those of the questions, not of the rubrics."""
    return {
        f"{name}.{key}": source
        for name, bench in study.benchmarks.items()
        if names is None or name in names
        for key, source in sources(bench).items()
        if key != "dimensions"
    }


def scores(study: Study, name: str, checkpoint: Cell, chat: bool) -> dict[str, Cell]:
    """The cells with a checkpoint's scores on a benchmark: by its judges' endpoints, or the one that needs no judge.

    The first is the one that counts. Benchmarks with the same questions and sampling share their samples.
    """
    bench = study.benchmarks[name]
    declared, files, label = declaration(bench), sources(bench), f"{name}-{checkpoint.name}"
    engine, inputs = asdict(study.engine), {"checkpoint": checkpoint}
    options = {"engine": engine.pop("options")}
    if declared["scorer"] == "lm_eval":
        settings = {
            key: declared.get(key) for key in ("lm_eval", "metric", "filter", "num_fewshot", "rows")
        }
        settings |= {
            "task": bench.task,
            "engine": engine,
            "limit": bench.limit,
            "data": identity(files["data"]),
        }
        settings |= {"max_tokens": declared.get("max_tokens"), "chat": chat}
        if bench.num_fewshot is not None:
            settings["num_fewshot"] = bench.num_fewshot
        if bench.limit:
            settings["rows"] = None
        return {
            "": Cell(
                "lm_eval", label, settings, inputs, {"data": str(locate(files["data"]))} | options
            )
        }
    if declared["scorer"] == "likelihood":
        settings = {
            "task": bench.task,
            "per_token": declared["per_token"],
            "rows": declared["rows"],
            "engine": engine,
        }
        return {
            "": Cell(
                "likelihood", label, settings | _identities(files), inputs, _places(files) | options
            )
        }
    asked = {"questions": files["questions"]}
    asking = _asking(study, name, chat)
    assert asking and bench.judge
    # The same samples have the same cell, and the name of whichever benchmark comes first.
    first = next(other for other in study.benchmarks if _asking(study, other, chat) == asking)
    samples = Cell(
        "generate", f"{first}-{checkpoint.name}", asking, inputs, _places(asked) | options
    )
    names = [
        endpoint_model(study.endpoints[judge])["model"]
        for judge in (bench.judge, *bench.other_judges)
    ]
    if twice := sorted({model for model in names if names.count(model) > 1}):
        raise UserError(
            f"{name}: two of its judges are the model {twice[0]}; each judge another model"
        )
    return {
        judge: _judge(study, bench, label, samples, judge)
        for judge in (bench.judge, *bench.other_judges)
    }


def _asking(study: Study, name: str, chat: bool) -> dict[str, Any] | None:
    """Settings of the cell that answers a judged benchmark's questions; None for any other benchmark."""
    bench = study.benchmarks[name]
    declared, files = declaration(bench), sources(bench)
    if "questions" not in files:
        return None
    return {
        "scorer": declared["scorer"],
        "rows": declared["rows"],
        "sampling": {
            k: getattr(bench, k) for k in ("temperature", "top_p", "max_tokens", "epochs")
        },
        "prompt": "chat" if chat else bench.base_prompt,
        "engine": {"dtype": study.engine.dtype, "max_model_len": study.engine.max_model_len},
        **_identities({"questions": files["questions"]}),
    }


def _judge(study: Study, bench: Benchmark, label: str, samples: Cell, judge: str) -> Cell:
    declared, files, endpoint = declaration(bench), sources(bench), study.endpoints[judge]
    return Cell(
        "judge",
        label if judge == bench.judge else f"{label}-{judge}",
        {
            "scorer": declared["scorer"],
            "variant": declared["variant"],
            "rows": declared["rows"],
            "judge": endpoint_model(endpoint),
            "temperature": bench.judge_temperature,
            "max_tokens": bench.judge_max_tokens,
            "missing": bench.judge_missing,
        }
        | _identities(files),
        {"samples": samples},
        {
            **_places(files),
            "address": endpoint_address(endpoint),
            "limits": {key: getattr(endpoint, key) for key in LIMITS},
            "concurrency": study.concurrency,
            "asks": bench.judge_asks,
        },
    )


def labels(name: str, sheet: str) -> Cell:
    """The cell that reads what people graded in a sheet (and what it belongs to in the key beside it)."""
    key = str(Path(sheet).with_suffix(".key.json"))
    settings = {"sheet_sha256": content_hash(sheet), "key_sha256": content_hash(key)}
    return Cell("labels", f"labels-{name}", settings, {}, {"sheet": str(resolve(sheet))})


def _identities(files: dict[str, Source]) -> dict[str, Any]:
    return {"files": {name: identity(source) for name, source in files.items()}}


def _places(files: dict[str, Source]) -> dict[str, Any]:
    return {"files": {name: str(locate(source)) for name, source in files.items()}}
