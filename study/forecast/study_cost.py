"""What a whole study takes: GPU-hours, CPU-hours, calls, money, wall time, disk, files; and beside it what it took."""

import json
import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.model_size import parameters, shape
from core.paths import resolve
from core.stages import TRAINING_STAGES, VLLM_STAGES
from study.forecast import corpus_cost as writing
from study.forecast import training_cost as trainings

Amounts = dict[str, float]
Found = dict[str, Amounts]  # by a cell's identity
Layouts = dict[str, trainings.Layout]
CALLS = ("calls", "prompt_tokens", "completion_tokens", "cost")
SUMS = ("gpu_hours", "cpu_hours", *CALLS, "disk_gb", "files", "folders")
BUDGETS = ("cost", "calls", "gpu_hours", "cpu_hours", "hours", "disk_gb", "files")
READ_FLOPS = trainings.FLOPS  # FLOP/s of one GPU that reads prompts: as busy as in a training
WRITE_FLOPS = 100e12  # FLOP/s of one GPU that writes some hundred answers at a time: it mostly waits for its memory
CORE_FLOPS = 30e9  # FLOP/s of one core: of toys, and where a profile gives a stage no GPU
START_SECONDS, SECONDS_PER_GB = 10, 20  # of a job: imports; its weights from a shared disk, compilation, saving
QUESTION_TOKENS, ANSWER_TOKENS = 100, 400  # an answer has at most the benchmark's max_tokens
ITEM_TOKENS, CHOICES = 120, 4  # of an item, or an example of lm-eval's; answers of a row that are looked at
ITEMS, SUBTASKS = 300, {"mmlu": 57}  # rows neither declared nor here to be counted; tasks in a group of lm-eval's
# By scorer, where questions are not here: how many, grades of one (ANIMA: 97 of 26), tokens of a prompt to the judge.
JUDGED = {"anima": (115, 97 / 26, 750), "moru": (201, 4, 600), "rubric": (18, 1, 400), "strong_reject": (313, 1, 700)}
GRADE_TOKENS, GRADE_SECONDS, KIT_SECONDS = 200, 3.0, 0.02  # of a judge's reply; of a call to an API, to the stand-in
TOKEN_BYTES, DOCUMENT_BYTES = 10, 500  # of a corpus, in ledger, documents.jsonl and corpus/: 4 letters 2.4 times; slots
ANSWER_BYTES, GRADE_BYTES, ITEM_BYTES, UPDATE_BYTES = 2000, 2700, 300, 600  # samples, scored samples and ledger, logs
SHARD_GB, UNKNOWN_GB = 5, 16  # of a file of weights; of a model that is not known or not here
STEPS_HELD = 1.5  # times the two step checkpoints that are kept: while a third is written
# A toy's pretraining as a row of study.forecast.training_cost: a minute on a core.
TOY: dict[str, Any] = {"hours": 1e-6, "updates": 300, "speed": "guessed", "step_checkpoints_gb": 0.0, "ranks": 1}
# Files and folders of a finished cell, of a link to a model, of a dose that a longer run keeps, of a job's logs.
FILES = {"model": (13, 3), "midtrain": (13, 3), "sft": (13, 3), "link": (5, 1), "dose": (5, 2), "documents": (9, 2),
         "drafts": (5, 1), "generate": (5, 1), "likelihood": (6, 1), "lm_eval": (6, 1), "judge": (7, 1),
         "labels": (5, 1), "analysis": (17, 3), "job": (5, 0)}  # fmt: skip
ASSUMED = {"TFLOP/s of a GPU that trains or reads": READ_FLOPS / 1e12, "of one that writes": WRITE_FLOPS / 1e12,
           "GFLOP/s a core": CORE_FLOPS / 1e9, "s to start a job": START_SECONDS, "s a GB of weights": SECONDS_PER_GB,
           "s a grade": GRADE_SECONDS, "s a document": writing.SECONDS_PER_CALL, "tokens a question": QUESTION_TOKENS,
           "an answer": ANSWER_TOKENS, "an item": ITEM_TOKENS, "a grade": GRADE_TOKENS,
           "grades for 26 of ANIMA's questions that are not here": 97}  # fmt: skip
NOT_IN_IT = (
    "paid by unfinished cells: counted as left; not counted: queues, repeats by gates and judges, interrupted runs"
)


