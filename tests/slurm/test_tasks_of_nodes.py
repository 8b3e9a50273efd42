"""What the tasks of a job see of their node on a real Slurm: its GPUs, and a disk of its own.

The GPUs are device files, so what would be computed on them is not shown here.
"""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from core.gpu import holds_gpus
from core.inference import vllm_engine
from core.visible_gpus import visible_gpus
from slurm.executor import executor, submit
from slurm.job import export_ranks
from slurm.profile import Profile, Resources
from tests.place import ROOT
from tests.slurm.places import Lab

pytestmark = pytest.mark.slurm

NAMES = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "LOCAL_RANK", "SLURMD_NODENAME")
NVIDIA_SMI = "#!/bin/sh\nfor gpu in 0 1 2 3 4 5 6 7; do echo $gpu, 81559; done\n"
# A node's own disk: what is removed in `here` is removed on the disk of the node that removes it.
RM = '#!/bin/bash\nexec /bin/rm "${@//\\/here\\///$SLURMD_NODENAME/}"\n'


def facts(folder: str) -> None:
    """What a job's task does: write to TMPDIR, and note what it and a worker of it see."""
    node = os.environ["SLURMD_NODENAME"]
    export_ranks(None)
    if scratch := os.environ.get("TMPDIR"):
        own = Path(scratch.replace("/here/", f"/{node}/"))
        own.mkdir(parents=True, exist_ok=True)
        (own / f"of task {os.environ['SLURM_PROCID']}").touch()
        os.environ["TMPDIR"] = "/tmp"
    vllm_engine.set_environment()
    method = os.environ["VLLM_WORKER_MULTIPROC_METHOD"]
    with multiprocessing.get_context(method).Pool(1) as pool:
        seen = {"task": environment(), "worker": pool.apply(environment)}
    seen["task"]["gpus"] = [gpu.id for gpu in visible_gpus()]
    seen["task"]["holds"] = holds_gpus()
    (Path(folder) / f"{node}-{os.environ['SLURM_PROCID']}.json").write_text(json.dumps(seen))


def environment() -> dict[str, Any]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


class Call:
    """Picklable by the name of this module, which the job imports from the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self) -> None:
        facts(self.folder)


def run(lab: Lab, folder: Path, scratch: str | None = None, **keys: Any) -> list[dict[str, Any]]:
    """What each task of a job saw, in the order of nodes and tasks."""
    commands = folder / "bin"
    commands.mkdir()
    for name, text in (("nvidia-smi", NVIDIA_SMI), ("rm", RM)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    resources = Resources(5, cpus=1, mem_gb=1, **keys)
    profile = Profile(
        stages={"default": resources}, scratch=scratch, setup=[f"export PATH={commands}:$PATH"]
    )
    slurm = executor("facts", resources, profile, ROOT, folder / "logs")
    answer = submit(slurm, [Call(folder)])
    assert answer.returncode == 0, answer.stderr
    lab.wait()
    logs = "".join(path.read_text() for path in (folder / "logs").glob("*.err"))
    seen = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    assert len(seen) == resources.nodes * resources.tasks_per_node, logs
    return seen


def test_tmpdir_is_removed_from_every_node_of_a_job(lab: Lab, tmp_path: Path) -> None:
    """The batch script runs on the first node alone, so the others are reached by srun."""
    disks = tmp_path / "disks"
    scratch = f"{disks}/here/$SLURM_JOB_ID"
    run(lab, tmp_path, scratch, partition="cpu", nodes=2, tasks_per_node=2)
    assert sorted(node.name for node in disks.iterdir()) == ["cpu1", "cpu2"], "both wrote to it"
    assert not [left for node in disks.iterdir() for left in node.iterdir()]


def test_a_task_with_two_gpus_hands_both_and_no_other_to_its_workers(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM with tensor_parallel_size 2. What a login shell says of GPUs is not what a job has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("LOCAL_RANK", "3")
    (seen,) = run(lab, tmp_path, partition="gpu", gpus_per_node=2)
    gpus = seen["task"]["CUDA_VISIBLE_DEVICES"].split(",")
    assert len(set(gpus)) == 2
    assert seen["task"]["gpus"] == gpus and seen["task"]["holds"]
    assert seen["worker"]["CUDA_VISIBLE_DEVICES"] == seen["task"]["CUDA_VISIBLE_DEVICES"]
    assert "LOCAL_RANK" not in seen["worker"], "vLLM's workers number themselves"


@pytest.mark.parametrize(("sbatch", "visible"), [({}, 2), ({"gpu-bind": "single:1"}, 1)])
def test_each_rank_of_a_training_has_a_gpu_of_its_own(
    sbatch: dict[str, str], visible: int, lab: Lab, tmp_path: Path
) -> None:
    """tests/recipes/test_device.py: a rank takes GPU LOCAL_RANK, modulo those that it sees."""
    seen = run(lab, tmp_path, partition="gpu", tasks_per_node=2, gpus_per_node=2, sbatch=sbatch)
    chosen = set()
    for number, task in enumerate(task["task"] for task in seen):
        gpus = task["CUDA_VISIBLE_DEVICES"].split(",")
        assert len(gpus) == visible and task["holds"]
        assert task["LOCAL_RANK"] == str(number)
        chosen.add(gpus[int(task["LOCAL_RANK"]) % len(gpus)])
    assert len(chosen) == 2
