"""`pool`: archives of several labs, what they share, and in what they differ."""

import csv
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from analysis.pooled_results import forest
from core.yaml_text import to_yaml
from study.cli import main
from tests.analysis.test_pooling import row


def pack(
    path: Path,
    estimate: float,
    lr: float = 1e-4,
    weights: str = "",
    corpus: str = "",
    canary: list[dict[str, Any]] | None = None,
    stage: str = "documents",
    training: str = "base-animal-s0-d80-2b",
    without: str = "",
    **changed: Any,
) -> str:
    """An archive of one contrast, one corpus and one training; its path."""
    contrast = row(estimate, 0.02, low=estimate - 0.04, high=estimate + 0.04)
    contrast |= changed
    contrast.pop(without, None)
    results = {"study": "s", "contrasts": [contrast]}
    results |= {"canary": canary} if canary else {}
    files = {"results/results.json": json.dumps(results)}
    for cell, settings, digest in (
        (f"{stage}/animal-1a", {"documents": 9}, corpus or path.name),
        (f"sft/{training}", {"recipe": {"lr": lr}, "seed": 3}, weights or path.name),
    ):
        name = cell.partition("/")[2].rpartition("-")[0]
        files[f"cells/{cell}/config.yaml"] = to_yaml({"name": name, "settings": settings})
        manifest = {"outputs": {"out": {"sha256": digest}}}
        files[f"cells/{cell}/manifest.json"] = json.dumps(manifest)
    sums = [f"{hashlib.sha256(text.encode()).hexdigest()}  {name}" for name, text in files.items()]
    files["SHA256SUMS"] = "\n".join(sums) + "\n"
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, text in files.items():
                packed.writestr(f"s/{name}", text)
    else:
        with tarfile.open(path, "w:gz") as packed:
            for name, text in files.items():
                member = tarfile.TarInfo(f"s/{name}")
                member.size = len(text.encode())
                packed.addfile(member, io.BytesIO(text.encode()))
    return str(path)


