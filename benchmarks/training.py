"""Tokens a second of the kit's training, beside torchtune's own recipe and transformers' Trainer, in one run.

    python -m benchmarks.training               on this machine's CPU: a toy in fp32, some 5 minutes
    python -m benchmarks.training --gpu 1b      Llama 3.2 1B's shape on one GPU, random weights; or 8b
    python -m benchmarks.training --start-up    until the first update: 1 and 10 million tokens

Useful tokens are those of documents, not padding. The documents have the lengths of real ones on animal welfare (100 of
them: mean 1,016 words, standard deviation 620), on the CPU a quarter of that. Each contender is a process of its own,
one after another, `--rounds` times over; figures are medians over updates after the first few, then over rounds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from study.inputs import WAYS, apart
from study.references import ROOT

SHAPES = {  # of config.json
    "toy": {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 2048,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
MARK = "figures: "  # of a child's line, among what libraries print
FIRST = 4  # updates that are left out: allocations, compilation
CPU = {"shape": "toy", "seq_len": 512, "rows": 4, "updates": 16, "dtype": "fp32"}
GPU = {"seq_len": 2048, "rows": 16, "updates": 24, "dtype": "mixed", "rows_per_rank": 4}
# On a GPU: what each setting is worth. 8 B in fp32 master weights needs 128 GB: there dtype is bf16.
SETTINGS: dict[str, dict[str, Any]] = {
    "kit": {"compile": True, "activation_checkpointing": True},
    "kit, no compile": {"compile": False, "activation_checkpointing": True},
    "kit, no checkpointing": {"compile": True, "activation_checkpointing": False, "rows_per_rank": 1},
    "kit, adamw_8bit": {"compile": True, "activation_checkpointing": True, "optimizer": "adamw_8bit"},
    "kit, lora": {"compile": True, "activation_checkpointing": True, "lora": {"rank": 32, "alpha": 16}},
}


def make(folder: Path, case: dict[str, Any]) -> None:
    """A start model with random weights and documents enough for all updates."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from recipes import tiny_llama

    texts = tiny_llama.english()
    tokenizer = tiny_llama.make_tokenizer(texts, 2048)
    tokenizer.save_pretrained(folder / "start/model")
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    dtype = "float32" if case["dtype"] == "fp32" else "bfloat16"
    shape = SHAPES[case["shape"]] | {"max_position_embeddings": 131072, "rope_parameters": rope, "dtype": dtype}
    config = LlamaConfig(**shape, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder / "start/model")
    words, chance, size = " ".join(texts).split(), np.random.default_rng(0), case.get("tokens")
    wanted = size or int(1.3 * case["updates"] * case["rows"] * case["seq_len"])
    (folder / "documents").mkdir()
    spread = np.sqrt(np.log(1 + (620 / 1016) ** 2))
    with open(folder / "documents/documents.jsonl", "w") as file:
        while wanted > 0:
            length = max(2, int(1016 / (2048 / case["seq_len"]) * np.exp(chance.normal(-(spread**2) / 2, spread))))
            begin = chance.integers(len(words) - length)
            text = " ".join(words[begin : begin + length])
            wanted -= len(text) // 4  # at most so many tokens, so there are enough
            file.write(json.dumps({"text": text}) + "\n")


