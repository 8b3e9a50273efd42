"""The forecast of a training beside the time that it takes, on CPU ranks.

    python -m benchmarks.forecast               a toy on two ranks, some 3 minutes on 2 cores

The rates of the machine are measured first, as `measured` of a cluster profile has them, each the
median of five: FLOP/s of a rank in short trainings, two of which run side by side, and bytes that a
rank receives in a second when two gather tensors of a layer's size. The forecast takes these.
Then two ranks run the training, with evaluations of the held-out loss, `--rounds` times. What it
took is the median step, times the steps, and the same of evaluations: other programs on the machine
slow some steps down.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from tabulate import tabulate

from benchmarks.contenders import make_inputs
from benchmarks.training import CPU, run_child
from core.cell.identity import Cell, create_cell_dir
from core.cell.manifest import read_manifest
from core.model_size import flops_per_token, parameters, shape
from core.paths import ROOT
from study.forecast import training_cost
from study.forecast.gpu_rates import rates_of
from study.forecast.training_size import recipe_of
from study.forecast.training_time import Layout
from study.spec import expand
from study.spec.load import load_study
from tests.recipes.toy import ends, logs, on_ranks, on_two

REPEATS = 5
RANKS = 2
CASE = CPU | {"seq_len": 256, "steps": 12}  # of the short trainings
MARK = "bytes a second: "
# Gathers what two ranks of FSDP2 gather for a layer, and prints the rate of each of REPEATS rounds.
GATHER = """
import time, torch
import torch.distributed as dist
dist.init_process_group("gloo")
torch.set_num_threads(1)
share = torch.zeros({elements})
whole = torch.empty({world} * {elements})
dist.all_gather_into_tensor(whole, share)
for _ in range({repeats}):
    started = time.perf_counter()
    for _ in range(20):
        dist.all_gather_into_tensor(whole, share)
    received = 20 * 4 * ({world} - 1) * {elements}
    print({mark!r}, received / (time.perf_counter() - started), flush=True)
dist.barrier()
"""


def training(folder: Path) -> Cell:
    """A midtraining of the miniature study on the random model that `make_inputs` has written."""
    recipe = yaml.safe_load((ROOT / "recipes/tiny_midtrain.yaml").read_text())
    recipe |= {"eval_every": 10, "checkpoint_minutes": 30}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    overrides = [
        f"models.base={{path: {folder / 'start/model'}}}",
        f"midtrain.recipe={folder / 'recipe.yaml'}",
        *(f"corpora.{name}.held_out=0.1" for name in ("animal", "urban")),
    ]
    study = load_study(ROOT / "studies/tiny.yaml", [0], overrides)
    cells = expand.in_order(expand.analysis(study))
    return next(cell for cell in cells if cell.stage == "midtrain" and "animal" in cell.name)


def measured_flops(folders: list[Path], cell: Cell) -> float:
    """FLOP/s of one rank in an optimizer step, by REPEATS times a short training on each core.

    Args:
        folders: with inputs, one for each of RANKS.
    """
    with ThreadPoolExecutor(RANKS) as executor:
        rows = [
            row
            for _ in range(REPEATS)
            for row in executor.map(lambda folder: run_child("kit", folder, CASE), folders)
        ]
    rate = median(row["tokens_per_second"] for row in rows)
    return float(rate * flops_per_token(shape(cell), recipe_of(cell)))


def measured_bytes(folder: Path, cell: Cell) -> float:
    """Bytes that each of two ranks receives in a second: the median of REPEATS rounds."""
    elements = parameters(shape(cell)).layer // RANKS
    code = GATHER.format(elements=elements, world=RANKS, repeats=REPEATS, mark=MARK)
    ends(on_two(folder / "gather", code))
    lines = logs(folder / "gather").splitlines()
    return median(float(line.split()[-1]) for line in lines if line.startswith(MARK))


def run(cell: Cell, base: Path) -> dict[str, float]:
    """Seconds of the optimizer steps and of the evaluations of the training on RANKS ranks."""
    for needed in cell.inputs.values():
        if not read_manifest(base / needed.relpath):
            folder = create_cell_dir(needed, base)
            command = [sys.executable, "-m", "study", "cell", str(folder), "--log"]
            subprocess.run(command, cwd=ROOT, check=True)
    folder = create_cell_dir(cell, base)
    on_ranks(folder, RANKS, before=f"os.environ['LOCAL_WORLD_SIZE'] = '{RANKS}'")
    lines = [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()]
    evaluations = [line["eval_seconds"] for line in lines if "eval_seconds" in line]
    seconds = {
        "steps": len(lines) * median(line["seconds"] for line in lines),
        # The line of the first step has the evaluation before it.
        "evaluations": len(evaluations) * median(evaluations),
    }
    shutil.rmtree(folder)
    return seconds | {"both": sum(seconds.values())}


def forecast(cell: Cell, base: Path, rates: Any) -> dict[str, float]:
    """The same by the forecast."""
    layouts = {"midtrain": Layout(RANKS, RANKS, gpu=None, rates=rates)}
    (row,) = training_cost.forecast([cell], base, layouts)
    return {
        "steps": 3600 * (row["hours"] - row["eval_hours"]),
        "evaluations": 3600 * row["eval_hours"],
        "both": 3600 * row["hours"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forecast", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = [folder / str(rank) for rank in range(RANKS)]
        for inputs in folders:
            make_inputs(inputs, CASE)
        cell = training(folders[0])
        flops = measured_flops(folders, cell)
        bytes_per_second = measured_bytes(folder, cell)
        rates = replace(rates_of(None), training_flops=flops, node_bytes=bytes_per_second)
        planned = forecast(cell, folder / "runs", rates)
        rounds = [run(cell, folder / "runs") for _ in range(given.rounds)]
    print(f"measured: {flops / 1e9:.1f} GFLOP/s a rank, {bytes_per_second / 1e9:.2f} GB/s gathered")
    table = []
    for key, seconds in planned.items():
        took = [row[key] for row in rounds]
        spread = f"{min(took):.1f}-{max(took):.1f}"
        off = f"{seconds / median(took) - 1:+.0%}"
        table.append([key, f"{seconds:.1f}", f"{median(took):.1f}", spread, off])
    headers = ["", "forecast, s", "took, s", "range", "off by"]
    print(tabulate(table, headers=headers, disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
