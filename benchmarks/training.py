"""Tokens a second of the kit's training, beside torchtune's own recipe and transformers' Trainer, in one run.

    python -m benchmarks.training               on this machine's CPU: a toy in fp32, some 5 minutes
    python -m benchmarks.training --gpu 1b      Llama 3.2 1B's shape on one GPU, random weights; or 8b
    python -m benchmarks.training --start-up    until the first update is done: 1 and 10 million tokens

Useful tokens are those of documents, not padding. The documents have the lengths of real ones on animal welfare (100 of
them: mean 1,016 words, standard deviation 620), on the CPU a quarter of that. Each contender is a process of its own,
one after another, `--rounds` times over; figures are medians over updates after the first few, then over rounds. MFU
counts operations as recipes.model.flops_per_token does, for every contender alike.
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

from benchmarks.contenders import CONTENDERS, make, recipe
from core.paths import ROOT

MARK = "figures: "  # of a child's line, among what libraries print
FIRST = 3  # updates that are left out: allocations, compilation
CPU = {"shape": "toy", "seq_len": 512, "rows": 4, "updates": 16, "dtype": "fp32"}
SIZES: dict[str, dict[str, Any]] = {
    "1b": {
        "shape": "1b",
        "seq_len": 2048,
        "rows": 16,
        "updates": 10,
        "dtype": "mixed",
        "rows_per_rank": 4,
    },
    # fp32 master weights of 8 B take 128 GB: on one GPU dtype is bf16, rounded by chance.
    "8b": {
        "shape": "8b",
        "seq_len": 2048,
        "rows": 8,
        "updates": 7,
        "dtype": "bf16",
        "rows_per_rank": 2,
    },
}
COMPILED = {"compile": True, "activation_checkpointing": True}
# On a GPU: what each setting is worth.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "kit": ("kit", COMPILED),
    "torchtune's recipe": ("torchtune's recipe", COMPILED),
    "kit, no checkpointing": ("kit", {"compile": True, "activation_checkpointing": False}),
    "torchtune's recipe, no checkpointing": (
        "torchtune's recipe",
        {"compile": True, "activation_checkpointing": False},
    ),
    "Trainer, packed": ("Trainer, packed", COMPILED),
    "kit, adamw_8bit": ("kit", COMPILED | {"optimizer": "adamw_8bit"}),
    "kit, lora": ("kit", COMPILED | {"lora": {"rank": 32, "alpha": 16}}),
    "kit, no compile": ("kit", {"compile": False, "activation_checkpointing": True}),
    "kit, dense mask for flex attention": ("kit", COMPILED | {"dense_mask": True}),
    "kit, whole logits": ("kit", COMPILED | {"whole_logits": True}),
    "Trainer, a document a row": ("Trainer, a document a row", COMPILED),
}


def child(
    name: str, folder: Path, case: dict[str, Any], limit: float | None = None
) -> dict[str, Any]:
    """Run a contender in a process of its own; its useful tokens a second, median over updates, and its memory."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.training",
        "--contender",
        name,
        "--case",
        json.dumps(case),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = folder / "log.txt"
    with open(log, "w") as file:
        try:
            status = subprocess.run(
                [*words, "--folder", str(folder)],
                cwd=ROOT,
                stdout=file,
                stderr=file,
                env=environment,
                timeout=limit,
            ).returncode
        except subprocess.TimeoutExpired:
            return {"failed": f"not done in {limit:.0f} s"}
    said = log.read_text(errors="replace").strip().splitlines()
    if status:
        return {"failed": said[-1][:100] if said else "killed", "log": said[-40:]}
    return next(json.loads(line.removeprefix(MARK)) for line in said if line.startswith(MARK))


def figures(folder: Path, case: dict[str, Any], name: str) -> dict[str, Any]:
    """What a child tells of itself."""
    told = CONTENDERS[name](folder, case)
    import torch

    from recipes.model import build, flops_per_token, peak_flops

    rate = median(tokens / seconds for tokens, seconds in told[FIRST:] or told)
    found = {
        "tokens_per_second": rate,
        "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    if torch.cuda.is_available() and case["dtype"] != "fp32":
        with torch.device("meta"):
            model = build(
                json.loads((folder / "start/model/config.json").read_text()),
                recipe(case)[0]["lora"],
            )
        found["gb"] = torch.cuda.max_memory_allocated() / 1e9
        if peak := peak_flops(torch.device("cuda")):
            found["mfu"] = rate * flops_per_token(model, case["seq_len"]) / peak
    return found


def compare(
    cases: dict[str, tuple[str, dict[str, Any]]], rounds: int, seconds: float | None = None
) -> None:
    """Print the table of these (contender, case) by the names of their lines; ratios are to the first line.

    Those that have not begun when `seconds` are over are left out.
    """
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    end = None if seconds is None else time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context("spawn").Process(
            target=make, args=(Path(folder), next(iter(cases.values()))[1])
        )
        maker.start()  # a process of its own: it may use the GPU, and must leave it whole
        maker.join()
        for _ in range(rounds):
            for name, (contender, case) in cases.items():
                left = None if end is None else end - time.monotonic()
                if left is not None and left < 10:
                    told[name].append({"failed": "no time was left"})
                    continue
                told[name].append(child(contender, Path(folder), case, left))
                print(f"{name}: {json.dumps(told[name][-1])}", file=sys.stderr, flush=True)
    table = []
    base = None
    for name, found in told.items():
        if failed := next((r["failed"] for r in found if "failed" in r), None):
            table.append([name, failed])
            continue
        speed = median(r["tokens_per_second"] for r in found)
        base = base or speed
        mfu = found[-1].get("mfu")
        table.append(
            [
                name,
                f"{speed:,.0f}",
                f"{speed / base:.2f}",
                f"{found[-1]['gb']:.1f}",
                mfu and f"{mfu:.1%}",
            ]
        )
    print(
        tabulate(
            table,
            headers=["", "useful tokens/s", "to the kit's", "peak GB", "MFU"],
            disable_numparse=True,
        )
    )


def start_up() -> None:
    """Seconds and memory until the first update is done."""
    table = []
    for tokens in (1_000_000, 10_000_000):
        case = CPU | {"updates": 1, "tokens": tokens}
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), case)
            began = time.time()
            found = child("kit", Path(folder), case)
            seconds = next(Path(folder).glob("*/speed.jsonl")).stat().st_mtime - began
            size = (next(Path(folder).glob("documents/*.jsonl")).stat().st_size) / 1e6
        table.append([f"{tokens:,}", f"{size:.0f}", f"{seconds:.1f}", f"{found['gb']:.2f}"])
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
    wanted = given.only or [*SETTINGS]
    cases = {
        line: (name, SIZES[given.gpu] | ways)
        for line, (name, ways) in SETTINGS.items()
        if line in wanted
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
