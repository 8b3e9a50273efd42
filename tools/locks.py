"""Resolve the requirements of the GPU sets into locks with hashes, or check the locks.

    python tools/locks.py            writes locks/cuda{12,13}-py3*.lock (make locks)
    python tools/locks.py --check    asks the index for every file of each lock (make test-locks)

A lock that exists keeps its versions, except where the requirements have changed. Nothing is
installed: packages for another Python and another processor resolve here as well.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).with_name("uv")
REQUIREMENTS = {13: "requirements.txt", 12: "requirements-cuda12.txt"}
PYTHONS = ("3.11", "3.12", "3.13")
# (CUDA, Python, processor). Of aarch64 (GH200) no lock was tried on a machine.
LOCKS = [
    *((cuda, python, "x86_64") for cuda in REQUIREMENTS for python in PYTHONS),
    (13, "3.12", "aarch64"),
]


def path_of(cuda: int, python: str, machine: str) -> Path:
    suffix = "" if machine == "x86_64" else f"-{machine}"
    return ROOT / f"locks/cuda{cuda}-py{python.replace('.', '')}{suffix}.lock"


def target(python: str, machine: str) -> list[str]:
    """uv's options for another Python and another machine: glibc 2.31, as llguidance's wheels."""
    return [
        "--no-config",
        "--python-version",
        python,
        "--python-platform",
        f"{machine}-manylinux_2_31",
    ]


def compile_lock(cuda: int, python: str, machine: str) -> int:
    """Write one lock. Returns uv's exit code."""
    lock = path_of(cuda, python, machine)
    command = [str(UV), "pip", "compile", REQUIREMENTS[cuda], *target(python, machine)]
    words = ["--generate-hashes", "--no-annotate", "--no-header", "--quiet", "-o", str(lock)]
    print(f"{lock.relative_to(ROOT)}", flush=True)
    lock.parent.mkdir(exist_ok=True)
    return subprocess.run([*command, *words], cwd=ROOT, stdout=subprocess.DEVNULL).returncode


def check_lock(cuda: int, python: str, machine: str) -> int:
    """Resolve a lock with its dependencies and hashes, without an installation.

    Fails where a dependency is missing in the lock, or no file fits that Python and machine.
    """
    lock = path_of(cuda, python, machine)
    with tempfile.TemporaryDirectory() as empty:
        command = [str(UV), "pip", "install", "--dry-run", "--require-hashes", "--target", empty]
        words = [*target(python, machine), "-r", str(lock)]
        result = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
    lines = (result.stderr or result.stdout).strip().splitlines()
    shown = next(
        (line for line in lines if "Would download" in line or "Would install" in line), ""
    )
    print(f"{lock.name}: {shown or ' '.join(lines[-3:])}", flush=True)
    return result.returncode


if __name__ == "__main__":
    act = check_lock if "--check" in sys.argv[1:] else compile_lock
    sys.exit(max([act(*lock) for lock in LOCKS]))
