"""Start vLLM as evaluations do, on a checkpoint of random weights, and answer one request.

    python -m core.inference.vllm_check FOLDER

`doctor` runs it on a node with GPUs: it shows in a minute whether drivers, compilers and caches are
what vLLM needs.
"""

import sys
from pathlib import Path

from core.inference import vllm_engine


def make_checkpoint(folder: Path) -> None:
    """Write a Llama of 0.9 million random weights and a tokenizer of 64 words to `folder`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", *(f"w{number}" for number in range(61))]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,  # of 64 dimensions, for which every attention kernel is made
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        dtype="float32" if vllm_engine.on_cpu() else "bfloat16",
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def main(folder: Path) -> None:
    """Make the checkpoint, start the engine and ask it for four tokens."""
    vllm_engine.set_environment()
    make_checkpoint(folder)
    dtype = "float32" if vllm_engine.on_cpu() else "bfloat16"
    engine = vllm_engine.open_engine(folder, {"dtype": dtype}, {"max_model_len": 256})
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=4, min_tokens=4, temperature=1.0, seed=1)
    (answer,) = engine.model.generate([{"prompt_token_ids": [0, 5, 6]}], sampling, use_tqdm=False)
    assert len(answer.outputs[0].token_ids) == 4
    print("vLLM answers", flush=True)
    vllm_engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
