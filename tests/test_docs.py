"""The documentation is true: generated blocks are up to date, links lead somewhere, commands work
as printed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate
from tests.place import ROOT, SMALL, Place

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a command needs stands behind it as a comment: such commands are not run here.
NEEDS = re.compile(r"# (.*; )?needs (Slurm|GPUs|network|model files|a browser)")
# `make study` runs what tests/test_study.py runs; `make test` runs this.
MAKE = {"make study", "make test", "make test-fast"}


def commands() -> list[tuple[str, str]]:
    """(page, command) of every shell block that can be run here."""
    rows = []
    for page in PAGES:
        for block in re.findall(
            r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            for line in filter(None, map(str.strip, block.splitlines())):
                command = line.split(" #")[0].strip()
                if not NEEDS.search(line) and command not in MAKE:
                    rows.append((page.name, command))
    return rows


@pytest.mark.slow
def test_generated_blocks_are_up_to_date(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["docs.generate", "--check"])
    assert generate.main() == 0, capsys.readouterr().out
    assert (
        "| " in generate.study_file()
        and generate.filled("<!-- generated: commands -->\nold<!-- end -->") != ""
    )


def test_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.multiprocess
@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda value: str(value))
def test_commands_work_as_printed(
    page: str, command: str, one_machine: Place, tmp_path: Path
) -> None:
    """With the small study in place of the study that is named, on a copy of its finished cells."""
    for name in ("runs", "results"):
        shutil.copytree(one_machine.folder / name, tmp_path / name, symlinks=True)
    words = shlex.split(command.replace("STUDY", shlex.quote(str(SMALL))))
    if words[:1] == ["source"]:
        assert words == ["source", ".venv/bin/activate"]
        return
    if words[0] == "cp":
        assert (ROOT / words[1]).exists()
        return
    if words[0] == "rsync":
        return  # between two machines: tests/slurm/test_cluster.py
    assert words[:3] == ["python", "-m", "study"], f"{page}: {command}"
    words = [str(tmp_path / word) if word.endswith((".tar.gz", ".csv")) else word for word in words]
    words = [str(SMALL) if word.startswith("studies/") else word for word in words]
    if words[3] in ("verify", "report", "review") and words[4].endswith(".tar.gz"):
        assert Place(tmp_path).study("archive", words[4]).returncode == 0
    words = words[: words.index("--trace")] + score(one_machine) if "--trace" in words else words
    ran = subprocess.run(
        [sys.executable, *words[1:], "--runs", str(tmp_path / "runs")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, f"{page}: {command}\n{ran.stdout}{ran.stderr}"


def score(place: Place) -> list[str]:
    """--trace with a score that the small study has."""
    return ["--trace", "ahb", "animal", "0", "0"]
