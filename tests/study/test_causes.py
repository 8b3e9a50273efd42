"""Every known cause has a log that shows it, as the programs write it."""

import pytest

from study.causes import CAUSES, cause

LOGS = {
    "time limit": "slurmstepd: error: *** JOB 1042 ON gpu1 CANCELLED AT 2026-11-23T15:22:01 DUE TO TIME LIMIT ***",
    "node failure": "srun: error: Node failure on gpu2\nslurmstepd: error: *** STEP 7.0 DUE TO NODE FAILURE ***",
    "preempted": "slurmstepd: error: *** JOB 9 ON cpu1 CANCELLED AT 2026-11-23T15:22:01 DUE TO PREEMPTION ***",
    "out of GPU memory": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.1 GiB",
    "out of memory": "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some step tasks are OOM",
    "collective timeout": "[rank3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=8) ran for 600000 ms",
    "port in use": "RuntimeError: The server socket has failed to listen: errno: 98, Address already in use",
    "no disk space": "OSError: [Errno 122] Disk quota exceeded: '/scratch/runs/model.safetensors'",
    "rate limit": "error: still over the rate limit or quota after 6 retries (HTTP 429); writer https://x/v1",
    "missing key": "error: the key for https://x/v1 is missing; environment variable K; set it before you start",
    "missing model": "error: no model in /runs/midtrain/a/model; it has no config.json",
    "unreachable endpoint": "error: the judge m at http://h/v1 can't grade: APIConnectionError",
    "missing input": "/r/sft/a: needs start /r/midtrain/b, which is not finished; python -m study cell /r/midtrain/b",
}


@pytest.mark.parametrize("name", [known.name for known in CAUSES])
def test_each_cause_is_known_by_its_log(name: str) -> None:
    found = cause(f"2026-11-23 update 12\n{LOGS[name]}\n")
    assert found and found.name == name and found.cure


def test_a_kill_without_a_word_is_memory_and_an_unknown_end_is_none() -> None:
    found = cause("update 12", status=-9)
    assert found and found.name == "out of memory"
    assert cause("Traceback ...\nKeyError: 'x'", status=1) is None
