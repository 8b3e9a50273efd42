"""Tokens a second of the kit's training, torchtune's own recipe and transformers' Trainer.

    python -m benchmarks.training               on this machine's CPU: a toy in fp32, some 5 minutes
    python -m benchmarks.training --gpu 1b      Llama 3.2 1B's shape on one GPU, random weights
                                                (or 8b)
    python -m benchmarks.training --start-up    time to the first step: 1 and 10 million tokens

Useful tokens are those of documents, not padding. The documents have the lengths of real ones on
animal welfare (100 of them: mean 1,016 words, standard deviation 620), on the CPU a quarter of
that. Each contender runs in a process of its own, one after another, `--rounds` times. Figures are
medians over optimizer steps after the first few, then over rounds. MFU counts FLOPs by
recipes.model.flops_per_token for every contender.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from benchmarks.contenders import CONTENDERS, make_inputs, recipe_of
from core.paths import ROOT

MARK = "figures: "  # begins the child's line among what libraries print
WARMUP_STEPS = 3  # left out: allocations, compilation
CPU = {"shape": "toy", "seq_len": 512, "rows": 4, "steps": 16, "dtype": "fp32"}
SIZES: dict[str, dict[str, Any]] = {
    "1b": {
        "shape": "1b",
        "seq_len": 2048,
        "rows": 16,
        "steps": 10,
        "dtype": "mixed",
        "micro_batch_size": 4,
    },
    # fp32 master weights of 8 B parameters take 128 GB: on one GPU dtype is bf16 with stochastic
    # rounding.
    "8b": {
        "shape": "8b",
        "seq_len": 2048,
        "rows": 8,
        "steps": 7,
        "dtype": "bf16",
        "micro_batch_size": 2,
    },
}
COMPILED = {"compile": True, "activation_checkpointing": "full"}
NO_CHECKPOINTING = {"compile": True, "activation_checkpointing": "none"}
# On a GPU: the effect of each setting.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "kit": ("kit", COMPILED),
    "torchtune's recipe": ("torchtune's recipe", COMPILED),
    "kit, selective checkpointing": ("kit", COMPILED | {"activation_checkpointing": "selective"}),
    "kit, no checkpointing": ("kit", NO_CHECKPOINTING),
    "torchtune's recipe, no checkpointing": ("torchtune's recipe", NO_CHECKPOINTING),
    "kit, not deterministic": ("kit", COMPILED | {"deterministic": False}),
    "Trainer, packed": ("Trainer, packed", COMPILED),
    "kit, adamw_8bit": ("kit", COMPILED | {"optimizer": "adamw_8bit"}),
    "kit, lora": ("kit", COMPILED | {"lora": {"rank": 32, "alpha": 16}}),
    "kit, no compile": ("kit", COMPILED | {"compile": False}),
    "kit, dense mask for flex attention": ("kit", COMPILED | {"dense_mask": True}),
    "kit, whole logits": ("kit", COMPILED | {"whole_logits": True}),
    "Trainer, a document a row": ("Trainer, a document a row", COMPILED),
}


def run_child(
    name: str, folder: Path, case: dict[str, Any], limit: float | None = None
) -> dict[str, Any]:
    """Run a contender in a process of its own; see `figures`.

    Args:
        limit: seconds after which it is stopped.
    """
    command = [sys.executable, "-m", "benchmarks.training"]
    command += ["--contender", name, "--case", json.dumps(case), "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = folder / "log.txt"
    with open(log, "w") as file:
        try:
            status = subprocess.run(
                command,
                cwd=ROOT,
                stdout=file,
                stderr=file,
                env=environment,
                timeout=limit,
            ).returncode
        except subprocess.TimeoutExpired:
            return {"failed": f"not done in {limit:.0f} s"}
    lines = log.read_text(errors="replace").strip().splitlines()
    if status:
        return {"failed": lines[-1][:100] if lines else "killed", "log": lines[-40:]}
    return next(json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK))


def figures(folder: Path, case: dict[str, Any], name: str) -> dict[str, Any]:
    """Of a contender run in this process: useful tokens a second (median over steps), GB, MFU."""
    steps = CONTENDERS[name](folder, case)
    import torch

    from recipes.model import build, flops_per_token, peak_flops

    rate = median(tokens / seconds for tokens, seconds in steps[WARMUP_STEPS:] or steps)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    row = {"tokens_per_second": rate, "gb": peak_gb}
    if torch.cuda.is_available() and case["dtype"] != "fp32":
        config = json.loads((folder / "start/model/config.json").read_text())
        with torch.device("meta"):
            model = build(config, recipe_of(case).lora)
        row["gb"] = torch.cuda.max_memory_allocated() / 1e9
        if peak := peak_flops(torch.device("cuda")):
            row["mfu"] = rate * flops_per_token(model, case["seq_len"]) / peak
    return row


def compare(
    cases: dict[str, tuple[str, dict[str, Any]]], rounds: int, seconds: float | None = None
) -> None:
    """Print a table of `cases`: (contender, case) by the name of the line.

    Ratios are to the first line. Cases that have not begun when `seconds` are over are left out.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    end = None if seconds is None else time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context("spawn").Process(
            target=make_inputs, args=(Path(folder), next(iter(cases.values()))[1])
        )
        maker.start()  # a process of its own: it may use the GPU, and must leave it whole
        maker.join()
        for _ in range(rounds):
            for name, (contender, case) in cases.items():
                remaining = None if end is None else end - time.monotonic()
                if remaining is not None and remaining < 10:
                    results[name].append({"failed": "no time was left"})
                    continue
                results[name].append(run_child(contender, Path(folder), case, remaining))
                print(f"{name}: {json.dumps(results[name][-1])}", file=sys.stderr, flush=True)
    table = []
    base = None
    for name, rows in results.items():
        if failed := next((r["failed"] for r in rows if "failed" in r), None):
            table.append([name, failed])
            continue
        speed = median(r["tokens_per_second"] for r in rows)
        base = base or speed
        mfu = rows[-1].get("mfu")
        gb = f"{rows[-1]['gb']:.1f}"
        table.append(
            [name, f"{speed:,.0f}", f"{speed / base:.2f}", gb, f"{mfu:.1%}" if mfu else None]
        )
    headers = ["", "useful tokens/s", "to the kit's", "peak GB", "MFU"]
    print(tabulate(table, headers=headers, disable_numparse=True))


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


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--gpu", choices=SIZES)
    parser.add_argument(
        "--only", nargs="+", choices=SETTINGS, metavar="LINE", help="of the GPU's table"
    )
    parser.add_argument("--seconds", type=float, help="for all lines of the GPU's table together")
    parser.add_argument("--start-up", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        print(MARK + json.dumps(figures(given.folder, given.case, given.contender)), flush=True)
        return 0
    if given.start_up:
        start_up()
        return 0
    if not given.gpu:
        compare({name: (name, CPU) for name in CONTENDERS}, given.rounds)
        return 0
    selected = given.only or [*SETTINGS]
    cases = {
        line: (name, SIZES[given.gpu] | changes)
        for line, (name, changes) in SETTINGS.items()
        if line in selected
    }
    import torch

    if not torch.cuda.is_available():
        print("no GPU here; where there is one, this would run:")
        print(tabulate([(line, name, json.dumps(case)) for line, (name, case) in cases.items()]))
        return 2
    compare(cases, given.rounds, given.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
