"""What one job asks of Slurm and how it starts, as settings of submitit."""

import shlex
import sys
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor

from slurm.profile import Profile, Shape


def executor(name: str, shape: Shape, profile: Profile, code: Path, logs: Path, **more: Any) -> SlurmExecutor:
    """submitit's executor for jobs of one shape, which run `code` and keep script, log and pickle in `logs`.

    `more`: further settings of submitit, such as dependency.
    """
    found = SlurmExecutor(logs, max_num_timeout=profile.requeue, python=profile.python or shlex.quote(sys.executable))
    found.update_parameters(**_parameters(name, shape, profile, code), **more)
    return found


def script(found: SlurmExecutor, command: str = "true") -> str:
    """The text that sbatch would be given for a job that runs `command`."""
    return found._make_submission_file_text(command, "")


def _parameters(name: str, shape: Shape, profile: Profile, code: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "job_name": name,
        "time": shape.minutes,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.tasks_per_node,
        "cpus_per_task": shape.cpus,
        "array_parallelism": profile.array_parallelism,
        "wckey": None,  # submitit's own is refused where a site keeps a list of them
        # Slurm may signal up to a minute early, and a short limit must leave time to work before the signal.
        "signal_delay_s": min(90, shape.minutes * 60 // 3),
        # Slurm 22.05 and 23.02 don't hand --cpus-per-task on to srun; and one dead rank must end the others.
        "srun_args": [f"--cpus-per-task={shape.cpus}", "--kill-on-bad-exit=1"],
        "additional_parameters": {
            "chdir": str(code),
            "kill-on-invalid-dep": "yes",
            "requeue" if profile.requeue else "no-requeue": True,
        },
        "setup": _setup(profile, code),
    }
    if shape.gpus_per_node:
        found["gpus_per_node"] = shape.gpus_per_node
    if shape.mem_gb:
        found["mem"] = f"{int(shape.mem_gb * 1024)}M"
    return found | {k: v for k in ("partition", "account", "qos", "constraint") if (v := getattr(shape, k))}


def _setup(profile: Profile, code: Path) -> list[str]:
    lines = [*profile.setup, f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"']
    # As on one machine: results are then the same wherever a cell runs.
    lines += ['export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"', "export PYTHONUNBUFFERED=1"]
    if profile.scratch:
        lines.append(f'export TMPDIR="{profile.scratch}"')
    if profile.cache:
        for name, place in (("HF_HOME", "huggingface"), ("VLLM_CACHE_ROOT", "vllm"), ("TRITON_CACHE_DIR", "triton")):
            lines.append(f'export {name}="{profile.cache}/{place}"')
    if profile.offline:
        lines += [f"export {name}=1" for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")]
    return lines
