"""What one job requests from Slurm and how it starts, as settings of submitit."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import DelayedSubmission

from core import numeric_environment
from core.errors import UserError
from core.paths import as_seen_on_nodes
from core.private_folder import deny_writing
from slurm import slurm_cli
from slurm.profile import Profile, Resources
from slurm.sbatch_options import as_parameters

# What libraries download or compile, and would do again in each job in a folder of the job's own.
_CACHES = {
    "HF_HOME": "huggingface",
    "VLLM_CACHE_ROOT": "vllm",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "CUDA_CACHE_PATH": "cuda",
    "TILELANG_CACHE_DIR": "tilelang",
}
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


# SLURM_JOB_ID is the id of the whole array for its last task.
_JOB = 'job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"'
# By these a shell that the profile's `setup` reads, or a module, would change what Slurm's commands
# answer, what srun starts or hands on, the signal that submitit handles, or where Python looks for
# its library.
_UNSET = " ".join(
    [
        "SUBMITIT_PREEMPT_SIGNAL SLURM_CLUSTERS SLURM_EXPORT_ENV SLURM_MPI_TYPE PYTHONHOME",
        *(f'"${{!{name}_@}}"' for name in ("SQUEUE", "SCONTROL", "SRUN")),
    ]
)
# With -p the first shell reads no file ($BASH_ENV) and takes no functions from the environment.
_SHEBANG = "#!/bin/bash -p"
# The second does both, for a `module` of setup. What comes after setup needs neither a function in
# place of srun or rm, nor what ends a shell early (`set -eu`).
_PLAIN_SHELL = "unset -f $(compgen -A function); trap - DEBUG ERR; set +efu +o pipefail"
SETUP_ENDED = "error: a line of setup in the cluster profile ended the job's shell"
# The script runs itself once more in a second shell, which says when it is past the profile's
# lines. One of these, or of a file that they read, may end that shell with status 0 (`exit`) or put
# another program in its place (`exec zsh`); a job that did nothing must not count as COMPLETED.
_OUTER_SHELL = f"""\
if [ -z "$KIT_SECOND_SHELL" ]; then
  ready=
  trap : TERM
  trap ready=1 USR1
  KIT_SECOND_SHELL=1 "$BASH" "$0"
  status=$?
  if [ -z "$ready" ]; then
    echo "{SETUP_ENDED} (exit status $status)" >&2
    [ $status != 0 ] || status=1
  fi
  exit $status
