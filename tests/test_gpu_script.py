"""benchmarks/gpu.sh can do its work in an environment for GPUs, which has no pytest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.paths import ROOT

# In no lock of an environment for GPUs.
ABSENT = ("pytest", "_pytest", "xdist", "hypothesis")


@pytest.fixture(scope="module")
def without_pytest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment variable that lets imports of ABSENT fail in a process and its children."""
    folder = tmp_path_factory.mktemp("absent")
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')")
    return {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.mark.multiprocess
def test_trainings_are_compared_without_pytest_and_after_a_failed_case(
    without_pytest: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_equality", "--device", "cpu"]
    command += ["--folder", str(tmp_path), "--only", "flex attention's gradients"]
    command += ["fp32, two at once", "packed conversations"]
    ran = subprocess.run(
        command, cwd=ROOT, env=os.environ | without_pytest, capture_output=True, text=True
    )
    first, *others = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 1 and not ran.stderr
    assert "CUDA" in first["failed"], "flex attention has no gradient on a CPU"
    for row in others:
        assert row["passed"] and row["measured"] < 1e-5, (row, (tmp_path / "cpu.log").read_text())
    assert [row["case"] for row in others] == ["fp32, two at once", "packed conversations"]
