"""A chain of four trainings, killed at moments drawn by chance: the bytes of an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.place import ROOT, SMALL

pytestmark = pytest.mark.e2e

KILLS = 3
# L2 and KL hold state beside the weights; replay draws documents.
CHAIN = (
    "{start: base, train: [{documents: animal}, {sft: sft, replay: 0.5, doses: [40]}, "
    "{documents: urban}, {sft: sft, l2_to_start: 0.1, kl_to_start: 0.5, doses: [80]}]}"
)


def command(runs: Path, recipes: Path) -> list[str]:
    settings = [
        f"arms={{chain: {CHAIN}}}",
        "contrasts=[]",
        "sft.doses=[0, 40, 80]",
        f"midtrain.recipe={recipes}/midtrain.yaml",
        f"sft.recipe={recipes}/sft.yaml",
    ]
    words = [word for setting in settings for word in ("--set", setting)]
    stages = "model,documents,midtrain,sft"
    options = ["--runs", str(runs), "--jobs", "1", "--stages", stages]
    return [sys.executable, "-m", "study", "run", str(SMALL), *options, *words]


def steps(runs: Path) -> int:
    """Optimizer steps on record of all trainings."""
    files = (
        path for stage in ("midtrain", "sft") for path in runs.glob(f"*/{stage}/*/metrics.jsonl")
    )
    return sum(path.read_text().count("\n") for path in files)


def outputs(runs: Path) -> dict[str, bytes]:
    """Weights and metrics of each training, by the name of its cell and the file."""
    names = ("model/model.safetensors", "metrics.jsonl")
    folders = [path.parent for path in runs.glob("*/*/*/manifest.json")]
    return {
        f"{folder.parent.name}/{folder.name}/{name}": (folder / name).read_bytes()
        for folder in folders
        for name in names
        if (folder / name).exists()
    }


def test_a_chain_killed_at_random_ends_with_the_same_bytes(tmp_path: Path) -> None:
    for name in ("midtrain", "sft"):
        recipe = (ROOT / f"tests/small/{name}.yaml").read_text()
        (tmp_path / f"{name}.yaml").write_text(f"{recipe}checkpoint_minutes: 0\n")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, tmp_path), cwd=ROOT, check=True, capture_output=True)
    total = steps(whole)
    moments = sorted(random.Random(0).sample(range(2, total), KILLS))
    interrupted = []
    for moment in moments:
        engine = subprocess.Popen(
            command(killed, tmp_path),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while steps(killed) < moment and engine.poll() is None:
            time.sleep(0.01)
        os.killpg(engine.pid, signal.SIGKILL)
        engine.wait()
        interrupted.append(steps(killed))
    print(f"{total} steps; killed after {interrupted}")
    assert interrupted[0] < total, "ended before it was killed"
    subprocess.run(command(killed, tmp_path), cwd=ROOT, check=True, capture_output=True)
    expected = outputs(whole)
    assert sum(name.endswith("metrics.jsonl") for name in expected) == 5, "four, and the toy model"
    assert outputs(killed) == expected
