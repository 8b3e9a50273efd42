"""Trainings of a toy on a GPU beside the same on the CPU, in every setting.

    python -m benchmarks.gpu_equality                        all cases, on one GPU
    python -m benchmarks.gpu_equality --device cpu --only "fp32, two at once"

Prints a JSON line for each case as it ends: `measured` must be at most `limit`. Unless a case says
otherwise it is the largest difference of a step's loss (nats a token) from that of the plain fp32
training on the CPU. A case that fails does not stop the others. Exit status 1: one failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.worker import CallFailed, Worker
from core.paths import ROOT

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
CASE_SECONDS = 120
# Rows of several blocks of flex attention, with several documents in each.
ROWS: dict[str, Any] = {"seq_len": 256, "tokens_per_step": 3 * 256, "epochs": 30}
MIXED = {"dtype": "mixed"}
LORA = {"lora": {"rank": 4, "alpha": 8.0}, "lr": 1e-2}
Row = dict[str, Any]


@dataclass
class Comparison:
    """The processes that train, and the toy's inputs in `folder`."""

    folder: Path
    device: str
    cpu: Worker = field(init=False)
    device_worker: Worker = field(init=False)

    def __post_init__(self) -> None:
        self.cpu = Worker(self.folder / "cpu.log", NO_GPU)
        is_cpu = self.device == "cpu"
        self.device_worker = self.cpu if is_cpu else Worker(self.folder / "gpu.log")

    @cached_property
    def base(self) -> Path:
        """Folder of the finished inputs."""
        base = self.folder / "runs/study"
        self.cpu.call(make_inputs, base, limit=CASE_SECONDS)
        return base

    @cached_property
    def plain(self) -> list[float]:
        """Losses of the plain training on the CPU."""
        plain: list[float] = self.cpu.call(train, self.base, "plain", ROWS, {}, limit=CASE_SECONDS)
        return plain

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function of this module, called with `base` too, on the device."""
        return self.device_worker.call(function, self.base, *arguments, limit=CASE_SECONDS)

    def losses(self, recipe: dict[str, Any], runtime: dict[str, Any], limit: float) -> Row:
        """A training with changes of the recipe and of its runtime settings, beside the plain."""
        ours = self.run(train, f"{time.monotonic_ns()}", ROWS | recipe, runtime)
        return {"measured": largest(ours, self.plain), "limit": limit}

    def close(self) -> None:
        """End the processes."""
        self.cpu.close()
        self.device_worker.close()


def largest(losses: list[float], others: list[float]) -> float:
    """The largest difference of two trainings' losses, step by step."""
    return max(abs(a - b) for a, b in zip(losses, others, strict=True))


def make_inputs(base: Path) -> None:
    from tests.recipes import toy

    toy.make_inputs(base)


def train(base: Path, name: str, recipe: dict[str, Any], runtime: dict[str, Any]) -> list[float]:
    """The losses of a training on documents in this process."""
    from tests.recipes import toy

    return _run(toy.training(base, name, recipe=recipe, **runtime))


def train_on_conversations(base: Path, name: str, runtime: dict[str, Any]) -> list[float]:
    from tests.recipes import toy

    return _run(toy.sft(base, name, **runtime))


def _run(folder: Path) -> list[float]:
    import torch

    from core.cell.run import run_cell
    from tests.recipes import toy

    torch._dynamo.reset()  # compiled forms of other cases count towards its limit
    run_cell(folder)
    return [line["loss"] for line in toy.lines(folder)]


