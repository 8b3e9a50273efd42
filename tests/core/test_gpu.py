"""A job that holds a GPU which torch can't use is refused, not run on the CPU for weeks."""

import warnings
from pathlib import Path

import pytest
import torch

from core.cell.failures import diagnose
from core.errors import UserError
from core.gpu import check_capability, gpu_available, holds_gpus

TOO_OLD = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). "
    "Please update your GPU driver by downloading and installing a new version"
)


@pytest.mark.parametrize(
    ("environment", "holds"),
    [
        ({}, False),
        ({"SLURM_JOB_GPUS": "0,1"}, True),
        ({"SLURM_STEP_GPUS": "3"}, True),
        ({"SLURM_GPUS_ON_NODE": "4"}, True),
        ({"SLURM_GPUS_ON_NODE": "0"}, False),
        ({"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "0"}, True),
        ({"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": ""}, False),
        ({"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, False),
        ({"CUDA_VISIBLE_DEVICES": "0"}, False),
    ],
)
def test_a_gpu_is_held_by_slurms_word_unless_it_is_hidden(
    tmp_path: Path, environment: dict[str, str], holds: bool
) -> None:
    assert holds_gpus(environment, tmp_path) == holds


def test_outside_slurm_a_named_gpu_counts_where_the_machine_has_one(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    named = {"CUDA_VISIBLE_DEVICES": "1"}
    assert not holds_gpus(named, tmp_path)
    (tmp_path / "dev/nvidia0").touch()
    assert holds_gpus(named, tmp_path)


def test_a_cpu_build_of_torch_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not gpu_available({})
    with pytest.raises(UserError, match="is a CPU build of torch") as caught:
        gpu_available({"SLURM_JOB_GPUS": "0"})
    assert (failure := diagnose(str(caught.value))) and failure.name == "CPU packages on a GPU"


def test_torchs_own_warning_is_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_available() -> bool:
        warnings.warn(TOO_OLD, stacklevel=2)
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    with pytest.raises(UserError, match="driver on your system is too old") as caught:
        gpu_available({"SLURM_JOB_GPUS": "0"})
    assert (failure := diagnose(str(caught.value))) and failure.name == "GPU driver too old"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    with pytest.raises(UserError, match="finds no CUDA device") as caught:
        gpu_available({"SLURM_JOB_GPUS": "0"})
    assert (failure := diagnose(str(caught.value))) and failure.name == "GPU fault"


def test_without_a_driver_torch_says_so_when_it_is_initialized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that you\nhave one")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(UserError, match="use it: Found no NVIDIA driver") as caught:
        gpu_available({"SLURM_JOB_GPUS": "0"})
    assert (failure := diagnose(str(caught.value))) and failure.name == "no GPU driver"


def test_a_gpu_before_the_a100_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100-SXM2-32GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    with pytest.raises(UserError, match=r"V100.* capability 7.0, 8.0 is needed"):
        check_capability(0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0))
    check_capability(0)
