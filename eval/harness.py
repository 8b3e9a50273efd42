"""Capability benchmarks: lm-eval's own tasks, with their prompts, examples and metrics, on the
shared vLLM engine."""

import contextlib
import functools
import importlib
import io
import json
import math
import re
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.cell.context import StageContext
from core.errors import Problem, UserError
from core.inference import vllm_engine as engine
from core.inference.requests import Result, open_results
from core.model_folder.chat import Chat
from eval import contamination
from eval.generate import encode
from eval.patches import datasets_cache
from eval.questions import TEMPORARY, remove_temporary

ROOT = "harness"  # the group that holds the tasks of a cell
SNAPSHOT = "fetch a complete snapshot of the data set"
RESUMABLE = True  # finished requests are read from requests.jsonl


def run(context: StageContext) -> dict[str, int | float]:
    """Score a checkpoint on lm-eval tasks; write `samples.jsonl` and `scores.parquet`.

    Settings: task (name), lm_eval (names of tasks or groups), metric (a mean over documents),
    num_fewshot, engine (arguments of vLLM that change numbers); optional: filter (of answers,
    before the metric; "none"), chat_date (of templates that ask for today's), limit (rows of each
    lm-eval task), rows (how many the data must have), max_tokens (of an answer; the task's own),
    chat (prompts by the checkpoint's chat template, examples as turns of the chat; false).
    Resources: files {data: folder with the tasks' Hugging Face data set; of chat prompts perhaps
    chat_template, system (prompt) and prefill}, engine (arguments that
    change none: max_model_len ...). Inputs: checkpoint and, where it was trained on documents,
    contamination.

    `samples.jsonl` has a line for each document (`sample_lines`). `scores.parquet` has a row for
    each document, and in a group such as MMLU one more with the part of the group as its dimension.

    Returns counts: items, tasks, requests, tokens (read and written), missing (scores that are
    NaN).

    Raises:
        UserError: The data or lm-eval can't give what the settings ask for, or a prompt does not
            fit the engine.
    """
    engine.set_environment()
    remove_temporary(context.folder)
    contamination.check(context)
    settings = context.settings
    progress_bars = contextlib.redirect_stderr(io.StringIO())
    with (
        tempfile.TemporaryDirectory(dir=context.folder, prefix=TEMPORARY) as temporary,
        progress_bars,
    ):
        group = load(settings["lm_eval"], Path(context.resources["files"]["data"]), Path(temporary))
        check(group, settings)
        lm = engine.open_engine(
            context.inputs["checkpoint"] / "model",
            settings["engine"],
            context.resources["engine"],
        )
        with open_results(context, lm) as results:
            result, counts = evaluate(lm, group, context, results)
    key = f"{settings['metric']},{settings.get('filter') or 'none'}"
    tasks = group.get_all_tasks()
    samples = [
        sample for task in tasks for sample in sample_lines(task, result["samples"][task.task_name])
    ]
    check_official(result["results"], group, samples, key)
    text = "".join(
        json.dumps(sample, ensure_ascii=False, default=float) + "\n" for sample in samples
    )
    (context.folder / "samples.jsonl").write_text(text, encoding="utf-8")
    write_scores(context.folder / "scores.parquet", samples, key, dimensions(group))
    scores = [float(sample["metrics"][key]) for sample in samples]
    mean = statistics.fmean(scores)
    context.log(f"{settings['task']}: {settings['metric']} {mean:.4f} over {len(scores)} documents")
    return {
        "items": len(scores),
        "tasks": len(tasks),
        **counts,
        "missing": sum(map(math.isnan, scores)),
    }


def preload() -> None:
    """Import what `run` imports later."""
    engine.preload()
    import lm_eval.tasks  # noqa: F401
    import pandas  # noqa: F401


def write_scores(
    path: Path, samples: list[dict[str, Any]], key: str, parts: dict[str, str]
) -> None:
    """Write a row for each sample with the metric `key`, and one more for its part of the group."""
    import pandas as pd

    rows = []
    for sample in samples:
        score = float(sample["metrics"][key])
        for dimension in ("overall", parts.get(sample["task"])):
            if dimension:
                rows.append(
                    {
                        "question": sample["id"],
                        "scenario": sample["id"],
                        "dimension": dimension,
                        "epoch": 1,
                        "judge": "lm-eval",
                        "score": score,
                        "missing": "lm-eval's metric is no number" if math.isnan(score) else None,
                        "response": f"{sample['id']}/1",
                    }
                )
    pd.DataFrame(rows).astype({"missing": "str"}).to_parquet(path, index=False)


@functools.cache
def declared() -> dict[str, Path]:
    """The folder that declares each of lm-eval's tasks and groups, by name.

    As in lm-eval's own index, the first declaration of a name counts.
    """
    import lm_eval.tasks

    declaration = re.compile(
        r"^[\"']?(?:task|group)[\"']?:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE
    )
    paths = Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")
    return {
        name: path.parent
        for path in sorted(paths, key=Path.as_posix, reverse=True)
        for name in declaration.findall(path.read_text(encoding="utf-8"))
    }


