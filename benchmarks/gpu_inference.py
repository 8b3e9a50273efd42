"""vLLM on a GPU: starts, freed memory, likelihoods beside the trainer's, answers, batch invariance.

    python -m benchmarks.gpu_inference             Llama 3.2 1B's shape, random weights, one GPU
    python -m benchmarks.gpu_inference --toy       a miniature in fp32 on vLLM's CPU build

Engines are the kit's (core/inference/vllm_engine.py), on a model that the trainer has exported.
Prints a JSON line for each measurement as it ends. One that fails does not stop the others. Exit
status 1: one failed, or a likelihood differs by more than its tolerance.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import contenders
from benchmarks.worker import CallFailed, Worker
from core.inference import vllm_engine
from core.inference.requests import Request, run_requests

# Of the log-probability of a token (nats), vLLM's to the trainer's. In fp32 vLLM's attention may
# multiply in TF32 on a GPU.
TOLERANCES = {"bfloat16": 0.1, "float32": 5e-3}
SIZES: dict[str, dict[str, Any]] = {
    "1b": {
        "case": {"shape": "1b", "seq_len": 2048, "rows": 1, "steps": 1, "dtype": "bf16"},
        "dtypes": ("bfloat16", "float32"),
        "resources": {"max_model_len": 2048, "max_num_seqs": 384},
        "answers": 780,
        "tokens": 1024,
        "prompt": 200,
        "likelihoods": (8, 512),  # rows, tokens of each
        "batches": (128, 16, 256),  # answers at once, fewer at once, tokens of each
    },
    "toy": {
        "case": {"shape": "toy", "seq_len": 128, "rows": 1, "steps": 1, "dtype": "fp32"},
        "dtypes": ("float32",),
        "resources": {"max_model_len": 128},
        "answers": 6,
        "tokens": 16,
        "prompt": 12,
        "likelihoods": (2, 24),
        "batches": (4, 2, 8),
    },
}
VOCABULARY = 1792  # ids that every model here has, special tokens aside
LOGGED = re.compile(r"KV cache|[Pp]reempt|concurrency")
Row = dict[str, Any]


def prompts(count: int, length: int) -> list[list[int]]:
    """`count` prompts of random token ids, the same ones in each process."""
    import numpy as np

    rng = np.random.default_rng(0)
    return [[int(token) for token in row] for row in rng.integers(0, VOCABULARY, (count, length))]


def used_gb() -> float:
    """Memory of the GPU that is not free; without a GPU that of this process."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e9
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def export(folder: Path, case: dict[str, Any]) -> None:
    """A random model as the trainer writes it, twice: folder/first and folder/second."""
    from recipes import checkpoint
    from recipes.distributed import process_group

    contenders.make_inputs(folder, case)
    start = folder / "start/model"
    recipe = contenders.recipe_of(case)
    with process_group() as ranks:
        model = checkpoint.load(start, ranks, recipe)
        checkpoint.save(model, start, folder / "first", ranks, recipe)
    shutil.copytree(folder / "first", folder / "second", copy_function=os.link)


def trainer_log_probs(checkpoint: Path, dtype: str, rows: list[list[int]]) -> list[list[float]]:
    """The log-probability of each token but the first, by the trainer's model and loss."""
    import torch

    from core.recipe import Training
    from recipes import checkpoint as folders
    from recipes.distributed import process_group
    from recipes.loss import output_weight, skip_output_layer, token_log_probs

    length = len(rows[0])
    kind = {"bfloat16": "bf16", "float32": "fp32"}[dtype]
    recipe = Training(seq_len=length, tokens_per_step=length, epochs=1, lr=1e-5, dtype=kind)  # type: ignore[arg-type]
    with process_group() as ranks, torch.no_grad():
        model = folders.load(checkpoint, ranks, recipe).eval()
        skip_output_layer(model)
        tokens = torch.tensor(rows, device=ranks.device)
        hidden = model(tokens)[:, :-1]
        result: list[list[float]] = token_log_probs(
            hidden, output_weight(model), tokens[:, 1:].contiguous()
        ).tolist()
    return result


