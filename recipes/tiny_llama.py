"""Start models: a toy Llama 3.1 pretrained here, or a link to a Hugging Face folder."""

import ast
import json
import shutil
import sysconfig
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from torchtune.modules import TransformerDecoder
from torchtune.training import set_default_dtype
from transformers import PreTrainedTokenizerFast

from core.cell.context import StageContext
from core.model_folder.check import check_start_model
from core.model_folder.tokenizer import link_with_tokenizer
from core.recipe import TinyLlama
from recipes import checkpoint, model
from recipes.finetune import Trainer, check_size
from recipes.metrics import counts
from recipes.preemption import guard_signals
from recipes.tokenization import pack_documents

RESUMABLE = True  # a pretraining resumes from its last step checkpoint
NUM_SPECIAL_TOKENS = 256
STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
EOM, EOT = "<|eom_id|>", "<|eot_id|>"
NAMED_TOKENS = (
    BOS,
    EOS,
    PAD,
    "<|start_header_id|>",
    "<|end_header_id|>",
    EOM,
    EOT,
    "<|python_tag|>",
)
# Llama 3's regular expression that splits text into words before BPE.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def run(context: StageContext) -> dict[str, int | float]:
    """Make model/ (a Hugging Face folder): link the study file's model folder, or make the toy."""
    files = {key: Path(path) for key, path in context.resources["files"].items()}
    if "model" in files:
        return _link(context, files)
    target = context.folder / "model"
    recipe = TinyLlama.from_settings(context.settings["recipe"], context.resources)
    texts = english(files["prose"])
    order = np.random.default_rng(context.seed("texts")).permutation(len(texts))
    texts = [texts[i] for i in order]
    # Llama 3's chat format, without the dates and tools of the 3.1 template.
    chat_template = files["chat_template"].read_text(encoding="utf-8")
    tokenizer = make_tokenizer(texts, recipe.vocab_size, chat_template)
    target.mkdir(exist_ok=True)
    tokenizer.save_pretrained(target)
    config = make_config(recipe, tokenizer)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    def load_start() -> TransformerDecoder:
        torch.manual_seed(context.seed("weights"))
        return model.build(config)

    if not recipe.pretrain:
        with set_default_dtype(torch.bfloat16):  # half the memory
            random = load_start()
        checkpoint.save(random, target, target)
        return {"parameters": num_parameters(random)}
    rows = pack_documents(context.folder / "rows", texts, tokenizer, recipe.pretrain.seq_len)
    num_rows = recipe.tokens // recipe.pretrain.seq_len
    if len(rows) < num_rows:
        context.warn(
            f"this Python brings only {rows.real_tokens} tokens of English, {recipe.tokens} were "
            "asked for"
        )
    rows = rows.first(num_rows)
    check_size(context, rows, recipe.pretrain)

    trainer = Trainer(context, recipe.pretrain, rows, target)
    trainer.resume_or_init(load_start)
    with guard_signals() as guard:
        trainer.train(guard)
        checkpoint.save(trainer.model, target, target)
    for scratch in ("steps", "rows"):
        shutil.rmtree(context.folder / scratch, ignore_errors=True)
    return {**counts(context.folder, len(rows)), "parameters": num_parameters(trainer.model)}


def num_parameters(model: TransformerDecoder) -> int:
    return sum(p.numel() for p in model.parameters())


def _link(context: StageContext, files: dict[str, Path]) -> dict[str, int | float]:
    """Link model/ to the folder that the study file names, or its files and another's tokenizer.

    Raises UserError where trainings would refuse it: before its documents are written.
    """
    trains = context.resources.get("trains", False)
    check_start_model(files["model"], trains, chats=False, tokenizer=files.get("tokenizer"))
    target = context.folder / "model"
    if target.is_symlink() or not target.exists():
        target.unlink(missing_ok=True)
    else:
        shutil.rmtree(target)
    if "tokenizer" in files:
        link_with_tokenizer(target, files["model"], files["tokenizer"])
    else:
        target.symlink_to(files["model"], target_is_directory=True)
    return {"files": sum(1 for file in target.rglob("*") if file.is_file())}


def english(prose: Path) -> list[str]:
    """English that comes with Python (language reference and docstrings), and the file `prose`."""
    from pydoc_data.topics import topics

    texts = [*topics.values()]
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in _statements(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node)
                if docstring and len(docstring) > 80:
                    texts.append(docstring)
    # The prose is repeated among the manuals, so that the model has seen everyday words.
    return texts + prose.read_text(encoding="utf-8").split("\n\n") * 4


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """As ast.walk, in its order, without expressions: they are most of the nodes, and have no
    docstring."""
    todo = deque[ast.AST]([tree])
    while todo:
        node = todo.popleft()
        todo.extend(c for c in ast.iter_child_nodes(node) if isinstance(c, STATEMENTS))
        yield node


def make_tokenizer(
    texts: list[str], vocab_size: int, chat_template: str
) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`, with Llama 3's special tokens and a chat template."""
    bpe = Tokenizer(models.BPE(ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_SPECIAL_TOKENS,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    num_reserved = NUM_SPECIAL_TOKENS - len(NAMED_TOKENS)
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(num_reserved)]
    names = (*NAMED_TOKENS, *reserved)
    bpe.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def make_config(recipe: TinyLlama, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The content of the toy's config.json."""
    token_id = tokenizer.convert_tokens_to_ids
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": recipe.vocab_size,
        "hidden_size": recipe.dim,
        "intermediate_size": recipe.ffn_dim,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
        "head_dim": recipe.dim // recipe.heads,
        "hidden_act": "silu",
        "max_position_embeddings": recipe.max_seq_len,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": token_id(BOS),
        "eos_token_id": [token_id(EOS), token_id(EOM), token_id(EOT)],
        "pad_token_id": token_id(PAD),
        "dtype": "float32" if recipe.pretrain else "bfloat16",
    }
