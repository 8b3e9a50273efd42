"""Benchmarks: what eval/benchmarks declares of each, and the cells that score a checkpoint on it.

eval/benchmarks/TASK.yaml is what this package knows of a task; no scorer is imported.
"""

from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import UserError
from core.files import read_rows
from study.spec.chat import chat_date, chat_files
from study.spec.checkpoint import Checkpoint, trainings_of
from study.spec.checks import OWN_FILES
from study.spec.declaration import UNPROMPTED
from study.spec.fingerprints import (
    endpoint_files,
    endpoint_model,
    endpoint_resources,
    engine_arguments,
    model_name,
    yaml_once,
)
from study.spec.schema import Benchmark, Remote, Study
from study.spec.sources import Source, file_source, identities, locate, paths

Inputs = dict[str, Cell]  # role -> cell


def declaration(bench: Benchmark) -> dict[str, Any]:
    """What eval/benchmarks says of the task, but for its files: scorer, and what that needs.

    `title` and `rows` are None where the study brings files of its own, which they don't describe.
    """
    declared: dict[str, Any] = {"title": None, "rows": None, "variant": None}
    declared |= yaml_once(f"eval/benchmarks/{bench.task}.yaml")
    if any(getattr(bench, name) for name in OWN_FILES):
        declared |= {"title": None, "rows": None}
    return declared


def sources(bench: Benchmark) -> dict[str, Source]:
    """The benchmark's files by name: the study's own where it names them, else the declared."""
    files: dict[str, Source] = {}
    for name, source in yaml_once(f"eval/benchmarks/{bench.task}.yaml")["files"].items():
        given = getattr(bench, name)
        if given or source:
            files[name] = file_source(given) if given else _with_kind(source)
    return files


def is_prompted(bench: Benchmark) -> bool:
    """Whether its questions can be asked under a system prompt or a prefill."""
    return declaration(bench)["scorer"] not in UNPROMPTED


def _with_kind(source: Source) -> Source:
    return source | {"kind": "dataset"} if "hub" in source else source


def num_questions(bench: Benchmark) -> int | None:
    """How many questions a judged benchmark has.

    None where that is not known on this machine, or no judge grades it.
    """
    files = sources(bench)
    if "questions" not in files:
        return None
    if declared := declaration(bench)["rows"]:
        return int(declared)
    path = locate(files["questions"])
    return (sum(1 for _ in read_rows(path)) if path.exists() else 0) or None


def text_files(bench: Benchmark) -> dict[str, Source]:
    """The benchmark's files whose texts no document may contain: not the rubrics."""
    return {name: source for name, source in sources(bench).items() if name != "dimensions"}


def contamination(study: Study, name: str, corpus: Cell) -> Cell:
    """The cell that looks for a benchmark's texts in the documents of a corpus."""
    files = text_files(study.benchmarks[name])
    label = f"{corpus.name}-{name}"
    return Cell("contamination", label, identities(files), {"documents": corpus}, paths(files))


def scores(
    study: Study,
    name: str,
    inputs: Inputs,
    checkpoint: Checkpoint,
) -> dict[str, Cell]:
    """The cells with a checkpoint's scores on a benchmark, by its judges' endpoints.

    inputs: `checkpoint`, and `contamination` where the checkpoint was trained on documents.
    The first is the one that counts; under "" where no judge is needed. Benchmarks with the same
    questions and sampling share their samples. Raises UserError where two judges are one model.
    """
    bench = study.benchmarks[name]
    scorer = declaration(bench)["scorer"]
    label = f"{name}-{inputs['checkpoint'].name}"
    if scorer == "lm_eval":
        return {"": _lm_eval(study, bench, label, inputs, checkpoint)}
    if scorer == "likelihood":
        return {"": _likelihood(study, bench, label, inputs, checkpoint)}
    if scorer == "probe":
        return {"": _probe(study, bench, label, inputs, checkpoint)}
    if scorer == "agent":
        return {"": _agent(study, name, label, inputs, checkpoint)}
    samples = _samples(study, name, inputs, checkpoint)
    judges = (bench.judge, *bench.other_judges)
    assert bench.judge
    models = [endpoint_model(study.endpoints[judge])["model"] for judge in judges if judge]
    if twice := sorted({model for model in models if models.count(model) > 1}):
        raise UserError(
            where=name,
            what=f"two of its judges are the model {twice[0]}",
            fix="each judge another model",
        )
    return {judge: _judge(study, bench, label, samples, judge) for judge in judges if judge}


