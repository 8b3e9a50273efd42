"""What one cell will take: hours of its job, calls, money, disk, files."""

import json
import math
import re
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import UserError
from core.files import read_rows
from core.model_size import parameters, shape
from core.paths import resolve
from core.recipe import Training
from core.stages import CALLING_STAGES, EVALUATION_STAGES, STAGE_INFO, TRAINING_STAGES
from study.forecast import corpus_cost, training_cost, training_size, training_time
from study.forecast.assumptions import (
    AGENT_TOKENS,
    AGENT_TURNS,
    ANSWER_BYTES,
    ANSWER_TOKENS,
    CANARY_GRADES,
    CANARY_TOKENS,
    CHOICES,
    DOCUMENT_BYTES,
    DUMMY_SECONDS,
    FILES,
    GRADE_BYTES,
    GRADE_SECONDS,
    GRADE_TOKENS,
    ITEM_BYTES,
    ITEM_TOKENS,
    ITEMS,
    JUDGED,
    PROBE_BYTES,
    QUESTION_TOKENS,
    ROLLOUT_BYTES,
    SCENARIO_SAMPLES,
    SECONDS_PER_GB,
    SHARD_GB,
    STEP_BYTES,
    STEPS_HELD,
    SUBTASKS,
    TOKEN_BYTES,
    TOY,
    TURN_TOKENS,
    UNKNOWN_GB,
)
from study.forecast.gpu_rates import Rates, stage_rates

Amounts = dict[str, float]
ByIdentity = dict[str, Amounts]
Layouts = dict[str, training_time.Layout]  # by stage
CALLS = ("calls", "prompt_tokens", "completion_tokens", "cost")
SUMS = ("gpu_hours", "cpu_hours", *CALLS, "disk_gb", "files", "folders")
_State = tuple[str, int, int] | None  # a file's path, time of change (ns) and size (bytes)


@dataclass
class _Job:
    """What the job of a cell holds, reads and writes, while it is added up."""

    gpus: int
    cores: int
    rates: Rates
    files: int
    folders: int
    amounts: Amounts
    weights_gb: float = 0.0  # that the job loads or saves


def estimates(
    cells: list[Cell],
    base: Path,
    layouts: Layouts,
    profile: Any = None,
    done: Container[str] = (),
) -> ByIdentity:
    """By identity, what each cell but those `done` will take.

    Each has SUMS, `hours` of its job, of which it starts for `start_hours`, and `working_gb`, on
    disk while it runs. Calls that several cells use, and weights that several jobs on one
    checkpoint read, count for the first of them.
    """
    rows = training_cost.by_kind(cells, base, layouts)
    corpora = {
        shard.identity: cell
        for cell in cells
        if cell.stage == "documents"
        for shard in cell.inputs.values()
        if shard.stage == "drafts"
    }
    seen = {request_key(c) for c in cells if c.stage == "judge" and c.identity in done}
    by_identity: ByIdentity = {}
    for cell in (cell for cell in cells if cell.identity not in done):
        gpus, cores = job_size(cell, profile)
        amounts = dict.fromkeys((*SUMS, "hours", "working_gb"), 0.0)
        rates = stage_rates(profile, cell.stage, on_gpu=gpus > 0)
        job = _Job(gpus, cores, rates, *FILES[_kind(cell)], amounts)
        if "recipe" in cell.settings:
            is_training = training_size.is_training(cell)
            row = rows[training_cost.kind(cell)] if is_training else TOY
            _add_training(job, cell, row, profile)
        elif cell.stage == "merge":
            _add_merge(job, cell)
        elif cell.stage in (*EVALUATION_STAGES, *CALLING_STAGES):
            _add_calls(job, cell, corpora.get(cell.identity, cell), seen)
        amounts["files"] = job.files + (FILES["job"][0] if profile else 0)
        amounts["folders"] = job.folders
        amounts["start_hours"] = (rates.start_seconds + SECONDS_PER_GB * job.weights_gb) / 3600
        amounts["hours"] += amounts["start_hours"]
        amounts["gpu_hours"] = job.gpus * amounts["hours"]
        amounts["cpu_hours"] = job.cores * amounts["hours"]
        by_identity[cell.identity] = amounts
    return by_identity


