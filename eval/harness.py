"""Capability benchmarks: lm-eval's own tasks, with their prompts, examples and metrics, on the shared vLLM engine."""

import contextlib
import functools
import importlib
import io
import json
import math
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from core.cell.context import StageContext
from core.errors import UserError
from core.inference import vllm_engine as engine
from eval.generate import encode
from eval.questions import TEMPORARY

ROOT = "harness"  # the group that holds the tasks of a cell
COLUMNS = ["question", "scenario", "dimension", "epoch", "judge", "score", "missing", "response"]
BATCH = 2048  # requests at a time: vLLM's log-probabilities take some 0.5 kB of memory for each token of a prompt


def run(work: StageContext) -> dict[str, int | float]:
    """Score a checkpoint on lm-eval tasks; write `samples.jsonl` and `scores.parquet`.

    Settings: task (name), lm_eval (names of tasks or groups), metric (a mean over documents), num_fewshot, engine
    {dtype, max_model_len}; optional: filter (of answers, before the metric; "none"), limit (rows of each lm-eval task),
    rows (how many the data must have), max_tokens (of an answer; the task's own), chat (prompts by the checkpoint's
    chat template, examples as turns; false). Resources: data (folder with the tasks' Hugging Face data set), engine
    (optional, more arguments for vLLM). Inputs: checkpoint.

    `samples.jsonl` has a line for each document: id, task, target, logprobs (nats, one for each choice) or answer and
    filtered (text, by filter), and metrics by lm-eval's names, such as "acc_norm,none". `scores.parquet` has a row for
    each document, and in a group such as MMLU one more with the part of the group as its dimension.

    Raises UserError if the data or lm-eval can't give what the settings ask for, or a prompt does not fit the engine.
    Returns counts: items, tasks, requests, tokens (read and written), missing (scores that are no number).
    """
    import pandas as pd

    engine.set_environment()
    settings = work.settings
    silent = contextlib.redirect_stderr(io.StringIO())  # progress bars
    with tempfile.TemporaryDirectory(dir=work.folder, prefix=TEMPORARY) as temporary, silent:
        group = load(settings["lm_eval"], Path(work.resources["data"]), Path(temporary))
        check(group, settings)
        lm = engine.open_engine(
            work.inputs["checkpoint"] / "model", settings["engine"], work.resources.get("engine")
        )
        result, counts = evaluate(lm, group, work)
    key = f"{settings['metric']},{settings.get('filter') or 'none'}"
    tasks, parts = group.get_all_tasks(), dimensions(group)
    samples = [line for task in tasks for line in lines(task, result["samples"][task.task_name])]
    scores = [float(sample["metrics"][key]) for sample in samples]
    check_official(result["results"], group, samples, key)
    text = "".join(
        json.dumps(sample, ensure_ascii=False, default=float) + "\n" for sample in samples
    )
    (work.folder / "samples.jsonl").write_text(text, encoding="utf-8")
    rows = [
        (sample["id"], sample["id"], dimension, 1, "lm-eval", score, reason, f"{sample['id']}/1")
        for sample, score in zip(samples, scores, strict=True)
        for reason in ["lm-eval's metric is no number" if math.isnan(score) else None]
        for dimension in ("overall", parts.get(sample["task"]))
        if dimension
    ]
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"missing": "str"})
    table.to_parquet(work.folder / "scores.parquet", index=False)
    work.log(
        f"{settings['task']}: {settings['metric']} {statistics.fmean(scores):.4f} over {len(scores)} documents"
    )
    return {
        "items": len(scores),
        "tasks": len(tasks),
        **counts,
        "missing": sum(map(math.isnan, scores)),
    }


@functools.cache
def declared() -> dict[str, Path]:
    """The folder that declares each of lm-eval's tasks and groups, by name; as in lm-eval's index the first counts."""
    import lm_eval.tasks

    name = re.compile(
        r"^[\"']?(?:task|group)[\"']?:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE
    )
    paths = sorted(
        Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"), key=Path.as_posix, reverse=True
    )
    return {
        found: path.parent
        for path in paths
        for found in name.findall(path.read_text(encoding="utf-8"))
    }


