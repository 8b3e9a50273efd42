"""Variables of a shell that change numbers do not reach a cell, and manifests have what did."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.cell.identity import create_cell_dir
from core.cell.manifest import read_manifest
from core.numeric_environment import numeric
from tests.place import ROOT
from tests.slurm.test_limit import corpora


def test_names_that_say_where_files_are_stay() -> None:
    names = ("TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "VLLM_HOST_IP", "VLLM_API_KEY", "OMPI_COMM")
    assert not numeric(dict.fromkeys(names, "x"))
    names = (
        "MKL_NUM_THREADS",
        "KMP_AFFINITY",
        "VLLM_USE_V1",
        "PYTORCH_JIT",
        "CUDNN_X",
        "NCCL_ALGO",
    )
    assert numeric(dict.fromkeys(names, "x")).keys() == {*names}


@pytest.mark.multiprocess
def test_a_cell_does_not_take_them_from_the_shell_of_who_starts_it(tmp_path: Path) -> None:
    folder = create_cell_dir(corpora(1)[0], tmp_path / "runs/small")
    shell = {"OMP_NUM_THREADS": "", "MKL_CBWR": "AVX2", "ATEN_CPU_CAPABILITY": "default"}
    ranks = {"RANK": "1", "WORLD_SIZE": "8"}
    result = subprocess.run(
        [sys.executable, "-m", "study", "cell", str(folder)],
        cwd=ROOT,
        env={**os.environ, **shell, **ranks},
        capture_output=True,
        text=True,
    )
    manifest = read_manifest(folder)
    assert manifest, result.stdout + result.stderr
    assert manifest["environment"] == {"OMP_NUM_THREADS": "1"}