def _add_training(job: _Job, cell: Cell, row: dict[str, Any], profile: Any) -> None:
    """Add a training by its row of `training_cost.forecast`."""
    doses = len(cell.settings.get("doses", ()))  # kept on the way, beside the last
    job.weights_gb = _weights(cell)[1]
    step_logs_gb = row["steps"] * STEP_BYTES / 1e9
    if cell.stage == "rl":
        step_logs_gb += training_size.sampled_tokens(cell, row["steps"])[1] * ROLLOUT_BYTES / 1e9
    job.amounts["hours"] = row["hours"]
    held = _steps_held(cell, row["hours"]) if training_size.is_training(cell) else STEPS_HELD
    job.amounts["working_gb"] = held * row["step_checkpoints_gb"]
    job.amounts["disk_gb"] = (1 + doses) * job.weights_gb + step_logs_gb
    job.files += doses * FILES["dose"][0] + (1 + doses) * math.ceil(job.weights_gb / SHARD_GB)
    job.folders += doses * FILES["dose"][1]
    if job.gpus and not profile:
        job.gpus = row["ranks"]


def _add_merge(job: _Job, cell: Cell) -> None:
    """Add a sum of models: it reads each of them, and writes one."""
    weights_gb = _weights(cell)[1]
    job.weights_gb = weights_gb * (len(cell.inputs) + 1)
    job.amounts["disk_gb"] = weights_gb
    job.files += math.ceil(weights_gb / SHARD_GB)


def _steps_held(cell: Cell, hours: float) -> float:
    """Step checkpoints on disk while a training runs, as a multiple of the two that are kept.

    One that ends within `checkpoint_minutes` writes none, unless a signal asks it to stop.
    """
    minutes = Training.from_settings(cell.settings["recipe"], cell.resources).checkpoint_minutes
    written = 60 * hours // minutes if minutes else math.inf
    return STEPS_HELD if written > 1 else written / 2


def _add_calls(job: _Job, cell: Cell, corpus: Cell, seen: set[str]) -> None:
    """Add an evaluation, a judge or a corpus; `corpus`: that whose calls a shard shares.

    seen: what earlier cells have asked for and loaded; this cell's requests and model are added.
    """
    request = request_key(cell) if cell.stage == "judge" else cell.identity
    if request not in seen:
        job.amounts |= _work(cell, corpus)
    # Stages of one group share a process, and its weights.
    served = f"{STAGE_INFO[cell.stage].group} {cell.inputs.get('checkpoint', cell).identity}"
    if "read" in job.amounts:
        count, weights_gb = _weights(cell)
        job.weights_gb = weights_gb if served not in seen else 0.0
        read = job.amounts.pop("read")
        write = job.amounts.pop("write")
        seconds = read / job.rates.prefill_flops + write / job.rates.decode_flops
        # 2 operations a parameter and token.
        job.amounts["hours"] += 2 * count * seconds / max(1, job.gpus) / 3600
    seen |= {request, served}


def _work(cell: Cell, corpus: Cell) -> Amounts:
    """Of an evaluation, a judge, a corpus, or one of the jobs that share the calls of `corpus`.

    CALLS, hours by an endpoint's rates, tokens that a model in the job itself will `read` and
    `write`, and GB on disk.
    """
    if cell.stage == "lm_eval":
        return _lm_eval(cell.settings)
    if cell.stage == "likelihood":
        rows = cell.settings["rows"] or _rows_on_disk(cell) or ITEMS
        return {"read": rows * ITEM_TOKENS, "write": 0, "disk_gb": rows * ITEM_BYTES / 1e9}
    if cell.stage == "probe":
        rows = cell.settings["rows"] or _rows_on_disk(cell) or ITEMS
        return {"read": 2 * rows * ITEM_TOKENS, "write": 0, "disk_gb": PROBE_BYTES / 1e9}
    if cell.stage == "agent":
        return _acting(cell)
    if cell.stage == "generate":
        return _generation(cell)
    amounts = _judging(cell) if cell.stage in ("judge", "canary") else _writing(cell, corpus)
    disk_gb = amounts.pop("bytes") / 1e9
    if "calls" in amounts and "path" in cell.resources["address"]:
        # A model that the job serves itself: its speed, not an endpoint's.
        amounts["hours"] = 0.0
        amounts["read"] = amounts["prompt_tokens"]
        amounts["write"] = amounts["completion_tokens"]
    return amounts | {"disk_gb": disk_gb}


def _lm_eval(settings: dict[str, Any]) -> Amounts:
    tasks = SUBTASKS.get(settings["task"], 1)
    rows = settings["rows"] or (settings["limit"] or ITEMS) * tasks
    by_choice = settings["metric"].startswith("acc")
    prompts = rows * (1 + (settings["num_fewshot"] or 0)) * ITEM_TOKENS
    return {
        "read": prompts * (CHOICES if by_choice else 1),
        "write": 0 if by_choice else rows * ANSWER_TOKENS,
        "disk_gb": rows * ITEM_BYTES / 1e9,
    }


