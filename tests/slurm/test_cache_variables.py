"""The libraries read the folders of caches that a job's script sets, and Triton the compiler.

`make test-locks INSTALL=all` runs these with the GPU builds. Where Triton or FlashInfer is not
installed, as in the environment of `make test`, their part is skipped.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from slurm import probe
from slurm.executor import _CACHES, _setup
from slurm.profile import Profile, Resources

# How each library says where its cache lies. VLLM_CACHE_ROOT is in tests/eval/test_vllm_source.py,
# TORCHINDUCTOR_CACHE_DIR in tests/recipes/test_torch_source.py. CUDA_CACHE_PATH is the driver's.
ANSWERS = {
    "HF_HOME": "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)",
    "TRITON_CACHE_DIR": "from triton import knobs; print(knobs.cache.dir)",
    "FLASHINFER_WORKSPACE_BASE": (
        "from flashinfer.jit import env; print(env.FLASHINFER_WORKSPACE_DIR)"
    ),
    "TILELANG_CACHE_DIR": "import tilelang.env; print(tilelang.env.TILELANG_CACHE_DIR)",
}


def installed(code: str) -> bool:
    return importlib.util.find_spec(code.split()[1].partition(".")[0]) is not None


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ANSWERS)
def test_a_library_keeps_its_cache_in_the_folder_of_the_profile(name: str, tmp_path: Path) -> None:
    code = ANSWERS[name]
    if not installed(code):
        pytest.skip("it is not installed here")
    profile = Profile(stages={"default": Resources(10)}, cache=str(tmp_path / "cache"))
    exports = [line for line in _setup(profile, tmp_path, tmp_path, "g") if line.startswith("exp")]
    environment = {key: value for key, value in os.environ.items() if key not in _CACHES}
    shell = ["bash", "-c", "\n".join([*exports, 'exec "$@"']), "bash", sys.executable, "-c", code]
    answer = subprocess.run(shell, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1].startswith(f"{tmp_path / 'cache'}/"), answer.stdout


@pytest.mark.multiprocess
def test_triton_compiles_with_the_compiler_that_doctor_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """triton/runtime/build.py and triton/backends/nvidia: a C compiler, and Python.h."""
    build = pytest.importorskip("triton.runtime.build")
    (tmp_path / "gcc").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit 1\n')
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "source.c").touch()
    words = ("name", str(tmp_path / "source.c"), str(tmp_path), [], [], [])
    with pytest.raises(subprocess.CalledProcessError):
        build._build(*words, []) if build._build.__code__.co_argcount > 6 else build._build(*words)
    assert f"-I{sysconfig.get_path('include')}" in (tmp_path / "asked").read_text()
    with pytest.raises(RuntimeError):
        probe.compile_extension(str(tmp_path))
    assert (tmp_path / "asked").read_text().count("-shared") == 2, "doctor asks the same compiler"
    nvidia = Path(build.__file__).parents[1] / "backends/nvidia"
    assert "#include <Python.h>" in (nvidia / "driver.c").read_text()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeError, match="C compiler"):
        build._build(*words, []) if build._build.__code__.co_argcount > 6 else build._build(*words)
    with pytest.raises(RuntimeError, match="no C compiler on PATH"):
        probe.compile_extension(str(tmp_path))
