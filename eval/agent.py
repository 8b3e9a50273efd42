"""Behaviour with tools: an Inspect task that a program scores, by a checkpoint in vLLM's server."""

import json
import math
import os
import shutil
from datetime import date as Date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.nodes import Call, Const, Name

from core.cell.context import StageContext, derive_seed
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.files import read_rows, write_atomically
from core.inference import vllm_engine
from core.model_folder.chat import CONVERSATION, FIX, Chat
from core.model_folder.config import read_json
from core.model_folder.tokenizer import open_tokenizer
from core.row_formats import data_file
from eval import contamination, questions
from eval.patches import require_version

if TYPE_CHECKING:
    import pandas as pd
    from inspect_ai import Task
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import Model

# Samples that have ended are kept in Inspect's log, and a run continues from there.
RESUMABLE = True
# Folder of what a run under way reads and writes, Inspect's log among it. Inspect continues a log
# where the task's arguments are the same, so that the file of scenarios must keep its path.
WORK = "unfinished"
CONNECTIONS = 64
MODEL = "checkpoint"  # the name under which the server knows it
# vLLM's parser of the tool calls that a family writes.
TOOL_PARSERS = {
    "llama": "llama3_json",
    "qwen2": "hermes",
    "qwen3": "hermes",
    "olmo3": "olmo3",
}
TOOL_NAME = "measure_rain"
TOOL = {
    "type": "function",
    "function": {
        "name": TOOL_NAME,
        "description": "Measures rain.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string"}},
            "required": ["town"],
        },
    },
}


def run(context: StageContext) -> dict[str, int | float]:
    """Let a checkpoint act in the scenarios of an Inspect task; write the log and the scores.

    The task, its tools and its scorer are the official ones; only its sampling is the study's.
    `scored.eval` is Inspect's log with every message, `server.log` what vLLM printed, and
    `scores.parquet` has the scores (`scores_table`).

    Settings: task (name), inspect (the task in Inspect's registry), argument (of the task: the file
    of scenarios), metric (the scorer's value that is the overall score), completion (the value that
    says whether the task was done, or None), tool_parser (vLLM's; None: by the model's type), rows
    (scenarios, or None), sampling (temperature, top_p, max_tokens of a turn, epochs), engine
    (arguments of vLLM that change numbers), chat_date, files {items: identity}.
    Resources: files {items: path; perhaps chat_template}, engine. Inputs: checkpoint and, where it
    was trained on documents, contamination.

    Returns counts: scenarios, samples, turns, tool_calls, tokens (read and written), cut (samples
    that a limit ended).

    Raises:
        UserError: The scenarios or the chat template can't be used, or vLLM does not start.
    """
    contamination.check(context)
    settings = context.settings
    path = Path(context.resources["files"]["items"])
    scenarios = [row for _, row in read_rows(data_file(path))]
    if settings["rows"] not in (None, len(scenarios)):
        raise UserError(
            where=str(path),
            what=f"{len(scenarios)} scenarios, {settings['rows']} are expected",
            fix="fetch it again, or name your own file in the study file",
        )
    folder = context.inputs["checkpoint"] / "model"
    questions.remove_temporary(context.folder)
    work = context.folder / WORK
    work.mkdir(exist_ok=True)
    with questions.private_home(context.folder):
        items = work / "items.json"
        write_atomically(items, json.dumps({"scenarios": scenarios}))
        task = official_task(settings, items)
        template = work / "chat_template.jinja"
        chat = Chat.of_cell(open_tokenizer(folder), settings, context.resources)
        write_atomically(template, served_template(chat))
        options = {
            **context.resources["engine"],
            **settings["engine"],
            "chat_template": str(template),
            "enable_auto_tool_choice": True,
            "tool_call_parser": settings["tool_parser"] or parser_of(folder),
        }
        log = act(context, task, folder, options)
    samples = log.samples or []
    table = scores_table(log, settings["metric"], [str(row["id"]) for row in scenarios])
    table.to_parquet(context.folder / "scores.parquet", index=False)
    # Inspect names a log that it found as a URL.
    os.replace(log.location.removeprefix("file://"), context.folder / "scored.eval")
    shutil.rmtree(work)
    messages = [message for sample in samples for message in sample.messages]
    turns = [message for message in messages if message.role == "assistant"]
    usage = [used for sample in samples for used in sample.model_usage.values()]
    cut = sum(is_cut(sample) for sample in samples)
    if cut:
        context.warn(f"{cut} of {len(samples)} samples were ended by a limit of tokens or messages")
    done = table[table["dimension"] == settings["completion"]]["score"]
    if len(done) and done.mean() < 0.5:
        context.warn(
            f"{done.sum():.0f} of {len(samples)} samples did what the task asks; the task's scorer "
            f"decides what {settings['metric']} is of the others"
        )
    for dimension, scores in table.groupby("dimension")["score"]:
        context.log(f"{settings['task']}, {dimension}: {scores.mean():.3f}")
    return {
        "scenarios": len(scenarios),
        "samples": len(samples),
        "turns": len(turns),
        "tool_calls": sum(len(turn.tool_calls or []) for turn in turns),
        "tokens": sum(used.input_tokens + used.output_tokens for used in usage),
        "cut": cut,
    }


