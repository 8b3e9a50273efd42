"""What an archive says by itself: `verify` of it, on a machine that has nothing else."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from core.cell.publish import results
from study.cli import main
from study.upkeep.unpacked import unpack
from tests.study.test_archive import finished, make, members

pytestmark = pytest.mark.multiprocess
SUMS = "small/SHA256SUMS"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("study") / "lab/runs")


@pytest.fixture(scope="module")
def packed(base: Path) -> Path:
    cell = next(base.glob("midtrain/*"))
    # A path of this machine in a file that the manifest lists: it is replaced in the archive.
    assert str(base.parents[1]) in (cell / "log.txt").read_text()
    return Path(make(base)["path"])


def pack(path: Path, files: dict[str, bytes], sums: bool = True) -> Path:
    """An archive of these files. `sums`: with SHA256SUMS of them as they are now."""
    if sums:
        lines = (
            f"{hashlib.sha256(content).hexdigest()}  {name.partition('/')[2]}\n"
            for name, content in files.items()
            if name != SUMS
        )
        files = files | {SUMS: "".join(lines).encode()}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def verified(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, str]]]:
    capsys.readouterr()
    code = main(["verify", str(path), "--json"])
    return code, json.loads(capsys.readouterr().out)["problems"]


def test_an_archive_as_it_was_packed_has_no_fault(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verified(packed, capsys) == (0, [])
    assert main(["verify", str(packed)]) == 0
    assert capsys.readouterr().out.endswith(" files of 24 cells checked, 0 changes\n")


def test_the_report_comes_again_from_the_archive_alone(
    base: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copy(packed, tmp_path / "lab.tar.gz")
    base.parent.rename(tmp_path / "elsewhere")  # nothing of it is read
    try:
        capsys.readouterr()
        assert main(["report", str(alone), "--out", str(tmp_path / "again"), "--json"]) == 0
    finally:
        (tmp_path / "elsewhere").rename(base.parent)
    data = json.loads(capsys.readouterr().out)
    assert data["other"] == [] and {"report.html", "results.json"} <= {*data["same"]}
    for name in ("report.html", "results.json", "tables/contrasts.tex", "figures/scores-ahb.pdf"):
        published = (results(base) / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == published
    assert main(["report", str(alone), "--out", str(tmp_path / "again")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_report_of_other_scores_says_what_is_not_as_published(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = members(packed)
    first, second = [n for n in files if n.endswith("/scores.parquet") and "judge" in n][:2]
    swapped = pack(
        tmp_path / "a.tar.gz", files | {first: files[second], second: files[first]}, sums=False
    )
    assert main(["report", str(swapped), "--out", str(tmp_path / "again")]) == 2
    assert "changed after it was packed" in capsys.readouterr().err
    swapped = pack(tmp_path / "b.tar.gz", files | {first: files[second], second: files[first]})
    assert main(["report", str(swapped), "--out", str(tmp_path / "again")]) == 1
    assert "not as published: results.json" in capsys.readouterr().out


def test_a_file_changed_in_the_archive_is_found(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = members(packed)
    name = next(name for name in files if name.endswith("corpus_stats.json"))
    changed = files | {name: b"{}", "small/more.txt": b"more"}
    del changed["small/results/headline.txt"]
    code, problems = verified(pack(tmp_path / "a.tar.gz", changed, sums=False), capsys)
    assert code == 1
    assert {row["file"] for row in problems} >= {
        name.removeprefix("small/"),
        "more.txt",
        "results/headline.txt",
    }


def test_scores_swapped_before_packing_are_found(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = members(packed)
    first, second = [
        name for name in files if name.endswith("/scores.parquet") and "judge" in name
    ][:2]
    swapped = files | {first: files[second], second: files[first]}
    code, problems = verified(pack(tmp_path / "a.tar.gz", swapped), capsys)
    assert code == 1 and len(problems) == 2
    assert all("is now scores.parquet of judge/" in row["problem"] for row in problems)


@pytest.mark.parametrize("claims_replaced_paths", [False, True])
def test_a_manifest_that_fits_the_swapped_file_is_found(
    packed: Path, claims_replaced_paths: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its users have recorded what it gave them, and not the hash of the manifest alone."""
    files = members(packed)
    scores = next(name for name in files if name.endswith("/scores.parquet") and "judge" in name)
    name = scores.replace("scores.parquet", "manifest.json")
    manifest = json.loads(files[name])
    manifest["outputs"]["scores.parquet"] = {
        "sha256": hashlib.sha256(b"other").hexdigest(),
        "bytes": 5,
    }
    forged = files | {scores: b"other", name: json.dumps(manifest).encode()}
    if claims_replaced_paths:
        replaced = json.loads(files["small/replaced.json"])
        replaced[name.removeprefix("small/")] = hashlib.sha256(files[name]).hexdigest()
        forged["small/replaced.json"] = json.dumps(replaced).encode()
    code, problems = verified(pack(tmp_path / "a.tar.gz", forged), capsys)
    assert code == 1 and {row["file"] for row in problems} == {"manifest.json"}


def test_a_file_that_claims_replaced_paths_is_found_where_it_can_have_none(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """replaced.json lists the hashes of texts as they were; a table of scores is no text."""
    files = members(packed)
    judged = [name for name in files if name.endswith("/scores.parquet") and "judge" in name]
    scores, other = judged[:2]
    replaced = json.loads(files["small/replaced.json"])
    replaced[scores.removeprefix("small/")] = hashlib.sha256(files[scores]).hexdigest()
    forged = files | {scores: files[other], "small/replaced.json": json.dumps(replaced).encode()}
    code, problems = verified(pack(tmp_path / "a.tar.gz", forged), capsys)
    assert code == 1
    assert "scores.parquet" in {row["file"] for row in problems}


def test_names_that_lead_out_of_the_archive_are_left_out(packed: Path, tmp_path: Path) -> None:
    files = members(packed)
    path = pack(tmp_path / "a.tar.gz", files | {"small/../../evil": b"x", "/evil": b"x"})
    unpacked = unpack(path, tmp_path / "inner/there")
    assert not [*tmp_path.rglob("evil")] and "../../evil" not in unpacked.digests


def test_what_is_no_archive_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.zip", "a.tar.gz"):
        (tmp_path / name).write_bytes(b"nothing")
        assert main(["verify", str(tmp_path / name)]) == 2
        assert "is no archive" in capsys.readouterr().err
    assert main(["verify", str(pack(tmp_path / "b.tar.gz", {"small/x": b"x"}))]) == 2
    assert "holds no study's results" in capsys.readouterr().err
