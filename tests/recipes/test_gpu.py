"""Trainings on a GPU, where there is one: the CPU's losses up to rounding, in every setting."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from benchmarks.gpu_equality import CASES
from core.paths import ROOT

OUTSIDE = dict(os.environ)  # before the other tests' fixture, which hides all GPUs

pytestmark = pytest.mark.multiprocess


def rows(*options: str, **environment: str) -> dict[str, dict[str, Any]]:
    """The lines of benchmarks.gpu_equality by their cases."""
    command = [sys.executable, "-m", "benchmarks.gpu_equality", *options]
    ran = subprocess.run(
        command, cwd=ROOT, env=OUTSIDE | environment, stdout=subprocess.PIPE, text=True
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == (not all(line["passed"] for line in lines))
    return {line.pop("case"): line for line in lines}


@pytest.fixture(scope="module")
def on_gpu() -> dict[str, dict[str, Any]]:
    return rows()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_a_training_on_a_gpu_is_that_of_the_cpu(
    case: str, on_gpu: dict[str, dict[str, Any]]
) -> None:
    print(on_gpu[case])
    assert on_gpu[case]["passed"]