def _generation(cell: Cell) -> Amounts:
    sampling = cell.settings["sampling"]
    answers = num_questions(cell) * sampling["epochs"]
    return {
        "read": answers * QUESTION_TOKENS,
        "write": answers * min(ANSWER_TOKENS, sampling["max_tokens"]),
        "disk_gb": answers * ANSWER_BYTES / 1e9,
    }


def _acting(cell: Cell) -> Amounts:
    sampling = cell.settings["sampling"]
    scenarios = cell.settings["rows"] or _rows_on_disk(cell) or ITEMS
    turns = scenarios * SCENARIO_SAMPLES * sampling["epochs"] * AGENT_TURNS
    return {
        "read": turns * AGENT_TOKENS,
        "write": turns * min(TURN_TOKENS, sampling["max_tokens"]),
        "disk_gb": turns * ANSWER_BYTES / 1e9,
    }


def num_questions(cell: Cell) -> int:
    """Questions of a generate cell: declared, else counted on disk, else of JUDGED."""
    settings = cell.settings
    questions: int = settings["rows"] or _rows_on_disk(cell) or JUDGED[settings["scorer"]].questions
    return questions


def _judging(cell: Cell) -> Amounts:
    settings = cell.settings
    limits = cell.resources["limits"]
    if cell.stage == "canary":
        count, answer = CANARY_GRADES, CANARY_TOKENS
    else:
        sampling = cell.inputs["samples"].settings["sampling"]
        count = round(grades(cell) * sampling["epochs"])
        answer = min(ANSWER_TOKENS, sampling["max_tokens"])
    prompt = JUDGED[settings["scorer"]].prompt_tokens + answer
    reply = min(GRADE_TOKENS, settings["max_tokens"])
    price = prompt * limits["prompt_price"] + reply * limits["completion_price"]
    amounts = {
        "calls": count,
        "prompt_tokens": count * prompt,
        "completion_tokens": count * reply,
        "cost": count * price / 1e6,
    }
    if settings["judge"]["served_by"] == "dummy":
        seconds = count * DUMMY_SECONDS
    else:
        seconds = count * (GRADE_SECONDS / cell.resources["concurrency"])
    hours = max(seconds / 3600, rate_limited_hours(limits, amounts))
    return amounts | {"hours": hours, "bytes": count * GRADE_BYTES}


def _writing(cell: Cell, corpus: Cell) -> Amounts:
    """A corpus or one of its shards; calls and hours only where a writer writes it."""
    documents = cell.settings["documents"]
    row = next(iter(corpus_cost.forecast([corpus], set())), {})
    shards = sum(role.startswith("drafts") for role in corpus.inputs)
    tokens = row.get("completion_tokens", documents * training_size.TOKENS_PER_DOCUMENT["url"])
    is_whole = cell is corpus
    size = tokens * TOKEN_BYTES + documents * DOCUMENT_BYTES if is_whole else 0
    # A corpus with shards makes no call of its own.
    if not row or (is_whole and shards):
        return {"bytes": size}
    amounts = {key: row[key] / max(1, shards) for key in CALLS}
    return amounts | {"hours": row["hours"], "bytes": size}


def grades(cell: Cell) -> float:
    """Judge calls of a judge cell for one epoch.

    They are counted in its question file as eval does, else taken from JUDGED.
    """
    scorer = cell.settings["scorer"]
    files = cell.resources["files"]
    questions = _state(files.get("questions", ""))
    if total := _counted_grades(scorer, questions, _state(files.get("dimensions", ""))):
        return total
    size = JUDGED[scorer]
    return (cell.settings["rows"] or len(_rows(questions)) or size.questions) * size.grades


@lru_cache(maxsize=64)
def _counted_grades(scorer: str, questions: _State, dimensions: _State) -> int:
    """The grades of a question file; 0 where they can't be counted."""
    with suppress(KeyError, TypeError, AttributeError):  # a row that eval refuses
        if scorer == "anima":
            return _anima_grades(_rows(questions), _rows(dimensions))
        if scorer == "moru":
            return sum(len(set(row["dimension_tags"].split(","))) for row in _rows(questions))
    return 0


