"""Ask a GPU node of a cluster for its driver and C library, by a job of seconds.

    python -m slurm.node CLUSTER

`tools/cluster_environment.py` chooses the packages by the answer.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from core.errors import UserError
from core.stages import EVALUATION_STAGES, TRAINING_STAGES
from slurm import slurm_cli
from slurm.cluster_limits import gpus
from slurm.profile import Profile, Resources, load_profile
from slurm.sbatch_options import as_parameters

WAIT_SECONDS = 3600
# The packages are not there yet, so the node's Python is not asked. Answers are marked: shells
# print banners, and nvidia-smi warnings.
_QUESTIONS = (
    'echo "kit host: $(hostname)"; echo "kit machine: $(uname -m)"; '
    'echo "kit glibc: $(getconf GNU_LIBC_VERSION)"; '
    "nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1 | sed 's/^/kit driver: /'"
)
_ANSWER = re.compile(r"^kit (host|machine|glibc|driver): (.*)$", re.MULTILINE)

# Options of sbatch that decide which nodes a job gets; srun has them too.
_OF_NODES = ("reservation", "exclude", "nodelist")


def ask_node(profile: Profile) -> dict[str, str]:
    """`host`, `machine`, `glibc` and `driver` of a node that has the profile's GPUs.

    `driver` is all that nvidia-smi prints, a line for each GPU or an error.
    Raises UserError where the profile requests no GPU, or Slurm gives no node.
    """
    resources = gpu_resources(profile)
    options = ["--job-name=node", "--nodes=1", "--ntasks=1", "--time=5", "--quiet"]
    # One GPU of the type that the profile names.
    kind = str(resources.gpus_per_node).rpartition(":")[0]
    options.append(f"--gpus-per-node={kind}:1" if kind else "--gpus-per-node=1")
    for key in ("partition", "account", "qos", "constraint"):
        if value := getattr(resources, key):
            options.append(f"--{key}={value}")
    for key, value in as_parameters(resources.sbatch).items():
        if key in _OF_NODES:
            options.append(f"--{key}={value}")
    with slurm_cli.clean_environment():
        slurm_cli.require_slurm()
        result = subprocess.run(
            ["srun", *options, "sh", "-c", _QUESTIONS],
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
    answers = dict.fromkeys(("host", "machine", "glibc", "driver"), "")
    for name, text in _ANSWER.findall(result.stdout):
        answers[name] += f"\n{text}" if answers[name] else text
    if result.returncode or not answers["glibc"]:
        reason = slurm_cli.last_line(result.stderr) or "no answer"
        raise UserError(where="srun", what=reason, fix="correct the profile's stages with GPUs")
    return answers


def gpu_resources(profile: Profile) -> Resources:
    """What the first stage with GPUs requests. Raises UserError where none does."""
    for stage in (*TRAINING_STAGES, *sorted(EVALUATION_STAGES)):
        if gpus(resources := profile.resources(stage)):
            return resources
    raise UserError(
        where="stages", what="no stage has gpus_per_node", fix="name the cluster's GPUs there"
    )


if __name__ == "__main__":
    try:
        print(json.dumps(ask_node(load_profile(Path(sys.argv[1])))))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