def test_three_labs_are_pooled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [
        pack(tmp_path / "north.tar.gz", 0.10),
        pack(tmp_path / "south.zip", 0.16, lr=2e-4),
        pack(tmp_path / "west.tar.gz", 0.31),
    ]
    out = tmp_path / "out"
    assert main(["pool", *paths, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["a", "-", "b", "ahb", "0", "north", "+10.0", "[+6.0,", "+14.0]", "3/3", *"---"] in lines
    assert any(line[5:9] == ["all", "labs", "like", "these"] for line in lines)
    assert (
        "- sft recipe.lr (base-animal-d80): north: 0.0001; south: 0.0002; west: 0.0001" in printed
    )
    assert "nan" not in printed
    results = json.loads((out / "pooled.json").read_text())
    assert results["shared"] == [] and results["contrasts"][0]["pooled"]["predicted"]
    assert "seed" not in {difference["key"] for difference in results["differences"]}
    ElementTree.parse(out / "forest.svg")  # a further lab has an interval and no point
    assert (out / "forest.pdf").stat().st_size and "+10.0" in (out / "pooled.md").read_text()
    table = (out / "pooled.tex").read_text()
    assert r"\toprule" in table and r"\caption[{Contrasts of several labs}]" in table
    rows = list(csv.DictReader((out / "pooled.csv").open()))
    assert [row["Lab"] for row in rows[:3]] == ["north", "south", "west"]
    labs = results["contrasts"][0]["labs"]
    assert [float(row["Points"]) for row in rows[:3]] == [
        pytest.approx(100 * lab["estimate"], abs=0.05) for lab in labs
    ]
    assert main(["pool", *paths, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == results


def test_other_doses_of_a_contrast_are_another_panel(tmp_path: Path) -> None:
    rows = [
        {"name": "a", "benchmark": "ahb", "dose": 0, "control_dose": dose, "pooled": None}
        | {"labs": [{"lab": "x", "treatment_seeds": 3, "control_seeds": 3, "judge": "j"}
                    | {"estimate": 0.1, "low": 0.0, "high": 0.2, "reason": None, "rung": None}]}
        for dose in (0, 80)
    ]  # fmt: skip
    figure = forest({"contrasts": rows})
    assert [axis.get_title("left") for axis in figure.axes] == [
        "a, ahb, dose 0",
        "a, ahb, dose 0 v 80",
    ]


@pytest.mark.parametrize("stage", ["documents", "scores"])
def test_a_common_corpus_and_common_logs_are_told(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [
        pack(tmp_path / f"{name}.tar.gz", 0.1, corpus="same", stage=stage)
        for name in ("one", "two")
    ]
    assert main(["pool", *paths, "--out", str(tmp_path / "out")]) == 0
    assert f"shared by one and two: {stage}/animal-1a" in capsys.readouterr().out


def test_arms_and_cells_of_other_names_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cells are compared by their names, so that those of other names were not compared."""
    one = pack(tmp_path / "one.tar.gz", 0.1)
    two = pack(tmp_path / "two.zip", 0.2, training="base-docs-s0-d80-2b", treatment="docs")
    assert main(["pool", one, two, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "- contrast treatment (a - b): one: a; two: docs\n" in printed
    assert "in no other lab, and not compared: one's sft/base-animal-d80\n" in printed
    assert "in no other lab, and not compared: two's sft/base-docs-d80\n" in printed
    results = json.loads((tmp_path / "out/pooled.json").read_text())
    assert results["unmatched"] == {"one": ["sft/base-animal-d80"], "two": ["sft/base-docs-d80"]}


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["pool", *words]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_pooled_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = pack(tmp_path / "one.tar.gz", 0.1)
    assert "is one archive alone" in refusal(capsys, one)
    assert "no such file" in refusal(capsys, one, str(tmp_path / "none.tar.gz"))
    (tmp_path / "text.tar.gz").write_text("no archive")
    assert "is no archive" in refusal(capsys, one, str(tmp_path / "text.tar.gz"))
    (tmp_path / "elsewhere").mkdir()
    twin = pack(tmp_path / "elsewhere/one.tar.gz", 0.2)
    assert "names two archives" in refusal(capsys, one, twin)
    same = pack(tmp_path / "same.tar.gz", 0.1, weights="one.tar.gz")
    assert "hold the same training, such as sft/base-animal-s0-d80-2b" in refusal(capsys, one, same)
    message = "one.tar.gz: File exists; choose another place for it"
    assert message in refusal(capsys, one, pack(tmp_path / "a.zip", 0.2), "--out", one)
    for name in ("level", "control_dose", "estimate"):
        path = pack(tmp_path / f"{name}.tar.gz", 0.1, without=name)
        assert "that this version of the kit can't read" in refusal(capsys, one, path)
    turned = pack(tmp_path / "turned.tar.gz", -0.1, treatment="b", control="a")
    message = "have the contrast 'a - b' the other way round: a - b, and b - a"
    assert message in refusal(capsys, one, turned)
    other = pack(tmp_path / "other.tar.gz", 0.1, benchmark="moru")
    assert "no contrast has a standard error in two of them" in refusal(capsys, one, other)


def test_an_edited_archive_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = pack(tmp_path / "one.zip", 0.1)
    two = tmp_path / "two.zip"
    with zipfile.ZipFile(one) as packed, zipfile.ZipFile(two, "w") as edited:
        for name in packed.namelist():
            edited.writestr(name, packed.read(name).replace(b'"estimate": 0.1', b'"estimate": 0.9'))
    assert "results/results.json changed after it was packed" in refusal(capsys, one, str(two))


def judged(judge: str, scores: list[float], items: str = "a") -> list[dict[str, Any]]:
    """The canary of a study, by one judge."""
    grades = [
        {"question": f"a{n}", "dimension": "Harm", "published": 1.0, "score": score}
        for n, score in enumerate(scores)
    ]
    return [{"judge": judge, "items": items, "grades": grades, "drift": []}]


def test_two_judges_are_bridged_by_the_canary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    north = pack(tmp_path / "north.tar.gz", 0.10, canary=judged("old", [1, 1, 1, 1]))
    south = pack(tmp_path / "south.tar.gz", 0.16, canary=judged("new", [0, 1, 0, 1]))
    out = tmp_path / "out"
    assert main(["pool", north, south, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "all dimensions" in line]
    assert line.split()[:6] == ["north", "v", "south", "old", "v", "new"]
    assert "-50.0" in line and "forest.pdf" in {path.name for path in out.iterdir()}
    (bridge,) = json.loads((out / "pooled.json").read_text())["canary"]
    assert bridge["drift"][0]["estimate"] == -0.5
    assert [row["Dimension"] for row in csv.DictReader((out / "canary.csv").open())] == [
        "all dimensions",
        "Harm",
    ]


def test_one_training_under_two_judges_is_bridged_and_not_pooled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    may = pack(tmp_path / "may.tar.gz", 0.10, weights="w", canary=judged("old", [1, 1]))
    june = pack(tmp_path / "june.tar.gz", 0.16, weights="w", canary=judged("old", [1, 0]))
    out = tmp_path / "out"
    assert main(["pool", may, june, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Contrasts are not pooled:" in printed and "hold the same training" in printed
    assert "all dimensions" in printed and not (out / "forest.pdf").exists()
    assert json.loads((out / "pooled.json").read_text())["contrasts"] == []
    other = pack(tmp_path / "b.tar.gz", 0.1, weights="w", canary=judged("old", [1, 0], "b"))
    assert "hold the same training" in refusal(capsys, may, other)
