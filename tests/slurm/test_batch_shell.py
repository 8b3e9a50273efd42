"""The batch script, whatever the lines of `setup` and the shell of the person do."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from core.cell.failures import diagnose
from core.cell.manifest import read_manifest
from slurm.executor import executor
from slurm.executor import script as batch_script
from slurm.profile import Profile, Resources
from slurm.submit import submit
from tests.slurm.places import Fake, Kit, Lab
from tests.slurm.test_limit import PROFILE, corpora

pytestmark = pytest.mark.slurm


def run(
    folder: Path, fake: Fake, setup: list[str], srun: str = "pwd; env"
) -> subprocess.CompletedProcess[str]:
    """Run a job's script on this machine; in place of srun, shell commands."""
    code, logs = folder / "a blank/code-1", folder / "jobs"
    for path in (code, logs):
        path.mkdir(parents=True, exist_ok=True)
    (fake.folder / "bin/srun").write_text(f"#!/bin/bash\n{srun}\n")
    profile = Profile(stages={"default": Resources(10)}, setup=setup)
    path = folder / "slurm_script"
    path.write_text(batch_script(executor("job", Resources(10), profile, code, logs)))
    path.chmod(0o755)
    return subprocess.run([str(path)], capture_output=True, text=True, cwd=folder)


def variables(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    lines = result.stdout.splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_jobs_run_the_copy_of_the_code_wherever_setup_goes(tmp_path: Path, fake: Fake) -> None:
    """`python -m` imports modules of the current folder first."""
    result = run(tmp_path, fake, ['cd "$SLURM_SUBMIT_DIR"', "cd /"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == str(tmp_path / "a blank/code-1")
    assert variables(result)["PYTHONPATH"].split(":")[0] == str(tmp_path / "a blank/code-1")


@pytest.mark.parametrize("named", [False, True])
def test_packages_of_a_module_do_not_come_before_the_environment(
    named: bool, tmp_path: Path, fake: Fake
) -> None:
    (tmp_path / "module").write_text("export PYTHONPATH=/site PYTHONHOME=/site\n")
    setup = ["source module", *(["export PYTHONPATH=/mine:$PYTHONPATH"] if named else [])]
    result = variables(run(tmp_path, fake, setup))
    assert "PYTHONHOME" not in result
    assert result["PYTHONPATH"].split(":")[1:] == (["/mine", "/site"] if named else [])


@pytest.mark.parametrize("line", ["exit 0", "exec true", "exit 3", ". ./profile", "kill -9 $$"])
def test_a_setup_that_ends_its_shell_is_a_failure_with_its_cause(
    line: str, tmp_path: Path, fake: Fake
) -> None:
    (tmp_path / "profile").write_text("exec true\n")
    result = run(tmp_path, fake, [line], srun=f"touch {tmp_path}/ran")
    assert result.returncode not in (0, None) and not (tmp_path / "ran").exists()
    failure = diagnose(result.stderr)
    assert failure and failure.name == "setup ended" and "setup" in failure.fix


def test_a_file_of_bash_that_ends_its_shell_is_named(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bash reads $BASH_ENV before a script: a job that did nothing would count as COMPLETED."""
    (tmp_path / "bash_env").write_text("exit 0\n")
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "bash_env"))
    result = run(tmp_path, fake, [], srun=f"touch {tmp_path}/ran")
    assert result.returncode == 1 and not (tmp_path / "ran").exists()
    failure = diagnose(result.stderr)
    assert failure and failure.name == "setup ended" and "$BASH_ENV" in failure.fix


@pytest.mark.parametrize("line", ["set -euo pipefail", "set -eE; trap 'exit 3' ERR"])
def test_a_strict_setup_does_not_end_what_comes_after_it(
    line: str, tmp_path: Path, fake: Fake
) -> None:
    """The lines after srun queue a job again."""
    result = run(tmp_path, fake, [line], srun="exit 9")
    assert result.returncode == 9, result.stderr


def test_functions_of_a_shell_are_for_setup_alone(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites export `module` so, or define it in the file that $BASH_ENV names."""
    (tmp_path / "bash_env").write_text('set -u\nmodule() { export LOADED="$2"; }\n')
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "bash_env"))
    for name in ("srun", "kill", "ln", "rm", "trap", "exit"):
        monkeypatch.setenv(f"BASH_FUNC_{name}%%", f"() {{  echo no {name}\n}}")
    monkeypatch.setenv("BASH_FUNC_ml%%", "() {  export MORE=$1\n}")
    result = run(tmp_path, fake, ["module load cuda", "ml gcc"])
    assert result.returncode == 0, result.stderr
    assert (variables(result)["LOADED"], variables(result)["MORE"]) == ("cuda", "gcc")
    assert not any(line.startswith("no ") for line in result.stdout.splitlines())


def test_what_srun_hands_on_is_not_for_a_module_to_say(tmp_path: Path, fake: Fake) -> None:
    """With SLURM_EXPORT_ENV=NONE ranks start without any variable of their job."""
    result = run(tmp_path, fake, ["export SLURM_EXPORT_ENV=NONE SLURM_MPI_TYPE=pmix_v3"])
    assert not {"SLURM_EXPORT_ENV", "SLURM_MPI_TYPE"} & variables(result).keys()


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
    result = run(tmp_path, fake, [f"mv '{tmp_path}/a blank/code-1' {tmp_path}/moved"])
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


def test_on_a_cluster_setup_may_go_elsewhere_but_not_end_the_shell(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    for package in ("core", "slurm"):
        (checkout / package).mkdir(parents=True)
        (checkout / package / "__init__.py").write_text("raise SystemExit('the live checkout')")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (tmp_path / "bash_env").write_text("set -eu\n")
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "bash_env"))
    monkeypatch.setenv("SHELLOPTS", "braceexpand:errexit:hashall:noglob:nounset")
    monkeypatch.setenv("BASH_FUNC_srun%%", "() {  echo no srun\n}")
    (cell,) = corpora(1)
    leaves = f"cd {checkout}; export SLURM_EXPORT_ENV=NONE SLURM_MPI_TYPE=pmix_v3"
    setups = {"elsewhere": leaves, "ended": "exec true"}
    for name, line in setups.items():
        submit([cell], tmp_path / name / "s", replace(PROFILE, setup=[line]), "lab")
    lab.wait()
    logs = {
        name: "\n".join(p.read_text() for p in (tmp_path / name / "s/slurm/jobs").glob("*_log.*"))
        for name in setups
    }
    manifest = read_manifest(tmp_path / "elsewhere/s" / cell.relpath)
    assert manifest, logs["elsewhere"]
    assert manifest["environment"] == {"OMP_NUM_THREADS": "1"}
    assert not read_manifest(tmp_path / "ended/s" / cell.relpath)
    failure = diagnose(logs["ended"], 1)
    assert failure and failure.name == "setup ended", logs["ended"]
    if lab.accounting:
        (job,) = [
            path.name.split("_")[0] for path in (tmp_path / "ended/s/slurm/jobs").glob("*_log.err")
        ]
        states = lab.ask("sacct", "--noheader", "--allocations", "--format=State", f"--jobs={job}")
        assert states.split() == ["FAILED"]
