"""Every known failure has a log that shows it, as the programs write it."""

import subprocess
import sys
from pathlib import Path

import pytest

from core.cell.failures import KNOWN_FAILURES, diagnose, end, explain, last_lines
from tests.place import ROOT

SLURMSTEPD = "slurmstepd-cpu1: error: *** JOB 494738 ON cpu1 CANCELLED AT 2026-11-24T04:41:42"
LOGS = {
    "held by an administrator": ["Slurm: JobHeldAdmin"],
    "hours used up": [
        "Slurm: AssocGrpCPUMinutesLimit",
        "Slurm: QOSGrpGRESMinutes",
        "Slurm: AssocGrpBillingMinutes",
    ],
    "requeue forbidden": [
        "Requested operation is presently disabled for job 14490",
        "subprocess.CalledProcessError: Command '['scontrol', 'requeue', '14490']' returned "
        "non-zero exit status 1.",
    ],
    "held job": [
        "Slurm: JobHeldUser",
        "Slurm: launch failed requeued held",
        "Slurm: JobHoldMaxRequeue",
    ],
    "no compiler": [
        "gcc: fatal error: cannot execute 'cc1': execvp: No such file or directory",
        "RuntimeError: Failed to find C compiler. Please specify via CC environment variable.",
        "/tmp/t/main.c:5:10: fatal error: Python.h: No such file or directory",
        "torch._inductor.exc.InvalidCxxCompiler: No working C++ compiler found in config.cpp.cxx",
    ],
    "dead dependency": ["Slurm: DependencyNeverSatisfied"],
    "refused by Slurm": [
        "Slurm: PartitionTimeLimit",
        "Slurm: QOSMaxGRESPerJob",
        "Slurm: InvalidAccount",
    ],
    "duplicate": [
        "error: /r/s/sft/a: another process is running this cell; nothing to do: that one keeps the "
        "result; this job frees its GPUs"
    ],
    "time limit": [
        f"{SLURMSTEPD} DUE TO TIME LIMIT ***\nsrun: error: cpu1: task 0: Terminated",
        # 26.05 writes another beginning.
        "[2026-11-24T04:41:42.017] error: *** JOB 12 ON cpu1 CANCELLED AT 2026-11-24T04:41:42 "
        "DUE TO TIME LIMIT ***",
        "submitit.core.utils.UncompletedJobError: Job not requeued because: timed-out too many "
        "times.",
        "Slurm: TIMEOUT",
    ],
    "node failure": [
        "srun: error: Node failure on gpu2",
        "slurmstepd: error: *** STEP 7.0 ON gpu2 CANCELLED AT 2026-11-23T15:22:01 DUE TO NODE "
        "FAILURE, SEE LOG ***",
        "Slurm: NODE_FAIL",
    ],
    "preempted": [
        f"{SLURMSTEPD} DUE TO PREEMPTION ***",
        f"{SLURMSTEPD} DUE TO JOB REQUEUE ***",
        "Slurm: PREEMPTED",
    ],
    "out of GPU memory": [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.1 "
        "GiB",
        "RuntimeError: CUDA error: out of memory",
        "ValueError: No available memory for the cache blocks. Try increasing "
        "`gpu_memory_utilization`",
        "ValueError: Free memory on device (10.1/79.1 GiB) on startup is less than desired GPU "
        "memory utilization",
    ],
    "out of memory": [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some step tasks are OOM",
        "slurmstepd: error: StepId=494733.0 exceeded memory limit (189943808 > 104857600), being "
        "killed",
        "srun: error: cpu1: task 0: Out Of Memory",
        "MemoryError: x",
        "Slurm: OUT_OF_MEMORY",
    ],
    "limit on addresses": [
        "  File x\nMemoryError\na limit of 4294967296 bytes of address space (ulimit -v)",
    ],
    "limit on CPU time": ["srun: error: cpu1: task 0: CPU time limit exceeded (core dumped)"],
    "limit on file size": [
        "OSError: [Errno 27] File too large",
        "srun: error: cpu1: task 0: File size limit exceeded",
    ],
    "limit on open files": ["OSError: [Errno 24] Too many open files: 'rows.npy'"],
    "limit on processes": [
        "RuntimeError: can't start new thread",
        "OpenBLAS blas_thread_init: pthread_create failed for thread 1 of 2: Resource temporarily "
        "unavailable",
        "libgomp: Thread creation failed: Resource temporarily unavailable",
        "slurm_script: fork: retry: Resource temporarily unavailable",
        "BlockingIOError: [Errno 11] Resource temporarily unavailable",
    ],
    "setup ended": [
        "error: a line of setup in the cluster profile ended the job's shell (exit status 0)"
    ],
    "file of the job gone": [
        "FileNotFoundError: [Errno 2] No such file or directory: '/r/s/slurm/jobs/7_0_submitted.pkl'"
    ],
    "no such folder": [
        "slurmstepd: error: couldn't chdir to `/home/u/kit': No such file or directory: going to "
        "/tmp instead",
        "/var/spool/slurmd/job7/slurm_script: line 40: cd: /r/code-1: No such file or directory",
        "/var/spool/slurmd/job7/slurm_script: line 40: cd: /r/code-1: Permission denied",
        "Slurm: FAILED without a log in /r/s/slurm/jobs",
    ],
    "no such interface": [
        "core.errors.UserError: GLOO_SOCKET_IFNAME=ib0: no such network interface on gpu1, which "
        "has lo, eth0; interface: ..."
    ],
    "unknown node name": [
        "core.errors.UserError: gpu1: gpu2 cannot resolve the name of the job's first node; tell"
    ],
    "no locks": ["error: /r/s/sft/a/.lock: flock: Operation not supported; --runs on a file"],
    "cancelled": [
        f"{SLURMSTEPD} ***\nsrun: error: cpu1: task 0: Killed",
        "Slurm: CANCELLED by 1000",
    ],
    "GPU driver too old": [
        "UserWarning: CUDA initialization: The NVIDIA driver on your system is too old (found "
        "version 11040). Please update your GPU driver",
        "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version",
    ],
    "no GPU driver": [
        "error: this job holds a GPU, and torch 2.13.0 can't use it: CUDA initialization: Found no "
        "NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
    ],
    "CPU packages on a GPU": [
        "error: this job holds a GPU, and torch 2.13.0+cpu is a CPU build of torch; name",
        "AssertionError: Torch not compiled with CUDA enabled",
    ],
    "GPU fault": [
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.",
        "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
        "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered",
        "RuntimeError: No CUDA GPUs are available",
        "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    ],
    "collective timeout": [
        "[rank3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=8) ran for 600000 "
        "ms",
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled "
        "system error",
        "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by "
        "peer [127.0.1.1]:43",
        "error: only 3 of 4 ranks came within 0:10:00; see the others' logs",
    ],
    "port in use": [
        "RuntimeError: The server socket has failed to listen: errno: 98, Address already in use"
    ],
    "no disk space": [
        "OSError: [Errno 122] Disk quota exceeded: '/scratch/runs/model.safetensors'",
        "OSError: [Errno 28] No space left on device",
    ],
    "disk fault": [
        "OSError: [Errno 116] Stale file handle: 'rows.npy'",
        "OSError: [Errno 5] Input/output error",
    ],
    "rate limit": [
        "error: still over the rate limit or quota after 6 retries (HTTP 429); writer https://x/v1",
        "error: the judge m at https://x/v1 can't grade: RateLimitError: Error code",
    ],
    "missing key": [
        "error: environment variable K: the key for https://x/v1 is missing; set it before you "
        "start",
        "error: the judge m at https://x/v1 can't grade: AuthenticationError: Error code: 401",
    ],
    "missing model": ["error: no model in /runs/midtrain/a/model; it has no config.json"],
    "unreachable endpoint": ["error: the judge m at http://h/v1 can't grade: APIConnectionError"],
    "missing input": [
        "/r/sft/a: needs start /r/midtrain/b, which is not finished; python -m study cell "
        "/r/midtrain/b"
    ],
    "contaminated": [
        "error: /r/contamination/animal-ahb-1/hits.jsonl: the checkpoint was trained on text of the "
        "benchmark: documents 3, 17 of corpus animal"
    ],
    "too long": [
        "error: question 7: its prompt has 90 tokens and up to 512 may follow, max_model_len is 512"
    ],
    "diverged": ["error: /r/sft/a: the loss is nan at update 12; lower the learning rate"],
    "broken environment": [
        "ModuleNotFoundError: No module named 'submitit'",
        "slurm_script: line 14: module: command not found",
        "slurmstepd: error: execve(): /env/bin/python: No such file or directory",
    ],
    "killed": [
        "srun: error: cpu1: task 0: Killed",
        "srun: error: gpu[1-2]: tasks 0-3,5: Killed",
        "batch.sh: line 30:  4242 Killed                  srun --unbuffered",
        # A rank that was killed, and what the one beside it says then.
        "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:61671\n"
        "srun: error: cpu1: task 1: Killed\nsrun: error: cpu1: task 0: Exited with exit code 1",
    ],
    "a process died": [
        # The first rank to end had an error of its own, and srun killed the others.
        "srun: error: cpu1: task 1: Exited with exit code 1\nsrun: error: cpu1: task 0: Killed",
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
    ],
}


@pytest.mark.parametrize("name", [failure.name for failure in KNOWN_FAILURES])
def test_each_failure_is_known_by_its_logs(name: str) -> None:
    for log in LOGS[name]:
        failure = diagnose(f"2026-11-23 update 12\n{log}\n")
        assert failure and failure.name == name and failure.fix, log


def test_a_limit_on_what_runs_at_once_passes_by_itself() -> None:
    for reason in ("AssocGrpCPURunMinutesLimit", "QOSMaxJobsPerUserLimit", "QOSGrpGRES"):
        assert diagnose(f"Slurm: {reason}", 0) is None


def test_a_kill_without_a_word_is_memory_and_an_unknown_end_is_none() -> None:
    failure = diagnose("update 12", status=-9)
    assert failure and failure.name == "out of memory"
    assert diagnose("Traceback ...\nKeyError: 'x'", status=1) is None
    assert diagnose("Traceback ...\nKeyError: 'x'") is None
    failure = diagnose("update 12")
    assert failure and failure.name == "stopped"
    assert diagnose("update 12\nSlurm: FAILED") is None


LIMITED = """
import resource, sys, threading
from pathlib import Path
from core import shell_limits
from core.cell.log import log_to
with log_to(Path(sys.argv[1])):
    resource.setrlimit(resource.{limit}, ({value}, {value}))
    shell_limits.lift()
    {code}
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("limit", "value", "code", "name"),
    [
        ("RLIMIT_AS", 2**30, "bytearray(2**31)", "limit on addresses"),
        ("RLIMIT_CPU", 2, "while True: pass", "limit on CPU time"),
        (
            "RLIMIT_FSIZE",
            2**20,
            "open(sys.argv[1] + '/a', 'wb').write(bytes(2**21))",
            "limit on file size",
        ),
        (
            "RLIMIT_NOFILE",
            64,
            "files = [open('/dev/null') for _ in range(99)]",
            "limit on open files",
        ),
    ],
)
def test_a_limit_of_the_shell_is_the_cause_of_what_it_ends(
    limit: str, value: int, code: str, name: str, tmp_path: Path
) -> None:
    text = LIMITED.format(limit=limit, value=value, code=code)
    status = subprocess.run([sys.executable, "-c", text, str(tmp_path)], cwd=ROOT).returncode
    log = (tmp_path / "log.txt").read_text()
    failure = diagnose("\n".join(log.splitlines()[-8:]), status)
    assert failure and failure.name == name, log
    assert "ulimit -" in failure.fix


@pytest.mark.multiprocess
def test_soft_limits_are_lifted() -> None:
    code = "import resource\nfrom core import shell_limits\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (9, resource.RLIM_INFINITY))\n"
    code += "shell_limits.lift()\nassert not shell_limits.tight()\n"
    code += "assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def explained(*logs: str, slurm_reason: str = "") -> tuple[str | None, str | None]:
    failure, line = explain([log.splitlines() for log in logs], slurm_reason)
    return (failure.name if failure else None), line


def test_what_ended_a_job_comes_before_what_its_processes_say_of_it() -> None:
    dying = "[rank0] Connection closed by peer"
    assert explained(dying, "srun: error: Node failure on gpu2") == (
        "node failure",
        "srun: error: Node failure on gpu2",
    )
    assert explained(dying, slurm_reason="OUT_OF_MEMORY") == (
        "out of memory",
        "Slurm: OUT_OF_MEMORY",
    )


def test_the_root_stands_far_above_the_end_but_what_went_well_again_is_no_cause() -> None:
    below = "\n".join(f'  File "core.py", line {n}, in f' for n in range(60))
    last = "RuntimeError: Engine core initialization failed. See root cause above."
    root = "(EngineCore) ERROR torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    assert explained(f"{root}\n{below}\n{last}") == ("out of GPU memory", root)
    assert explained(f"INFO HTTP 429, asked again in 3 s\n{below}\nKeyError: 'x'") == (None, None)
    nearer = f"{root}\n{below}\nOSError: [Errno 122] Disk quota exceeded"
    assert explained(nearer)[0] == "no disk space"


def test_a_log_is_read_from_the_last_start_on(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(
        "x\n" * 200_000 + "Disk quota exceeded\n2026 sft a starts (process 7)\nupdate 1\n"
    )
    assert last_lines(tmp_path) == ["2026 sft a starts (process 7)", "update 1"]
    log.write_bytes(b"a \xff line\n" * 20)
    assert len(last_lines(tmp_path)) == 8 and len(end(log)) == 20
    assert last_lines(tmp_path / "nothing") == []