def _lm_eval(
    study: Study, bench: Benchmark, label: str, inputs: Inputs, checkpoint: Checkpoint
) -> Cell:
    declared = declaration(bench)
    files = sources(bench) | _chat_files(study, checkpoint)
    engine, _ = engine_arguments(study.engine)
    settings = {
        "lm_eval": declared.get("lm_eval"),
        "metric": declared.get("metric"),
        "filter": declared.get("filter"),
        "num_fewshot": declared.get("num_fewshot"),
        "rows": None if bench.limit else declared.get("rows"),
        "task": bench.task,
        "engine": engine,
        "limit": bench.limit,
        **identities(files),
        "max_tokens": declared.get("max_tokens"),
        "chat": checkpoint.chat,
        **(chat_date(study) if checkpoint.chat else {}),
    }
    if bench.num_fewshot is not None:
        settings["num_fewshot"] = bench.num_fewshot
    resources = paths(files) | _evaluation_resources(study, checkpoint)
    return Cell("lm_eval", label, settings, inputs, resources)


def _likelihood(
    study: Study, bench: Benchmark, label: str, inputs: Inputs, checkpoint: Checkpoint
) -> Cell:
    declared = declaration(bench)
    files = sources(bench)
    engine, _ = engine_arguments(study.engine)
    settings = {
        "task": bench.task,
        "per_token": declared["per_token"],
        "rows": declared["rows"],
        "engine": engine,
        **identities(files),
    }
    resources = paths(files) | _evaluation_resources(study, checkpoint)
    return Cell("likelihood", label, settings, inputs, resources)


def _probe(
    study: Study, bench: Benchmark, label: str, inputs: Inputs, checkpoint: Checkpoint
) -> Cell:
    declared = declaration(bench)
    files = sources(bench)
    settings = {key: declared[key] for key in ("rows", "pooling", "folds")}
    settings |= {"task": bench.task, **identities(files)}
    return Cell("probe", label, settings, inputs, paths(files) | _corpora(study, checkpoint))


def _agent(study: Study, name: str, label: str, inputs: Inputs, checkpoint: Checkpoint) -> Cell:
    bench = study.benchmarks[name]
    declared = declaration(bench)
    files = sources(bench) | _chat_files(study, checkpoint)
    settings = {
        **{key: declared[key] for key in ("inspect", "argument", "metric", "completion", "rows")},
        "task": bench.task,
        "tool_parser": bench.tool_parser,
        "sampling": _sampling(bench),
        "engine": engine_arguments(study.engine)[0],
        **identities(files),
        **chat_date(study),
    }
    resources = paths(files) | _evaluation_resources(study, checkpoint)
    return Cell("agent", label, settings, inputs, resources)


def _sampling(bench: Benchmark) -> dict[str, Any]:
    return {key: getattr(bench, key) for key in ("temperature", "top_p", "max_tokens", "epochs")}


def _samples(study: Study, name: str, inputs: Inputs, checkpoint: Checkpoint) -> Cell:
    """The cell that answers a judged benchmark's questions.

    The same samples have the same cell, with the name of whichever benchmark comes first.
    """
    settings = _generation_settings(study, name, checkpoint)
    assert settings
    first = next(
        other
        for other in study.benchmarks
        if _generation_settings(study, other, checkpoint) == settings
    )
    files = _generation_files(study, name, checkpoint)
    resources = paths(files) | _evaluation_resources(study, checkpoint)
    label = f"{first}-{inputs['checkpoint'].name}"
    return Cell("generate", label, settings, inputs, resources)


def _evaluation_resources(study: Study, checkpoint: Checkpoint) -> dict[str, Any]:
    """How vLLM runs, and `_corpora`."""
    return {"engine": engine_arguments(study.engine)[1]} | _corpora(study, checkpoint)


