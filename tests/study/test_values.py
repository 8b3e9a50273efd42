"""Values that are valid by themselves and mean nothing, and files that are none."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core import numeric_environment
from core.errors import UserError
from core.paths import ROOT
from core.recipe import Training, load_recipe
from study.cli import main
from study.spec.load import load_study
from study.spec.value_checks import study_warnings

SMALL = ROOT / "tests/small/small.yaml"
TINY = ROOT / "studies/tiny.yaml"


@pytest.mark.parametrize(
    ("overrides", "where", "what"),
    [
        (["contrasts.0.control=animal"], "contrasts.0.control", "compares animal with itself"),
        (
            [
                "contrasts.0.control=animal",
                "contrasts.0.treatment_dose=80",
                "contrasts.0.control_dose=80",
            ],
            "contrasts.0.control",
            "compares animal with itself",
        ),
        (["contrasts.0.doses=[77]"], "contrasts.0.doses", "arm animal has no dose 77"),
        (
            ["contrasts.0.treatment_dose=77", "contrasts.0.control_dose=0"],
            "contrasts.0.treatment_dose",
            "arm animal has no dose 77",
        ),
        (
            ["contrasts.0.benchmarks=[ahb, ahb]"],
            "contrasts.0.benchmarks",
            "benchmark ahb is listed",
        ),
        (["contrasts.0.benchmarks=[]"], "contrasts.0.benchmarks", "at least 1 item"),
        (["contrasts.0.doses=[]"], "contrasts.0.doses", "at least 1 item"),
        (["seeds=[]"], "seeds", "at least 1 item"),
        (["sft.doses=[]"], "sft.doses", "at least 1 item"),
        (["arms.animal.doses=[]"], "arms.animal.doses", "at least 1 item"),
        (["claim_roles={wat: animal}"], "claim_roles.wat", "no claim has this role"),
        (['contrasts.0.name="\\e[31mred"'], "contrasts.0.name", "control characters"),
        (["contrasts.0.name=' '"], "contrasts.0.name", "is empty"),
        (["benchmarks.ahb.base_prompt='Answer:'"], "benchmarks.ahb.base_prompt", "no {question}"),
        (
            ["benchmarks.ahb.base_prompt='{question} {x}'"],
            "benchmarks.ahb.base_prompt",
            "unknown placeholder {x}",
        ),
        (["benchmarks.ahb.base_prompt='{question'"], "benchmarks.ahb.base_prompt", "unmatched"),
        (["corpora.animal.shards=101"], "corpora.animal.shards", "101 shards of 100"),
        (
            ["corpora.animal.documents=1000000", "corpora.animal.shards=1000000"],
            "corpora.animal.shards",
            "less than or equal to 1000",
        ),
        (
            ["corpora.animal.replicates=1000000"],
            "corpora.animal.replicates",
            "less than or equal to 1000",
        ),
        (["benchmarks.ahb.arms=[]"], "benchmarks.ahb.arms", "at least 1 item"),
        (["corpora.animal.documents=1000000000"], "corpora.animal.documents", "less than or equal"),
        (
            ["corpora.animal.documents=1", "corpora.animal.held_out=0.4"],
            "corpora.animal.held_out",
            "0.4 of 1 documents holds out none",
        ),
        (
            ["corpora.animal.documents=1", "corpora.animal.held_out=0.6"],
            "corpora.animal.held_out",
            "holds out 1 and leaves none to train on",
        ),
    ],
)
def test_values_without_a_meaning_are_refused(overrides: list[str], where: str, what: str) -> None:
    with pytest.raises(UserError) as error:
        load_study(SMALL, None, overrides)
    problems = [p for p in error.value.problems if p.where.endswith(f": {where}")]
    assert problems and what in problems[0].what, error.value.lines


def test_two_doses_of_one_arm_can_be_compared() -> None:
    load_study(
        SMALL,
        None,
        [
            "contrasts.0.control=animal",
            "contrasts.0.treatment_dose=80",
            "contrasts.0.control_dose=0",
        ],
    )


def test_many_answers_at_temperature_0_are_warned_about() -> None:
    overrides = ["benchmarks.ahb.temperature=0", "benchmarks.ahb.epochs=30"]
    (warning,) = study_warnings(load_study(SMALL, None, overrides))
    assert warning.startswith("benchmarks.ahb: at temperature 0 all 30 answers")
    assert not study_warnings(load_study(SMALL))


def test_a_family_of_one_test_beside_others_is_warned_about() -> None:
    sides = {"treatment": "animal", "control": "urban"}
    first = sides | {"name": "first", "benchmarks": ["ahb"], "doses": [0]}
    second = sides | {"name": "second", "benchmarks": ["concern"], "family": "lucky"}

    def warnings(*contrasts: dict[str, Any]) -> list[str]:
        return study_warnings(load_study(TINY, None, [f"contrasts={json.dumps(contrasts)}"]))

    (warning,) = warnings(first, second)
    assert warning.startswith("contrasts: family primary has one test")
    (warning,) = warnings(first | {"doses": [0, 200]}, second | {"doses": [200]})
    assert warning.startswith("contrasts: family lucky has one test")
    assert not warnings(first)  # all that is tested
    assert not warnings(first | {"doses": [0, 200]}, second)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("lr: 1.0e9", "lr"),
        ("lr: 0.001\nbetas: [5, 7]", "betas"),
        ("lr: 0.001\nbetas: [0.9]", "betas"),
        ("lr: 0.001\nmax_dropped: 2", "max_dropped"),
        ("lr: 0.001\ntoo_long: cut", "too_long"),
    ],
)
def test_numbers_that_no_training_has_are_refused(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"seq_len: 64\nepochs: 1\nglobal_batch_size: 4\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_recipe(str(path), Training)
    assert all(f": {what}" in problem.where for problem in error.value.problems)


def test_pipes_devices_and_folders_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", tmp_path, Path("/dev/zero"), tmp_path / ("x" * 300)):
        with pytest.raises(UserError):
            load_study(path)
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero"), tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="no such file"):
            load_study(SMALL, None, [f"sft.data={path}"])
        with pytest.raises(UserError, match="no such file"):
            load_study(SMALL, None, [f"midtrain.recipe={path}"])


def test_a_folder_of_anything_is_no_data(tmp_path: Path) -> None:
    """Of `/` or `../..` every file would be hashed."""
    for number in range(9):
        (tmp_path / f"{number}.jsonl").write_text("{}\n")
    for key in ("sft.data", "benchmarks.ahb.questions", "benchmarks.concern.items"):
        for folder, what in (
            (tmp_path, "with 9 data files"),
            (Path("/"), "with over 10000 entries"),
        ):
            with pytest.raises(UserError, match=f"{key}: {folder}: a folder {what}") as error:
                load_study(SMALL, None, [f"{key}={folder}"])
            assert "name the file itself" in str(error.value)
    for key in ("sft.recipe", "models.base.make", "corpora.animal.exclude"):
        with pytest.raises(UserError, match=f"{key}: no such file: {tmp_path}"):
            load_study(SMALL, None, [f"{key}={tmp_path}"])


def _fuzz(first: int, count: int) -> None:
    words = [sys.executable, "-m", "tests.study.fuzz", str(first), str(count)]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert f"{count} cases, 0 failures" in result.stdout


@pytest.mark.multiprocess
def test_mutated_files_are_accepted_or_refused_in_lines() -> None:
    """Within limits on the child's memory and CPU time (tests/study/fuzz.py)."""
    _fuzz(0, 2_000)


@pytest.mark.nightly
def test_many_mutated_files_are_accepted_or_refused_in_lines() -> None:
    _fuzz(2_000, 10_000)


def test_a_runs_folder_with_a_line_break_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It would become a line of the job script."""
    with pytest.raises(SystemExit) as caught:
        main(["plan", str(SMALL), "--runs", "/tmp/a\n#SBATCH --wrap=b"])
    assert caught.value.code == 2 and "has control characters" in capsys.readouterr().err


def test_an_interrupt_during_the_imports_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(numeric_environment, "clear", interrupted)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "study/__main__.py"))
    assert caught.value.code == 130 and capsys.readouterr().err == "stopped\n"