def totals(cells: list[Cell], base: Path, layouts: Layouts, profile: Any = None) -> dict[str, Any]:
    """What is `left` of the study in the folder `base`, what is `spent` by its manifests, and the `study`, both.

    Each has SUMS: hours of GPUs and cores that jobs hold, calls, their tokens and cost (in the prices' currency), GB
    (1e9 bytes), files, folders; `stages`: what is left by stage. Wall time, hours: `critical_path`, if all that can run
    does, within endpoints' rates (no profile says how many nodes there are), and `in_a_row`. `peak_gb`: with the step
    checkpoints of trainings that run at once, all of a stage or as many as the profile's array_parallelism.
    """
    took = actual(cells, base, profile)
    todo = [cell for cell in cells if cell.identity not in took]
    found = estimates(cells, base, layouts, profile, took)
    left, spent = _sum([*found.values()]), _sum([*took.values()])
    study, at_once = {key: left[key] + spent[key] for key in SUMS}, profile.array_parallelism if profile else None
    stages, working = [], 0.0
    for stage in dict.fromkeys(cell.stage for cell in cells):
        some = [found[cell.identity] for cell in todo if cell.stage == stage]
        stages.append({"stage": stage, "cells": sum(c.stage == stage for c in cells), "left": len(some)} | _sum(some))
        working = max(working, sum(sorted((one["working_gb"] for one in some), reverse=True)[:at_once]))
    both = {"left": left, "spent": spent, "study": study, "stages": stages, "peak_gb": study["disk_gb"] + working}
    return both | {"critical_path": _path(todo, found), "in_a_row": sum(one["hours"] for one in found.values())}


def estimates(cells: list[Cell], base: Path, layouts: Layouts, profile: Any = None, done: Any = ()) -> Found:
    """By identity, of each cell but those `done`: SUMS, `hours` of its job, and `working_gb`, on disk while it runs."""
    rows = {row["training"]: row for row in trainings.forecast(cells, base, layouts)}
    shares = {c.identity: d for d in cells if d.stage == "documents" for c in d.inputs.values() if c.stage == "drafts"}
    seen = {_request(cell) for cell in cells if cell.stage == "judge" and cell.identity in done}
    found: Found = {}
    for cell in (cell for cell in cells if cell.identity not in done):
        (gpus, cores), (files, folders) = _place(cell, profile), FILES[_kind(cell)]
        one, gb = dict.fromkeys((*SUMS, "hours", "working_gb"), 0.0), 0.0
        if "recipe" in cell.settings:
            row = rows.get(f"{cell.stage} {cell.name}".replace(f"-s{cell.settings.get('seed')}", "")) or TOY
            kept, gb = len(cell.settings.get("doses", ())), _weights(cell)[1]
            one["hours"] = row["hours"] * (READ_FLOPS / CORE_FLOPS if row["speed"] == "guessed" and not gpus else 1)
            one["working_gb"] = STEPS_HELD * row["step_checkpoints_gb"]
            one["disk_gb"] = (1 + kept) * gb + row["updates"] * UPDATE_BYTES / 1e9
            files += kept * FILES["dose"][0] + (1 + kept) * math.ceil(gb / SHARD_GB)
            folders += kept * FILES["dose"][1]
            gpus = row["ranks"] if gpus and not profile else gpus
        elif cell.stage in ("generate", "likelihood", "lm_eval", "judge", "drafts", "documents"):
            key = _request(cell) if cell.stage == "judge" else cell.identity
            one |= _work(cell, shares.get(cell.identity, cell)) if key not in seen else {}
            serves = cell.inputs["checkpoint"].identity if "checkpoint" in cell.inputs else cell.identity
            if "read" in one:
                count, gb = _weights(cell)
                gb = gb if serves not in seen else 0.0
                read, write = one.pop("read"), one.pop("write")
                seconds = read / READ_FLOPS + write / WRITE_FLOPS if gpus else (read + write) / CORE_FLOPS
                one["hours"] += 2 * count * seconds / max(1, gpus) / 3600
            seen |= {key, serves}
        one["files"], one["folders"] = files + (FILES["job"][0] if profile else 0), folders
        one["hours"] += (START_SECONDS + SECONDS_PER_GB * gb) / 3600
        one["gpu_hours"], one["cpu_hours"] = gpus * one["hours"], cores * one["hours"]
        found[cell.identity] = one
    return found


