"""Make the environment in .venv: `make study` and `make test` run this first.

    python3 tools/environment.py

It needs nothing but Python's standard library. `.venv/ready` holds a hash of everything the
environment is made from, so a changed pin, a moved checkout or an interrupted set-up makes it
again. The installer is uv, which pip brings into .venv; pip itself is used where uv can't be
installed. uv's cache lies in .venv too: packages are hard links to it, so they take their space
once, and making the environment again downloads nothing twice.
"""

import ast
import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HASHES = "requirements-cpu-hashes.txt"
TORCH = "requirements-cpu-torch.txt"
VLLM = "requirements-cpu-vllm.txt"
ALIAS = "eval/vllm_alias"
INPUTS = (HASHES, TORCH, VLLM, f"{ALIAS}/pyproject.toml", "tools/environment.py")
# Where PyTorch publishes its CPU wheels: what pytorch.org/get-started shows for Linux, Pip, CPU.
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
NEEDED_GB = 4
GLIBC = (2, 31)  # what the wheels of llguidance are made for
KEPT = ("cache", "lock")  # of .venv, when it is made again
# pip's settings that say where packages come from. Others (user, target, prefix, require-hashes)
# would lead the installation elsewhere or stop it.
CARRIED = (
    "index-url", "extra-index-url", "find-links", "no-index", "cert", "client-cert", "trusted-host", "proxy", "timeout",
    "default-timeout", "retries", "keyring-provider",
)  # fmt: skip
# The same of uv's own variables.
CARRIED_UV = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|INDEX_\w+_(USERNAME|PASSWORD)|FIND_LINKS|HTTP_TIMEOUT"
    r"|INSECURE_HOST|KEYRING_PROVIDER|SYSTEM_CERTS|NATIVE_TLS|OFFLINE)"
)


class SetupError(Exception):
    """The environment can't be made: where, what, what to do."""


def main() -> int:
    """Make the environment where it is missing or out of date. Returns the exit code."""
    venv = ROOT / ".venv"
    base = base_python()
    try:
        check_python()
        wanted = fingerprint(ROOT, base)
        if is_ready(venv, wanted):
            return 0
        check_glibc(platform.node(), glibc())
        check_system()
        check_disk(venv)
        with only_one(venv):
            if not is_ready(venv, wanted):  # another set-up may have made it in the meantime
                make(venv, base, wanted)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        if (venv / "cache").exists():
            print("The same command continues, and what was downloaded is kept.", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: {error.filename or venv}: {error.strerror}. {advice(str(error))}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            "stopped; the same command continues, and what was downloaded is kept", file=sys.stderr
        )
        return 130
    return 0


def base_python() -> str:
    """The interpreter that is left when every virtual environment is gone: .venv may be active, and
    is removed."""
    return getattr(sys, "_base_executable", None) or sys.executable


def fingerprint(root: Path, base: str) -> str:
    """Hash (hex) of what the environment is made from: the pins, this file, the checkout's path,
    the Python."""
    digest = hashlib.sha256(f"{root}\0{base}\0{sys.version}\0".encode())
    for name in INPUTS:
        digest.update(f"{name}\0".encode() + (root / name).read_bytes())
    return digest.hexdigest()


def is_ready(venv: Path, wanted: str) -> bool:
    """Whether the environment is complete, and made from these pins, at this path, by this Python."""
    try:
        return (venv / "ready").read_text() == wanted and os.access(venv / "bin/python", os.X_OK)
    except OSError:
        return False


# What the machine must have


def check_python() -> None:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    if not (fits and sys.platform == "linux" and platform.machine() == "x86_64"):
        here = f"Python {platform.python_version()} on {sys.platform}, {platform.machine()}"
        raise SetupError(
            f"{sys.executable}: {here}; needs Linux on x86-64 with Python 3.11 to 3.13; "
            "name one with make PYTHON=/path/to/python3.11"
        )


