"""What the forecast assumes, each with its unit and its source: docs/cost-model.md lists them."""

from dataclasses import dataclass
from typing import Any, TypeVar

from core.gpu_specs import Gpu, find_gpu
from core.model_size import PROCESS_BYTES

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Assumption:
    """One number that the forecast rests on."""

    what: str
    value: float
    unit: str
    why: str  # its source, or the reason for it


ASSUMPTIONS: list[Assumption] = []


def _assume(what: str, value: Number, unit: str, why: str) -> Number:
    ASSUMPTIONS.append(Assumption(what, value, unit, why))
    return value


# Speed of GPUs. core.gpu_specs has their peaks; rates under `measured` in a profile replace these.
TRAINING_SHARE = _assume(
    "training, of a GPU's peak",
    0.42,
    "share",
    "packed rows, compiled: 41.7 % with 1B on one H100 (benchmarks/README.md)",
)
UNCOMPILED = _assume(
    "training without compile, of the speed with it", 0.75, "share", "a guess; not measured"
)
CHECKPOINTED = _assume(
    "training with full activation checkpointing, of the speed without",
    0.75,
    "share",
    "the forward pass runs twice; 0.74 with 1B on one H100",
)
SELECTIVE = _assume(
    "training with selective activation checkpointing, of the speed without",
    0.95,
    "share",
    "all but products and attention runs twice; a guess; not measured",
)
PREFILL_SHARE = _assume("reading prompts, of a GPU's peak", 0.40, "share", "a guess; not measured")
DECODE_FLOPS_PER_BYTE = _assume(
    "writing answers, for each byte of memory bandwidth",
    30,
    "FLOP",
    "each read of the weights serves some 30 answers; a guess; not measured",
)
LINK_SHARE = _assume(
    "gathering weights on a node, of a GPU's link",
    0.4,
    "share",
    "180 GB/s on an H100 with NVLink; a guess; not measured",
)
NETWORK_BYTES = _assume(
    "gathering weights over several nodes",
    20e9,
    "bytes/s and node",
    "one InfiniBand port of 200 Gb/s, four fifths of it reached; a guess; not measured",
)
CORE_FLOPS = _assume(
    "one core",
    30e9,
    "FLOP/s",
    "for toy models, and where a profile gives a stage no GPU",
)
GLOO_BYTES = _assume(
    "gathering weights between processes without GPUs", 1e9, "bytes/s", "gloo on one machine"
)
START_SECONDS = _assume("start of a job", 10, "s", "imports of torch and vLLM")
SECONDS_PER_GB = _assume(
    "weights of a job",
    20,
    "s/GB",
    "read from a shared disk, compiled for, saved",
)
GRADE_SECONDS = _assume("a call to a judge", 3.0, "s", "a reply of some 200 tokens over an API")
DUMMY_SECONDS = _assume("a call to the dummy", 0.02, "s", "measured on one core")
SECONDS_PER_CALL = _assume(
    "a call to a writer",
    10.0,
    "s",
    "a document at some 110 tokens a second; it sets the pace where no rate limit does",
)
_H100 = find_gpu("h100")
assert _H100
# The GPU where a profile names none, or there is no profile.
ASSUMED_GPU: Gpu = _H100

# Texts.
PROMPT_GROWTH = _assume(
    "a slot's value beside its placeholder",
    1.2,
    "times",
    "what fills a slot is about as long as the slot's name in braces, or twice that",
)
DUMMY_DOCUMENT_TOKENS = _assume(
    "a document by the dummy", 220, "tokens", "the dummy counts its tokens by letters"
)
SCORE_TOKENS = _assume("a grade of a document", 5, "tokens", "one line with a number")
QUESTION_TOKENS = _assume("a question", 100, "tokens", "a scenario of a few sentences")
ANSWER_TOKENS = _assume("an answer", 400, "tokens", "or the benchmark's max_tokens where less")
ITEM_TOKENS = _assume("an item, or an example of a few-shot prompt", 120, "tokens", "HellaSwag's")
CHOICES = _assume("choices of an item", 4, "answers", "lm-eval reads the item once for each")
SCENARIO_SAMPLES = _assume("samples of an agent's scenario", 4, "samples", "TAC's variants")
AGENT_TURNS = _assume(
    "turns of an agent in a sample", 6, "turns", "search, details, availability, purchase; a guess"
)
AGENT_TOKENS = _assume(
    "prompt of an agent's turn", 2500, "tokens", "tools, system prompt and earlier turns; a guess"
)
TURN_TOKENS = _assume(
    "an agent's turn", 100, "tokens", "a tool call, or the benchmark's max_tokens where less"
)
ITEMS = _assume(
    "rows of a benchmark whose size is neither declared nor on disk", 300, "rows", "a guess"
)
GRADE_TOKENS = _assume(
    "a judge's reply", 200, "tokens", "or the benchmark's judge_max_tokens where less"
)
DATA_ROWS = _assume(
    "rows of instruction data that is not on disk", 50_000, "rows", "Alpaca has 51,760"
)
# Tasks in a group of lm-eval's.
SUBTASKS = {"mmlu": 57}