def actual(cells: list[Cell], base: Path, profile: Any = None) -> Found:
    """What each finished cell took by its manifest: `hours` and SUMS. Calls that several cells use count once."""
    found: Found = {}
    graded: set[str] = set()
    for cell in cells:
        if not (manifest := read_manifest(base / cell.relpath)):
            continue
        calls = {key: manifest["counts"].get(key, 0) for key in CALLS}
        for share in (found.get(c.identity, {}) for c in cell.inputs.values() if c.stage == "drafts"):
            calls = {key: calls[key] - share.get(key, 0) for key in CALLS}  # a corpus counts its drafts' too
        if cell.stage == "judge":
            calls = dict.fromkeys(CALLS, 0) if _request(cell) in graded else calls
            graded.add(_request(cell))
        times = [datetime.fromisoformat(manifest[key]) for key in ("started", "ended") if manifest[key]]
        hours = (times[-1] - times[0]).total_seconds() / 3600 if times else 0.0
        outputs, (gpus, cores) = manifest["outputs"], _place(cell, profile)
        one = {"hours": hours, "gpu_hours": gpus * hours, "cpu_hours": cores * hours, "files": len(outputs) + 3}
        one["folders"] = len({Path(), *(Path(name).parent for name in outputs)})
        found[cell.identity] = one | calls | {"disk_gb": sum(output["bytes"] for output in outputs.values()) / 1e9}
    return found


def compare(cells: list[Cell], base: Path, layouts: Layouts | None = None, profile: Any = None) -> list[dict[str, Any]]:
    """For each stage with finished cells: stage, cells, and `forecast` and `actual` of these, each with hours (of their
    jobs, one after another), gpu_hours, CALLS and disk_gb. The forecast is that from before anything had run.
    """
    took, planned = actual(cells, base, profile), estimates(cells, base / "nothing", layouts or {}, profile)
    rows: list[dict[str, Any]] = []
    for stage in dict.fromkeys(cell.stage for cell in cells if cell.identity in took):
        names = [cell.identity for cell in cells if cell.stage == stage and cell.identity in took]
        rows.append({"stage": stage, "cells": len(names)})
        for what, by in (("forecast", planned), ("actual", took)):
            rows[-1][what] = {k: sum(by[n][k] for n in names) for k in ("hours", "gpu_hours", *CALLS, "disk_gb")}
    return rows


def grades(cell: Cell) -> float:
    """Judge calls of a judge cell for one epoch: counted in its question file as eval does, else by JUDGED."""
    scorer, files = cell.settings["scorer"], cell.resources["files"]
    questions, dimensions = (_lines(files.get(name, "")) for name in ("questions", "dimensions"))
    asks = {_plain(row["dimension"]): row["guiding_question"] for row in dimensions} if scorer == "anima" else {}
    total = sum(len(set(row["dimension_tags"].split(","))) for row in questions) if scorer == "moru" else 0
    for row in questions if asks else ():
        values = dict(line.split(":", 1) for line in (row.get("variables") or "").split("\n") if ":" in line)
        for ask in (asks[tag] for tag in set(map(_plain, row["tags"])) if tag in asks):
            total += math.prod(len(values.get(v, v).split(",")) for v in re.findall(r"\{\{([^}]+)\}\}", ask))
    return total or (cell.settings["rows"] or len(questions) or JUDGED[scorer][0]) * JUDGED[scorer][1]


def parse_budget(words: list[str]) -> dict[str, float]:
    """`--budget cost=200 gpu_hours=500` as numbers. Raises UserError with a line for each mistake."""
    pairs = [word.partition("=")[::2] for word in words]
    names, valid = [name for name, _ in pairs], ", ".join(BUDGETS)
    mistakes = [f"--budget {name}: there is no such limit; valid: {valid}" for name in names if name not in BUDGETS]
    mistakes += [f"--budget {name}: given twice; keep one" for name in BUDGETS if names.count(name) > 1]
    wrong = [word for word in words if not re.fullmatch(r"[^=]*=\d+(\.\d+)?", word)]
    mistakes += [f"--budget {word}: must be a limit and a number, such as cost=200" for word in wrong]
    if mistakes:
        raise UserError(*mistakes)
    return {name: float(value) for name, value in pairs}


