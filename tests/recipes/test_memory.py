"""Host memory: of token files it does not grow with the corpus, of a model it is a rank's share."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchtune.modules import TransformerDecoder

from recipes import checkpoint
from recipes.distributed import SINGLE_PROCESS, Ranks
from recipes.model import build
from tests.recipes.thread_ranks import HeldBytes, on_threads
from tests.recipes.toy import MODEL, ends, logs, make_recipe, start_ranks

pytestmark = pytest.mark.multiprocess

# Anonymous memory: pages mapped from a file can be given back at any time. Not the peak, which the
# import of torch sets.
OWN = """
import sys, numpy as np
from pathlib import Path
from recipes import tokenization
from recipes.rows import Rows

def own():
    status = open("/proc/self/status").read().splitlines()
    line = next(line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

"""
READ = """
def grown(folder):
    before = own()
    rows = Rows.load(folder, 2048, 0)
    for i in range(20):
        rows.batch(np.arange(i, i + 4)), rows.num_trained(np.arange(len(rows)))
    return own() - before

print(*[grown(Path(folder)) for folder in sys.argv[1:]])
"""
WRITE = """
def grown(documents):
    most = before = own()
    def texts():
        nonlocal most
        for _ in range(documents):
            most = max(most, own())
            yield "Rain falls on the roof for hours. " * 40
    rows = tokenization.pack_documents(Path(sys.argv[2]) / str(documents), texts(), tokenizer, 2048)
    assert rows.real_tokens > 300 * documents
    return most - before

from core.model_folder.tokenizer import load_tokenizer
tokenizer = load_tokenizer(Path(sys.argv[1]))
print(*[grown(documents) for documents in (1000, 10_000)])
"""


def mebibytes(code: str, *arguments: Path) -> list[float]:
    """What a process of its own prints."""
    words = [sys.executable, "-c", OWN + code, *map(str, arguments)]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    print(f"MiB: {told}")
    return [float(word) for word in told.split()]


def test_memory_does_not_grow_with_the_corpus(base: Path, tmp_path: Path) -> None:
    """Neither of whoever reads, which holds its batches, nor of whoever writes."""
    for size in (1_000_000, 20_000_000):
        (folder := tmp_path / str(size)).mkdir()
        np.random.default_rng(0).integers(0, 2000, size, np.uint32).tofile(folder / "tokens.bin")
        np.arange(1000, size + 1, 1000).tofile(folder / "offsets.bin")
    few, many = mebibytes(READ, *sorted(tmp_path.iterdir()))
    assert many < few + 10, "20 million tokens are 76 MiB"
    few, many = mebibytes(WRITE, base / MODEL.relpath / "model", tmp_path)
    assert many < few + 10, "3 million tokens are 12 MiB, and ten times that as Python's numbers"


# A model of Llama 3.2 1B's proportions, whose largest weight is a thirtieth of it.
ONE_B = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "max_position_embeddings": 16,
}


def one_b(small: Path, folder: Path, **sizes: Any) -> tuple[Path, TransformerDecoder]:
    """A start model of these proportions, with the tokenizer of `small`; and its weights."""
    config = json.loads((small / "config.json").read_text()) | ONE_B | sizes
    start = shutil.copytree(small, folder, ignore=shutil.ignore_patterns("*.saf*"))
    (start / "config.json").write_text(json.dumps(config))
    model = build(config)
    checkpoint.save(model, start, start)
    return start, model


def test_no_rank_holds_tensors_beyond_its_share_and_some_weights(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the bytes of the tensors that four ranks make. The nightly test asks the kernel."""
    folder, model = one_b(start, tmp_path / "start")
    share = sum(weight.nbytes for weight in model.parameters()) / 4
    largest = max(weight.nbytes for weight in model.parameters())
    monkeypatch.setattr(checkpoint, "PART_BYTES", largest)
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 2 * largest)

    def load_and_save(ranks: Ranks) -> tuple[float, float]:
        with HeldBytes() as loading:
            sharded = checkpoint.load(folder, ranks, make_recipe())
        with HeldBytes() as saving:
            checkpoint.save(sharded, folder, tmp_path / "out", ranks, make_recipe())
        return (loading.most - share) / largest, saving.most / largest

    (reads, writes), *others = on_threads(4, load_and_save, monkeypatch)
    print(f"weights beyond the share: rank 0 {reads:.2f}, {writes:.2f}; others {others}")
    # Rank 0 has the part that it reads, with copies of queries and keys in torchtune's order; and
    # the file that it writes, with a weight in its dtype.
    assert reads < 1.7 and writes < 2 + 1
    assert all(load < 1.1 and save < 1.1 for load, save in others)
    plain = checkpoint.load(tmp_path / "out", SINGLE_PROCESS, make_recipe()).state_dict()
    assert all(plain[name].equal(weight) for name, weight in model.state_dict().items())


SLACK = 40  # MiB
# The most anonymous memory of a rank beyond what it had, sampled by a thread: the peak that the
# kernel counts has the pages of mapped files too.
PEAK = """
import json
import threading
import time
from pathlib import Path
from recipes import checkpoint
from recipes.distributed import process_group
from tests.recipes.toy import make_recipe

def own():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024

def peak(work):
    samples = [own()]
    done = threading.Event()
    def sample():
        while not done.wait(0.001):
            samples.append(own())
    thread = threading.Thread(target=sample)
    thread.start()
    result = work()
    done.set()
    thread.join()
    return result, max(samples) - samples[0]

checkpoint.PART_BYTES = 2**24
checkpoint.FILE_BYTES = 2**26
with process_group() as ranks:
    start, out = Path({start!r}), Path({out!r})
    # The first collectives and products start threads and buffers.
    small = checkpoint.load(Path({small!r}), ranks, make_recipe())
    checkpoint.save(small, Path({small!r}), out / "small", ranks, make_recipe())
    model, loaded = peak(lambda: checkpoint.load(start, ranks, make_recipe()))
    _, saved = peak(lambda: checkpoint.save(model, start, out / "large", ranks, make_recipe()))
    (out / f"{{ranks.rank}}.json").write_text(json.dumps([loaded, saved]))
"""


@pytest.mark.nightly
def test_no_rank_ever_holds_the_whole_model(base: Path, tmp_path: Path) -> None:
    """Four ranks; a model of Llama 3.2 1B's proportions, a quarter as wide: 310 MiB in fp32."""
    small = base / MODEL.relpath / "model"
    sizes = {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 2048}
    heads = {"num_attention_heads": 8, "head_dim": 64}
    start, model = one_b(small, tmp_path / "start", **sizes, **heads)
    whole = sum(p.nbytes for p in model.parameters()) / 2**20
    largest = max(p.nbytes for p in model.parameters()) / 2**20
    del model
    code = PEAK.format(start=str(start), out=str(tmp_path), small=str(small))
    processes = start_ranks(tmp_path / "ranks", 4, before=f"{code}\nos._exit(0)")
    assert ends(processes) == [0] * 4, logs(tmp_path / "ranks")
    for rank in range(4):
        loaded, saved = json.loads((tmp_path / f"{rank}.json").read_text())
        print(f"rank {rank}: MiB loaded {loaded:.0f}, saved {saved:.0f}, of {whole:.0f}")
        # Gloo sends a copy of a tensor.
        assert loaded < whole / 4 + 2 * largest + SLACK
        assert saved < 64 + 2 * largest + SLACK