def recipe(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kit's recipe of a case, and its ways of running."""
    from dataclasses import asdict

    from study.load import validate
    from study.schema import Training

    own = {key: case[key] for key in ("dtype", "optimizer", "lora", *WAYS) if key in case}
    size = {"seq_len": case["seq_len"], "tokens_per_update": case["rows"] * case["seq_len"], "epochs": 100}
    return apart(asdict(validate(Training, size | own | {"lr": 1e-4, "max_updates": case["updates"]})))


def kit(folder: Path, case: dict[str, Any]) -> list[tuple[float, float]]:
    """The kit's recipe: (useful tokens, seconds) of each update."""
    from recipes import finetune
    from study.work import Work

    settings, ways = recipe(case)
    inputs = {"start": folder / "start", "documents": folder / "documents"}
    place = Path(tempfile.mkdtemp(dir=folder))
    finetune.run(Work(place, "kit", {"recipe": settings}, ways, inputs))
    told = [json.loads(line) for line in (place / "speed.jsonl").read_text().splitlines()]
    if "mfu" in told[-1]:
        print(MARK + json.dumps({"mfu": median(line["mfu"] for line in told[FIRST:])}))
    return [(line["tokens"], line["seconds"]) for line in told]


def rows_of(folder: Path, case: dict[str, Any]):  # type: ignore[no-untyped-def]
    from recipes import prepare

    tokenizer = prepare.load_tokenizer(folder / "start/model")
    texts = prepare.read_jsonl(folder / "documents/documents.jsonl", "text")
    return prepare.documents(folder / "rows", texts, tokenizer, case["seq_len"])


def torchtune(folder: Path, case: dict[str, Any]) -> list[tuple[float, float]]:
    """torchtune's single-device recipe on the kit's rows; in its own bf16 (all of it) where the case is not fp32."""
    from omegaconf import OmegaConf

    from tests.recipes.test_others import Same, config, torchtunes

    rows = Same.rows = rows_of(folder, case)
    Same.order = list(range(case["updates"] * case["rows"]))
    at_once = case.get("rows_per_rank") or case["rows"]
    changes = {
        "dtype": "fp32" if case["dtype"] == "fp32" else "bf16",
        "device": "cuda" if case["dtype"] != "fp32" else "cpu",
        "compile": bool(case.get("compile")),
        "enable_activation_checkpointing": bool(case.get("activation_checkpointing")),
        "batch_size": at_once,
        "gradient_accumulation_steps": case["rows"] // at_once,
    }
    own = Path(tempfile.mkdtemp(dir=folder))
    settings = OmegaConf.create(config(folder / "start/model", own) | changes)
    job = torchtunes().FullFinetuneRecipeSingleDevice(cfg=settings)
    job.setup(cfg=settings)
    moments = [time.perf_counter()]
    job._metric_logger.log_dict = lambda *_, **__: moments.append(time.perf_counter())
    job.train()
    real = rows.real_tokens / (len(rows) * case["seq_len"])
    return [(case["rows"] * case["seq_len"] * real, b - a) for a, b in pairwise(moments)]


def trainer(folder: Path, case: dict[str, Any], packed: bool = True) -> list[tuple[float, float]]:
    """transformers' Trainer: on the kit's rows, without a mask between documents; or a document a row, padded."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    rows = rows_of(folder, case)
    if packed:
        tokens = rows.batch(np.arange(case["updates"] * case["rows"]))["tokens"]
        data = [{"input_ids": row, "labels": row} for row in tokens]
    else:
        begins = [0, *rows.ends[:-1]]
        texts = [torch.from_numpy(rows.tokens[b:e].astype(np.int64)) for b, e in zip(begins, rows.ends, strict=True)]
        data = [{"input_ids": text, "labels": text} for text in texts]

    def together(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad([row["input_ids"] for row in batch], batch_first=True, padding_value=rows.pad)
        labels = pad([row["labels"] for row in batch], batch_first=True, padding_value=-100)
        useful.append(sum(len(row["labels"]) for row in batch))
        return {"input_ids": ids, "labels": labels, "attention_mask": (labels != -100).long()}

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            moments.append(time.perf_counter())

    useful: list[int] = []
    moments: list[float] = []
    mixed = case["dtype"] != "fp32"
    at_once = case.get("rows_per_rank") or case["rows"]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=folder),
        max_steps=case["updates"],
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=case["rows"] // at_once,
        bf16=mixed,
        use_cpu=not mixed,
        gradient_checkpointing=bool(case.get("activation_checkpointing")),
        torch_compile=bool(case.get("compile")),
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=mixed,
    )
    model = AutoModelForCausalLM.from_pretrained(folder / "start/model", dtype=torch.float32)
    Trainer(model, arguments, data_collator=together, train_dataset=data, callbacks=[Clock()]).train()
    each = case["rows"] // at_once
    tokens = [sum(useful[i * each : (i + 1) * each]) for i in range(len(moments))]
    return [(count, b - a) for count, (a, b) in zip(tokens[1:], pairwise(moments), strict=True)]


CONTENDERS = {
    "kit": kit,
    "torchtune's recipe": torchtune,
    "Trainer, packed": trainer,
    "Trainer, a document a row": lambda folder, case: trainer(folder, case, packed=False),
}


def child(name: str, folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Run a contender in a process of its own; its useful tokens a second, median over updates, and its memory."""
    words = [sys.executable, "-m", "benchmarks.training", "--contender", name, "--case", json.dumps(case)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*words, "--folder", str(folder)], cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:100] if done.stderr.strip() else "killed"}
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            found |= json.loads(line.removeprefix(MARK))
    return found


