"""The index of ledgers (core/endpoints/call_index.py): start and memory of a cell beside the calls
of the paper's study.

    python -m benchmarks.calls

1.5 million calls of 1 kB in 560 ledgers, opened first without `calls.index` and then with it.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from core.endpoints.call_index import FILE, CallIndex
from core.endpoints.ledger import LedgerEntry

LEDGERS = 560
CALLS = 2_700  # of one ledger
TEXT = "x" * 700


def write_ledgers(runs: Path) -> None:
    """Write the ledgers of a study."""
    for cell in range(LEDGERS):
        folder = runs / f"paper/judge/{cell}"
        folder.mkdir(parents=True)
        with open(folder / "calls.jsonl", "w") as file:
            for number in range(cell * CALLS, (cell + 1) * CALLS):
                digest = f"{number:064x}"
                entry = LedgerEntry("q/1", 0, "grade", digest, "m", 1, 1, 0.1, 1.0, "stop", TEXT)
                file.write(json.dumps(entry.__dict__) + "\n")


def measure(runs: Path) -> None:
    """Print what it takes to open the index, and to look up calls."""
    index = CallIndex(runs)
    started = time.perf_counter()
    index.open()
    opened = time.perf_counter() - started
    started = time.perf_counter()
    for number in range(0, LEDGERS * CALLS, LEDGERS * CALLS // 10_000):
        assert index.find(f"{number:064x}") and not index.find(f"{number + 2**40:064x}")
    found = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = (runs / FILE).stat().st_size / 1e6
    print(
        f"opened in {opened:.1f} s, 20,000 look-ups in {found:.1f} s, "
        f"{memory:.0f} MiB, index {size:.0f} MB"
    )


def main() -> None:
    if len(sys.argv) > 1:
        return measure(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        write_ledgers(Path(folder))
        for _ in range(2):
            subprocess.run([sys.executable, "-m", "benchmarks.calls", folder], check=True)


if __name__ == "__main__":
    main()
