"""Fixtures: a Slurm of scripts that only take notes, and a real one on this machine."""

import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from submitit import SlurmExecutor

from tests.slurm.places import Fake, Kit, Lab

LAB = Path(__file__).parents[1] / "slurmlab"


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


ACCOUNTS = """AccountingStorageType = accounting_storage/slurmdbd
AccountingStorageEnforce = associations,limits,qos
"""
_FAKE = {
    "sbatch": """
if [ "$1" = --test-only ]; then
  cat >/dev/null
  [ ! -s reject ] || { cat reject >&2; exit 1; }
  exit 0
fi
env > last-environment
n=$(($(cat count) + 1)); echo $n > count
if [ -f "refuse-$n" ]; then
  echo "sbatch: error: Batch job submission failed: $(cat "refuse-$n")" >&2
  exit 1
fi
cp "${@: -1}" "$n.sh"
size=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$n.sh")
if [ -n "$size" ]; then seq -f "${n}_%.0f" 0 "$size"; else echo "$n"; fi >> submitted
echo "$n"
""",
    # All that was ever submitted is known, but for what the file "forgotten" lists.
    "squeue": """
case "$*" in
*--states=all*)
  grep -vxFf forgotten submitted; cut -d'|' -f1 queue; true ;;
*%u*) sed "s/|.*//; s/^/$(id -un)|research|normal|/" queue ;;
*) cat queue ;;
esac
""",
    "scontrol": """
case "$*" in *"show partition") cat partitions; exit ;; esac
[ "$1" != show ] || cat config
""",
    "scancel": 'echo "$@" >> cancelled; for job; do sed -i "/^$job|/d" queue; done\n',
    "srun": "exit 1\n",
    "sacctmgr": """
case "$*" in
*"show user"*) cat limits ;;
*"show qos"*) cat qos ;;
esac
""",
    "sinfo": "cat nodes\n",
}


@pytest.fixture(autouse=True)
def no_slurm(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests without the marker `slurm` or `fake` run as on a machine that has no Slurm."""
    # Not the fixture `monkeypatch`, which would then be undone behind the other fixtures.
    with pytest.MonkeyPatch.context() as patch:
        if not request.node.get_closest_marker("slurm") and "fake" not in request.fixturenames:
            patch.setattr(SlurmExecutor, "affinity", lambda: -1)
        yield


@pytest.fixture
def fake(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Fake:
    folder = tmp_path_factory.mktemp("fake")
    (folder / "bin").mkdir()
    for name, body in _FAKE.items():
        path = folder / "bin" / name
        enter = '[ -e "${@: -1}" ] && set -- "${@:1:$#-1}" "$(realpath "${@: -1}")"\n'
        path.write_text(f"#!/bin/bash\n{enter}cd {folder}\n{body}")
        path.chmod(0o755)
    for file, text in {
        "count": "100",
        "queue": "",
        "submitted": "",
        "forgotten": "none\n",
        "config": f"MaxArraySize = 1001\n{ACCOUNTS}",
        "partitions": "",
        "limits": "|research|research|||||||\n",
        "qos": "",
        "nodes": "mixed\ndown*\n",
    }.items():
        (folder / file).write_text(text)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    return Fake(folder)


def _free_ports() -> int:
    # In random order: ports are bound seconds later, and two that search at the same time in the
    # same order would choose the same ones.
    for first in random.sample(range(16800, 26800, 40), 250):
        with socket.socket() as one, socket.socket() as other:
            if one.connect_ex(("127.0.0.1", first + 1)) and other.connect_ex(
                ("127.0.0.1", first + 3)
            ):
                return first
    raise RuntimeError("no free ports for a cluster")


_LAB_ENVIRONMENT: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def _lab_environment() -> None:
    """At the end of each file the environment is reset, while the cluster goes on."""
    os.environ.update(_LAB_ENVIRONMENT)


@pytest.fixture(scope="session")
def session_lab() -> Iterator[Lab]:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [
        name for name in ("slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=path)
    ]
    if missing:
        pytest.skip(
            f"no Slurm on this machine ({', '.join(missing)}): "
            "apt-get install slurmctld slurmd slurm-client"
        )
    full = all(
        shutil.which(name, path=path)
        for name in ("slurmdbd", "mariadbd", "mariadb-install-db", "munged")
    )
    settings = (
        {"LAB_AUTH": "munge", "LAB_ACCT": "dbd"}
        if full
        else {"LAB_AUTH": "none", "LAB_ACCT": "none"}
    )
    # Not tmp_path: sockets live in it, whose paths may have 108 characters at most.
    short = tempfile.gettempdir() if len(tempfile.gettempdir()) < 20 else "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="lab", dir=short))
    settings |= {"LAB_DIR": str(folder), "LAB_PORT": str(_free_ports())}
    # The nodes' jobs must not inherit variables of another cluster from this process.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    up = subprocess.run([LAB, "up"], env=clean | settings, capture_output=True, text=True)
    try:
        if up.returncode:
            pytest.fail(f"slurmlab up: {up.stdout}{up.stderr}")
        _LAB_ENVIRONMENT.update(settings, SLURM_CONF=str(folder / "etc/slurm.conf"))
        os.environ.update(_LAB_ENVIRONMENT)
        yield Lab(folder, full)
    finally:
        for name in _LAB_ENVIRONMENT:
            os.environ.pop(name, None)
        _LAB_ENVIRONMENT.clear()
        subprocess.run([LAB, "down", "--wipe"], env=clean | settings, capture_output=True)


@pytest.fixture
def lab(session_lab: Lab) -> Iterator[Lab]:
    """The cluster with an empty queue, before and after."""
    yield session_lab
    if running := session_lab.jobs():
        subprocess.run(["scancel", "--quiet", *running])
        session_lab.wait()