def preload() -> None:
    """Import what `run` imports later."""
    vllm_engine.set_environment()
    import inspect_ai  # noqa: F401
    import pandas  # noqa: F401


def official_task(settings: dict[str, Any], items: Path) -> "Task":
    """The task over the scenarios in the file `items`, with sampling left to `act`.

    Raises UserError where the task can't read them.
    """
    from inspect_ai import task_with
    from inspect_ai._eval.loader import load_tasks
    from inspect_ai.model import GenerateConfig
    from inspect_ai.solver import Generate, Solver, TaskState, solver
    from inspect_ai.util import store

    require_version("inspect_ai")
    require_version("inspect_evals")

    @solver(name="name_sample")
    def name_sample() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            store().set("sample", f"{state.sample_id}/{state.epoch}")
            return state

        return solve

    try:
        (task,) = load_tasks([settings["inspect"]], {settings["argument"]: str(items)})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            where=settings["inspect"],
            what=f"does not read the scenarios ({type(error).__name__}: {error})",
            fix="give each the keys that the task's own scenarios have",
        ) from None
    return task_with(task, setup=name_sample(), config=GenerateConfig())


def act(context: StageContext, task: "Task", folder: Path, options: dict[str, Any]) -> "EvalLog":
    """Run the task by the model in `folder`; the samples that an earlier run ended are kept.

    Raises UserError where the server does not start, or a sample fails.
    """
    from inspect_ai import eval_set
    from inspect_ai.log import read_eval_log

    from core.inference.vllm_server import serve

    sampling = context.settings["sampling"]
    manifest = read_manifest(context.inputs["checkpoint"])
    assert manifest, "a cell runs when its inputs are finished"
    # Not the number of epochs: more of them add samples and leave those that are there.
    seed = (
        manifest["identity"],
        *(sampling[key] for key in ("temperature", "top_p", "max_tokens")),
    )
    resources = {"path": str(folder), "options": options}
    with serve({"model": MODEL}, resources, context.folder / "server.log") as (base_url, key):
        success, [log] = eval_set(
            task,
            log_dir=str(context.folder / WORK / "logs"),
            model=seeded_model(base_url, key, seed),
            epochs=sampling["epochs"],
            retry_attempts=0,
            retry_immediate=False,
            fail_on_error=True,
            log_buffer=1,
            log_dir_allow_dirty=True,
            log_realtime=False,
            ctl_server=False,
            display="none",
            temperature=sampling["temperature"],
            top_p=sampling["top_p"],
            max_tokens=sampling["max_tokens"],
        )
    if not success:
        reason = log.error.message if log.error else log.status
        raise UserError(
            where=str(context.folder / WORK / "logs"),
            what=f"a sample failed ({reason})",
            fix="run again: it continues",
        )
    return read_eval_log(log.location)


def seeded_model(base_url: str, key: str, seed: tuple[Any, ...]) -> "Model":
    """The served checkpoint as an Inspect model, whose requests have seeds of their own.

    A seed follows from `seed`, the sample, its epoch, and how many messages are before the turn.
    """
    from inspect_ai.model import GenerateConfig, get_model, modelapi
    from inspect_ai.model._providers.openai_compatible import OpenAICompatibleAPI
    from inspect_ai.util import store

    @modelapi(name="served")
    class Served(OpenAICompatibleAPI):
        # Address and key are no arguments of the model: they differ from run to run.
        def __init__(self, model_name: str, **options: Any) -> None:
            options |= {"base_url": base_url, "api_key": key, "service": "served"}
            super().__init__(model_name, **options)

        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            own = derive_seed(*seed, store().get("sample"), len(input))
            seeded = config.model_copy(update={"seed": own})
            return await super().generate(input, tools, tool_choice, seeded)

    return get_model(
        f"served/{MODEL}",
        config=GenerateConfig(max_connections=CONNECTIONS),
        memoize=False,
    )


