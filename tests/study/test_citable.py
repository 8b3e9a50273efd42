"""What makes an archive citable: citation, deposit, environment, data dictionary, checklist, code."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet
import pytest
import yaml

from core.cell import hardware as module
from core.cell.hardware import hardware
from core.git import git
from core.paths import ROOT
from study.upkeep.citable import checklist
from study.upkeep.croissant import COLUMNS, TABLE
from study.upkeep.packed_code import CHANGES, KIT, code_files
from tests.study.test_archive import finished, make, members

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The small study's archive: name -> content."""
    base = finished(tmp_path_factory.mktemp("study") / "lab/runs")
    files = members(Path(make(base)["path"]))
    return {name.removeprefix("small/"): content for name, content in files.items()}


def test_the_kit_and_the_archive_name_what_they_are(packed: dict[str, bytes]) -> None:
    kit = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    deposit = json.loads((ROOT / ".zenodo.json").read_text())
    assert (deposit["title"], deposit["version"], deposit["license"]) == (
        kit["title"],
        kit["version"],
        kit["license"],
    )
    assert [row["name"] for row in deposit["creators"]] == [row["name"] for row in kit["authors"]]
    citation = yaml.safe_load(packed["CITATION.cff"])
    of_archive = json.loads(packed[".zenodo.json"])
    assert citation["title"] == of_archive["title"] == "Replication archive of the study small"
    assert citation["type"] == of_archive["upload_type"] == "dataset"
    assert citation["date-released"] == "2026-02-01"
    assert (
        citation["authors"] == of_archive["creators"] == [{"name": "To be stated by the authors"}]
    )


def packed_types(table: bytes) -> dict[str, str]:
    """`number` or `text` of each column that has values, by what they are."""
    frame = pandas.read_parquet(io.BytesIO(table))
    return {
        name: "number" if pandas.api.types.is_numeric_dtype(frame[name]) else "text"
        for name in frame
    }


def test_the_dictionary_describes_every_column_of_the_table(packed: dict[str, bytes]) -> None:
    data = json.loads(packed["croissant.json"])
    columns = pyarrow.parquet.read_schema(io.BytesIO(packed[TABLE])).names
    (records,) = data["recordSet"]
    assert [field["name"] for field in records["field"]] == columns and {*columns} <= {*COLUMNS}
    assert all(field["description"] != field["name"] for field in records["field"])
    assert {field["source"]["fileObject"]["@id"] for field in records["field"]} == {TABLE}
    types = packed_types(packed[TABLE])
    for field in records["field"]:
        is_text = field["dataType"] == "sc:Text"
        assert is_text == (types[field["name"]] == "text"), field["name"]
    (score,) = [field for field in records["field"] if field["name"] == "score"]
    scores = pandas.read_parquet(io.BytesIO(packed[TABLE]))["score"]
    assert scores.between(0, 1).all() and score["description"].startswith("From 0 to 1;")
    (table,) = data["distribution"]
    assert table["sha256"] == hashlib.sha256(packed[TABLE]).hexdigest()
    assert table["contentUrl"] == TABLE and data["conformsTo"].endswith("/croissant/1.0")


def test_the_environment_counts_what_the_cells_ran_in(packed: dict[str, bytes]) -> None:
    data = json.loads(packed["environment.json"])
    cells = [
        name for name in packed if name.startswith("cells/") and name.endswith("manifest.json")
    ]
    assert sum(data["packages"]["torch"].values()) == len(cells) == 24
    assert sum(data["kernels"].values()) == 24 and data["slurm"]["jobs"] == 0


def test_the_checklist_answers_from_the_files(packed: dict[str, bytes]) -> None:
    rows = [line.split(" | ") for line in packed["checklist.md"].decode().splitlines()[4:]]
    answers = {row[0].removeprefix("| "): row[1:] for row in rows[2:] if len(row) == 3}
    assert answers["Are intervals given, and what varies in them?"][0] == "No"  # one seed
    assert answers["Was it declared before the data?"][0] == "Yes"
    assert "36.0 hours of 24 cells" in answers["What did it take to compute?"][1]
    assert answers["People as subjects or paid workers"][0] == "Not applicable"


@pytest.mark.parametrize(
    "declaration, answer",
    [
        (None, "No"),
        ({"sha256": "a" * 64, "differences": []}, "Yes"),
        ({"sha256": "a" * 64, "differences": ["seeds 0 (declared 0, 1)"]}, "In part"),
    ],
)
def test_the_checklist_says_what_was_not_declared(declaration: Any, answer: str) -> None:
    results = {"contrasts": [], "benchmarks": {}, "writers": [], "declaration": declaration}
    assert f"| Was it declared before the data? | {answer} |" in checklist({}, results)


@pytest.mark.skipif(not shutil.which("git"), reason="no git on this machine")
def test_the_code_is_that_of_the_commit_and_the_changes_are_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").write_text("committed\n")
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr("study.upkeep.packed_code.ROOT", tmp_path)
    commit = (git(tmp_path, "rev-parse", "HEAD") or "").strip()
    (tmp_path / "a.py").write_text("edited\n")
    (tmp_path / "new.py").write_text("new\n")
    assert {*code_files(commit, False)} == {KIT}
    files = code_files(commit, True)
    with tarfile.open(fileobj=io.BytesIO(files[KIT])) as kit:
        assert kit.getnames() == ["kit", "kit/a.py"]
        assert kit.extractfile("kit/a.py").read() == b"committed\n"  # type: ignore[union-attr]
    changes = files[CHANGES].decode()
    assert changes.startswith("not in the commit: new.py\n") and "\n+edited\n" in changes
    assert code_files(None, None) == {} and code_files("0" * 40, True) == {}


def test_the_hardware_is_what_the_machine_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, text in (
        ("proc/cpuinfo", "processor\t: 0\nmodel name\t: Fast 9000\n"),
        ("proc/driver/nvidia/version", "580.1"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100, PCIe, 580.65.06, 350.00'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "gpu")
    module.hardware.cache_clear()
    facts = hardware(tmp_path)
    module.hardware.cache_clear()
    assert facts["processor"] == "Fast 9000" and facts["slurm_partition"] == "gpu"
    assert (facts["gpus"], facts["driver"]) == (["NVIDIA H100, PCIe"], "580.65.06")
    assert facts["power_limits_watts"] == [350.0]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100, 580.65.06, [N/A]'\n")
    module.hardware.cache_clear()
    assert (facts := hardware(tmp_path))["gpus"] == ["NVIDIA H100"]
    assert "power_limits_watts" not in facts
    module.hardware.cache_clear()
    monkeypatch.delenv("SLURM_JOB_PARTITION")
    assert not {"gpus", "driver", "slurm_partition"} & hardware(tmp_path / "nothing").keys()
    module.hardware.cache_clear()