class Engine:
    """The engine that this process holds; its methods are called there."""

    def __init__(self, checkpoint: Path, settings: Row, resources: Row) -> None:
        self.arguments = (checkpoint, settings, resources)

    def start(self) -> Row:
        """Seconds of the imports and of the start, what vLLM logged of its cache, and GB."""
        vllm_engine.set_environment()
        began = time.monotonic()
        vllm_engine.preload()
        imported = time.monotonic()
        before = used_gb()
        log_end = vllm_engine.vllm_log.size()
        engine = vllm_engine.open_engine(*self.arguments)
        return {
            "import_seconds": imported - began,
            "start_seconds": time.monotonic() - imported,
            "gb_before": before,
            "gb_with_engine": used_gb(),
            "engine": vllm_engine.describe(engine),
            "logged": logged(log_end),
        }

    def replace(self, second: "Engine") -> Row:
        """End this engine, free its memory, and start another one as `start` does."""
        held = used_gb()
        began = time.monotonic()
        vllm_engine.close()
        row = {"close_seconds": time.monotonic() - began, "freed_gb": held - used_gb()}
        return row | second.start()

    def log_probs(self, rows: list[list[int]]) -> list[list[float]]:
        """As `trainer_log_probs`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=0,
            prompt_logprobs=1,
            max_tokens=1,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

        def read(request: Request, output: Any) -> Row:
            pairs = zip(request.prompt[1:], output.prompt_logprobs[1:], strict=True)
            return {"log_probs": [choices[token].logprob for token, choices in pairs]}

        requests = [Request(row, parameters) for row in rows]
        results = run_requests(self._engine(), requests, {}, read, lambda _: None)
        return [result["log_probs"] for result in results]

    def answers(self, count: int, prompt: int, tokens: int) -> Row:
        """Sampled answers of `tokens` tokens, by seeds of their own, and how fast they came."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self._engine()
        log_end = vllm_engine.vllm_log.size()
        requests = [
            Request(
                row,
                SamplingParams(
                    temperature=1.0,
                    seed=seed,
                    max_tokens=tokens,
                    ignore_eos=True,
                    detokenize=False,  # the random model writes ids that its tokenizer lacks
                    output_kind=RequestOutputKind.FINAL_ONLY,
                ),
            )
            for seed, row in enumerate(prompts(count, prompt))
        ]
        began = time.monotonic()
        results = run_requests(
            engine,
            requests,
            {},
            lambda _, output: {"tokens": list(output.outputs[0].token_ids)},
            lambda _: None,
        )
        seconds = time.monotonic() - began
        num_tokens = sum(len(result["tokens"]) for result in results)
        metrics = {metric.name: metric for metric in engine.model.get_metrics()}
        return {
            "answers": [result["tokens"] for result in results],
            "tokens": num_tokens,
            "seconds": seconds,
            "tokens_per_second": num_tokens / seconds,
            "preemptions": metrics["vllm:num_preemptions"].value,  # since the engine's start
            "logged": logged(log_end),
        }

    def two_batches(self, at_once: int, fewer: int, prompt: int, tokens: int) -> Row:
        """Whether an answer depends on how many others are in its batch."""
        many = self.answers(at_once, prompt, tokens)
        few = self.answers(fewer, prompt, tokens)
        pairs = zip(few["answers"], many["answers"], strict=False)
        return {
            "answers": fewer,
            "equal": sum(one == other for one, other in pairs),
            "tokens_per_second": many["tokens_per_second"],
        }

    def _engine(self) -> Any:
        return vllm_engine.open_engine(*self.arguments)


def logged(start: int) -> list[str]:
    """What vLLM has logged of its cache and of interrupted answers."""
    return [line for line in vllm_engine.vllm_log.lines_since(start) if LOGGED.search(line)]


class Measurements:
    """Prints a line for each measurement, and remembers whether one failed."""

    def __init__(self, seconds: float | None) -> None:
        self.end = None if seconds is None else time.monotonic() + seconds
        self.failed = False

    def limit(self) -> float | None:
        """Seconds that remain. Raises CallFailed where there are none."""
        if self.end is None:
            return None
        if (remaining := self.end - time.monotonic()) < 10:
            raise CallFailed("no time was left")
        return remaining

    @contextmanager
    def line(self, name: str) -> Iterator[Row]:
        """A measurement, which fills the row. `passed: False` there counts as failed."""
        row: Row = {}
        began = time.monotonic()
        try:
            yield row
        except CallFailed as error:
            row |= {"failed": str(error), "passed": False}
        self.failed |= not row.get("passed", True)
        row["measured_in"] = round(time.monotonic() - began, 1)
        print(json.dumps({"measurement": name, **row}), flush=True)