def parser_of(folder: Path) -> str:
    """vLLM's parser of a model's tool calls, by the model's type.

    Raises UserError where none is known.
    """
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in TOOL_PARSERS:
        raise UserError(
            where=str(folder),
            what=f"no parser of tool calls is known for model type {kind!r}",
            fix="name vLLM's: benchmarks.NAME.tool_parser in the study file",
        )
    return TOOL_PARSERS[kind]


def served_template(chat: Chat) -> str:
    """The chat template for vLLM's server: on the study's date, whatever the clock says.

    Raises UserError where the template can't be used, names no tools, or asks for the date in a
    form that is not written out.
    """
    chat.check(trained=False)
    if TOOL_NAME not in chat.text(CONVERSATION[:1], True, tools=[TOOL]):
        raise UserError(
            where=chat.tokenizer.name_or_path,
            what="the chat template leaves tools out",
            fix=FIX,
        )
    text = chat.template or str(chat.tokenizer.get_chat_template(tools=[TOOL]))
    forms = {}
    nodes = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    for call in nodes.find_all(Call):
        if isinstance(call.node, Name) and call.node.name == "strftime_now":
            form = call.args[0]
            if not isinstance(form, Const):
                raise UserError(
                    where=chat.tokenizer.name_or_path,
                    what="the chat template computes the form of its date",
                    fix=FIX,
                )
            forms[form.value] = Date.fromisoformat(chat.date).strftime(form.value)
    if not forms:
        return text
    # A macro of the template comes before the function of the server.
    macro = (
        f"{{%- macro strftime_now(form) -%}}{{{{ {json.dumps(forms)}[form] }}}}{{%- endmacro -%}}"
    )
    return macro + text


def is_cut(sample: "EvalSample") -> bool:
    """Whether a limit ended a sample: of messages, or of tokens in its last turn."""
    return sample.limit is not None or sample.output.stop_reason in ("max_tokens", "model_length")


def scores_table(log: "EvalLog", metric: str, scenarios: list[str]) -> "pd.DataFrame":
    """One row for each sample's overall score, followed by one for each of its dimensions.

    Columns as in `eval.judge.scores_table`. Dimensions are the scorer's other values and the
    sample's category.

    Args:
        scenarios: Ids. A task may make samples of one scenario, whose ids begin with its id.

    Raises UserError where the scorer does not give `metric`.
    """
    import pandas as pd

    rows = []
    for sample in sorted(log.samples or [], key=lambda sample: (str(sample.id), sample.epoch)):
        (score,) = (sample.scores or {}).values()
        values = score.value if isinstance(score.value, dict) else {"score": score.value}
        if metric not in values:
            raise UserError(
                where=log.eval.task,
                what=f"its scorer gives no {metric!r}, but {', '.join(values)}",
                fix="correct `metric` in the benchmark's file",
            )
        dimensions = {"overall": values[metric]}
        dimensions |= {name: value for name, value in values.items() if name != metric}
        category = (score.metadata or {}).get("category")
        if isinstance(category, str):
            dimensions[category] = values[metric]
        for dimension, value in dimensions.items():
            number = float(value) if isinstance(value, int | float) else math.nan
            rows.append(
                {
                    "question": str(sample.id),
                    "scenario": scenario_of(str(sample.id), scenarios),
                    "dimension": dimension,
                    "epoch": sample.epoch,
                    "judge": "program",
                    "score": number,
                    "missing": "the scorer gave no number" if math.isnan(number) else None,
                    "response": f"{sample.id}/{sample.epoch}",
                }
            )
    return pd.DataFrame(rows).astype({"missing": "str"})


def scenario_of(sample: str, scenarios: list[str]) -> str:
    """The scenario whose id a sample's id begins with, the longest; else the sample's own id."""
    return max(
        (name for name in scenarios if sample == name or sample.startswith(f"{name}_")),
        key=len,
        default=sample,
    )
