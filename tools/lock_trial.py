"""Install the locks of the GPU sets, import their packages, and run the tests that need no GPU.

    python tools/lock_trial.py all              each lock of this processor
    python tools/lock_trial.py cuda12-py311     the locks with that in their names
    python3.12 tools/lock_trial.py --install LOCK VENV    what it starts, with each Python

The first two are `make test-locks INSTALL=all` and the like.

Each environment is made as `make cluster-env` makes it, from nothing, in a folder below TMPDIR. It
is removed before the next one. A lock is tried where a Python of its version is on PATH. vLLM's GPU
builds start no engine without a GPU, so the tests that start one are left out, by name.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cluster_environment
import environment as env
from environment import ROOT, SetupError

import locks

# Modules that have another name than their package.
MODULES = {
    "PyYAML": "yaml",
    "scikit-learn": "sklearn",
    "Jinja2": "jinja2",
    "cuda-python": "cuda.bindings.runtime",
}
# What else an engine imports at its start on a GPU.
ENGINE = ("triton", "flashinfer", "lm_eval.models.vllm_causallms", "vllm.v1.engine.llm_engine")
VERSIONS = ("torch", "vllm", "numpy", "transformers", "torchtune", "torchao", "triton")
IMPORT = """
import importlib, sys
from importlib.metadata import version
versions, modules = (text.split(",") for text in sys.argv[1:])
for name in modules:
    importlib.import_module(name)
print(", ".join(f"{name} {version(name)}" for name in versions))
"""
# The packages of `make test` that no lock has.
PYTEST = (
    "pytest", "pytest-xdist", "execnet", "iniconfig", "pluggy", "hypothesis", "sortedcontainers",
)  # fmt: skip
TESTS = ("tests/recipes", "tests/eval", "tests/slurm/test_cache_variables.py")
NO_ENGINE = "not vllm and not nightly"


def main(part: str) -> int:
    """Try each lock with `part` in its name ("all": all). Returns 1 where one fails, or none is."""
    chosen = {locks.path_of(*lock): lock for lock in locks.LOCKS}
    if part != "all":
        chosen = {path: lock for path, lock in chosen.items() if part in path.stem}
    names = ", ".join(locks.path_of(*lock).stem for lock in locks.LOCKS)
    failed = [] if chosen else [f"no lock with {part} in its name; there are {names}"]
    num_tried = 0
    for lock, (cuda, version, machine) in chosen.items():
        python = find_python(version)
        if machine != platform.machine():
            print(f"{lock.name}: not tried, for another processor", flush=True)
        elif not python:
            print(f"{lock.name}: not tried, no python{version} on PATH", flush=True)
        else:
            num_tried += 1
            if not try_lock(cuda, lock, python):
                failed.append(lock.name)
    if not (failed or num_tried):
        failed = ["none was tried"]
    if failed:
        print(f"error: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def find_python(version: str) -> str | None:
    """A Python of a version on PATH that can make environments."""
    python = shutil.which(f"python{version}")
    if not python:
        return None
    # pyenv has a command of each name, which may fail.
    command = [python, "-I", "-c", "import ensurepip"]
    return None if subprocess.run(command, capture_output=True).returncode else python


def try_lock(cuda: int, lock: Path, python: str) -> bool:
    """Install, import and test one lock. Returns whether all of it went well."""
    folder = Path(tempfile.mkdtemp(prefix=f"{lock.stem}-"))
    variables = env.clean(dict(os.environ))
    variables |= {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    interpreter = folder / "venv/bin/python"
    started = time.monotonic()
    print(f"{lock.name}: {python}, {folder}", flush=True)
    try:
        run([python, "-E", "-s", __file__, "--install", str(lock), str(folder / "venv")], variables)
        text = lock.read_text(encoding="utf-8")
        print(
            f"  installed: {text.count('==')} packages, {size_mb(folder) / 1000:.1f} GB, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
        modules = modules_of((ROOT / locks.REQUIREMENTS[cuda]).read_text(encoding="utf-8"))
        words = [",".join(VERSIONS), ",".join(modules)]
        print(f"  imported: {len(modules)} modules", flush=True)
        run([str(interpreter), "-I", "-c", IMPORT, *words], variables)
        add_pytest(folder, text, variables)
        pytest = [str(interpreter), "-m", "pytest", "-p", "no:cacheprovider", *TESTS]
        print("  left out, because they start an engine, file by file:", flush=True)
        run([*pytest, "--collect-only", "-qq", "-m", "vllm"], variables)
        run([*pytest, "-m", NO_ENGINE, "--disable-warnings", "--tb=short"], variables)
    except SetupError as error:
        print(f"  {error}", file=sys.stderr)
        return False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{lock.name}: installs, imports and passes", flush=True)
    return True


def size_mb(folder: Path) -> int:
    output = subprocess.run(["du", "-sm", str(folder)], capture_output=True, text=True).stdout
    return int(output.split()[0])


def modules_of(requirements: str) -> list[str]:
    """The modules of the pinned packages, without those of NVIDIA's compiler."""
    names = re.findall(r"^([\w.-]+)==", requirements, re.MULTILINE)
    imported = [MODULES.get(name, name) for name in names if not name.startswith("nvidia-")]
    return [*imported, *ENGINE]


def pins_of_pytest(lock: str, pins: str) -> str:
    """Lines with hashes for the packages of the tests: those that change no pin of the lock."""
    names = [name for name in PYTEST if not re.search(rf"^{name}==", lock, re.MULTILINE)]
    return "".join(env.pin(name, pins) for name in names)


def add_pytest(folder: Path, lock: str, variables: dict[str, str]) -> None:
    """Install what runs the tests beside the packages of a lock, without their dependencies."""
    python = str(folder / "venv/bin/python")
    pins = folder / "tests.txt"
    pins.write_text(pins_of_pytest(lock, (ROOT / env.HASHES).read_text(encoding="utf-8")))
    settings = env.pip_settings(python, variables)
    uv = [str(folder / "venv/bin/uv"), "pip", "install", "--python", python]
    options = [*env.uv_options(settings), "--no-deps", "--require-hashes", "-r", str(pins)]
    env.run([*uv, *options], env.for_uv(settings, variables, folder / "venv"))


def run(command: list[str], variables: dict[str, str]) -> None:
    """Run a command in the checkout, whose output is shown. Raises SetupError where it fails."""
    result = subprocess.run(command, cwd=ROOT, env=variables)
    if result.returncode:
        raise SetupError(f"{' '.join(command[:4])} ...: exit code {result.returncode}")


if __name__ == "__main__":
    if sys.argv[1] == "--install":
        try:
            cluster_environment.install(*map(Path, sys.argv[2:]))
        except SetupError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    else:
        sys.exit(main(" ".join(sys.argv[1:])))