def _anima_grades(questions: list[dict[str, Any]], dimensions: list[dict[str, Any]]) -> int:
    """Grades of ANIMA's questions: one for each tag and each value of its rubric's variables."""
    rubrics = {_plain(row["dimension"]): row["guiding_question"] for row in dimensions}
    total = 0
    for row in questions if rubrics else ():
        lines = (row.get("variables") or "").split("\n")
        values = dict(line.split(":", 1) for line in lines if ":" in line)
        for tag in set(map(_plain, row["tags"])) & rubrics.keys():
            variables = re.findall(r"\{\{([^}]+)\}\}", rubrics[tag])
            total += math.prod(len(values.get(name, name).split(",")) for name in variables)
    return total


def job_size(cell: Cell, profile: Any) -> tuple[int, int]:
    """GPUs and cores that the cell's job holds.

    Without a profile it is one core, and one GPU for trainings and vLLM where the model is no toy.
    """
    if _kind(cell) == "link":
        return 0, 1
    if profile:
        resources = profile.resources(cell.stage)
        gpus = str(resources.gpus_per_node).rpartition(":")[2]
        cores = resources.nodes * resources.tasks_per_node * resources.cpus
        return resources.nodes * (int(gpus) if gpus.isdigit() else 1), cores
    if cell.stage in ("model", *TRAINING_STAGES, *EVALUATION_STAGES):
        return int("recipe" not in _start_model(cell).settings), 1
    return int("path" in cell.resources.get("address", {})), 1


def rate_limited_hours(limits: dict[str, Any], amounts: Amounts) -> float:
    """Hours over which an endpoint's rates stretch calls."""
    calls_per_minute = limits["requests_per_minute"]
    tokens_per_minute = limits["tokens_per_minute"]
    tokens = amounts["prompt_tokens"] + amounts["completion_tokens"]
    return max(
        amounts["calls"] / calls_per_minute / 60 if calls_per_minute else 0.0,
        tokens / tokens_per_minute / 60 if tokens_per_minute else 0.0,
    )


def request_key(cell: Cell) -> str:
    """What a judge cell asks: cells that ask the same share their ledgers."""
    keys = ("scorer", "judge", "temperature", "max_tokens", "files")
    request = [cell.inputs["samples"].identity, *(cell.settings[key] for key in keys)]
    return json.dumps(request, sort_keys=True)


def add_up(amounts: list[Amounts]) -> Amounts:
    """The sums of SUMS over several cells."""
    return {key: sum(row[key] for row in amounts) for key in SUMS}


def _kind(cell: Cell) -> str:
    """The row of FILES for a cell: its stage, or a link to files of another."""
    is_link = "run" in cell.inputs or _model_folder(cell)
    return "link" if is_link else cell.stage


def _start_model(cell: Cell) -> Cell:
    while cell.stage != "model":
        role = next(role for role in ("checkpoint", "start", "run") if role in cell.inputs)
        cell = cell.inputs[role]
    return cell


def _weights(cell: Cell) -> tuple[float, float]:
    """Parameters of the model that a cell trains, asks or serves, and GB of its weights."""
    path = cell.resources.get("address", {}).get("path")
    if not path:
        model = _start_model(cell)
        try:
            config = shape(model)
            count = parameters(config).total
            is_fp32 = not _model_folder(model) or config.dtype == "float32"
            return count, count * (4 if is_fp32 else 2) / 1e9
        except UserError:
            path = _model_folder(model)
    files = resolve(path or "").glob("*.safetensors")
    weights_gb = sum(file.stat().st_size for file in files) / 1e9 or UNKNOWN_GB
    return weights_gb * 1e9 / 2, weights_gb


def _model_folder(cell: Cell) -> str | None:
    """The folder that a model cell links to; None of a toy model."""
    path: str | None = cell.resources.get("files", {}).get("model")
    return path


def _rows_on_disk(cell: Cell) -> int:
    """Rows of the first of a cell's files; 0 where that is not here."""
    paths = [*cell.resources.get("files", {}).values()]
    return len(_rows(_state(paths[0])))


def _state(path: str) -> _State:
    """A file as it is now; None where it is not here."""
    if not path:
        return None
    file = resolve(path)
    with suppress(OSError):
        status = file.stat()
        return str(file), status.st_mtime_ns, status.st_size
    return None


@lru_cache(maxsize=64)  # many cells read one file
def _rows(state: _State) -> list[dict[str, Any]]:
    """The rows of a file; none where it is not here."""
    return [row for _, row in read_rows(Path(state[0]))] if state else []


def _plain(tag: str) -> str:
    """A tag however it is spelled: without blanks, hyphens and dashes, in lower case."""
    return re.sub(r"[\s\-_\u2010-\u2015]", "", tag).casefold()
