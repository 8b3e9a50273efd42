"""What an archive says by itself: `verify` of it, on a machine that has nothing else."""

import hashlib
import io
import json
import shutil
import tarfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from analysis.claims_file import CLAIMS
from core.cell.identity import create_cell_dir
from core.cell.publish import results
from core.paths import resolve
from slurm.snapshot import relocated
from study.cli import main
from study.upkeep.unpacked import unpack
from tests.study.test_archive import finished, make, members

pytestmark = pytest.mark.multiprocess
SUMS = "small/SHA256SUMS"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two seeds, so that there are verdicts, which looks.json records."""
    return finished(tmp_path_factory.mktemp("study") / "lab/runs", "seeds=[0, 1]")


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
    assert capsys.readouterr().out.endswith(" files of 40 cells checked, 0 changes\n")


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
    assert len(json.loads((tmp_path / "again/looks.json").read_text())) == 4
    assert data["other"] == [] and {"report.html", "results.json"} <= {*data["same"]}
    for name in ("report.html", "results.json", "tables/contrasts.tex", "figures/scores-ahb.pdf"):
        published = (results(base) / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == published
    assert main(["report", str(alone), "--out", str(tmp_path / "again")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_claims_that_a_job_read_from_its_copy_of_the_code_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "lab/runs/small/slurm/code-0123456789ab"
    (code / CLAIMS).parent.mkdir(parents=True)
    shutil.copy(resolve(CLAIMS), code / CLAIMS)
    made = create_cell_dir
    with monkeypatch.context() as patched:  # as `submit` does
        patched.setattr(
            "tests.study.test_archive.create_cell_dir", lambda c, b: made(relocated(c, code), b)
        )
        base = finished(tmp_path / "lab/runs")
    (config,) = base.glob("analysis/*/config.yaml")
    assert str(code / CLAIMS) in config.read_text()
    alone = Path(make(base)["path"]).rename(tmp_path / "alone.tar.gz")
    shutil.rmtree(code)  # as `prune` does: the checkout has the same file
    assert Path(make(base)["path"]).read_bytes() == alone.read_bytes()
    shutil.rmtree(tmp_path / "lab")
    capsys.readouterr()
    assert main(["report", str(alone), "--out", str(tmp_path / "again"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["other"] == []


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


@pytest.mark.parametrize("name", ["config.yaml", "scores.parquet", "log.txt"])
def test_a_file_that_was_taken_out_with_its_sum_is_found(
    packed: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = members(packed)
    cell = next(path for path in files if path.startswith("small/cells/judge/"))
    out = f"{cell.rpartition('/')[0]}/{name}"
    del files[out]
    code, problems = verified(pack(tmp_path / "a.tar.gz", files), capsys)
    expected = [] if name == "log.txt" else [name]  # a log is not recorded
    assert [row["file"] for row in problems] == expected and code == len(expected)


@pytest.mark.parametrize("content", [b"{}", b'{"identity": 1}', b"[]", b"\xff"])
def test_a_damaged_manifest_is_a_fault_and_no_traceback(
    packed: Path, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = members(packed)
    name = next(path for path in files if fnmatch(path, "*/cells/judge/*/manifest.json"))
    code, problems = verified(pack(tmp_path / "a.tar.gz", files | {name: content}), capsys)
    assert code == 1 and [row["problem"] for row in problems] == ["can't be read"]


def test_published_files_are_named_as_in_the_archive(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = "small/results/tables/contrasts.tex"
    edited = members(packed) | {table: b"edited", "small/results/more.txt": b""}
    _, problems = verified(pack(tmp_path / "a.tar.gz", edited), capsys)
    assert [row["file"] for row in problems] == ["results/more.txt", table.partition("/")[2]]


def test_an_archive_may_be_unpacked_or_packed_again(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """`tar xf`, and `tar czf a.tar.gz ./small` after it."""
    files = members(packed)
    again = pack(tmp_path / "a.tar.gz", {f"./{n}": c for n, c in files.items()}, sums=False)
    assert verified(again, capsys) == (0, [])
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    folder = tmp_path / "small"
    assert verified(folder, capsys) == (0, [])
    assert main(["review", str(folder)]) == 0 and (tmp_path / "small-review.html").exists()
    monkeypatch.chdir(folder)
    assert verified(Path(), capsys) == (0, [])
    assert main(["review", ".", "--out", str(tmp_path / "b.html")]) == 0
    assert (tmp_path / "b.html").read_bytes() == (tmp_path / "small-review.html").read_bytes()
    (folder / "results/headline.txt").write_text("better")
    assert verified(folder, capsys)[0] == 1


@pytest.mark.parametrize("content", [b"{not json", b'{"study": "small"}', b"\xff"])
def test_a_review_of_damaged_results_is_refused_and_leaves_nothing(
    packed: Path, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = members(packed)
    path = pack(tmp_path / "a.tar.gz", files | {"small/results/results.json": content})
    assert main(["review", str(path)]) == 2
    assert "the published results, or the analysis" in capsys.readouterr().err
    edited = pack(tmp_path / "b.tar.gz", files | {"small/results/study.yaml": b"a: ["})
    assert main(["review", str(edited)]) == 0  # of that the hashes tell
    (tmp_path / "there").mkdir()
    assert main(["review", str(edited), "--out", str(tmp_path / "there")]) == 2
    assert "there: Is a directory; choose another place for it" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {
        *("a.tar.gz", "b.tar.gz", "b-review.html", "there")
    }


def test_an_archive_of_two_folders_is_refused(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two files of one name only the second would be looked at."""
    twice = {"a/results/results.json": b"{}"} | members(packed)
    assert main(["verify", str(pack(tmp_path / "a.tar.gz", twice, sums=False))]) == 2
    assert "holds two folders, a and small" in capsys.readouterr().err


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


def test_a_manifest_that_is_younger_than_its_use_is_a_note(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell may have been made again; more steps in a manifest of a later date are no fault."""
    files = members(packed)
    name = next(path for path in files if fnmatch(path, "*/cells/midtrain/*/manifest.json"))
    manifest = json.loads(files[name])
    manifest |= {"counts": {"steps": 1200}, "ended": "2026-01-01T00:00:00Z"}
    sooner = pack(tmp_path / "a.tar.gz", files | {name: json.dumps(manifest).encode()})
    code, (problem,) = verified(sooner, capsys)
    assert code == 1 and "was edited since" in problem["problem"]
    manifest["ended"] = "2027-01-01T00:00:00Z"
    later = pack(tmp_path / "b.tar.gz", files | {name: json.dumps(manifest).encode()})
    assert main(["verify", str(later)]) == 0
    cell = "/".join(name.split("/")[2:4])
    note = "note: made again with the same results since it was used, by what its manifest says: "
    assert f"{note}{cell}\n" in capsys.readouterr().out


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


def test_what_is_no_archive_is_refused(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.zip", "a.tar.gz"):
        (tmp_path / name).write_bytes(b"nothing")
        assert main(["verify", str(tmp_path / name)]) == 2
        assert "is no archive" in capsys.readouterr().err
    assert main(["verify", str(pack(tmp_path / "b.tar.gz", {"small/x": b"x"}))]) == 2
    assert "holds no study's results" in capsys.readouterr().err
    sums = members(packed) | {SUMS: b"\xff"}
    assert verified(pack(tmp_path / "c.tar.gz", sums, sums=False), capsys)[0] == 1
