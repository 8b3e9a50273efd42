"""The kit's loss beside torch's own linear_cross_entropy: seconds and memory, forward and backward.

    python -m benchmarks.linear_loss        on one CPU thread, in fp32, some 2 minutes

The loss of 4,096 tokens of width 256 over a vocabulary of 16,384, whose logits are 268 MB. Each way
runs in a process of its own, `--rounds` times, in turn. Memory is the process' peak above what it
held with the inputs; gradients are in it.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from benchmarks.worker import Worker

TOKENS, WIDTH, VOCABULARY = 4096, 256, 16384
# Name of the line -> tokens whose logits exist at once; None: torch's own choice; 0: all of them.
KIT = {f"kit, chunks of {size:,}": size for size in (1024, 2048, 4096)}
TORCH = {
    "torch, its own chunks": None,
    "torch, chunks of 1,024": 1024,
    "torch, all logits at once": 0,
}


def loss_and_gradients(
    name: str, tokens: int = TOKENS, width: int = WIDTH, vocabulary: int = VOCABULARY
) -> tuple[dict[str, float], Any, list[Any]]:
    """Figures of one line; the summed loss (nats), and its gradients."""
    import torch
    from torch.nn.functional import linear_cross_entropy

    from recipes import loss

    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) / width**0.5).requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,))
    labels[::7] = loss.IGNORE
    held = _resident()
    began = time.perf_counter()
    if name in KIT:
        loss.CHUNK = KIT[name]
        total = loss.ChunkedLinearCrossEntropy.apply(hidden, weight, labels, True, True, None)[0]
    else:
        size = TORCH[name]
        options = None
        if size != 0:
            choice: dict[str, Any] = {}
            if size:
                choice = {"chunking_method": None, "batch_chunk_size": size}
            options = torch.nn.LinearCrossEntropyOptions(**choice)
        total = linear_cross_entropy(hidden, weight, labels, reduction="sum", options=options)
    forward = time.perf_counter()
    total.backward()
    ended = time.perf_counter()
    figures = {
        "forward": forward - began,
        "backward": ended - forward,
        "seconds": ended - began,
        "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - held,
    }
    return figures, total.detach(), [hidden.grad, weight.grad]


def _resident() -> float:
    """MB that this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def figures(name: str) -> dict[str, float]:
    loss_and_gradients(name, tokens=64, width=16, vocabulary=128)  # what torch does but once
    return loss_and_gradients(name)[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.linear_loss", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5, choices=range(1, 100), metavar="N")
    rounds = parser.parse_args().rounds
    names = [*KIT, *TORCH]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name in names:
                with Worker(Path(folder) / "log.txt", {"OMP_NUM_THREADS": "1"}) as worker:
                    measured[name].append(worker.call(figures, name, limit=None))
    base = measured[names[0]]
    table = []
    for name, rows in measured.items():
        ratio = median(a["seconds"] / b["seconds"] for a, b in zip(rows, base, strict=True))
        row = {key: median(line[key] for line in rows) for key in rows[0]}
        table.append(
            [
                name,
                *(f"{row[key]:.2f}" for key in row if key != "MB"),
                f"{ratio:.2f}",
                f"{row['MB']:.0f}",
            ]
        )
    headers = ["", "forward, s", "backward, s", "both, s", "to the first line", "peak MB"]
    print(tabulate(table, headers=headers, disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
