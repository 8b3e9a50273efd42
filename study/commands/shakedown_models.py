"""The job of a shakedown that holds exported models in one process, one after another.

It compares vLLM's likelihoods with those of the trainer's own model on the same checkpoint, and
what memory is held after the first engine with what is held after the second.
"""

import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from core.cell.failures import explain
from core.cell.identity import Cell
from core.errors import UserError
from core.files import write_atomically
from core.paths import ROOT
from slurm import executor as executors
from slurm import slurm_cli
from slurm.profile import Profile
from slurm.snapshot import snapshot
from study.commands.shakedown_page import FAILS, NOT_RUN, WAITS, WORKS, Row, make_row

ROWS, TOKENS = 8, 256  # that are compared
# Of a token's log-probability, in nats. bf16 has 8 bits; in fp32 attention may multiply in TF32.
TOLERANCES = {"bfloat16": 0.1, "float16": 0.1, "float32": 5e-3}
HELD_GB = 1.0  # more after the second engine than after the first is not freed
LIKELIHOODS, MEMORY = "likelihoods of vLLM beside the trainer's", "memory freed between checkpoints"


@dataclass(frozen=True)
class Comparison:
    """What the job does.

    submitit pickles it by the name of this module, which the job imports from `code`.
    """

    code: str
    result: str
    """The file for what `compare` returns."""
    models: tuple[str, ...]
    """Folders of exported models."""
    settings: dict[str, Any]
    """Arguments of vLLM that are part of the cells' identities, and the others."""
    resources: dict[str, Any]

    def __call__(self) -> None:
        """Write the result."""
        sys.path.insert(0, self.code)  # before the `recipes` that torchtune installs
        if scratch := os.environ.get("TMPDIR"):
            Path(scratch).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(self.result), json.dumps(self.compare()))

    def compare(self) -> dict[str, Any]:
        """`difference`, the largest of a token's log-probability (nats), and `held_gb`, the memory
        held after each engine."""
        import numpy as np

        from core.inference import log_probs, vllm_engine

        first = Path(self.models[0])
        words = json.loads((first / "config.json").read_text())["vocab_size"]
        tokens = np.random.default_rng(0).integers(0, words, (ROWS, TOKENS)).tolist()
        # In a process of its own: what it keeps of the GPU is not the engines'.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            dtype = self.settings["dtype"]
            of_trainer = process.submit(trainer_log_probs, first, dtype, tokens).result()
        held = []
        for model in map(Path, self.models):
            engine = vllm_engine.open_engine(model, self.settings, self.resources)
            of_vllm = log_probs.of_prompts(engine, tokens)
            if model == first:
                difference = float(np.abs(np.subtract(of_vllm, of_trainer)).max())
            del engine
            vllm_engine.close()
            held.append(used_gb())
        return {"difference": difference, "held_gb": held}


def trainer_log_probs(folder: Path, dtype: str, tokens: list[list[int]]) -> list[list[float]]:
    """The log-probability of each token but the first by the trainer's model, rows x tokens - 1."""
    import torch

    from core.recipe import Training
    from recipes import checkpoint
    from recipes.distributed import process_group

    length = len(tokens[0])
    recipe = Training(
        seq_len=length,
        epochs=1,
        lr=1e-5,
        tokens_per_step=length,
        dtype="bf16" if dtype == "bfloat16" else "fp32",
    )
    rows = []
    with process_group() as ranks, torch.no_grad():
        model = checkpoint.load(folder, ranks, recipe).eval()
        for ids in torch.tensor(tokens, device=ranks.device):
            log_probs = model(ids[None])[0, :-1].float().log_softmax(-1)
            rows.append(log_probs.gather(-1, ids[1:, None])[:, 0].tolist())
    return rows


def used_gb() -> float:
    """Memory of the GPU that is not free; without a GPU that of this process."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e9
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def models_rows(
    cells: list[Cell], base: Path, profile: Profile, deadline: float, pause: Callable[[], None]
) -> list[Row]:
    """The rows of the job, which is sent and waited for. A result that is there is taken.

    Args:
        cells: Finished likelihoods, of which the first two models are taken.
        base: The study's folder.
        profile: Its likelihoods' nodes get the job.
        deadline: By time.monotonic.
        pause: Called between two looks.
    """
    if len(cells) < 2:
        reason = "behind likelihoods of two checkpoints"
        return [make_row("", what, NOT_RUN, reason) for what in (LIKELIHOODS, MEMORY)]
    result = base / "slurm" / f"models-{cells[0].identity[:8]}-{cells[1].identity[:8]}.json"
    problem = None if result.exists() else _run(cells, base, profile, result, deadline, pause)
    if problem:
        return [problem | {"what": what} for what in (LIKELIHOODS, MEMORY)]
    return _judge(json.loads(result.read_text()), cells[0].settings["engine"]["dtype"])


def _judge(facts: dict[str, Any], dtype: str) -> list[Row]:
    tolerance = TOLERANCES[dtype]
    difference = f"{facts['difference']:.2g} nats at most over {ROWS * (TOKENS - 1):,} tokens"
    first, second = facts["held_gb"]
    verdicts = [
        (
            LIKELIHOODS,
            facts["difference"] <= tolerance,
            f"{difference}, tolerance {tolerance:g} in {dtype}",
            "engine: {dtype: float32} in a copy of the study tells whether rounding is why",
        ),
        (
            MEMORY,
            second - first <= HELD_GB,
            f"{first:.1f} GB held after the first, {second:.1f} GB after the second",
            "a new job begins with an empty GPU; report it with vLLM's version",
        ),
    ]
    return [
        make_row("", what, WORKS, finding) if is_well else make_row("", what, FAILS, finding, fix)
        for what, is_well, finding, fix in verdicts
    ]


def _run(
    cells: list[Cell],
    base: Path,
    profile: Profile,
    result: Path,
    deadline: float,
    pause: Callable[[], None],
) -> Row | None:
    """Send the job and wait for its result. Returns the row of what went wrong."""
    code = snapshot(ROOT, base / "slurm")
    logs = base / "slurm/jobs"
    folders = tuple(str(base / c.inputs["checkpoint"].relpath / "model") for c in cells[:2])
    limits = cells[0].resources["engine"] | {"max_model_len": TOKENS + 1}
    call = Comparison(str(code), str(result), folders, cells[0].settings["engine"], limits)
    group = f"models-{uuid.uuid4().hex[:8]}"
    job_profile = replace(profile, requeue=0, notify=None)
    name, resources = f"{base.name}-models", profile.resources("likelihood")
    try:
        sent = executors.submit(
            executors.executor(name, resources, job_profile, code, logs, group), [call]
        )
        job = slurm_cli.submitted_id(sent)
    except UserError as error:
        return make_row("", "", FAILS, str(error.problems[0].what), error.problems[0].fix)
    if not job:
        return make_row("", "", FAILS, slurm_cli.reason(sent.stderr + sent.stdout), "see it")
    while not result.exists():
        if time.monotonic() > deadline:
            return make_row("", "", WAITS, f"job {job}", "the same command again waits for it")
        has_ended = job not in {queued.job for queued in slurm_cli.queue()}
        pause()  # a shared folder may show the last file late
        if has_ended and not result.exists():
            texts = [log.read_text(errors="replace") for log in logs.glob(f"{job}_*log.*")]
            failure, line = explain([text.splitlines() for text in texts])
            finding = f"{failure.name}: {line}" if failure else f"job {job} left no result"
            fix = failure.fix if failure else f"see {logs}/{job}_0_log.err"
            return make_row("", "", FAILS, finding, fix)
    return None