def _corpora(study: Study, checkpoint: Checkpoint) -> dict[str, Any]:
    """How the study calls the corpora that the checkpoint was trained on."""
    resources: dict[str, Any] = {}
    for number, (corpus, _) in enumerate(checkpoint.corpora):
        named = {"name": corpus, "exclude": study.corpora[corpus].exclude}
        resources[numbered("corpus", number)] = named
    return resources


def numbered(role: str, number: int) -> str:
    """`role` for the first corpus of a checkpoint (0), then role2, role3 ..."""
    return role if number == 0 else f"{role}{number + 1}"


def _generation_files(study: Study, name: str, checkpoint: Checkpoint) -> dict[str, Source]:
    """Files of the cell that answers a judged benchmark's questions; {} for any other."""
    files = sources(study.benchmarks[name])
    if "questions" not in files:
        return {}
    return {"questions": files["questions"], **_chat_files(study, checkpoint)}


def _chat_files(study: Study, checkpoint: Checkpoint) -> dict[str, Source]:
    """The files that chat prompts are made by: the prompts of the arm, and the chat template that
    the study file gives. An SFT writes the template to its checkpoint.
    """
    if not checkpoint.chat:
        return {}
    prompts: dict[str, Source] = {key: {"path": path} for key, path in checkpoint.prompts}
    tuned_here = any(cell.stage in ("sft", "rl") for cell in trainings_of(checkpoint.cell))
    return prompts if tuned_here else prompts | chat_files(study, checkpoint.start)


def _generation_settings(study: Study, name: str, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Settings of the cell that answers a judged benchmark's questions; None for any other."""
    bench = study.benchmarks[name]
    declared = declaration(bench)
    files = _generation_files(study, name, checkpoint)
    if not files:
        return None
    return {
        "scorer": declared["scorer"],
        "rows": declared["rows"],
        "sampling": _sampling(bench),
        "prompt": "chat" if checkpoint.chat else bench.base_prompt,
        "engine": engine_arguments(study.engine)[0],
        **identities(files),
        **(chat_date(study) if checkpoint.chat else {}),
    }


def grading(
    study: Study, bench: Benchmark, judge: str, of: dict[str, Source]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and resources by which the endpoint `judge` grades answers; `of`: the questions."""
    endpoint = study.endpoints[judge]
    files = of | endpoint_files(endpoint, "judge")
    settings = {
        "judge": endpoint_model(endpoint),
        "temperature": bench.judge_temperature,
        "max_tokens": bench.judge_max_tokens,
        "missing": bench.judge_max_missing,
        **identities(files),
    }
    resources = {
        **paths(files),
        **endpoint_resources(study, endpoint),
        "asks": bench.judge_max_attempts,
    }
    return settings, resources


def _judge(study: Study, bench: Benchmark, label: str, samples: Cell, judge: str) -> Cell:
    """The cell in which the endpoint `judge` grades the samples."""
    declared = declaration(bench)
    settings, resources = grading(study, bench, judge, sources(bench))
    settings |= {key: declared[key] for key in ("scorer", "variant", "rows")}
    name = label if judge == bench.judge else f"{label}-{judge}"
    return Cell("judge", name, settings, {"samples": samples}, resources)


def existing_scores(study: Study, name: str, label: str, file: str | Remote) -> Cell:
    """The cell that reads the scores of a benchmark in somebody else's file."""
    bench = study.benchmarks[name]
    declared = declaration(bench)
    files = sources(bench) | {"scores": file_source(file)}
    settings = {
        "scorer": declared["scorer"],
        "variant": declared["variant"],
        "rows": declared["rows"],
        "judge": model_name(study, bench.judge),
        **identities(files),
    }
    return Cell("scores", label, settings, {}, paths(files))


def labels(name: str, sheet: str) -> Cell:
    """The cell that reads what people graded in a sheet, and what it is about in the key beside."""
    key = str(Path(sheet).with_suffix(".key.json"))
    files: dict[str, Source] = {"sheet": {"path": sheet}, "key": {"path": key}}
    return Cell("labels", f"labels-{name}", identities(files), {}, paths(files))
