"""Trainings on a GPU, where there is one: the CPU's losses up to rounding, in every setting."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from core.cell.manifest import read_manifest
from core.paths import ROOT
from recipes import step_checkpoint
from recipes.attention import block_mask, mask
from recipes.distributed import CPU, Ranks
from recipes.model import build, parallelize
from tests.recipes.test_attention import SHAPE_AS_CONFIG
from tests.recipes.test_packed import sft
from tests.recipes.toy import LORA, lines, make_recipe, training, until

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# Rows of several blocks of flex attention, with several documents in each.
ROWS: dict[str, Any] = {"seq_len": 256, "tokens_per_step": 3 * 256, "epochs": 30}
SELECTIVE = {"activation_checkpointing": "selective"}
OUTSIDE = dict(os.environ)  # before the other tests' fixture, which hides all GPUs


def start(folder: Path, gpu: bool = True) -> subprocess.Popen[bytes]:
    code = "from pathlib import Path; from core.cell.run import run_cell; "
    code += f"run_cell(Path({str(folder)!r}))"
    environment = OUTSIDE if gpu else OUTSIDE | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT)


def losses(folder: Path, gpu: bool = True) -> list[float]:
    assert start(folder, gpu).wait(300) == 0 and read_manifest(folder)
    return [line["loss"] for line in lines(folder)]


@pytest.fixture(scope="module")
def on_cpu(base: Path) -> list[float]:
    return losses(training(base, "cpu", recipe=ROWS), gpu=False)


@pytest.mark.parametrize(
    ("name", "recipe", "runtime", "tolerance"),
    [
        ("fp32", {}, {}, 1e-4),
        ("fp32, two at once", {}, {"micro_batch_size": 2}, 1e-4),
        ("checkpointed", {}, {"activation_checkpointing": "full"}, 1e-4),
        (
            "mixed, compiled",
            {"dtype": "mixed"},
            {"compile": True, "activation_checkpointing": "full"},
            0.03,
        ),
        (
            "mixed, selective",
            {"dtype": "mixed"},
            {"compile": True, "activation_checkpointing": "selective"},
            0.03,
        ),
        ("fp32, compiled, one at once", {}, {"compile": True, "micro_batch_size": 1}, 1e-4),
        ("fp32, not deterministic", {}, {"deterministic": False}, 1e-4),
        ("mixed, 8 bits", {"dtype": "mixed", "optimizer": "adamw_8bit"}, {}, 0.1),
        ("bf16", {"dtype": "bf16"}, {"compile": True}, 0.1),
    ],
)
def test_losses_are_those_of_the_cpu(
    base: Path,
    on_cpu: list[float],
    name: str,
    recipe: dict[str, Any],
    runtime: dict[str, Any],
    tolerance: float,
) -> None:
    ours = losses(training(base, name.replace(", ", "-"), recipe=ROWS | recipe, **runtime))
    difference = max(abs(a - b) for a, b in zip(ours, on_cpu, strict=True))
    print(f"{name}: largest difference {difference:.1e}")
    assert ours == pytest.approx(on_cpu, abs=tolerance)


def compare_gradients() -> None:
    """Flex attention, compiled alone and as a part of its block, beside documents one by one."""
    document = torch.tensor([[0] * 150 + [1] * 106, [2] * 40 + [3] * 200 + [-1] * 16])
    tokens = torch.randint(0, SHAPE_AS_CONFIG["vocab_size"], document.shape)
    cuda = torch.device("cuda")
    compiled, eager = (block_mask(document.to(device)) for device in (cuda, CPU))
    assert compiled.to_dense().cpu().equal(eager.to_dense()), "the compiled block mask is the same"

    def gradients(device: torch.device, **recipe: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = build(SHAPE_AS_CONFIG)
        parallelize(model, make_recipe(**recipe), Ranks())
        logits = model.to(device)(tokens.to(device), mask=mask(document, device))
        logits[document.to(device) >= 0].square().mean().backward()
        return [p.grad.cpu() for p in model.parameters() if p.grad is not None]

    expected = gradients(CPU)
    for recipe in ({}, {"compile": True}, {"compile": True, **SELECTIVE}, SELECTIVE):
        for mine, theirs in zip(gradients(cuda, **recipe), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_flex_attention_has_the_gradients_of_documents_one_by_one() -> None:
    code = "from tests.recipes import test_gpu; test_gpu.compare_gradients()"
    subprocess.run([sys.executable, "-c", code], env=OUTSIDE, cwd=ROOT, check=True)


def test_packed_conversations_have_the_losses_of_the_cpu(base: Path) -> None:
    apart = losses(sft(base, "apart_on_cpu", packed=False), gpu=False)
    packed = losses(sft(base, "packed_on_gpu", compile=True))
    assert packed == pytest.approx(apart, abs=1e-4)


def test_lora_learns(base: Path) -> None:
    ours = losses(training(base, "lora", recipe=ROWS | LORA | {"dtype": "mixed"}, compile=True))
    assert ours[-1] < ours[0] - 0.5


def test_a_killed_training_goes_on(base: Path) -> None:
    recipe = ROWS | {"dtype": "mixed"}
    whole = losses(training(base, "whole", recipe=recipe))
    killed = training(base, "killed", recipe=recipe, checkpoint_minutes=0)
    process = start(killed)
    until(lambda: step_checkpoint.list_checkpoints(killed / "steps"), [Alive(process)])
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(lines(killed))
    assert 0 < done < len(whole)
    assert losses(killed) == pytest.approx(whole, abs=1e-3)


class Alive:
    """A process of subprocess as `until` asks for it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def is_alive(self) -> bool:
        return self.process.poll() is None