def check_glibc(name: str, libc: str) -> None:
    """Refuse a C library that is too old, before anything is downloaded.

    Args:
        name: The machine.
        libc: Such as "glibc 2.28": what `getconf GNU_LIBC_VERSION` prints.
    """
    match = re.search(r"(\d+)\.(\d+)", libc)
    if not match or (int(match[1]), int(match[2])) < GLIBC:
        raise SetupError(
            f"{name}: its C library is {libc or 'not glibc'}; the packages need glibc "
            f"{'.'.join(map(str, GLIBC))} or newer; use the container, slurm/containers/kit.def"
        )


def glibc() -> str:
    """The C library of this machine."""
    return os.confstr("CS_GNU_LIBC_VERSION") or ""


def check_system() -> None:
    """Install Debian's packages as root, or say which are missing: ensurepip, and libnuma for
    vLLM's CPU kernels."""
    missing = []
    if not importlib.util.find_spec("ensurepip"):
        missing.append(f"python3.{sys.version_info.minor}-venv")
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        missing.append("libnuma1")
    if not missing:
        return
    if os.geteuid() or not shutil.which("apt-get"):
        names = " ".join(missing)
        raise SetupError(
            f"this machine lacks {names} (Debian's names); sudo apt-get install {names}"
        )
    print(f"installing {' '.join(missing)} by apt-get", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        result = subprocess.run(
            ["apt-get", *words], env=environment, capture_output=True, text=True
        )
        if result.returncode:
            raise SetupError(
                f"apt-get {words[0]} failed:\n{last_lines(result.stdout + result.stderr)}"
            )


def check_disk(venv: Path) -> None:
    if (venv / "cache").exists():
        return  # much of it is there already, and can be used again
    free = shutil.disk_usage(venv.parent).free / 1e9
    if free < NEEDED_GB:
        raise SetupError(
            f"{venv}: needs {NEEDED_GB} GB of disk, and {free:.1f} GB are free; make room, or clone onto a larger disk"
        )


# One at a time


@contextlib.contextmanager
def only_one(venv: Path) -> Iterator[None]:
    """Hold .venv/lock. A second set-up waits here, and then uses what the first has made."""
    venv.mkdir(exist_ok=True)
    with open(venv / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another set-up is making {venv}; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            print(
                f"warning: {venv}/lock: {error.strerror}; start no second set-up here",
                file=sys.stderr,
            )
        yield


# The steps


def make(venv: Path, base: str, wanted: str) -> None:
    """Make .venv from nothing but its cache, and mark it ready.

    Bytecode is left to Python, which compiles a module at its first import: of 28,500 modules a
    study imports 4,600.
    """
    version = platform.python_version()
    print(
        f"making the environment in .venv, once: 700 MB to download, {NEEDED_GB} GB of disk",
        flush=True,
    )
    clear(venv)
    temporary = venv / "tmp"
    temporary.mkdir()
    environment = clean(dict(os.environ)) | {"TMPDIR": str(temporary)}
    python = str(venv / "bin/python")

    with step(1, f"Python {version} and pip"):
        run([base, "-m", "venv", str(venv)], environment)
        settings = pip_settings(python, environment)
    pip_environment = for_pip(settings, environment)
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps"]

    with step(2, "uv, the installer (25 MB)"):
        tools = temporary / "tools.txt"
        pins = (ROOT / HASHES).read_text()
        tools.write_text(pin("uv", pins) + pin("setuptools", pins))
        uv: list[str] | None = [
            str(venv / "bin/uv"),
            "pip",
            "install",
            "--python",
            python,
            *uv_options(settings),
        ]
        try:
            run([*pip, "--require-hashes", "-r", str(tools)], pip_environment)
        except SetupError as error:
            print(
                f"  uv can't be installed, so pip goes on, more slowly:\n{error}", file=sys.stderr
            )
            uv = None
            pins = pins.replace(pin("uv", pins), "")  # an index may lack it
            tools.write_text(pin("pip", pins) + pin("setuptools", pins))
            run([*pip, "--require-hashes", "-r", str(tools)], pip_environment)
    if uv:
        install, variables = [*uv, "--no-deps"], for_uv(settings, environment, venv)
    else:
        install, variables = [*pip, "--no-compile"], pip_environment

    with step(3, "torch, its CPU build (190 MB)"):
        install_torch(install, variables)
    with step(4, f"{pins.count('==')} packages (500 MB)"):
        packages = temporary / "packages.txt"
        packages.write_text(pins)
        files = ["-r", str(packages), "-r", VLLM]
        run([*install, "--no-build-isolation", "--require-hashes", *files], variables)
        run([*install, "--no-build-isolation", f"./{ALIAS}"], variables)
    shutil.rmtree(temporary)
    (venv / "ready").write_text(wanted)


def clear(venv: Path) -> None:
    """Remove what .venv holds but for KEPT, `ready` first: an interrupted set-up must not look
    complete."""
    (venv / "ready").unlink(missing_ok=True)
    for path in venv.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def install_torch(install: list[str], variables: dict[str, str]) -> None:
    """The CPU build by its name from the index at hand, or from PyTorch's own: `torch` alone may
    bring CUDA's."""
    try:
        run([*install, "-r", TORCH], variables)
        return
    except SetupError as error:
        first = error
    theirs = (
        ["--torch-backend", "cpu"] if install[0].endswith("uv") else ["--index-url", TORCH_INDEX]
    )
    try:
        run([*install, *theirs, "-r", TORCH], variables)
    except SetupError as second:
        pins = [line for line in (ROOT / TORCH).read_text().split() if "==" in line]
        raise SetupError(
            f"{TORCH}: {pins[0]} (the CPU build of torch) can't be installed.\n"
            f"From the index at hand: {first}\nFrom PyTorch's index of CPU wheels: {second}\n"
            "Where neither has it, put the wheel in a folder and set PIP_FIND_LINKS to that folder."
        ) from None


@contextlib.contextmanager
def step(number: int, what: str) -> Iterator[None]:
    """Show a part of the set-up when it starts, and its seconds when it ends."""
    print(f"  {number}/4 {what}", end=" ", flush=True)
    started = time.monotonic()
    try:
        yield
    except BaseException:
        print(flush=True)
        raise
    print(f"{time.monotonic() - started:.0f} s", flush=True)


def run(command: list[str], environment: dict[str, str]) -> None:
    """Run a command in the checkout.

    Raises:
        SetupError: with the last lines of its output, and what to do about them.
    """
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace"
    )
    if result.returncode:
        output = result.stderr.strip() or result.stdout.strip() or f"exit code {result.returncode}"
        words = " ".join(Path(word).name for word in command[:3])  # such as "uv pip install"
        raise SetupError(
            "\n".join(filter(None, [f"{words} failed:", last_lines(output), advice(output)]))
        )


def last_lines(output: str, number: int = 12) -> str:
    """The last lines of a tool's output, and the first that says "error" where that is further up."""
    lines = output.strip().splitlines()
    shown = lines[-number:]
    first = next((line for line in lines if re.match(r"\s*error", line, re.IGNORECASE)), None)
    if first and first not in shown:
        shown = [first, "...", *shown]
    return "\n".join(f"    {line}" for line in shown)


def advice(output: str) -> str:
    """What to do about an error, by its text; empty where it isn't known."""
    for pattern, text in (
        (r"No space left|os error 28\b|Errno 28\b", "The disk is full: make room, or clone onto a larger disk."),
        (r"[Qq]uota exceeded|os error 122\b", "Your quota is used up: make room, or clone onto another disk."),
        (r"Permission denied|Read-only file system", "Nothing can be written there: clone into a folder of yours."),
        (r"dns error|resolve host|name resolution|Name or service|Connection refused|unreachable|timed out|tcp connect",
         "The package index can't be reached: check the network, a proxy (HTTPS_PROXY), pip's index-url."),
        (r"certificate|CERTIFICATE", "The certificate isn't trusted: name your site's with PIP_CERT or pip's cert."),
        (r"[Hh]ash", "A file differs from its pin: another index or a damaged download; check pip's index-url."),
    ):  # fmt: skip
        if re.search(pattern, output):
            return text
    return ""


def pin(name: str, pins: str) -> str:
    """A package's lines of a requirements file: its version and its hashes."""
    (block,) = re.findall(rf"^{re.escape(name)}==.*(?:\n    .*)*\n", pins, flags=re.MULTILINE)
    return block


# Settings of pip and uv


def clean(environment: dict[str, str]) -> dict[str, str]:
    """The environment without what changes how Python starts, or what uv does."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("PYTHON")
        and (not name.startswith("UV_") or CARRIED_UV.fullmatch(name))
    }


def pip_settings(python: str, environment: dict[str, str]) -> dict[str, str]:
    """What pip's files and variables say of where packages come from; `PIP_*` first, then
    [install], then [global]."""
    command = [python, "-m", "pip", "config", "list"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SetupError(
            f"pip's configuration can't be read; mend it:\n{last_lines(result.stderr)}"
        )
    return parse_pip_config(result.stdout)


def parse_pip_config(text: str) -> dict[str, str]:
    """Settings of `pip config list`, whose lines are SECTION.NAME='VALUE'."""
    settings = {}
    for section in ("global", "install", ":env:"):
        for line in text.splitlines():
            if match := re.fullmatch(rf"{section}\.([\w-]+)=(['\"].*)", line):
                name = match[1].replace("_", "-")
                if name in CARRIED:
                    settings[name] = str(ast.literal_eval(match[2]))
    return settings


def for_pip(settings: dict[str, str], environment: dict[str, str]) -> dict[str, str]:
    """The environment in which pip has these settings and no others, from none of its files."""
    others = {name: value for name, value in environment.items() if not name.startswith("PIP_")}
    ours = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
    }
    return (
        others
        | ours
        | {f"PIP_{name.replace('-', '_').upper()}": value for name, value in settings.items()}
    )


def uv_options(settings: dict[str, str]) -> list[str]:
    """uv's options for these settings of pip. The best match of all indexes is taken, as pip does."""
    options = ["--quiet", "--no-config", "--index-strategy", "unsafe-best-match"]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        options.append("--no-index")
    for place in settings.get("find-links", "").split():
        options += ["--find-links", os.path.expanduser(place)]
    for host in settings.get("trusted-host", "").split():
        options += ["--allow-insecure-host", host]
    return options


def for_uv(settings: dict[str, str], environment: dict[str, str], venv: Path) -> dict[str, str]:
    """The environment in which uv has these settings of pip. Addresses may hold a password, so they
    are no options."""
    ours = {
        "UV_CACHE_DIR": str(venv / "cache"),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_SYSTEM_CERTS": "1",
    }
    given = {
        "UV_DEFAULT_INDEX": settings.get("index-url"),
        "UV_INDEX": settings.get("extra-index-url"),
        "UV_HTTP_TIMEOUT": settings.get("timeout") or settings.get("default-timeout"),
        "UV_HTTP_RETRIES": settings.get("retries"),
        "SSL_CERT_FILE": settings.get("cert") or environment.get("REQUESTS_CA_BUNDLE"),
        "SSL_CLIENT_CERT": settings.get("client-cert"),
        "HTTPS_PROXY": settings.get("proxy"),
        "HTTP_PROXY": settings.get("proxy"),
    }
    if settings.get("keyring-provider") == "subprocess":
        given["UV_KEYRING_PROVIDER"] = "subprocess"
    theirs = {name: value for name, value in given.items() if value and not environment.get(name)}
    return environment | ours | theirs


if __name__ == "__main__":
    sys.exit(main())