def gradient_difference(base: Path) -> float:
    """Flex attention, compiled alone and as a part of its block, beside documents one by one.

    Returns the largest difference of a gradient, as a share of 1e-5 and a thousandth of it.
    """
    import torch

    from recipes.attention import block_mask, mask
    from recipes.distributed import CPU, Ranks
    from recipes.model import build, parallelize
    from tests.recipes.toy import SHAPE_AS_CONFIG, make_recipe

    document = torch.tensor([[0] * 150 + [1] * 106, [2] * 40 + [3] * 200 + [-1] * 16])
    tokens = torch.randint(0, SHAPE_AS_CONFIG["vocab_size"], document.shape)
    cuda = torch.device("cuda")
    compiled, eager = (block_mask(document.to(device)) for device in (cuda, CPU))
    if not compiled.to_dense().cpu().equal(eager.to_dense()):
        raise ValueError("the compiled block mask is another")

    def gradients(device: torch.device, **recipe: Any) -> list[torch.Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = build(SHAPE_AS_CONFIG)
        parallelize(model, make_recipe(**recipe), Ranks())
        logits = model.to(device)(tokens.to(device), mask=mask(document, device))
        logits[document.to(device) >= 0].square().mean().backward()
        return [p.grad.cpu() for p in model.parameters() if p.grad is not None]

    expected = gradients(CPU)
    selective = {"activation_checkpointing": "selective"}
    shares = [
        ((mine - theirs).abs() / (1e-5 + 1e-3 * theirs.abs())).max().item()
        for recipe in ({}, {"compile": True}, {"compile": True, **selective}, selective)
        for mine, theirs in zip(gradients(cuda, **recipe), expected, strict=True)
    ]
    return max(shares)


def killed_and_resumed(base: Path) -> float:
    """How far the losses of a killed and resumed training are from an undisturbed one's."""
    from recipes import step_checkpoint
    from tests.recipes import toy

    whole = train(base, "undisturbed", ROWS | MIXED, {})
    folder = toy.training(base, "killed", recipe=ROWS | MIXED, checkpoint_minutes=0)
    code = f"import pathlib, core.cell.run as r; r.run_cell(pathlib.Path({str(folder)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not step_checkpoint.list_checkpoints(folder / "steps"):
        if process.poll() is not None:
            raise ValueError("the training ended before it could be killed")
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not 0 < len(toy.lines(folder)) < len(whole):
        raise ValueError("the training was not killed on its way")
    return largest(_run(folder), whole)


def _setting(limit: float, recipe: Any = None, **runtime: Any) -> Callable[[Comparison], Row]:
    return lambda compared: compared.losses(recipe or {}, runtime, limit)


def _float8(compared: Comparison) -> Row:
    if compared.device == "gpu" and (refused := compared.run(float8_refusal)):
        return {"not_run": refused}
    # float8's effect on this toy (0.05 from `mixed`: docs/training.md) and that of `mixed`.
    return compared.losses(MIXED | {"float8": True}, {"compile": compared.device == "gpu"}, 0.08)


def float8_refusal(_: Path) -> str | None:
    """Why this GPU can't multiply in float8; None where it can."""
    from core.errors import UserError
    from core.gpu import check_capability
    from recipes.float8 import NEEDED

    try:
        check_capability(0, NEEDED, "float8")
    except UserError as error:
        return str(error)
    return None


def _packed(compared: Comparison) -> Row:
    unpacked = {"packed": False}
    apart = compared.cpu.call(
        train_on_conversations, compared.base, "unpacked", unpacked, limit=CASE_SECONDS
    )
    packed = compared.run(train_on_conversations, "packed", {"compile": compared.device == "gpu"})
    return {"measured": largest(packed, apart), "limit": 1e-4}


def _lora(compared: Comparison) -> Row:
    """By how much the loss rises: it must fall."""
    losses = compared.run(train, "lora", ROWS | LORA | MIXED, {"compile": compared.device == "gpu"})
    return {"measured": losses[-1] - losses[0], "limit": -0.5}


# The most valuable first.
CASES: dict[str, Callable[[Comparison], Row]] = {
    "mixed, compiled, checkpointed": _setting(
        0.03, MIXED, compile=True, activation_checkpointing="full"
    ),
    "bf16, compiled": _setting(0.1, {"dtype": "bf16"}, compile=True),
    "flex attention's gradients": lambda compared: {
        "measured": compared.run(gradient_difference),
        "limit": 1.0,
    },
    "packed conversations": _packed,
    "float8": _float8,
    "mixed, compiled, selective": _setting(
        0.03, MIXED, compile=True, activation_checkpointing="selective"
    ),
    "fp32": _setting(1e-4),
    "fp32, two at once": _setting(1e-4, micro_batch_size=2),
    "fp32, checkpointed": _setting(1e-4, activation_checkpointing="full"),
    "fp32, not deterministic": _setting(1e-4, deterministic=False),
    "mixed, 8 bits": _setting(0.1, MIXED | {"optimizer": "adamw_8bit"}),
    "lora": _lora,
    "killed and resumed": lambda compared: {
        "measured": compared.run(killed_and_resumed),
        "limit": 1e-3,
    },
    "fp32, compiled, one at once": _setting(1e-4, compile=True, micro_batch_size=1),
}


def compare(folder: Path, device: str, names: list[str]) -> bool:
    """Run the cases and print their lines. Returns whether none failed."""
    compared = Comparison(folder, device)
    failed = False
    try:
        for name in names:
            began = time.monotonic()
            try:
                row = CASES[name](compared)
                row["passed"] = "not_run" in row or row["measured"] <= row["limit"]
            except CallFailed as error:
                row = {"failed": str(error), "passed": False}
            row["seconds"] = round(time.monotonic() - began, 1)
            print(json.dumps({"case": name, **row}), flush=True)
            failed |= not row["passed"]
    finally:
        compared.close()
    return not failed


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_equality", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--folder", type=Path, help="keep the trainings and their logs there")
    return parser


def main() -> int:
    given = parser().parse_args()
    if given.device == "gpu":
        import torch

        if not torch.cuda.is_available():  # else the CPU would be compared with itself
            print("no GPU here, or torch can't use it: see nvidia-smi; --device cpu needs none")
            return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        return 0 if compare(folder, given.device, given.only or [*CASES]) else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
