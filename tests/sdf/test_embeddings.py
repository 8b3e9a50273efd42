"""Embeddings of documents: as sentence-transformers makes them, by a small model of random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.cell.context import StageContext
from core.errors import UserError
from sdf.embeddings import BATCH, embed, run
from sdf.rows import write_json_lines

WORDS = [
    "hens",
    "need",
    "room",
    "to",
    "scratch",
    "and",
    "cows",
    "need",
    "shade",
    "on",
    "hot",
    "days",
    "in",
    "every",
    "field",
]
LENGTH = 12  # tokens that the model takes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MPNet of two layers in the files of sentence-transformers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import MPNetConfig, MPNetModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("mpnet")
    tokens = ["<s>", "<pad>", "</s>", "[UNK]", *sorted({*WORDS})]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 40}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    MPNetModel(MPNetConfig(vocab_size=len(tokens), **sizes, **layers)).save_pretrained(folder)
    write(folder, "modules.json", [{"type": f"s.{name}"} for name in MODULES])
    write(folder, "sentence_bert_config.json", {"max_seq_length": LENGTH})
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False}
    write(folder, "1_Pooling/config.json", {**pooling, "pooling_mode_mean_tokens": True})
    return folder


MODULES = ("Transformer", "Pooling", "Normalize")


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(count)]


def test_an_embedding_is_the_scaled_mean_over_tokens(model: Path) -> None:
    """By hand, each text alone: neither padding nor the batch changes it."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    many = texts(BATCH + 3)
    vectors = embed(model, many)
    assert vectors.shape == (BATCH + 3, 16) and vectors.dtype == np.float32
    tokenizer, loaded = (
        AutoTokenizer.from_pretrained(model),
        AutoModel.from_pretrained(model).eval(),
    )
    for vector, text in zip(vectors, many, strict=True):
        with torch.inference_mode():
            states = loaded(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(0)
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)


def test_a_text_is_cut_at_the_models_length(model: Path) -> None:
    long = " ".join(WORDS[:LENGTH])  # with <s> and </s> two tokens too many
    cut = " ".join(WORDS[: LENGTH - 2])
    assert embed(model, [long])[0] == pytest.approx(embed(model, [cut])[0], abs=1e-6)


def test_a_cell_has_the_similarity_of_all_pairs(model: Path, tmp_path: Path) -> None:
    documents, folder = tmp_path / "documents", tmp_path / "embeddings"
    documents.mkdir()
    folder.mkdir()
    rows = [{"id": n, "text": text, "slots": {}} for n, text in enumerate(texts(30))]
    write_json_lines(documents / "documents.jsonl", rows)
    settings = {"name": "some/mpnet", "files": {"embedder": "hash"}}
    resources = {"files": {"embedder": str(model)}}
    context = StageContext(folder, "id", settings, resources, {"documents": documents})
    assert run(context) == {"documents": 30}
    vectors = np.load(folder / "embeddings.npy")
    cosines = [float(a @ b) for n, a in enumerate(vectors) for b in vectors[n + 1 :]]
    facts = json.loads((folder / "similarity.json").read_text())
    assert facts == {
        "model": "some/mpnet",
        "compared": 30,
        "mean_similarity": round(float(np.mean(cosines)), 4),
        "similarity_sd": round(float(np.std(cosines)), 4),
    }


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "pooling_mode_cls_token"),
        ("modules.json", [{"type": "s.Transformer"}, {"type": "s.Pooling"}], "modules are"),
    ],
)
def test_another_kind_of_model_is_refused(
    name: str, content: Any, what: str, model: Path, tmp_path: Path
) -> None:
    for path in [*model.glob("*.json"), model / "1_Pooling/config.json"]:
        write(tmp_path, str(path.relative_to(model)), json.loads(path.read_text()))
    write(tmp_path, name, content)
    with pytest.raises(UserError, match=what):
        embed(tmp_path, ["hens"])
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"has no {name}"):
        embed(tmp_path, ["hens"])