def check_budget(totals: dict[str, Any], budget: dict[str, float]) -> None:
    """Raises UserError with a line for each limit that the study, spent and left, exceeds; none where nothing is left.
    `hours` are those of the critical path, `disk_gb` is the peak."""
    spent, lines = totals["spent"], []
    whole = totals["study"] | {"hours": totals["critical_path"], "disk_gb": totals["peak_gb"]}
    for key in (key for key in budget if whole[key] > budget[key]):
        text = f"{key}: the study takes about {whole[key]:,.2f}, {spent.get(key, 0):,.2f} of it spent"
        lines.append(f"{text}; --budget {key}={budget[key]:g} is less; raise it, or make the study smaller")
    if lines and any(row["left"] for row in totals["stages"]):
        raise UserError(*lines)


def show(totals: dict[str, Any], compared: Iterable[dict[str, Any]] = ()) -> str:
    """The totals as a table by stage, with wall time, disk and what is assumed below; then `compare`'s rows."""
    keys, study = SUMS[:-1], totals["study"]
    lines = [[row["stage"], f"{row['left']} of {row['cells']}", *(row[k] for k in keys)] for row in totals["stages"]]
    lines += [[name, "", *(totals[name][k] for k in keys)] for name in ("left", "spent", "study")]
    headers = ["about", "left", "GPU-hours", "CPU-hours", "calls", "tokens in", "tokens out", "cost", "GB", "files"]
    formats = ["", "", ",.2f", ",.2f", ",.0f", ",.0f", ",.0f", ",.2f", ",.3f", ",.0f"]
    hours = f"{totals['critical_path']:,.2f} h if all that can run does, {totals['in_a_row']:,.2f} h one by one"
    disk = f"{study['disk_gb']:,.2f} GB at the end, {totals['peak_gb']:,.2f} at the most while trainings run at once"
    assumed = textwrap.fill("assumed: " + ", ".join(f"{v:g} {k}" for k, v in ASSUMED.items()), 120)
    text = tabulate(lines, headers=headers, floatfmt=formats, colalign=("left", "left"))
    text += f"\nwall time left: {hours}\ndisk: {disk}; {study['folders']:,.0f} folders\n{assumed}\n{NOT_IN_IT}"
    if both := [[row["stage"], what, *row[what].values()] for row in compared for what in ("forecast", "actual")]:
        headers, formats = ["finished", "", "hours", *headers[2:3], *headers[4:9]], [*formats[:4], *formats[4:9]]
        text += "\n\n" + tabulate(both, headers=headers, floatfmt=formats, colalign=("left", "left"))
    return text


def _sum(some: list[Amounts]) -> Amounts:
    return {key: sum(one[key] for one in some) for key in SUMS}


def _place(cell: Cell, profile: Any) -> tuple[int, int]:
    """GPUs and cores that the cell's job holds; without a profile one GPU for trainings and vLLM, but for toys."""
    if _kind(cell) == "link":
        return 0, 1
    if profile:
        form = profile.resources(cell.stage)
        gpus = str(form.gpus_per_node).rpartition(":")[2]
        return form.nodes * (int(gpus) if gpus.isdigit() else 1), form.nodes * form.tasks_per_node * form.cpus
    if cell.stage in ("model", *TRAINING_STAGES, *VLLM_STAGES):
        return int("recipe" not in _start(cell).settings), 1
    return int("path" in cell.resources.get("address", {})), 1


def _kind(cell: Cell) -> str:
    return "link" if "run" in cell.inputs or (cell.stage == "model" and "path" in cell.resources) else cell.stage


def _start(cell: Cell) -> Cell:
    while cell.stage != "model":
        cell = next(cell.inputs[role] for role in ("checkpoint", "start", "run") if role in cell.inputs)
    return cell


def _weights(cell: Cell) -> tuple[float, float]:
    """Parameters of the model that a cell trains, asks or serves, and GB of its weights."""
    if not (path := cell.resources.get("address", {}).get("path")):
        model = _start(cell)
        try:
            config = shape(model)
            count = parameters(config).total
            wide = "path" not in model.resources or config.dtype == "float32"
            return count, count * (4 if wide else 2) / 1e9
        except UserError:
            path = model.resources["path"]
    gb = sum(file.stat().st_size for file in resolve(path).glob("*.safetensors")) / 1e9 or UNKNOWN_GB
    return gb * 1e9 / 2, gb


