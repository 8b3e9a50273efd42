"""Commands that messages print work when they are typed: they name the study as the user did."""

import argparse
import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.cell.identity import create_cell_dir
from core.paths import ROOT
from study.cli import main
from study.commands.common import study_args
from study.spec.expand import analysis, in_order
from study.spec.load import load_study

SMALL = ROOT / "tests/small/small.yaml"
# Where STUDY is the name of an argument in a help text, or an example for people to read.
HELP = ("metavar", "help")
ROOMS = ("core", "sdf", "recipes", "eval", "analysis", "slurm", "study")
# What is interpolated here is quoted where it is made.
CLEAN = ("rm -rf {files}", "rm {_flag(logs)}", "cat {_flag(logs)}", "cat {name}")


def typed(tmp_path: Path) -> list[str]:
    return [str(SMALL), "--seeds", "3", "--runs", str(tmp_path / "my runs")]


@pytest.mark.multiprocess  # squeue is asked, where there is one
@pytest.mark.parametrize("command", ["verify", "report", "cards", "prune"])
def test_of_a_study_not_begun_the_printed_command_can_be_typed(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *typed(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert line.strip().endswith(f"python -m study run {shlex.join(typed(tmp_path))}")


def test_what_is_not_fetched_is_told_with_the_study_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    corpus = f"corpora.animal={{documents: 9, hub: a/b, revision: '{'0' * 40}'}}"
    arguments = [*typed(tmp_path), "--set", corpus, "--set", "corpora.urban.matched_to=null"]
    assert main(["run", *arguments]) == 2
    given = argparse.Namespace(
        study=SMALL,
        seeds=[3],
        overrides=[corpus, "corpora.urban.matched_to=null"],
        runs=tmp_path / "my runs",
    )
    assert f"python -m study fetch {study_args(given)} on a machine" in capsys.readouterr().err


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Texts of a module that are neither docstrings nor help of an option."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in HELP:
            skipped |= {id(inner) for inner in ast.walk(node.value)}
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in skipped:
            yield node.lineno, node.value


def test_no_message_names_the_study_by_a_placeholder() -> None:
    lines = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for room in ("study", "slurm", "core")
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, text in strings(path)
        if "python -m study" in text and "STUDY" in text
    ]
    assert not lines, "\n".join(lines)


@pytest.mark.multiprocess
def test_a_python_without_the_packages_is_told_where_they_are() -> None:
    """As the system's own Python, or an environment whose installation was interrupted."""
    command = [sys.executable, "-S", "-m", "study", "plan", "studies/tiny.yaml"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert "has no package" in line and "make environment" in line


def test_paths_in_printed_commands_are_quoted() -> None:
    """`rm -rf my runs/x` would delete another folder."""
    bare = re.compile(r"(?:\brm|rm -rf|\bcat|\bmv|study cell) \{(?!quote\(|shlex\.)[^}]*\}")
    sources = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in sources
        for match in bare.finditer(path.read_text(encoding="utf-8"))
        if match[0] not in CLEAN
    ]
    assert found == []


def test_a_cut_manifest_is_named_and_counts_as_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(SMALL), "--runs", str(tmp_path / "my runs")]
    first = next(iter(in_order(analysis(load_study(SMALL)))))
    manifest = create_cell_dir(first, tmp_path / "my runs/small") / "manifest.json"
    manifest.write_text('{"identity": "')
    assert main(words) == 0
    warning = f"warning: {manifest}: is cut short or edited, and counts as missing"
    assert capsys.readouterr().err.count(warning) == 1
    manifest.unlink()
    assert main(words) == 0 and warning not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("models.base={path: docs}", "docs/tokenizer.json"),
        ("models.base={path: README.md}", "README.md/tokenizer.json"),
        ("benchmarks.ahb.labels=README.md", "README.key.json"),
    ],
)
def test_a_path_that_leads_nowhere_is_one_line(
    override: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(SMALL), "--runs", str(tmp_path), "--set", override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and named in line and "the study names it" in line


@pytest.mark.parametrize(
    "words", ["run --jobs 0", "status --watch -1", "status --watch nan", "plan --layout 0"]
)
def test_numbers_that_count_nothing_are_refused(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = words.split()
    with pytest.raises(SystemExit) as ended:
        main([command, str(SMALL), *options])
    assert ended.value.code == 2 and options[0] in capsys.readouterr().err


def test_a_layout_of_a_model_that_is_not_made_names_the_command_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(SMALL), "--runs", str(tmp_path), "--layout", "8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"; python -m study run {SMALL} --runs {tmp_path} --stages model")


@pytest.mark.multiprocess
def test_status_goes_without_an_output(tmp_path: Path) -> None:
    status = [sys.executable, "-m", "study", "status", str(SMALL), "--runs", str(tmp_path)]
    command = f"{shlex.join(status)} >&-"
    ran = subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
