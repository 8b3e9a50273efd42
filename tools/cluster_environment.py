"""Make the environment of a cluster's GPU nodes, from the lock that their driver can run.

    make cluster-env                  reads the driver of this machine
    make cluster-env CLUSTER=NAME     reads that of a node, by a job with the profile's settings
    make cluster-env CUDA=13          installs that set, whatever the driver is

The environment is .venv-cuda12 or .venv-cuda13. A profile names it as
`python: CHECKOUT/.venv-cuda13/bin/python`. It needs nothing but Python's standard library, and
with CLUSTER the .venv of `make environment`, from which the job is submitted.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import environment as env
from environment import ROOT, SetupError

import locks

CUDA_DRIVERS = {13: 580, 12: 525}  # the oldest driver that runs each CUDA release
NEEDED_GB = 20  # 9 GB installed, and as much in the installer's cache where links are impossible
IMPORTS = (
    "import torch, torchtune, torchao, transformers, vllm, lm_eval, inspect_evals, submitit; "
    "print('torch', torch.__version__, 'for CUDA', torch.version.cuda, 'vllm', vllm.__version__)"
)


@dataclass(frozen=True)
class Machine:
    """What decides which packages can run there."""

    name: str
    machine: str  # such as x86_64
    glibc: str  # such as glibc 2.36
    driver: str | None  # NVIDIA's driver, such as 570.86.15; None: there is none
    said: str = ""  # by nvidia-smi in place of one


def main(cluster: str, cuda: str) -> int:
    """Choose a lock and install it. Returns the exit code."""
    try:
        here = this_machine()
        env.check_glibc(here.name, here.glibc)
        if cuda and cuda not in map(str, CUDA_DRIVERS):
            raise SetupError(f"CUDA={cuda}: there are CUDA=12 and CUDA=13")
        target = node_of(cluster) if cluster else here
        env.check_glibc(target.name, target.glibc)
        if target.machine != here.machine:
            raise SetupError(
                f"{target.name} is {target.machine}, this machine {here.machine}: type "
                "make cluster-env on a node of that kind, in a checkout that it sees"
            )
        number, reason = (int(cuda), "as asked") if cuda else choose(target)
        lock = lock_of(number, target.machine)
        print(f"{target.name}: {reason}\ninstalling {lock.relative_to(ROOT)}", flush=True)
        install(lock, ROOT / f".venv-cuda{number}")
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def this_machine() -> Machine:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        # It may print its error on either stream.
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        output = subprocess.run(command, **streams, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        output = ""
    driver, said = driver_version(output), output.partition("\n")[0]
    return Machine(platform.node(), platform.machine(), env.glibc(), driver, said)


def driver_version(output: str) -> str | None:
    """The version in nvidia-smi's output; None where that is an error message or nothing."""
    match = re.search(r"^\d+(\.\d+)+$", output.strip(), re.MULTILINE)
    return match[0] if match else None


def node_of(cluster: str) -> Machine:
    """A GPU node of a cluster profile, asked by a small job."""
    python = ROOT / ".venv/bin/python"
    if not python.exists():
        raise SetupError("CLUSTER needs .venv, from which the job is sent; make environment")
    command = [str(python), "-m", "slurm.node", cluster]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise SetupError(f"no answer from a node of {cluster}:\n{env.last_lines(result.stderr)}")
    facts = json.loads(result.stdout.splitlines()[-1])
    driver, said = driver_version(facts["driver"]), facts["driver"].partition("\n")[0]
    said = said or "nothing"
    return Machine(facts["host"], facts["machine"], facts["glibc"], driver, said)