fi
unset KIT_SECOND_SHELL"""


def executor(
    name: str,
    resources: Resources,
    profile: Profile,
    code: Path,
    logs: Path,
    group: str = "GROUP",
    dependency: str | None = None,
) -> SlurmExecutor:
    """submitit's executor for the jobs of one group, for `submit`.

    The jobs run `code` and keep script, log and pickle in `logs`. `group` is their comment, and
    part of the names of script and pickles.

    Raises UserError where Slurm would not write to `logs`.
    """
    if set("%\\\n") & set(str(logs)):
        raise UserError(
            where=str(logs),
            what="Slurm reads % and \\ in the path of a log as patterns",
            fix="give a runs folder without them: --runs",
        )
    slurm = SlurmExecutor(logs, max_num_timeout=profile.requeue, python=_python(profile))
    slurm.update_parameters(
        **_parameters(name, resources, profile, code, logs, group),
        comment=group,
        dependency=dependency,
    )
    return slurm


def submit(slurm: SlurmExecutor, calls: Sequence[Any]) -> subprocess.CompletedProcess[str]:
    """Have sbatch queue picklable `calls`, as an array where there are several.

    In place of submitit's own submission, which names the pickles by the job's id once sbatch has
    answered: here a job finds its pickle by the name of its group, whether sbatch's answer came or
    not, and whatever a site's wrapper made of it.

    Returns what sbatch answered. Raises UserError where it is missing, or gives no answer in time.
    """
    group, folder = slurm.parameters["comment"], Path(slurm.folder)
    folder.mkdir(parents=True, exist_ok=True)
    deny_writing(folder)
    for index, call in enumerate(calls):
        delayed = DelayedSubmission(call)
        delayed.set_timeout(slurm.parameters["time"], slurm.max_num_timeout)
        pickle = folder / f"{group}_{index}.pkl"
        delayed.dump(pickle)
        deny_writing(pickle)
    path = folder / f"{group}.sh"
    path.write_text(script(slurm, slurm._submitit_command_str, len(calls)), encoding="utf-8")
    return slurm_cli.call("sbatch", "--parsable", str(path))


def script(slurm: SlurmExecutor, command: str = "true", tasks: int = 1) -> str:
    """The batch script that sbatch would be given for a job, or an array of `tasks`."""
    if tasks > 1:
        slurm.parameters["map_count"] = tasks
    first, *rest = slurm._make_submission_file_text(command, "").splitlines()
    assert first == "#!/bin/bash"
    return "\n".join([_SHEBANG, *rest])


def requeue_flag(logs: str | Path, job: str) -> str:
    """The file by which a job asks the batch script to queue it again.

    It holds the seconds until the job should start, or nothing.
    """
    return f"{logs}/requeue-{job}"


def _parameters(
    name: str, resources: Resources, profile: Profile, code: Path, logs: Path, group: str
) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "job_name": name,
        "time": resources.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "array_parallelism": profile.array_parallelism,
        "wckey": None,  # submitit's own is refused where a site keeps a list of them
        # Slurm may signal up to a minute early, and a short limit must leave time to work.
        "signal_delay_s": min(profile.signal_seconds, resources.minutes * 60 // 3),
        # Slurm 22.05 and 23.02 do not pass --cpus-per-task on to srun. The second option ends the
        # other ranks when one dies.
        "srun_args": [f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1"],
        "additional_parameters": {
            "chdir": str(code),
            "kill-on-invalid-dep": "yes",
            "requeue" if profile.requeue else "no-requeue": True,
            # The limits of a login node (ulimit) are not meant for trainings.
            "propagate": "NONE",
            **as_parameters(resources.sbatch),
        },
        "setup": _setup(profile, code, logs, group),
        "teardown": _teardown(profile, resources, logs),
    }
    if resources.gpus_per_node:
        parameters["gpus_per_node"] = resources.gpus_per_node
    if resources.mem_gb:
        parameters["mem"] = f"{int(resources.mem_gb * 1024)}M"
    for key in ("partition", "account", "qos", "constraint"):
        if value := getattr(resources, key):
            parameters[key] = value
    return parameters


def _python(profile: Profile) -> str:
    """The command that starts Python. A path of ours may hold a blank."""
    return profile.python or shlex.quote(str(as_seen_on_nodes(Path(sys.executable))))


def _setup(profile: Profile, code: Path, logs: Path, group: str) -> list[str]:
    path, folder = shlex.quote(str(code)), shlex.quote(str(logs))
    pickle = f'{folder}/"$job"_submitted.pkl'
    # A module's PYTHONPATH would put the site's packages before the environment's.
    meant = any("PYTHONPATH" in line for line in profile.setup)
    rest = '"${PYTHONPATH:+:$PYTHONPATH}"' if meant else ""
    lines = [
        _OUTER_SHELL,
        numeric_environment.shell_line(),
        *profile.setup,
        _PLAIN_SHELL,
        "kill -USR1 $PPID",
        # Sites' examples begin with `cd $SLURM_SUBMIT_DIR`, which is the checkout: Python would
        # import its modules.
        f"builtin cd {path} || exit",
        f"unset {_UNSET}",
        _JOB,
        f'[ -z "$(find {folder}/ -maxdepth 0 \\( ! -user "$(id -u)" -o -perm /022 \\))" ] || '
        f"{{ echo {shlex.quote(_planted(logs))} >&2; exit 1; }}",
        # A job that was queued again has a pickle of its own there: submitit counts its restarts.
        f'[ -e {pickle} ] || ln -s {shlex.quote(group)}_"${{SLURM_ARRAY_TASK_ID:-0}}".pkl {pickle}',
        f"export PYTHONPATH={path}{rest}",
        # The same as in local runs, so that results do not depend on where a cell runs.
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"',
        "export PYTHONUNBUFFERED=1",
        "export PYTHONUTF8=1",
    ]
    if profile.scratch:
        lines.append(f'export TMPDIR="{profile.scratch}"')
    if profile.cache:
        lines += [f'export {name}="{profile.cache}/{folder}"' for name, folder in _CACHES.items()]
    elif profile.scratch:
        # The one cache that lies in TMPDIR; the others are in the home folder.
        name = "TORCHINDUCTOR_CACHE_DIR"
        lines.append(f'export {name}="${{{name}:-$HOME/.cache/torchinductor}}"')
    if profile.offline:
        lines += [f"export {name}=1" for name in _OFFLINE]
    if profile.requeue:
        lines.append(f"rm -f {_flag(logs)}")
    # When Slurm stops the job, the shell stays until srun has ended, and does what follows it.
    return [*lines, "trap : TERM"]


def _planted(logs: Path) -> str:
    """Said where a pickle may be somebody else's: reading it would run what it says."""
    return (
        f"error: {logs}: it is another user's or others may write to it, and what is read there "
        "could run as you; submit again"
    )