def load(names: list[str], data: Path, temporary: Path) -> Any:
    """lm-eval's group of these tasks and groups, which read `data` instead of a Hub data set.

    Args:
        names: Tasks or groups of lm-eval.
        data: A folder with the tasks' Hugging Face data set.
        temporary: A folder for the group's declaration and the data set's cache. The tasks need it
            as long as they are in use.

    Raises:
        UserError: lm-eval has no such name, a package is missing, or the folder does not hold the
            tasks' data.
    """
    import datasets
    import jinja2
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    listed = ", ".join(names)
    if not data.is_dir():
        raise UserError(
            where=str(data),
            what=f"no such folder; the data set of {listed} is expected there",
            fix="python -m study fetch STUDY brings it, or correct the path in the study file",
        )
    unknown = [name for name in names if name not in declared()]
    if unknown:
        raise UserError(
            where="lm_eval",
            what=f"lm-eval has no task or group {', '.join(unknown)}",
            fix="`lm-eval ls tasks` lists what it has",
        )
    if any("ifeval" in name for name in names):
        prepare_ifeval()
    # The group's dataset_path overrides that of every task in it.
    group = {"group": ROOT, "task": names, "dataset_path": str(data.resolve())}
    (temporary / "group.yaml").write_text(json.dumps(group))  # JSON is YAML
    # To index all of lm-eval's folders takes 10 to 40 seconds.
    folders = [temporary, *sorted({declared()[name] for name in names})]
    datasets.disable_progress_bars()
    try:
        with datasets_cache(temporary / "datasets"):
            manager = TaskManager(include_defaults=False, include_path=folders)
            return manager.load([ROOT])["groups"][ROOT]
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
            where=str(data), what=f"lm-eval can't read {listed} from it: {reason}", fix=SNAPSHOT
        ) from error


def prepare_ifeval() -> None:
    """Make IFEval's checks deterministic. Raises UserError if a package or its data is missing."""
    try:
        langdetect = importlib.import_module("langdetect")
        nltk = importlib.import_module("nltk")
        importlib.import_module("immutabledict")
        # lm-eval would download it, or fail once it counts an answer's sentences.
        nltk.data.find("tokenizers/punkt_tab")
    except (ImportError, LookupError) as error:
        missing = getattr(error, "name", None) or "punkt_tab of nltk"
        raise UserError(
            where="ifeval",
            what=f"its checks lack {missing}",
            fix="pip install langdetect immutabledict; "
            "python -m nltk.downloader -d FOLDER punkt_tab, with a network; NLTK_DATA=FOLDER here",
        ) from error
    # Without a seed langdetect draws, and the same answer may pass once and fail once.
    langdetect.DetectorFactory.seed = 0


def check(group: Any, settings: dict[str, Any]) -> None:
    """Raise UserError if the tasks lack the metric, filter, examples or rows of the settings."""
    for task in group.get_all_tasks():
        if problems := _task_problems(task, settings):
            raise UserError.of(problems)
    metric = settings["metric"]
    for part in group.get_all_groups():
        aggregations = part.aggregate_metric_list or []
        if any(
            aggregation.metric == metric and not aggregation.weight_by_size
            for aggregation in aggregations
        ):
            raise UserError(
                where=f"lm-eval's {part.name}",
                what="is no mean over documents, as scores here are",
                fix="name its parts",
            )
    rows = sum(len(task.task_docs) for task in group.get_all_tasks())
    if settings.get("rows") not in (None, rows):
        raise UserError(
            where="data",
            what=f"the data set has {rows} rows, not {settings['rows']}",
            fix=f"{SNAPSHOT}, or correct rows",
        )


def _task_problems(task: Any, settings: dict[str, Any]) -> list[Problem]:
    """What the settings ask of an lm-eval task that it does not have."""
    from lm_eval.api.metrics import mean

    metric = settings["metric"]
    answer_filter = settings.get("filter") or "none"
    num_fewshot = settings["num_fewshot"]
    where = f"lm-eval's {task.task_name}"
    means = [name for name, aggregation in task.aggregation().items() if aggregation is mean]
    filters = [ensemble.name for ensemble in task._filters]
    # From the split that is tested lm-eval draws one more example, in case it draws the document.
    spare = task.fewshot_cfg.split == task.config.test_split
    # A task that declares 0 examples ignores num_fewshot.
    examples = len(task.sampler.df) - spare if task.config.num_fewshot != 0 else 0
    problems = []
    if task.config.repeats != 1:
        what = f"asks {task.config.repeats} times"
        problems.append(Problem(where, what, "choose a task that asks once"))
    if metric not in means:
        what = f"has no metric {metric} that is a mean"
        problems.append(Problem(where, what, f"it has {', '.join(means)}"))
    if answer_filter not in filters:
        what = f"has no filter {answer_filter}"
        problems.append(Problem(where, what, f"it has {', '.join(filters)}"))
    if num_fewshot > examples:
        fix = f"lower num_fewshot from {num_fewshot}"
        problems.append(Problem(where, f"has {examples} examples to show", fix))
    return problems