def choose(machine: Machine) -> tuple[int, str]:
    """The CUDA release for a machine's driver, and why."""
    if machine.driver is None and machine.said:
        raise SetupError(
            f"{machine.name}: nvidia-smi says {machine.said}; leave that node out (sbatch: "
            f"{{exclude: [{machine.name}]}} in the profile) and tell the site; or choose by hand: "
            "CUDA=12 or CUDA=13"
        )
    if machine.driver is None:
        raise SetupError(
            f"{machine.name}: nvidia-smi shows no driver; name the cluster whose nodes have GPUs: "
            "make cluster-env CLUSTER=NAME"
        )
    major = int(machine.driver.split(".")[0])
    for cuda, oldest in CUDA_DRIVERS.items():
        if major >= oldest:
            return cuda, f"driver {machine.driver} runs CUDA {cuda} ({oldest} or newer)"
    raise SetupError(
        f"{machine.name}: driver {machine.driver} is older than {min(CUDA_DRIVERS.values())}, "
        "which CUDA 12 needs, in a container too; ask the site for a newer driver, or another "
        "partition"
    )


def lock_of(cuda: int, machine: str) -> Path:
    """The lock of a CUDA release for this Python and a processor."""
    lock = locks.path_of(cuda, f"{sys.version_info.major}.{sys.version_info.minor}", machine)
    if not lock.exists():
        versions = [v for c, v, m in locks.LOCKS if (c, m) == (cuda, machine)]
        if not versions:
            raise SetupError(f"no lock of CUDA {cuda} for {machine}; use x86_64 nodes")
        fix = f"make PYTHON=/path/to/python{versions[-1]} cluster-env"
        raise SetupError(
            f"no {lock.relative_to(ROOT)}, but for Python {', '.join(versions)}; {fix}"
        )
    return lock


def exactly(lock: str) -> str:
    """A lock whose versions are taken to the letter: torch==2.13.0 would also be torch 2.13.0+cpu
    of a folder that pip's find-links names, whose hash is another."""
    return re.sub(r"^([\w.-]+)==", r"\1===", lock, flags=re.MULTILINE)


def install(lock: Path, venv: Path) -> None:
    """Make `venv` from a lock with its hashes, import the main packages, and mark it ready."""
    base = env.base_python()
    digest = hashlib.sha256(f"{venv}\0{base}\0{sys.version}\0".encode() + lock.read_bytes())
    wanted = digest.hexdigest()
    free = shutil.disk_usage(venv.parent).free / 1e9
    with env.only_one(venv):
        if env.is_ready(venv, wanted):
            print(f"{venv} is up to date")
            return
        if free < NEEDED_GB:
            raise SetupError(f"{venv}: needs {NEEDED_GB} GB of disk, and {free:.1f} GB are free")
        env.clear(venv)
        temporary = venv / "tmp"
        temporary.mkdir()
        environment = env.clean(dict(os.environ)) | {"TMPDIR": str(temporary)}
        python = str(venv / "bin/python")
        with env.step(1, "Python and uv"):
            env.run([base, "-m", "venv", str(venv)], environment)
            settings = env.pip_settings(python, environment)
            tools = temporary / "tools.txt"
            pins = (ROOT / env.HASHES).read_text()
            tools.write_text(env.pin("uv", pins) + env.pin("setuptools", pins))
            pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
            env.run([*pip, "-r", str(tools)], env.for_pip(settings, environment))
        uv = [str(venv / "bin/uv"), "pip", "install", "--python", python]
        options = [*env.uv_options(settings), "--no-deps", "--no-build-isolation"]
        with env.step(2, "setuptools of the lock"):
            first = temporary / "setuptools.txt"
            text = lock.read_text()
            first.write_text(env.pin("setuptools", text) if "\nsetuptools==" in text else "")
            variables = env.for_uv(settings, environment, venv)
            env.run([*uv, *options, "--require-hashes", "-r", str(first)], variables)
        pins = temporary / "packages.txt"
        pins.write_text(exactly(text))
        with env.step(3, f"{text.count('==')} packages (9 GB)"):
            env.run([*uv, *options, "--require-hashes", "-r", str(pins)], variables)
        with env.step(4, "import of the main packages"):
            env.run([python, "-c", IMPORTS], environment)
        shutil.rmtree(temporary)
        (venv / "ready").write_text(wanted)
    print(f"python: {python}     in the cluster profile", flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