def _flag(logs: Path) -> str:
    return requeue_flag(shlex.quote(str(logs)), '"$SLURM_JOB_ID"')


def _teardown(profile: Profile, resources: Resources, logs: Path) -> list[str]:
    """Shell lines after srun: remove TMPDIR, and queue the job again where it should be.

    In a container there is no scontrol, so a job can't queue itself (`slurm.job`). A process that
    was killed can't anywhere (`slurm.retry`).
    """
    lines = ["status=$?"]
    # A folder that is not of this job alone stays.
    if profile.scratch and "SLURM_JOB_ID" in profile.scratch:
        remove = f'rm -rf -- "{profile.scratch}"'
        if (nodes := resources.nodes) > 1:
            step = f"srun --overlap --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1"
            remove = f"timeout 60 {step} {remove} 2>/dev/null"
        lines.append(remove)
    python, folder = _python(profile), shlex.quote(str(logs))
    failed_for_good = f"[ $status = 0 ] || [ -e {_flag(logs)} ] || ! running ||"
    if profile.requeue or profile.notify:
        # A cancelled job is not RUNNING any more. A site may greet before the answer.
        lines += [
            "running() {",
            "  for _ in 1 2 3; do",
            '    state=$(squeue --noheader --jobs="$job" --format=%T) && break',
            "    sleep 1",
            "  done",
            "  [ \"${state##*$'\\n'}\" = RUNNING ]",
            "}",
        ]
    if profile.requeue and profile.retries:
        lines.append(f"{failed_for_good} {python} -m slurm.retry {folder} {profile.retries}")
    if profile.notify:
        lines.append(f"{failed_for_good} {python} -m slurm.notify {folder}")
    if profile.requeue:
        lines += [
            f"delay=$(cat {_flag(logs)} 2>/dev/null)",
            f"if rm {_flag(logs)} 2>/dev/null && running; then",
            '  for _ in 1 2 3; do scontrol requeue "$job" && break; sleep 1; done',
            # Slurm then ends this shell by SIGTERM, which it ignores, and soon after by SIGKILL.
            "  for _ in ${delay:+1 2 3 4 5}; do",
            '    scontrol update JobId="$job" StartTime=now+"$delay" && break',
            "    sleep 1",
            "  done",
            "fi",
        ]
    return [*lines, "exit $status"]
