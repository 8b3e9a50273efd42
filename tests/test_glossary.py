"""The glossary holds: no definition, key, file name or option carries an old word, and no text an
old phrase."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GLOSSARY = yaml.safe_load((ROOT / "tests/glossary.yaml").read_text(encoding="utf-8"))
ROOMS = [room for room in GLOSSARY if room not in ("fillers", "phrases")]
# Files with keys that people write.
YAML_OF = {
    "study": ["studies", "tests/small"],
    "recipes": ["recipes"],
    "sdf": [],
    "analysis": [],
    "core": [],
}
Definition = tuple[str, str, int]  # kind, name, line


def definitions(tree: ast.Module) -> Iterator[Definition]:
    """What a module defines: classes, functions, names (variables, parameters, fields), keys,
    options, file names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield "class", node.name, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield "function", node.name, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield "name", node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield "name", node.arg, node.lineno
        elif isinstance(node, ast.Dict):
            for key in node.keys:
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield "key", key.value, key.lineno
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            yield "key", str(node.slice.value), node.lineno
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield "key", node.target.id, node.lineno  # a field: of a settings class, a key
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield "file", node.value.rpartition("/")[2], node.lineno
            if node.value.startswith("--"):
                yield "option", node.value, node.lineno


def keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


@pytest.mark.parametrize("room", ROOMS)
def test_no_definition_key_file_or_option_carries_an_old_word(room: str) -> None:
    old = GLOSSARY[room]
    lines = []
    for file in sorted((ROOT / room).rglob("*.py")):
        if file.stem in old.get("module", {}):
            lines.append(f"{file.relative_to(ROOT)}: the module is now {old['module'][file.stem]}")
        for kind, name, line in definitions(ast.parse(file.read_text(encoding="utf-8"))):
            if new := old.get(kind, {}).get(name):
                lines.append(f"{file.relative_to(ROOT)}:{line}: {kind} {name} is now {new}")
    for file in (
        f for folder in YAML_OF.get(room, []) for f in sorted((ROOT / folder).glob("*.yaml"))
    ):
        for key in keys(yaml.safe_load(file.read_text(encoding="utf-8"))):
            if new := old.get("key", {}).get(key):
                lines.append(f"{file.relative_to(ROOT)}: key {key} is now {new}")
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("room", ["core", "study"])
def test_no_variable_has_a_name_that_names_nothing(room: str) -> None:
    lines = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in sorted((ROOT / room).rglob("*.py"))
        for kind, name, line in definitions(ast.parse(file.read_text(encoding="utf-8")))
        if kind == "name"
        and name in GLOSSARY["fillers"]
        # The fields of an error are where, what and fix.
        and not (file.name == "errors.py" and name == "where")
    ]
    assert not lines, "\n".join(lines)


def test_no_text_has_an_old_phrase() -> None:
    names = ("*.py", "*.md", "*.yaml", "*.j2")
    folders = [*ROOMS, "studies", "docs", "benchmarks"]
    files = [f for folder in folders for name in names for f in (ROOT / folder).rglob(name)]
    texts = {
        file: " ".join(file.read_text(encoding="utf-8").split())
        for file in [*files, *ROOT.glob("*.md")]
    }
    found = [
        f"{f.relative_to(ROOT)}: {p}"
        for f, text in texts.items()
        for p in GLOSSARY["phrases"]
        if p in text
    ]
    assert not found, "\n".join(found)
