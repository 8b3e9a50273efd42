"""The batch script, whatever the lines of `setup` and the shell of the person do."""

import subprocess
from pathlib import Path

import pytest

from core.cell.failures import diagnose
from slurm.executor import executor
from slurm.executor import script as batch_script
from slurm.profile import Profile, Resources
from tests.slurm.places import Fake, Kit

pytestmark = pytest.mark.slurm


def run(
    folder: Path, fake: Fake, setup: list[str], srun: str = "pwd; env"
) -> subprocess.CompletedProcess[str]:
    """Run a job's script on this machine; in place of srun, shell commands."""
    code, logs = folder / "the code", folder / "jobs"
    for path in (code, logs):
        path.mkdir(exist_ok=True)
    (fake.folder / "bin/srun").write_text(f"#!/bin/bash\n{srun}\n")
    profile = Profile(stages={"default": Resources(10)}, setup=setup)
    path = folder / "slurm_script"
    path.write_text(batch_script(executor("job", Resources(10), profile, code, logs)))
    return subprocess.run(["bash", str(path)], capture_output=True, text=True, cwd=folder)


def variables(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    lines = result.stdout.splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_jobs_run_the_copy_of_the_code_wherever_setup_goes(tmp_path: Path, fake: Fake) -> None:
    """`python -m` imports modules of the current folder first."""
    result = run(tmp_path, fake, ['cd "$SLURM_SUBMIT_DIR"', "cd /"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == str(tmp_path / "the code")
    assert variables(result)["PYTHONPATH"].split(":")[0] == str(tmp_path / "the code")


@pytest.mark.parametrize("line", ["exit 0", "exec true", "exit 3", ". ./profile", "kill -9 $$"])
def test_a_setup_that_ends_its_shell_is_a_failure_with_its_cause(
    line: str, tmp_path: Path, fake: Fake
) -> None:
    (tmp_path / "profile").write_text("exec true\n")
    result = run(tmp_path, fake, [line], srun=f"touch {tmp_path}/ran")
    assert result.returncode not in (0, None) and not (tmp_path / "ran").exists()
    failure = diagnose(result.stderr)
    assert failure and failure.name == "setup ended" and "setup" in failure.fix


def test_the_status_of_a_job_is_that_of_srun(tmp_path: Path, fake: Fake) -> None:
    result = run(tmp_path, fake, ["true"], srun="exit 9")
    assert result.returncode == 9 and not result.stderr


def test_variables_that_change_numbers_come_from_the_profile_alone(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = {
        "OMP_NUM_THREADS": "4,2",
        "MKL_CBWR": "SSE4_2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "default",
        "NVIDIA_TF32_OVERRIDE": "1",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":16:8",
        "VLLM_USE_V1": "0",
        "NCCL_ALGO": "Tree",
    }
    others = {
        "TRITON_CACHE_DIR": "/a b",
        "VLLM_HOST_IP": "10.0.0.1",
        "PYTORCH_ALLOC_CONF": "x:y",
        "NCCL_SOCKET_IFNAME": "ib0",
        "OMPI_MCA_btl": "tcp",
    }
    for name, value in {**shell, **others}.items():
        monkeypatch.setenv(name, value)
    job = variables(run(tmp_path, fake, []))
    assert {name: job[name] for name in shell.keys() & job.keys()} == {"OMP_NUM_THREADS": "1"}
    assert {name: job[name] for name in others} == others
    job = variables(run(tmp_path, fake, ["export OMP_NUM_THREADS=2 MKL_CBWR=COMPATIBLE"]))
    assert (job["OMP_NUM_THREADS"], job["MKL_CBWR"]) == ("2", "COMPATIBLE")


def test_a_node_that_has_no_such_folder_says_so(tmp_path: Path, fake: Fake) -> None:
    result = run(tmp_path, fake, [f"mv '{tmp_path}/the code' {tmp_path}/moved"])
    assert result.returncode != 0
    failure = diagnose(result.stderr)
    assert failure and failure.name == "no such folder" and "runs" in failure.fix


def test_a_home_that_is_a_link_keeps_its_name_in_jobs(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes may resolve the link otherwise. Python says where it leads here."""
    (tmp_path / "here").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Kit(tmp_path / "here").done("submit", "--runs", str(tmp_path / "here/runs"))
    scripts = [path.read_text() for path in fake.folder.glob("[0-9]*.sh")]
    assert scripts and not any(f"{tmp_path}/here" in text for text in scripts)
    assert f"#SBATCH --chdir={tmp_path}/home/runs/small/slurm/code-" in scripts[0]