def compare(cases: dict[str, tuple[str, dict[str, Any]]], rounds: int) -> None:
    """Print the table of these (contender, case) by the names of their lines; ratios are to the first line."""
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), next(iter(cases.values()))[1])
        for _ in range(rounds):
            for name, (contender, case) in cases.items():
                told[name].append(child(contender, Path(folder), case))
    table = []
    base = None
    for name, rounds_told in told.items():
        if failed := next((r["failed"] for r in rounds_told if "failed" in r), None):
            table.append([name, failed])
            continue
        speed = median(r["tokens_per_second"] for r in rounds_told)
        base = base or speed
        mfu = rounds_told[-1].get("mfu")
        table.append(
            [name, f"{speed:,.0f}", f"{speed / base:.2f}", f"{rounds_told[-1]['gb']:.1f}", mfu and f"{mfu:.1%}"]
        )
    print(tabulate(table, headers=["", "useful tokens/s", "to the kit's", "peak GB", "MFU"], disable_numparse=True))


def start_up() -> None:
    """Seconds and memory until the first update is done."""
    table = []
    for tokens in (1_000_000, 10_000_000):
        case = CPU | {"updates": 1, "tokens": tokens}
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), case)
            began = time.perf_counter()
            found = child("kit", Path(folder), case)
            seconds = time.perf_counter() - began
            size = (next(Path(folder).glob("documents/*.jsonl")).stat().st_size) / 1e6
        table.append([f"{tokens:,}", f"{size:.0f}", f"{seconds:.1f}", f"{found['gb']:.2f}"])
    print(tabulate(table, headers=["tokens (at least)", "MB of text", "seconds, imports and export too", "peak GB"]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", choices=["1b", "8b"])
    parser.add_argument("--start-up", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        told = CONTENDERS[given.contender](given.folder, given.case)
        rates = [tokens / seconds for tokens, seconds in told[FIRST:] or told]
        import torch

        gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        if torch.cuda.is_available():
            gb = torch.cuda.max_memory_allocated() / 1e9
        print(MARK + json.dumps({"tokens_per_second": median(rates), "gb": gb}))
        return 0
    if given.start_up:
        start_up()
        return 0
    if not given.gpu:
        compare({name: (name, CPU) for name in CONTENDERS}, given.rounds)
        return 0
    size = GPU | {"shape": given.gpu} | ({"dtype": "bf16"} if given.gpu == "8b" else {})
    cases = {name: ("kit", size | changes) for name, changes in SETTINGS.items()}
    cases |= {name: (name, size | SETTINGS["kit"]) for name in CONTENDERS if name != "kit"}
    import torch

    if not torch.cuda.is_available():
        print("no GPU here; where there is one, this would run:")
        print(tabulate([(name, contender, json.dumps(case)) for name, (contender, case) in cases.items()]))
        return 2
    compare(cases, given.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
