"""What one job requests from Slurm and how it starts, as settings of submitit."""

import shlex
import sys
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor

from slurm.profile import Profile, Resources

SIGNAL_SECONDS = 90
"""How long before its time limit a job is told to checkpoint."""
_CACHES = {"HF_HOME": "huggingface", "VLLM_CACHE_ROOT": "vllm", "TRITON_CACHE_DIR": "triton"}
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def executor(
    name: str, resources: Resources, profile: Profile, code: Path, logs: Path, **settings: Any
) -> SlurmExecutor:
    """submitit's executor for jobs with the same resources.

    The jobs run `code` and keep script, log and pickle in `logs`. `settings`: further settings of
    submitit, such as dependency.
    """
    # The profile's `python` is a command; a path of ours may hold a blank.
    python = profile.python or shlex.quote(sys.executable)
    slurm = SlurmExecutor(logs, max_num_timeout=profile.requeue, python=python)
    slurm.update_parameters(**_parameters(name, resources, profile, code), **settings)
    return slurm


def script(slurm: SlurmExecutor, command: str = "true") -> str:
    """The batch script that sbatch would be given for a job that runs `command`."""
    return slurm._make_submission_file_text(command, "")


def _parameters(name: str, resources: Resources, profile: Profile, code: Path) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "job_name": name,
        "time": resources.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "array_parallelism": profile.array_parallelism,
        "wckey": None,  # submitit's own is refused where a site keeps a list of them
        # Slurm may signal up to a minute early, and a short limit must leave time to work.
        "signal_delay_s": min(SIGNAL_SECONDS, resources.minutes * 60 // 3),
        # Slurm 22.05 and 23.02 do not pass --cpus-per-task on to srun. The second option ends the
        # other ranks when one dies.
        "srun_args": [f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1"],
        "additional_parameters": {
            "chdir": str(code),
            "kill-on-invalid-dep": "yes",
            "requeue" if profile.requeue else "no-requeue": True,
        },
        "setup": _setup(profile, code),
    }
    if resources.gpus_per_node:
        parameters["gpus_per_node"] = resources.gpus_per_node
    if resources.mem_gb:
        parameters["mem"] = f"{int(resources.mem_gb * 1024)}M"
    for key in ("partition", "account", "qos", "constraint"):
        if value := getattr(resources, key):
            parameters[key] = value
    return parameters


def _setup(profile: Profile, code: Path) -> list[str]:
    path = shlex.quote(str(code))
    lines = [
        *profile.setup,
        f'export PYTHONPATH={path}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        # The same as in local runs, so that results do not depend on where a cell runs.
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"',
        "export PYTHONUNBUFFERED=1",
    ]
    if profile.scratch:
        lines.append(f'export TMPDIR="{profile.scratch}"')
    if profile.cache:
        lines += [f'export {name}="{profile.cache}/{folder}"' for name, folder in _CACHES.items()]
    if profile.offline:
        lines += [f"export {name}=1" for name in _OFFLINE]
    return lines
