"""Memory of whoever writes or reads token files: it does not grow with the corpus."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.recipes.toy import MODEL

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

tokenizer = tokenization.load_tokenizer(Path(sys.argv[1]))
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
