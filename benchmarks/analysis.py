"""The whole analysis and report of a large study.

    python -m benchmarks.analysis [--arms 12] [--seeds 10] ...

Scores are simulated as in benchmarks.calibration: one checkpoint per arm and seed on one judged
benchmark, with 3.7 graded dimensions to a question (the paper's 97 for 26 questions). The first arm
is the control of every contrast; the first two contrasts are primary. Seconds are without imports;
memory is the process's.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from analysis import run as stage
from analysis.planned_test import Variances
from core.cell.context import StageContext

DIMENSIONS = [f"dimension {n}" for n in range(13)]
JUDGE = "simulated"


def scores(rng: np.random.Generator, mean: np.ndarray, epochs: int) -> pd.DataFrame:
    """One checkpoint's scores.parquet; `mean` is of each question, shape (questions,)."""
    noise = rng.normal(0, Variances().sampling, (len(mean), epochs))
    level = np.clip(mean[:, None] + noise, 0, 1)
    question, epoch = (index.ravel() for index in np.indices(level.shape))
    names = [f"q{n:03d}" for n in question]
    answers = pd.DataFrame({"question": names, "epoch": epoch + 1})
    parts = [answers.assign(dimension="overall", score=level.ravel())]
    for k in range(4):
        graded = (question % 10 < 7) | (k < 3)
        dimension = np.array(DIMENSIONS)[(question + 3 * k) % 13]
        grades = (rng.random(level.size) < level.ravel()) * 1.0
        parts.append(answers.assign(dimension=dimension, score=grades)[graded])
    table = pd.concat(parts, ignore_index=True)
    response = table["question"] + "/" + table["epoch"].astype(str)
    return table.assign(scenario=table["question"], judge=JUDGE, missing=None, response=response)


def study(folder: Path, arms: int, seeds: int, questions: int, epochs: int) -> StageContext:
    """A finished study on disk, ready to be analyzed."""
    rng = np.random.default_rng(0)
    sd = Variances()
    names = ["control", *(f"arm {n}" for n in range(1, arms))]
    shared = rng.normal(0.5, sd.question, questions)
    rows = []
    inputs = {}
    for n, arm in enumerate(names):
        of_arm = shared + 0.02 * n + rng.normal(0, sd.arm_question, questions)
        for seed in range(seeds):
            role = f"{arm}-{seed}"
            mean = of_arm + rng.normal(0, sd.seed) + rng.normal(0, sd.seed_question, questions)
            inputs[role] = folder / role
            inputs[role].mkdir()
            scores(rng, mean, epochs).to_parquet(inputs[role] / "scores.parquet")
            row = {"role": role, "arm": arm, "seed": seed, "dose": 0}
            rows.append(row | {"benchmark": "ahb", "checkpoint": role})
    settings: dict[str, Any] = {
        "study": "large",
        "seeds": [*range(seeds)],
        "looks": [],
        "declaration": None,
        "rows": rows,
        "missing": [],
        "labels": {},
        "claim_roles": {},
        "writers": [],
        "contrasts": [
            {
                "name": f"{arm} - control",
                "treatment": arm,
                "control": "control",
                "benchmarks": ["ahb"],
                "margin": 0.05,
                "family": "primary" if n < 2 else "second",
            }
            for n, arm in enumerate(names[1:])
        ],
        "benchmarks": {
            "ahb": {
                "task": "anima",
                "direction": "higher",
                "judge": JUDGE,
                "other_judges": [],
                "dummy": False,
                "exclude": [],
            }
        },
        "costs": {"unit": "GPU-hours", "seed": 9.0, "question": 0.2, "epoch": 1.5},
    }
    out = folder / "runs/large/analysis"
    out.mkdir(parents=True)
    return StageContext(out, "identity", settings, {}, inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, size in {"arms": 12, "seeds": 10, "questions": 115, "epochs": 30}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    sizes = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as temporary:
        context = study(Path(temporary), **sizes)
        wall_start = time.perf_counter()
        cpu_start = time.process_time()
        counts = stage.run(context)
        wall = time.perf_counter() - wall_start
        cpu = time.process_time() - cpu_start
        page = (context.folder / "report.html").stat().st_size / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        " x ".join(f"{n} {name}" for name, n in sizes.items()),
        f"= {counts['scores']:,} scores, {counts['contrasts']} contrasts",
    )
    print(f"{wall:.1f} s ({cpu:.1f} s of CPU), peak {peak:.2f} GiB, report {page:.1f} MB")


if __name__ == "__main__":
    main()
