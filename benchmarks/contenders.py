"""What benchmarks.training compares: the kit, torchtune's own recipe, transformers' Trainer.

Each takes a folder that `make_inputs` has filled and a case (shape, seq_len, rows, steps, dtype,
runtime settings). It returns (useful tokens, seconds) of each optimizer step; useful tokens are
those of documents, not padding.
"""

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from benchmarks.step_profile import profiled_step
from core.files import sha256
from core.garbage import gc_disabled
from core.paths import resolve
from core.recipe import RUNTIME_KEYS, Training, split_recipe
from core.strict_yaml import validate

Steps = list[tuple[float, float]]
CONVERSATIONS = 128  # of instruction data
SHAPES: dict[str, dict[str, Any]] = {  # of config.json
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
        "tie_word_embeddings": True,
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


def on_gpu(case: dict[str, Any]) -> bool:
    """Whether a case is for a GPU: those on a CPU are in fp32."""
    return bool(case["dtype"] != "fp32")


def make_inputs(folder: Path, case: dict[str, Any]) -> None:
    """Write a start model with random weights, conversations, and documents for all steps."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from recipes import tiny_llama

    data = resolve("recipes/data")
    texts = tiny_llama.english(data / "neutral_prose.txt")
    chat_template = (data / "llama3_chat.jinja").read_text(encoding="utf-8")
    tokenizer = tiny_llama.make_tokenizer(texts, 2048, chat_template)
    tokenizer.save_pretrained(folder / "start/model")
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    dtype = "bfloat16" if on_gpu(case) else "float32"
    config = LlamaConfig(
        **SHAPES[case["shape"]],
        max_position_embeddings=131072,
        rope_parameters=rope,
        dtype=dtype,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if on_gpu(case) else "cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder / "start/model")
    words = " ".join(texts).split()
    rng = np.random.default_rng(0)
    num_tokens = case.get("tokens")
    remaining = num_tokens or int(1.3 * case["steps"] * case["rows"] * case["seq_len"])
    (folder / "documents").mkdir()
    mean_words = 1016 / (2048 / case["seq_len"])
    sigma = np.sqrt(np.log(1 + (620 / 1016) ** 2))  # of the log-normal lengths
    with open(folder / "documents/documents.jsonl", "w") as file:
        while remaining > 0:
            length = max(2, int(mean_words * np.exp(rng.normal(-(sigma**2) / 2, sigma))))
            begin = rng.integers(len(words) - length)
            text = " ".join(words[begin : begin + length])
            # Without `tokens` a lower bound is enough: the documents must not be too few.
            remaining -= len(tokenizer(text).input_ids) + 1 if num_tokens else len(text) // 4
            file.write(json.dumps({"text": text}) + "\n")
    conversations: list[str] = []
    while len(conversations) < CONVERSATIONS:
        answer = int(rng.lognormal(np.log(100), 0.7))  # words; Alpaca's have some 130
        begin = rng.integers(len(words) - answer - 16)
        turns = [" ".join(words[begin : begin + 16]), " ".join(words[begin + 16 :][:answer])]
        if len(tokenizer("".join(turns)).input_ids) < 0.8 * case["seq_len"]:
            messages = [
                {"role": role, "content": text}
                for role, text in zip(("user", "assistant"), turns, strict=True)
            ]
            conversations.append(json.dumps({"messages": messages}) + "\n")
    (folder / "conversations.jsonl").write_text("".join(conversations))


def recipe_of(case: dict[str, Any]) -> Training:
    """The kit's recipe of a case."""
    keys = ("dtype", "float8", "optimizer", "lora", *RUNTIME_KEYS)
    rows = case["rows"]
    settings = {
        "seq_len": case["seq_len"],
        "epochs": 100,
        "lr": 1e-4,
        "max_steps": case["steps"] + ("profile" in case),
        **(
            {"global_batch_size": rows}
            if case.get("conversations")
            else {"tokens_per_step": rows * case["seq_len"]}
        ),
        **{key: case[key] for key in keys if key in case},
    }
    recipe: Training = validate(Training, settings)
    return recipe


def kit(folder: Path, case: dict[str, Any]) -> Steps:
    """The kit's recipe.

    A case may replace parts of it: `dense_mask`; `chunk`, tokens whose logits exist at once;
    `torch_loss`, torch's linear_cross_entropy; `no_gc`, no garbage collection. With `conversations`
    it trains on those in place of documents. With `profile`, a path, the step after the last is
    profiled, and benchmarks.step_profile's numbers are written there.
    """
    with gc_disabled():  # as core.cell.run does
        from recipes import attention, batches, finetune, loss
    from torch.nn.attention.flex_attention import create_mask

    from core.cell.context import StageContext

    def dense_mask(document: Any, device: Any) -> Any:
        rule = attention.document_causal_rule(document.to(device))
        rows, length = document.shape
        return create_mask(rule, rows, 1, length, length, device).squeeze(1)

    settings, runtime = split_recipe(asdict(recipe_of(case)))
    cell = Path(tempfile.mkdtemp(dir=folder))
    context = StageContext(cell, "kit", {"recipe": settings}, runtime, {"start": folder / "start"})
    if case.get("conversations"):
        file = folder / "conversations.jsonl"
        context.settings |= {"files": {"data": sha256(file)}, "dose": CONVERSATIONS, "seed": 0}
        context.resources |= {"files": {"data": str(file)}}
    else:
        context.inputs["documents"] = folder / "documents"
    with ExitStack() as changes:
        if case.get("dense_mask"):
            changes.enter_context(mock.patch.object(batches, "mask", dense_mask))
        if "chunk" in case:
            changes.enter_context(mock.patch.object(loss, "CHUNK", case["chunk"]))
        if case.get("torch_loss"):
            theirs = SimpleNamespace(apply=_torch_loss)
            changes.enter_context(mock.patch.object(loss, "ChunkedLinearCrossEntropy", theirs))
        if case.get("no_gc"):
            changes.enter_context(gc_disabled())
        if on_gpu(case):  # GPU time is expensive, and exporting is not measured
            export = mock.patch.object(finetune.Trainer, "export", lambda *_: None)
            changes.enter_context(export)
        if "profile" in case:
            profile = changes.enter_context(profiled_step(case["steps"] + 1))
        finetune.run(context)
    if "profile" in case:
        Path(case["profile"]).write_text(json.dumps(profile, indent=1) + "\n")
    lines = [json.loads(line) for line in (cell / "speed.jsonl").read_text().splitlines()]
    return [(line["tokens"], line["seconds"]) for line in lines[: case["steps"]]]


def _torch_loss(hidden: Any, weight: Any, labels: Any, *_: Any) -> tuple[Any, Any]:
    """torch's in the place of recipes.loss.ChunkedLinearCrossEntropy: the loss, and no KL."""
    import torch
    from torch.nn.functional import linear_cross_entropy

    options = torch.nn.LinearCrossEntropyOptions()
    nats = linear_cross_entropy(hidden, weight, labels, reduction="sum", options=options)
    return nats, torch.zeros((), device=hidden.device)


def _recomputes(case: dict[str, Any]) -> bool:
    return bool(case.get("activation_checkpointing", "none") != "none")


def rows_of(folder: Path, case: dict[str, Any]):  # type: ignore[no-untyped-def]
    from core.model_folder.tokenizer import load_tokenizer
    from recipes import prepare, tokenization

    tokenizer = load_tokenizer(folder / "start/model")
    texts = prepare.read_jsonl(folder / "documents/documents.jsonl", "text")
    rows = Path(tempfile.mkdtemp(dir=folder)) / "rows"
    return tokenization.pack_documents(rows, texts, tokenizer, case["seq_len"])


def torchtune(folder: Path, case: dict[str, Any]) -> Steps:
    """torchtune's single-device recipe on the kit's rows; pure bf16 where a case is not fp32."""
    from omegaconf import OmegaConf

    from benchmarks.torchtune_recipe import Same, recipe_module, settings_of

    rows = Same.rows = rows_of(folder, case)
    Same.order = list(range(case["steps"] * case["rows"]))
    at_once = case.get("micro_batch_size") or case["rows"]
    changes = {
        "dtype": "bf16" if on_gpu(case) else "fp32",
        "device": "cuda" if on_gpu(case) else "cpu",
        "compile": bool(case.get("compile")),
        "enable_activation_checkpointing": _recomputes(case),
        "gradient_accumulation_steps": case["rows"] // at_once,
    }
    output = Path(tempfile.mkdtemp(dir=folder))
    plain = settings_of(folder / "start/model", output, recipe_of(case), at_once)
    settings = OmegaConf.create(plain | changes)
    if SHAPES[case["shape"]].get("tie_word_embeddings"):
        settings.model._component_ = "torchtune.models.llama3_2.llama3_2"
        settings.checkpointer.model_type = "LLAMA3_2"
    job = recipe_module().FullFinetuneRecipeSingleDevice(cfg=settings)
    job.setup(cfg=settings)
    moments = [time.perf_counter()]
    job._metric_logger.log_dict = lambda *_, **__: moments.append(time.perf_counter())
    job.save_checkpoint = lambda *_, **__: None
    job.train()
    real = rows.real_tokens / (len(rows) * case["seq_len"])
    return [(case["rows"] * case["seq_len"] * real, b - a) for a, b in pairwise(moments)]


def trainer(folder: Path, case: dict[str, Any], packed: bool = True, masked: bool = False) -> Steps:
    """transformers' Trainer.

    `packed`: on the kit's rows, `masked` or not between documents; else a document a row, padded.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    rows = rows_of(folder, case)
    if packed:
        batch = rows.batch(np.arange(case["steps"] * case["rows"]))
        pairs = zip(batch["tokens"], batch["input_pos"], strict=True)
        data = [
            {"input_ids": row, "labels": row, "position_ids": positions} for row, positions in pairs
        ]
    else:
        bounds = pairwise([0, *rows.offsets])
        texts = [torch.from_numpy(rows.tokens[begin:end].astype(np.int64)) for begin, end in bounds]
        data = [{"input_ids": text, "labels": text} for text in texts]

    def collate(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad([row["input_ids"] for row in batch], batch_first=True, padding_value=rows.pad)
        labels = pad([row["labels"] for row in batch], batch_first=True, padding_value=-100)
        useful.append(sum(len(row["labels"]) for row in batch))
        if masked:
            # Without an attention mask transformers separates documents where positions restart.
            positions = torch.stack([row["position_ids"] for row in batch])
            return {"input_ids": ids, "labels": labels, "position_ids": positions}
        return {"input_ids": ids, "labels": labels, "attention_mask": (labels != -100).long()}

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            moments.append(time.perf_counter())

    useful: list[int] = []
    moments: list[float] = []
    at_once = case.get("micro_batch_size") or case["rows"]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=folder),
        max_steps=case["steps"],
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=case["rows"] // at_once,
        bf16=on_gpu(case),
        use_cpu=not on_gpu(case),
        gradient_checkpointing=_recomputes(case),
        torch_compile=bool(case.get("compile")),
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu(case),
    )
    dtype = torch.bfloat16 if case["dtype"] == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder / "start/model", dtype=dtype)
    model.config.use_cache = False  # with a cache it would not separate documents
    job = Trainer(model, arguments, data_collator=collate, train_dataset=data, callbacks=[Clock()])
    job.train()
    passes = case["rows"] // at_once
    tokens = [sum(useful[i * passes : (i + 1) * passes]) for i in range(len(moments))]
    return [(count, b - a) for count, (a, b) in zip(tokens[1:], pairwise(moments), strict=True)]


CONTENDERS: dict[str, Callable[[Path, dict[str, Any]], Steps]] = {
    "kit": kit,
    "torchtune's recipe": torchtune,
    "Trainer, packed": lambda folder, case: trainer(folder, case, masked=True),
    "Trainer, packed, documents see each other": trainer,
    "Trainer, a document a row": lambda folder, case: trainer(folder, case, packed=False),
}