def evaluate(
    lm: Any, group: Any, context: StageContext, results: dict[str, Result]
) -> tuple[Any, dict[str, int]]:
    """lm-eval's results, and counts: requests, tokens (read and written).

    `results`: of requests that have ended; new ones are added.

    A prompt begins with the tokenizer's begin-of-text token, whatever the tokenizer does by
    default. With `chat` a prompt is what the chat template makes and nothing else. Both are as in
    training.

    Raises:
        UserError: A prompt does not fit the engine, or holds another begin-of-text token, or the
            checkpoint has no usable chat template.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from eval.task_model import TaskModel

    settings = context.settings
    tokenizer = lm.tokenizer
    template = Chat.of_cell(tokenizer, settings, context.resources)
    chat = bool(settings.get("chat"))
    tasks = group.get_all_tasks()
    # The config of a base model ends a text, not a message of a chat. So the token that the
    # template writes after an answer must end the answer here.
    end_ids = encode(template, ["x"], "chat")[1] if chat else []
    ends = [tokenizer.decode([end_id]) for end_id in end_ids]
    for task in tasks:
        if task.OUTPUT_TYPE == "generate_until":
            options = generation_options(
                task.config.generation_kwargs, ends, settings.get("max_tokens")
            )
            task.set_config("generation_kwargs", options)

    def report(num_requests: int) -> None:
        total = sum(len(task.instances) for task in tasks)
        context.progress(num_requests, total, "requests")

    # lm-eval puts the system prompt before the task's own description.
    model = TaskModel(lm, replace(template, system=None) if chat else None, results, report)
    # Its seeds are fixed, and choose the same examples for every checkpoint.
    result = simple_evaluate(
        model,
        tasks=[group],
        num_fewshot=settings["num_fewshot"],
        limit=settings.get("limit"),
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        system_instruction=template.system,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    return result, {"requests": model.num_requests, "tokens": model.num_tokens}


def generation_options(
    declared_options: dict[str, Any], ends: list[str], max_tokens: int | None
) -> dict[str, Any]:
    """A task's generation_kwargs with more `ends` of an answer and, if given, `max_tokens`."""
    until = declared_options["until"]
    options = {
        # Where a task does not state a temperature lm-eval means greedy; vLLM would take 1.
        "temperature": float(bool(declared_options.get("do_sample"))),
        **declared_options,
        "until": [*([until] if isinstance(until, str) else until), *ends],
        "seed": 0,
    }
    if max_tokens:
        options["max_gen_toks"] = max_tokens
    return options


def sample_lines(task: Any, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A task's lines of `samples.jsonl`, in order, from lm-eval's samples.

    lm-eval has a sample for each document and filter, a line stands for a document. It holds id,
    task, target, metrics by lm-eval's names (such as "acc_norm,none"), and either logprobs (nats,
    one for each choice) or answer (text) and filtered (text, by filter).
    """
    lines: dict[str, dict[str, Any]] = {}
    for sample in samples:
        key = f"{task.task_name}/{sample['doc_id']}"
        new_line = {"id": key, "task": task.task_name, "target": sample["target"], "metrics": {}}
        line = lines.setdefault(key, new_line)
        if task.OUTPUT_TYPE == "generate_until":
            line["answer"] = sample["resps"][0][0]
            line.setdefault("filtered", {})[sample["filter"]] = sample["filtered_resps"][0]
        else:
            line["logprobs"] = [float(logprob) for logprob, _ in sample["filtered_resps"]]
        for metric in sample["metrics"]:
            line["metrics"][f"{metric},{sample['filter']}"] = sample[metric]
    return list(lines.values())


def dimensions(group: Any) -> dict[str, str]:
    """The part of a group that each lm-eval task belongs to; {} for a single task.

    MMLU's parts are its four categories.
    """
    parts = {name: group.get(name) for name in group.child_names}
    tasks = {
        name: part.get_all_tasks() if hasattr(part, "child_names") else []
        for name, part in parts.items()
    }
    if len(parts) == 1:
        return next((dimensions(part) for name, part in parts.items() if tasks[name]), {})
    return {task.task_name: name for name, part in parts.items() for task in tasks[name] or [part]}


def check_official(results: Any, group: Any, samples: list[dict[str, Any]], key: str) -> None:
    """Raise AssertionError unless the means of the samples are lm-eval's own numbers.

    Every task and every group is compared that lm-eval has a number for.
    """
    members = {part.name: part.get_all_tasks() for part in group.get_all_groups()}
    members |= {task.task_name: [task] for task in group.get_all_tasks()}
    for name, tasks in members.items():
        names = {task.task_name for task in tasks}
        mean = statistics.fmean(
            float(sample["metrics"][key]) for sample in samples if sample["task"] in names
        )
        if abs(mean - results[name].get(key, mean)) > 1e-9:
            raise AssertionError(f"the mean {mean} of {name} is not lm-eval's {results[name][key]}")
