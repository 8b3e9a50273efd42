"""A random Llama of a few thousand parameters as a Hugging Face folder, made in milliseconds."""

import json
from pathlib import Path
from typing import Any

SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|pad|>",
]
CHAT = (
    "{{- bos_token }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- m['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{%- endif %}"
)


def make(
    folder: Path, seed: int = 0, chat: str | None = CHAT, adds_bos: bool = True, **generation: Any
) -> Path:
    """Write model, byte-level tokenizer and chat template to `folder`.

    Keywords go to generation_config.json.

    The config names only <|end_of_text|> as end token, as the base Llama 3.1 does: <|eot_id|> ends
    a message in the chat template alone.
    """
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in SPECIAL]
    )
    bos, eos, pad = (tokenizer.token_to_id(SPECIAL[i]) for i in (0, 1, 5))
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[0]} $A",
            pair=f"{SPECIAL[0]} $A $B",
            special_tokens=[(SPECIAL[0], bos)],
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[5],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(letters) + len(SPECIAL),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        initializer_range=0.1,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    settings = {"bos_token_id": bos, "eos_token_id": eos, **generation}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder
