"""Tokens a second of the kit's training, torchtune's own recipe and transformers' Trainer.

    python -m benchmarks.training               on this machine's CPU: a toy in fp32, some 5 minutes
    python -m benchmarks.training --gpu 1b      Llama 3.2 1B's shape on one GPU, random weights
                                                (or 8b)
                                                [--profile JSON]: the kernels of one step
    python -m benchmarks.training --start-up    time to the first step: 1 and 10 million tokens

Useful tokens are those of documents, not padding. The documents have the lengths of real ones on
animal welfare (100 of them: mean 1,016 words, standard deviation 620), on the CPU a quarter of
that. Each contender runs in a process of its own, one after another, `--rounds` times; on a GPU it
stays for the contender's next lines. Figures are medians over optimizer steps after the first few,
then over rounds. MFU counts FLOPs by
recipes.model.flops_per_token for every contender.
"""

import argparse
import gc
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from benchmarks.contenders import CONTENDERS, make_inputs, on_gpu, recipe_of
from benchmarks.worker import CallFailed, Worker

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
WARMUP_STEPS = 3  # left out: allocations, compilation
CPU = {"shape": "toy", "seq_len": 512, "rows": 4, "steps": 16, "dtype": "fp32"}
COMPILED = {"compile": True, "dtype": "bf16", "seq_len": 2048}
SIZES: dict[str, dict[str, Any]] = {
    "1b": COMPILED
    | {
        "shape": "1b",
        "rows": 16,
        "steps": 8,
        "micro_batch_size": 4,
        "activation_checkpointing": "none",
    },
    # fp32 master weights of 8 B parameters take 128 GB: on one GPU only bf16 fits.
    "8b": COMPILED
    | {
        "shape": "8b",
        "rows": 8,
        "steps": 5,
        "micro_batch_size": 2,
        "activation_checkpointing": "full",
    },
}
FULL = {"activation_checkpointing": "full"}
MIXED = {"dtype": "mixed"}
CONVERSATIONS = {"conversations": True, "rows": 8, "micro_batch_size": 8, "steps": 12}
# On a GPU: (contender, changes of the size's case) by the name of the line. The most valuable
# first: those that `--seconds` leaves no time for are left out. The first two do the same
# arithmetic.
LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "kit": ("kit", {}),
    "torchtune's recipe": ("torchtune's recipe", {}),
    "kit, mixed": ("kit", MIXED),
    "kit, selective checkpointing": ("kit", {"activation_checkpointing": "selective"}),
    "kit, float8": ("kit", {"float8": True}),
    "kit, conversations packed": ("kit", CONVERSATIONS | {"packed": True}),
    "kit, a conversation a row": ("kit", CONVERSATIONS | {"compile": False}),
    "kit, mixed, adamw_8bit": ("kit", MIXED | {"optimizer": "adamw_8bit"}),
    "kit, lora": ("kit", {"lora": {"rank": 32, "alpha": 16}}),
    "kit, full checkpointing": ("kit", FULL),
    "torchtune's recipe, full checkpointing": ("torchtune's recipe", FULL),
    "kit, not deterministic": ("kit", {"deterministic": False}),
    "kit, loss chunks of 2,048": ("kit", {"chunk": 2048}),
    "kit, loss chunks of 4,096": ("kit", {"chunk": 4096}),
    "kit, torch's linear_cross_entropy": ("kit", {"torch_loss": True}),
    "kit, no garbage collection": ("kit", {"no_gc": True}),
    "kit, no compile": ("kit", {"compile": False}),
    "kit, dense mask for flex attention": ("kit", {"dense_mask": True}),
    "kit, all logits at once": ("kit", {"chunk": 1 << 30}),
    "Trainer, packed": ("Trainer, packed", {}),
    "Trainer, a document a row": ("Trainer, a document a row", {}),
}
# Seconds on an H100, estimated: to make the inputs; to start a contender's process (imports, CUDA,
# weights), once; to load weights and rows again; to compile; of a step.
ESTIMATES = {
    "1b": {"inputs": 25, "start": 25, "load": 8, "compile": 30, "step": 0.65},
    "8b": {"inputs": 45, "start": 40, "load": 25, "compile": 40, "step": 2.1},
}
REMAINING_GB = 1.0  # of GPU memory that a line may leave to the next in its process


def estimated_seconds(size: str, lines: Sequence[str]) -> float:
    """How long a call with `--gpu size --only lines` takes on an H100, by ESTIMATES."""
    times = ESTIMATES[size]
    contenders = {LINES[line][0] for line in lines}
    seconds = times["inputs"] + len(contenders) * times["start"]
    seconds += (len(lines) - len(contenders)) * times["load"]
    return seconds + sum(
        times["compile"] + times["step"] * (SIZES[size] | LINES[line][1])["steps"] for line in lines
    )


def measure(
    worker: Worker,
    name: str,
    folder: Path,
    case: dict[str, Any],
    limit: float | None = None,
) -> dict[str, Any]:
    """`figures` of a contender in the worker's process; where it has none: `failed`, and its log.

    limit: seconds after which it is stopped.
    """
    began = time.monotonic()
    try:
        row: dict[str, Any] = worker.call(figures, folder, case, name, limit=limit)
    except CallFailed as error:
        row = {"failed": str(error), "log": worker.last_lines()}
    return row | {"line_seconds": round(time.monotonic() - began, 1)}