def load(names: list[str], data: Path, temporary: Path) -> Any:
    """lm-eval's group of these tasks and groups, which read the folder `data` in place of a data set of the Hub.

    They need the folder `temporary` as long as they are in use. Raises UserError if lm-eval has no such name,
    a package is missing, or the folder does not hold the tasks' data.
    """
    import datasets
    import jinja2
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    said = ", ".join(names)
    if not data.is_dir():
        raise UserError(f"no folder {data}; the data set of {said} is expected there")
    unknown = [name for name in names if name not in declared()]
    if unknown:
        raise UserError(
            f"lm-eval has no task or group {', '.join(unknown)}; `lm-eval ls tasks` lists what it has"
        )
    if any("ifeval" in name for name in names):
        prepare_ifeval()
    group = {
        "group": ROOT,
        "task": names,
        "dataset_path": str(data.resolve()),
    }  # the path is for all in it
    (temporary / "group.yaml").write_text(json.dumps(group))  # JSON is YAML
    folders = [
        temporary,
        *sorted({declared()[name] for name in names}),
    ]  # all of lm-eval's take 10 to 40 seconds
    datasets.disable_progress_bars()
    try:
        with mock.patch.object(datasets.config, "HF_DATASETS_CACHE", temporary / "datasets"):
            return TaskManager(include_defaults=False, include_path=folders).load([ROOT])["groups"][
                ROOT
            ]
    except (
        ImportError,
        LookupError,
        OSError,
        ValueError,
        DatasetsError,
        jinja2.TemplateError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"lm-eval can't read {said} from {data}: {reason}; take a whole snapshot of it"
        ) from error


def prepare_ifeval() -> None:
    """Make the checks of IFEval's answers repeat. Raises UserError if what they need is not there."""
    try:
        langdetect, nltk, _ = map(importlib.import_module, ("langdetect", "nltk", "immutabledict"))
        nltk.data.find(
            "tokenizers/punkt_tab"
        )  # lm-eval would fetch it, or fail once it counts an answer's sentences
    except (ImportError, LookupError) as error:
        raise UserError(
            f"IFEval's checks lack {getattr(error, 'name', None) or 'punkt_tab of nltk'}; pip install langdetect "
            "immutabledict; python -m nltk.downloader -d FOLDER punkt_tab, with a network; NLTK_DATA=FOLDER here"
        ) from error
    langdetect.DetectorFactory.seed = (
        0  # else it draws, and the same answer may pass once and fail once
    )


def check(group: Any, settings: dict[str, Any]) -> None:
    """Raises UserError if the tasks don't give the metric, the filter, the examples or the rows that are asked for."""
    from lm_eval.api.metrics import mean

    metric, shots, chosen = (
        settings["metric"],
        settings["num_fewshot"],
        settings.get("filter") or "none",
    )
    for task in group.get_all_tasks():
        means = [name for name, how in task.aggregation().items() if how is mean]
        filters = [each.name for each in task._filters]
        own = (
            task.fewshot_cfg.split == task.config.test_split
        )  # lm-eval draws one more, lest it shows the document
        most = (
            len(task.sampler.df) - own if task.config.num_fewshot != 0 else 0
        )  # a task's own 0 is final
        wrong = {
            f"asks {task.config.repeats} times; once is what is scored here": task.config.repeats
            != 1,
            f"has no metric {metric} that is a mean; it has {', '.join(means)}": metric
            not in means,
            f"has no filter {chosen}; it has {', '.join(filters)}": chosen not in filters,
            f"has {most} examples to show; lower num_fewshot from {shots}": shots > most,
        }
        if any(wrong.values()):
            raise UserError(
                *(f"lm-eval's {task.task_name} {text}" for text, so in wrong.items() if so)
            )
    for part in group.get_all_groups():
        if any(
            each.metric == metric and not each.weight_by_size
            for each in part.aggregate_metric_list or []
        ):
            raise UserError(
                f"lm-eval's {part.name} is no mean over documents, as scores here are; name its parts"
            )
    rows = sum(len(task.task_docs) for task in group.get_all_tasks())
    if settings.get("rows") not in (None, rows):
        raise UserError(
            f"the data set has {rows} rows, not {settings['rows']}; take a whole snapshot, or correct rows"
        )