def _work(cell: Cell, whole: Cell) -> Amounts:
    """Of an evaluation, a judge, a corpus, or one of the jobs that share the calls of the corpus `whole`: CALLS, hours
    by an endpoint's rates, tokens that a model in the job itself will `read` and `write`, and GB on disk."""
    settings, here = cell.settings, [len(_lines(path)) for path in cell.resources.get("files", {}).values()]
    if cell.stage == "lm_eval":
        rows = settings["rows"] or (settings["limit"] or ITEMS) * SUBTASKS.get(settings["task"], 1)
        read, write = (CHOICES, 0) if settings["metric"].startswith("acc") else (1, ANSWER_TOKENS)
        read *= rows * (1 + (settings["num_fewshot"] or 0)) * ITEM_TOKENS
        return {"read": read, "write": rows * write, "disk_gb": rows * ITEM_BYTES / 1e9}
    if cell.stage == "likelihood":
        rows = settings["rows"] or here[0] or ITEMS
        return {"read": rows * ITEM_TOKENS, "write": 0, "disk_gb": rows * ITEM_BYTES / 1e9}
    if cell.stage in ("drafts", "documents"):
        row, jobs = next(iter(writing.forecast([whole], set())), {}), sum(r.startswith("drafts") for r in whole.inputs)
        tokens = row.get("completion_tokens", settings["documents"] * trainings.TOKENS_PER_DOCUMENT["url"])
        size = (tokens * TOKEN_BYTES + settings["documents"] * DOCUMENT_BYTES) if cell is whole else 0
        calls = {key: row[key] / max(1, jobs) for key in CALLS} if row and (cell is not whole or not jobs) else {}
        made = calls and calls | {"hours": row["hours"]}
    else:
        sampling = (cell if cell.stage == "generate" else cell.inputs["samples"]).settings["sampling"]
        answer = min(ANSWER_TOKENS, sampling["max_tokens"])
        if cell.stage == "generate":
            rows = (settings["rows"] or here[0] or JUDGED[settings["scorer"]][0]) * sampling["epochs"]
            return {"read": rows * QUESTION_TOKENS, "write": rows * answer, "disk_gb": rows * ANSWER_BYTES / 1e9}
        limits, count = cell.resources["limits"], round(grades(cell) * sampling["epochs"])
        read, written = JUDGED[settings["scorer"]][2] + answer, min(GRADE_TOKENS, settings["max_tokens"])
        cost = count * (read * limits["prompt_price"] + written * limits["completion_price"]) / 1e6
        calls = dict(zip(CALLS, (count, count * read, count * written, cost), strict=True))
        kit, size = settings["judge"]["served_by"] == "kit", count * GRADE_BYTES
        seconds = count * (KIT_SECONDS if kit else GRADE_SECONDS / cell.resources["concurrency"])
        made = calls | {"hours": max(seconds / 3600, _rated(limits, calls))}
    if made and "path" in cell.resources["address"]:
        made |= {"hours": 0.0, "read": made["prompt_tokens"], "write": made["completion_tokens"]}
    return made | {"disk_gb": size / 1e9}


def _rated(limits: dict[str, Any], one: Amounts) -> float:
    """Hours over which an endpoint's rates stretch calls."""
    rates = {"calls": limits["requests_per_minute"], "tokens": limits["tokens_per_minute"]}
    amounts = {"calls": one["calls"], "tokens": one["prompt_tokens"] + one["completion_tokens"]}
    return max(amounts[what] / rate / 60 if rate else 0.0 for what, rate in rates.items())


def _request(cell: Cell) -> str:
    """What a judge cell asks: cells that ask the same share their ledgers."""
    asked = [cell.settings[key] for key in ("scorer", "judge", "temperature", "max_tokens", "files")]
    return json.dumps([cell.inputs["samples"].identity, *asked], sort_keys=True)


def _lines(path: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none where it is not here, or another kind of file."""
    text = resolve(path).read_text(encoding="utf-8") if path.endswith(".jsonl") and resolve(path).is_file() else ""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _plain(tag: str) -> str:
    return re.sub(r"[\s\-_\u2010-\u2015]", "", tag).casefold()


def _path(todo: list[Cell], found: Found) -> float:
    ends: dict[str, float] = {}
    asked: dict[str, list[Cell]] = defaultdict(list)
    for cell in todo:
        ready = max([0.0, *(ends.get(needed.identity, 0.0) for needed in cell.inputs.values())])
        ends[cell.identity] = ready + found[cell.identity]["hours"]
        if found[cell.identity]["calls"]:
            asked[json.dumps(cell.resources["address"], sort_keys=True)].append(cell)
    # All jobs share an endpoint's rates.
    rated = [_rated(c[0].resources["limits"], _sum([found[one.identity] for one in c])) for c in asked.values()]
    return max([0.0, *rated, *ends.values()])