def measure(folder: Path, logs: Path, size: Row, seconds: float | None) -> bool:
    """Take all measurements, the most valuable first. Returns whether none failed.

    folder: for models and caches. logs: for what the processes print.
    """
    measured = Measurements(seconds)
    environment = {
        "VLLM_CACHE_ROOT": str(folder / "cache"),  # empty: the first start is cold
        "VLLM_LOGGING_LEVEL": "INFO",
        "OMP_NUM_THREADS": "1",
    }
    first, *other_dtypes = size["dtypes"]
    at_once, fewer, tokens = size["batches"]
    batches = (at_once, fewer, size["prompt"], tokens)
    rows = prompts(*size["likelihoods"])
    of_trainer: dict[str, list[list[float]]] = {}

    def process(name: str) -> Worker:
        return Worker(logs / f"{name}.log", environment)

    def engine(name: str, **settings: Any) -> Engine:
        resources = size["resources"] | {"disable_log_stats": False}
        return Engine(folder / name, {"dtype": first, **settings}, resources)

    def call(worker: Worker, function: Callable[..., Any], *arguments: Any) -> Any:
        return worker.call(function, *arguments, limit=measured.limit())

    def compare(row: Row, dtype: str, vllm: Worker, held: Engine) -> None:
        ours = call(vllm, held.log_probs, rows)
        pairs = [
            pair
            for both in zip(ours, of_trainer[dtype], strict=True)
            for pair in zip(*both, strict=True)
        ]
        row["largest_difference"] = max(abs(a - b) for a, b in pairs)
        row |= {"tokens": len(pairs), "tolerance": TOLERANCES[dtype]}
        row["passed"] = row["largest_difference"] <= row["tolerance"]

    with measured.line("trainer: model exported, likelihoods"), process("trainer") as trainer:
        call(trainer, export, folder, size["case"])
        for dtype in size["dtypes"]:
            of_trainer[dtype] = call(trainer, trainer_log_probs, folder / "first", dtype, rows)
    if len(of_trainer) < len(size["dtypes"]):
        return False
    plain: Row = {}
    with process("vllm") as vllm:
        with measured.line("start, cold") as row:
            row |= call(vllm, engine("first").start)
        with measured.line(f"likelihoods, {first}") as row:
            compare(row, first, vllm, engine("first"))
        with measured.line("answers") as row:
            counts = (size["answers"], size["prompt"], size["tokens"])
            row |= call(vllm, engine("first").answers, *counts)
            del row["answers"]
        with measured.line("answers in two batches") as row:
            row |= call(vllm, engine("first").two_batches, *batches)
            plain |= row
        with measured.line("second checkpoint, same process") as row:
            row |= call(vllm, engine("first").replace, engine("second"))
    with measured.line("second process, warm") as row, process("warm") as vllm:
        row |= call(vllm, engine("second").start)
    with (
        measured.line("answers in two batches, batch_invariant") as row,
        process("invariant") as vllm,
    ):
        if vllm_engine.on_cpu():
            row["not_run"] = "vLLM's CPU build has none"
        else:
            invariant = engine("first", batch_invariant=True)
            row["start_seconds"] = call(vllm, invariant.start)["start_seconds"]
            row |= call(vllm, invariant.two_batches, *batches)
            row["passed"] = row["equal"] == row["answers"]
            if plain:
                row["slowdown"] = plain["tokens_per_second"] / row["tokens_per_second"]
    for dtype in other_dtypes:
        with measured.line(f"likelihoods, {dtype}") as row, process(dtype) as vllm:
            compare(row, dtype, vllm, engine("first", dtype=dtype))
    return not measured.failed


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_inference", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--toy", action="store_true", help="a miniature, also without a GPU")
    parser.add_argument("--seconds", type=float, help="for all measurements together")
    parser.add_argument("--folder", type=Path, help="keep the processes' logs there")
    return parser


def main() -> int:
    given = parser().parse_args()
    if not given.toy:
        import torch

        if not torch.cuda.is_available():
            print("no GPU here, or torch can't use it: see nvidia-smi; --toy needs none")
            return 2
    size = SIZES["toy" if given.toy else "1b"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        logs = given.folder or folder
        logs.mkdir(parents=True, exist_ok=True)
        return 0 if measure(folder, logs, size, given.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
