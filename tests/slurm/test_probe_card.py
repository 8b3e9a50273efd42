"""What doctor says of a GPU that is too old, with a torch that plays one."""

from pathlib import Path

import pytest

from slurm import probe
from tests.place import ROOT

TORCH = """
from types import SimpleNamespace
import numpy
cuda = SimpleNamespace(
    get_device_capability=lambda index: {capability},
    get_device_name=lambda index: "Tesla V100-SXM2-32GB",
)
def compile(function):
    return function
def ones(size, device):
    assert device == "cuda"
    return numpy.ones(size)
"""


@pytest.mark.multiprocess
def test_doctor_refuses_a_card_without_bf16_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "compile_extension", lambda folder: None)
    for capability in ((7, 0), (8, 0)):
        code = tmp_path / str(capability)  # the kit beside a module that takes torch's place
        code.mkdir()
        (code / "core").symlink_to(ROOT / "core")
        (code / "torch.py").write_text(TORCH.format(capability=capability))
    with pytest.raises(RuntimeError, match=r"does not run: .*V100.* capability 7\.0, 8\.0 is need"):
        probe.compiler(str(tmp_path), str(tmp_path / "(7, 0)"), on_gpu=True)
    assert probe.compiler(str(tmp_path), str(tmp_path / "(8, 0)"), on_gpu=True)["seconds"] > 0