_assume(
    "memory of a training process with a GPU, beside its copies",
    PROCESS_BYTES["gpu"] / 1e9,
    "GB",
    "libraries, CUDA's context, pinned buffers; a guess; not measured",
)

# Disk.
TOKEN_BYTES = _assume(
    "a token of a corpus",
    10,
    "bytes",
    "4 letters 2.4 times: in the ledger, in documents.jsonl and, compressed, in corpus/",
)
DOCUMENT_BYTES = _assume("a document beside its text", 500, "bytes", "its slots and counts")
ANSWER_BYTES = _assume("an answer", 2000, "bytes", "in Inspect's log, compressed")
CANARY_GRADES = 74  # of eval/data/judge_canary
CANARY_TOKENS = 70  # of one of its answers
GRADE_BYTES = _assume("a grade", 2700, "bytes", "in scored samples and in the ledger")
PROBE_BYTES = _assume(
    "directions of a probe", 600_000, "bytes", "32 layers of width 4,096 in float32"
)
ITEM_BYTES = _assume("an item by likelihood", 300, "bytes", "a row of samples and of scores")
STEP_BYTES = _assume("an optimizer step", 600, "bytes", "a row of metrics.jsonl and speed.jsonl")
ROLLOUT_BYTES = _assume(
    "a token of a rollout", 25, "bytes", "its id, log-probability and text in rollouts.jsonl"
)
SHARD_GB = _assume("a file of weights", 5, "GB", "the checkpointers' largest shard")
UNKNOWN_GB = _assume("a model that is neither known nor on disk", 16, "GB", "8B in bf16")
STEPS_HELD = _assume(
    "step checkpoints on disk while a training runs",
    1.5,
    "times the two that are kept",
    "a third is being written",
)


@dataclass(frozen=True)
class Judged:
    """The size of a judged benchmark whose questions are not on disk."""

    questions: int
    grades: float  # of one answer
    prompt_tokens: int  # of the judge's prompt, without the answer


# By scorer. ANIMA's 26 open questions have 97 grades; the others are counted in the public files.
ANIMA_GRADES = 97
ANIMA_QUESTIONS = 26
JUDGED = {
    "anima": Judged(115, ANIMA_GRADES / ANIMA_QUESTIONS, 750),
    "moru": Judged(201, 4, 600),
    "rubric": Judged(18, 1, 400),
    "strong_reject": Judged(313, 1, 700),
}

# A toy's pretraining as a row of study.forecast.training_cost: a minute on a core.
TOY: dict[str, Any] = {
    "hours": 1 / 60,
    "steps": 300,
    "step_checkpoints_gb": 0.0,
    "ranks": 1,
}
# Files and folders of a finished cell by its stage; of a link to a model; of a dose that a longer
# run keeps; of a job's logs.
FILES = {
    "model": (13, 3),
    "midtrain": (13, 3),
    "sft": (13, 3),
    "rl": (15, 3),
    "merge": (9, 2),
    "link": (5, 1),
    "dose": (5, 2),
    "documents": (9, 2),
    "drafts": (5, 1),
    "contamination": (6, 1),
    "embeddings": (6, 1),
    "generate": (5, 1),
    "likelihood": (6, 1),
    "lm_eval": (6, 1),
    "probe": (6, 1),
    "agent": (10, 2),
    "judge": (7, 1),
    "canary": (7, 1),
    "scores": (10, 1),
    "labels": (5, 1),
    "analysis": (17, 3),
    "job": (5, 0),
}

BATCH_HOURS = (
    "Providers answer one within 24 hours, and a rejected draft or an unusable grade is in another "
    "one. Hours do not include that; meanwhile no job runs."
)


def summary() -> str:
    """The assumptions that matter most, as a line for `plan`."""
    shown = {
        "of a GPU's peak in training": TRAINING_SHARE,
        "in reading": PREFILL_SHARE,
        "FLOP for a byte of its memory's bandwidth in writing": DECODE_FLOPS_PER_BYTE,
        "of its link in gathering": LINK_SHARE,
        "GB/s between nodes": NETWORK_BYTES / 1e9,
        "GFLOP/s a core": CORE_FLOPS / 1e9,
        "s to start a job": START_SECONDS,
        "s a GB of weights": SECONDS_PER_GB,
        "s a grade": GRADE_SECONDS,
        "s a document": SECONDS_PER_CALL,
        "tokens a question": QUESTION_TOKENS,
        "an answer": ANSWER_TOKENS,
        "an item": ITEM_TOKENS,
        "a grade": GRADE_TOKENS,
        "grades for 26 of ANIMA's questions that are not here": ANIMA_GRADES,
    }
    return "assumed: " + ", ".join(f"{value:g} {name}" for name, value in shown.items())