def run_child(name: str, folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """`measure` in a process of its own."""
    with Worker(folder / "log.txt", ONE_THREAD) as worker:
        return measure(worker, name, folder, case)


def figures(folder: Path, case: dict[str, Any], name: str) -> dict[str, Any]:
    """Of a contender run in this process: useful tokens a second (median over steps), GB, MFU."""
    if on_gpu(case):
        _forget_earlier_lines()
    steps = CONTENDERS[name](folder, case)
    import torch

    from recipes.model import build, flops_per_token, peak_flops

    rate = median(tokens / seconds for tokens, seconds in steps[WARMUP_STEPS:] or steps)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    row = {"tokens_per_second": rate, "gb": peak_gb}
    if on_gpu(case):
        config = json.loads((folder / "start/model/config.json").read_text())
        with torch.device("meta"):
            model = build(config, recipe_of(case).lora)
        row["gb"] = torch.cuda.max_memory_allocated() / 1e9
        if peak := peak_flops(torch.device("cuda")):
            row["mfu"] = rate * flops_per_token(model, case["seq_len"]) / peak
        gc.collect()
        torch.cuda.empty_cache()
        row["remaining_gb"] = torch.cuda.memory_allocated() / 1e9
    return row


def _forget_earlier_lines() -> None:
    import torch

    torch._dynamo.reset()  # compiled forms count towards its limit
    torch.cuda.reset_peak_memory_stats()


def compare(
    cases: dict[str, tuple[str, dict[str, Any]]],
    rounds: int,
    seconds: float | None = None,
    line_seconds: float | None = None,
) -> None:
    """Print a JSON line for each of `cases` as it ends, and a table of all of them.

    Ratios are to the first one. On a CPU each has a process of its own; on a GPU a contender's
    share one.

    Args:
        cases: (contender, case) by the name of the line.
        seconds: Lines that have not begun when they are over are left out.
        line_seconds: Longest time of a line.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    end = math.inf if seconds is None else time.monotonic() + seconds
    with ExitStack() as open_workers:
        folder = Path(open_workers.enter_context(tempfile.TemporaryDirectory()))
        names = {contender for contender, _ in cases.values()}
        workers = {
            name: Worker(folder / f"{number}.log", ONE_THREAD) for number, name in enumerate(names)
        }
        for worker in workers.values():
            open_workers.enter_context(worker)
        maker = Worker(folder / "inputs.log", ONE_THREAD)
        with maker:  # a process of its own: it may use the GPU, and must leave it whole
            maker.call(make_inputs, folder, next(iter(cases.values()))[1], limit=None)
        open_workers.callback(print_table, results)
        for _ in range(rounds):
            for name, (contender, case) in cases.items():
                limit = min(end - time.monotonic(), line_seconds or math.inf)
                if limit < 10:
                    results[name].append({"failed": "no time was left"})
                    continue
                worker = workers[contender]
                row = measure(worker, contender, folder, case, limit if limit < math.inf else None)
                results[name].append(row)
                print(json.dumps({"line": name, **row}), flush=True)
                if not on_gpu(case) or row.get("remaining_gb", 0) > REMAINING_GB:
                    worker.close()


def print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    """The medians of each line's rounds."""
    table = []
    base = None
    for name, rows in results.items():
        if failed := next((r["failed"] for r in rows if "failed" in r), None):
            table.append([name, failed[:100]])
            continue
        if not rows:
            continue
        speed = median(r["tokens_per_second"] for r in rows)
        base = base or speed
        mfu = rows[-1].get("mfu")
        gb = f"{rows[-1]['gb']:.1f}"
        table.append(
            [name, f"{speed:,.0f}", f"{speed / base:.2f}", gb, f"{mfu:.1%}" if mfu else None]
        )
    headers = ["", "useful tokens/s", "to the kit's", "peak GB", "MFU"]
    print(tabulate(table, headers=headers, disable_numparse=True), flush=True)


def start_up() -> None:
    """Seconds and memory until the first optimizer step is done."""
    table = []
    for tokens in (1_000_000, 10_000_000):
        case = CPU | {"steps": 1, "tokens": tokens}
        with tempfile.TemporaryDirectory() as folder:
            make_inputs(Path(folder), case)
            began = time.time()
            row = run_child("kit", Path(folder), case)
            seconds = next(Path(folder).glob("*/speed.jsonl")).stat().st_mtime - began
            size = (next(Path(folder).glob("documents/*.jsonl")).stat().st_size) / 1e6
        table.append([f"{tokens:,}", f"{size:.0f}", f"{seconds:.1f}", f"{row['gb']:.2f}"])
    print(tabulate(table, headers=["tokens", "MB of text", "seconds, imports too", "peak GB"]))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--gpu", choices=SIZES)
    parser.add_argument(
        "--only", nargs="+", choices=LINES, metavar="LINE", help="of the GPU's table"
    )
    parser.add_argument("--seconds", type=float, help="for all lines of the GPU's table together")
    parser.add_argument("--line-seconds", type=float, help="for each of them at most")
    parser.add_argument(
        "--profile", type=Path, metavar="JSON", help="profile a step of the first line, to there"
    )
    parser.add_argument("--start-up", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def main() -> int:
    given = parser().parse_args()
    if given.start_up:
        start_up()
        return 0
    if given.gpu:
        size = SIZES[given.gpu]
        selected = [line for line in LINES if line in (given.only or LINES)]
        cases = {line: (LINES[line][0], size | LINES[line][1]) for line in selected}
    else:
        cases = {name: (name, dict(CPU)) for name in CONTENDERS}
    if given.profile:
        next(iter(cases.values()))[1]["profile"] = str(given.profile.absolute())
    if given.gpu:
        import torch

        if not torch.cuda.is_available():
            print("no GPU here; where there is one, this would run, each line after so many s:")
            table = [
                (
                    f"{estimated_seconds(given.gpu, selected[:number]):.0f}",
                    line,
                    json.dumps(case[1]),
                )
                for number, (line, case) in enumerate(cases.items(), 1)
            ]
            print(tabulate(table))
            return 2
    compare(cases, given.rounds, given.seconds, given.line_seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
