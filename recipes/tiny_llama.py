"""Starting models: a toy Llama 3.1 made on the spot, or a Hugging Face folder taken as it is."""

import ast
import json
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torchtune.modules import TransformerDecoder
from transformers import PreTrainedTokenizerFast

from core.cell.context import StageContext
from recipes import checkpoint, model, prepare
from recipes.distributed import ALONE
from recipes.finetune import begin, check_size, counts, train
from recipes.stopping import stoppable

RESUMABLE = True  # a pretraining goes on from its last step checkpoint
SPECIAL = 256
BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
NAMED = (BOS, EOS, PAD, "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>")
# Llama 3's rule for cutting text into words before BPE.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 3's chat format, without the dates and tools of the 3.1 template.
CHAT = (Path(__file__).parent / "data/llama3_chat.jinja").read_text(encoding="utf-8")
PROSE = Path(__file__).parent / "data" / "neutral_prose.txt"


def run(work: StageContext) -> dict[str, int | float]:
    """Make model/ (a Hugging Face folder): link the folder named in the study file, or make the toy model."""
    target = work.folder / "model"
    if "path" in work.resources:
        if target.is_symlink() or not target.exists():
            target.unlink(missing_ok=True)
        else:
            shutil.rmtree(target)
        if "chat_template" not in work.resources:
            target.symlink_to(work.resources["path"], target_is_directory=True)
        else:
            _link_with_template(Path(work.resources["path"]), target, Path(work.resources["chat_template"]))
        return {"files": sum(1 for file in target.rglob("*") if file.is_file())}
    recipe = work.settings["recipe"]
    texts = english()
    texts = [texts[i] for i in np.random.default_rng(work.seed("texts")).permutation(len(texts))]
    tokenizer = make_tokenizer(texts, recipe["vocab_size"])
    target.mkdir(exist_ok=True)
    tokenizer.save_pretrained(target)
    config = _config(recipe, tokenizer)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    pretrain = recipe["pretrain"]
    rows = prepare.documents(work.folder / "rows", texts, tokenizer, pretrain["seq_len"])
    keep = recipe["tokens"] // pretrain["seq_len"]
    if len(rows) < keep:
        work.warn(f"this Python brings only {rows.real_tokens} tokens of English, {recipe['tokens']} were asked for")
    rows = rows.first(keep)
    check_size(work, rows, pretrain)

    def untrained() -> TransformerDecoder:
        torch.manual_seed(work.seed("weights"))
        return model.build(config)

    state = begin(work, untrained, pretrain)
    with stoppable() as stop:
        train(work, state, rows, pretrain, ALONE, stop)
        checkpoint.save(state.model, target, target)
    for scratch in ("steps", "rows"):
        shutil.rmtree(work.folder / scratch, ignore_errors=True)
    return {**counts(work, rows, pretrain), "parameters": sum(p.numel() for p in state.model.parameters())}


def _link_with_template(source: Path, target: Path, template: Path) -> None:
    """A folder with links to the model's files, but this chat template in place of any of its own."""
    target.mkdir()
    for file in source.iterdir():
        if file.name == "tokenizer_config.json":  # the template of older models is in it
            config = json.loads(file.read_text(encoding="utf-8"))
            config.pop("chat_template", None)
            (target / file.name).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
        elif file.name != "chat_template.jinja":
            (target / file.name).symlink_to(file)
    (target / "chat_template.jinja").write_bytes(template.read_bytes())


def english() -> list[str]:
    """English that every machine with Python has: its language reference and docstrings, and this kit's prose."""
    from pydoc_data.topics import topics

    texts = [*topics.values()]
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        texts += [doc for node in nodes if (doc := ast.get_docstring(node)) and len(doc) > 80]
    # The prose stands several times among the manuals, so that the model has met everyday words.
    return texts + PROSE.read_text(encoding="utf-8").split("\n\n") * 4


def make_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`, with Llama 3's special tokens and chat template."""
    bpe = Tokenizer(models.BPE(ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size - SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(SPECIAL - len(NAMED))]
    bpe.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (*NAMED, *reserved)])
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT,
        clean_up_tokenization_spaces=False,
    )


def _config(recipe: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": recipe["vocab_size"],
        "hidden_size": recipe["dim"],
        "intermediate_size": recipe["ffn_dim"],
        "num_hidden_layers": recipe["layers"],
        "num_attention_heads": recipe["heads"],
        "num_key_value_heads": recipe["kv_heads"],
        "head_dim": recipe["dim"] // recipe["heads"],
        "hidden_act": "silu",
        "max_position_embeddings": recipe["max_seq_len"],
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
        "bos_token_id": ids(BOS),
        "eos_token_id": [ids(EOS), ids("<|eom_id|>"), ids("<|eot_id|>")],
        "pad_token_id": ids(PAD),
        "dtype": "float32",
    }