def evaluate(lm: Any, group: Any, work: StageContext) -> tuple[Any, dict[str, int]]:
    """lm-eval's results, and counts: requests, tokens (read and written).

    A prompt begins with the tokenizer's begin-of-text token, whatever the tokenizer would do by itself; by chat
    template it is what the template makes and nothing else. Both as in training. Raises UserError for a prompt that
    lm-eval would cut, another begin-of-text token in it, and a checkpoint without a usable chat template.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    settings, tokenizer, tasks, chat = (
        work.settings,
        lm.tokenizer,
        group.get_all_tasks(),
        work.settings.get("chat"),
    )
    longest = {"max_gen_toks": settings["max_tokens"]} if settings.get("max_tokens") else {}
    begin = "" if chat else tokenizer.bos_token or ""
    # A base model's config ends a text, not a turn: what the template puts after an answer must end the answer here.
    ends = [tokenizer.decode([end]) for end in encode(tokenizer, ["x"], "chat")[1]] if chat else []
    for task in tasks:
        if task.OUTPUT_TYPE == "generate_until":
            ways = task.config.generation_kwargs
            until = [*([ways["until"]] if isinstance(ways["until"], str) else ways["until"]), *ends]
            # Where a task says nothing of temperature, lm-eval means greedy, but vLLM would take 1.
            cool = {"temperature": float(bool(ways.get("do_sample")))} | ways
            task.set_config("generation_kwargs", cool | longest | {"until": until, "seed": 0})
    encode_plain, score, answer, counts = (
        lm.tok_encode,
        lm._loglikelihood_tokens,
        lm._model_generate,
        [0, 0],
    )

    def begun(text: Any, add_special_tokens: bool | None = None) -> Any:
        if not isinstance(text, str):
            return [begun(each, add_special_tokens) for each in text]
        bare = add_special_tokens is False or text.startswith(begin)
        return encode_plain(text if bare else begin + text, add_special_tokens=False)

    def fits(tokens: list[int], max_gen_toks: int, **_: Any) -> tuple[list[int], int]:
        if len(tokens) + max_gen_toks > lm.max_length:
            raise UserError(
                f"a prompt has {len(tokens)} tokens and up to {max_gen_toks} may follow; engine.max_model_len is "
                f"{lm.max_length}; raise it, or lower num_fewshot or max_tokens"
            )
        return tokens, max_gen_toks

    def scored(requests: Any, **others: Any) -> Any:
        fits(
            max((context + choice for _, context, choice in requests), key=len), 1
        )  # vLLM always writes a token
        return score(requests, **others)

    def asked(requests: list[list[int]], **others: Any) -> Any:
        if any(tokenizer.bos_token_id in ids[1:] for ids in requests):
            raise UserError(
                "a begin-of-text token stands inside a prompt; mend the data or the chat template"
            )
        replies = answer(requests, **others)
        counts[0] += len(requests)
        counts[1] += sum(map(len, requests)) + sum(
            len(reply.outputs[0].token_ids) for reply in replies
        )
        work.progress(counts[0], sum(len(task.instances) for task in tasks), "requests")
        return replies

    ours: dict[str, Any] = dict(
        tok_encode=begun, _loglikelihood_tokens=scored, _model_generate=asked, batch_size=BATCH
    )
    with (
        mock.patch.multiple(lm, **ours),
        mock.patch("lm_eval.models.vllm_causallms.maybe_truncate", fits),
    ):
        result = simple_evaluate(  # its seeds are fixed and choose the same examples for every checkpoint
            lm,
            tasks=[group],
            num_fewshot=settings["num_fewshot"],
            limit=settings.get("limit"),
            apply_chat_template=bool(chat),
            fewshot_as_multiturn=bool(chat),
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )
    return result, {"requests": counts[0], "tokens": counts[1]}


def lines(task: Any, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A task's lines of `samples.jsonl`, in order, from lm-eval's samples: one for each document and filter."""
    found: dict[str, dict[str, Any]] = {}
    for sample in samples:
        key = f"{task.task_name}/{sample['doc_id']}"
        line = found.setdefault(
            key, {"id": key, "task": task.task_name, "target": sample["target"], "metrics": {}}
        )
        if task.OUTPUT_TYPE == "generate_until":
            line["answer"] = sample["resps"][0][0]
            line.setdefault("filtered", {})[sample["filter"]] = sample["filtered_resps"][0]
        else:
            line["logprobs"] = [float(logprob) for logprob, _ in sample["filtered_resps"]]
        line["metrics"] |= {
            f"{metric},{sample['filter']}": sample[metric] for metric in sample["metrics"]
        }
    return list(found.values())


def dimensions(group: Any) -> dict[str, str]:
    """The part of a group that each lm-eval task belongs to: MMLU's are its four categories. None for a single task."""
    parts = {name: group.get(name) for name in group.child_names}
    inside = {
        name: part.get_all_tasks() if hasattr(part, "child_names") else []
        for name, part in parts.items()
    }
    if len(parts) == 1:
        return next((dimensions(part) for name, part in parts.items() if inside[name]), {})
    return {task.task_name: name for name, part in parts.items() for task in inside[name] or [part]}


def check_official(results: Any, group: Any, samples: list[dict[str, Any]], key: str) -> None:
    """The means of our scores must be lm-eval's own numbers, for every task and every group that it has one for."""
    parts = {part.name: part.get_all_tasks() for part in group.get_all_groups()}
    for name, tasks in (parts | {task.task_name: [task] for task in group.get_all_tasks()}).items():
        inside = {task.task_name for task in tasks}
        ours = statistics.fmean(
            float(sample["metrics"][key]) for sample in samples if sample["task"] in inside
        )
        if abs(ours - results[name].get(key, ours)) > 1e-9:
            raise AssertionError(f"our mean {ours} of {name} is not lm-eval's {results[name][key]}")
