"""The replication archive: what is in it, the same bytes twice, and no key or home that somebody
planted."""

import hashlib
import json
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from core.cell.context import StageContext
from core.cell.identity import create_cell_dir, read_config
from core.cell.manifest import check_inputs, write_manifest
from core.cell.publish import publish, results
from core.errors import UserError
from core.paths import ROOT
from study.spec import expand as plan
from study.spec.load import load_study
from study.spec.study_declaration import declare
from study.upkeep.archive import _clean, archive, cells_behind

pytestmark = pytest.mark.multiprocess

SMALL = ROOT / "tests/small/small.yaml"
KEY = "k-" + "fedcba9876543210"  # in two: an archive holds the code, this file with it
DOCUMENTS = {
    "calls": 100,
    "prompt_tokens": 30_000,
    "completion_tokens": 21_000,
    "cost": 1.25,
    "documents": 100,
}
TRAINED = {"steps": 12, "tokens": 61_440, "first_loss": 5.5, "last_loss": 2.25, "ranks": 2}


def finished(runs: Path, *overrides: str) -> Path:
    """The small study with its results, finished by hand but for the analysis. Returns the study's
    folder."""
    from analysis.run import run

    base = runs / "small"
    study = load_study(SMALL, None, list(overrides))
    cells = plan.in_order(plan.analysis(study))
    declare(study, base, cells)
    for number, cell in enumerate(cells):
        folder, counts = create_cell_dir(cell, base), {}
        (folder / "log.txt").write_text(f"in {base}\n")
        if cell.stage in ("model", "midtrain", "sft"):
            (folder / "model").mkdir()
            (folder / "model/model.safetensors").write_bytes(b"weights")
            (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 5.5}\n')
            counts = TRAINED if cell.stage != "model" else {"parameters": 1000, **TRAINED}
        elif cell.stage == "documents":
            card = {
                "documents": 100,
                "words": 14_000,
                "tokens": 29_900,
                "diversity": {"type_token": 0.02},
            }
            card |= {
                "length": {"words": {"50%": 140.0}},
                "tokens_trimmed": 100,
                "held_out": 0,
                "examples": [],
            }
            (folder / "corpus_stats.json").write_text(
                json.dumps(card | {"counts": {"rejected": 3}})
            )
            (folder / "documents.jsonl").write_text('{"id": 0, "text": "a whole document"}\n')
            (folder / "corpus").mkdir()
            documents = pd.DataFrame([{"id": 0, "text": "a whole document"}])
            documents.to_parquet(folder / "corpus/train.parquet", index=False)
            (folder / "calls.jsonl").write_text('{"id": 0, "text": "a reply"}\n')
            counts = DOCUMENTS | {"tokens": 29_900, "words": 14_000}
        elif cell.stage in ("generate", "judge", "likelihood"):
            if cell.stage != "generate":
                _scores(folder, number, cell.settings.get("judge", {}).get("model", "likelihood"))
            for name in {"generate": ["samples.eval"], "judge": ["scored.eval"]}.get(
                cell.stage, []
            ):
                with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as log:
                    log.writestr(
                        "samples/1.json", json.dumps({"input": "a question", "at": f"{ROOT}/x"})
                    )
            (folder / "samples.jsonl").write_text(
                '{"id": "q1"}\n'
            ) if cell.stage == "likelihood" else None
        elif cell.stage == "analysis":
            config = read_config(folder)
            run(
                StageContext(
                    folder,
                    cell.identity,
                    cell.settings,
                    cell.resources,
                    check_inputs(folder, config),
                )
            )
        write_manifest(folder, read_config(folder), "2026-02-01T00:00:00Z", "2026-02-01T01:30:00Z",
                       counts=counts, warnings=[])  # fmt: skip
    publish(folder)
    return base


def _scores(folder: Path, number: int, judge: str) -> None:
    rows = [
        (f"q{n}", f"q{n}", "overall", 1, judge, ((n * 7 + number * 3) % 10) / 10, None, f"q{n}/1")
        for n in range(8)
    ]
    columns = [
        "question",
        "scenario",
        "dimension",
        "epoch",
        "judge",
        "score",
        "missing",
        "response",
    ]
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "scores.parquet", index=False)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("study") / "runs").parents[1]


@pytest.fixture
def base(once: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, in another place."""
    shutil.copytree(once, tmp_path / "there")
    return tmp_path / "there/runs/small"


def make(base: Path, name: str = "a.tar.gz", study: Path = SMALL, **options: Any) -> dict[str, Any]:
    return archive(study, base, results(base), base.parents[2] / name, **options)


def members(path: Path) -> dict[str, bytes]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as file:
            return {name: file.read(name) for name in file.namelist()}
    with tarfile.open(path) as file:
        return {m.name: file.extractfile(m).read() for m in file.getmembers()}  # type: ignore[union-attr]


def test_the_same_bytes_twice_and_it_opens(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make(base)
    monkeypatch.setattr("time.time", lambda: 1e9)  # another day
    for path in base.rglob("*"):
        path.touch()
    digest = hashlib.sha256(Path(one["path"]).read_bytes()).hexdigest()
    assert make(base, "b.tar.gz")["sha256"] == one["sha256"] == digest
    two = [make(base, f"{name}.zip", samples=True)["sha256"] for name in "cd"]
    assert two[0] == two[1]
    found = members(Path(one["path"]))
    assert len(found) == one["files"] and all(name.startswith("small/") for name in found)
    zipped = make(base, "e.zip")
    assert members(Path(zipped["path"])) == found
    sums = dict(
        reversed(line.split("  ")) for line in found["small/SHA256SUMS"].decode().splitlines()
    )
    assert {f"small/{name}": digest for name, digest in sums.items()} == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in found.items()
        if "SHA256SUMS" not in name
    }
    assert sorted(path.name[0] for path in base.parents[2].iterdir() if path.is_file()) == [
        "a",
        "b",
        "c",
        "d",
        "e",
    ]


def test_what_is_in_it_and_what_never_is(base: Path) -> None:
    (base / "judge/other-01234567").mkdir()  # of another version of the study
    (base / "judge/other-01234567/manifest.json").write_text("{}")
    found = members(Path(make(base)["path"]))
    names = {re.sub(r"-[0-9a-f]{8}/", "/", name.removeprefix("small/")) for name in found}
    assert names >= {
        "README.md", "study/small.yaml", "SHA256SUMS", "results/results.json", "results/scores.parquet",
        "results/declaration.json", "results/looks.json",
        "results/report.html", "results/tables/scores.tex", "results/figures/scores-ahb.pdf",
        "cells/documents/animal/corpus_stats.json", "cells/documents/animal/calls.jsonl",
        "cells/midtrain/base-animal-s0/metrics.jsonl", "cells/judge/ahb-base-animal-s0/scores.parquet",
        "cells/judge/ahb-base-animal-s0/log.txt", "cells/judge/ahb-base-animal-s0/manifest.json",
    }  # fmt: skip
    never = (".safetensors", ".eval", "samples.jsonl", "documents.jsonl")
    assert not [name for name in names if name.endswith(never) or "other" in name]
    manifests = [name for name in names if re.fullmatch(r"cells/.*/manifest.json", name)]
    assert len(manifests) == len(list(base.glob("*/*/manifest.json"))) - 1
    whole = members(Path(make(base, samples=True)["path"]))
    more = {Path(name).name for name in whole.keys() - found.keys()}
    assert more == {"samples.eval", "scored.eval", "samples.jsonl"}


def test_paths_of_this_machine_are_replaced_and_said(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/kim")  # and not jane's, as in the address below
    cell = next(base.glob("midtrain/*"))
    (cell / "log.txt").write_text(
        f"{ROOT}/study/x.py {base}/model {Path.home()}/.cache /home/jane/data /Users/jane\n"
        "https://x.org/home/jane /rooted\n"
    )
    made = make(base, samples=True)
    name = f"cells/{cell.relative_to(base)}/log.txt"
    found = members(Path(made["path"]))
    text = found[f"small/{name}"].decode()
    assert (
        text == "./study/x.py runs/small/model ~/.cache ~/data ~\nhttps://x.org/home/jane /rooted\n"
    )
    assert name in made["replaced"] and f"- `{name}`" in found["small/README.md"].decode()
    log = next(name for name in found if name.endswith("samples.eval"))
    (base.parents[2] / "x.eval").write_bytes(found[log])
    with zipfile.ZipFile(base.parents[2] / "x.eval") as file:
        assert json.loads(file.read("samples/1.json")) == {"input": "a question", "at": "./x"}


def test_a_path_with_an_umlaut_is_replaced_in_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.upkeep.archive.ROOT", Path("/srv/Möwe und Co"))
    text = json.dumps("/srv/Möwe und Co/x") + " /srv/Möwe und Co/y"
    assert _clean("log.txt", text.encode(), Path("/srv/runs/small")).decode() == '"./x" ./y'


def test_a_home_that_cannot_be_replaced_is_refused(base: Path) -> None:
    figure = results(base) / "figures/scores-ahb.png"
    figure.write_bytes(figure.read_bytes() + b"/home/jane/fonts\xff")
    with pytest.raises(
        UserError,
        match=r"scores-ahb.png: holds the path of a home, /home/jane, in a file that is no text",
    ):
        make(base)


@pytest.mark.parametrize(
    "where, planted, what",
    [
        ("log.txt", "Authorization: Bearer abcdefgh12345678ijkl", "a bearer token, line 2"),
        (
            "scored.eval",
            "sk-" + "proj-abcDEF0123456789xyzuvw",
            "a key that begins with sk-, line 2",
        ),
        ("calls.jsonl", "hf_" + "abcdefghijklmnopqrstuvwxyz", "a Hugging Face token, line 2"),
        ("log.txt", "AIza" + "Sy0123456789abcdefghijklmnopqrstuvw", "a Google key, line 2"),
        ("scored.eval", "https://me:pass" + "word@host/v1", "a password in a URL, line 2"),
        ("calls.jsonl", "-----BEGIN RSA " + "PRIVATE KEY-----", "a private key, line 2"),
        ("scored.eval", f"key {KEY} there", "the value of WRITER"),
        ("calls.jsonl", f"key {KEY} there", "the value of SOME_API_TOKEN"),
    ],
)
def test_a_planted_key_is_caught(
    base: Path, monkeypatch: pytest.MonkeyPatch, where: str, planted: str, what: str
) -> None:
    if name := re.search(r"value of (\w+)", what):
        monkeypatch.setenv(name[1], KEY)
    study = base.parents[2] / "study.yaml"
    study.write_text(
        SMALL.read_text().replace("{served_by: dummy}", "{served_by: dummy, key_env: WRITER}")
    )
    make(base, study=study, samples=True)
    file = next(base.glob("judge/*")) / where
    if where.endswith(".eval"):
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as log:
            log.writestr("samples/2.json", f"\n{planted}\n")
        what = what.replace(", line", " in samples/2.json, line")
    else:
        file.write_text(f"one\n{planted}\n")
    made = base.parents[2] / "a.tar.gz"
    made.unlink()
    with pytest.raises(UserError) as error:
        make(base, study=study, samples=True)
    (line,) = error.value.lines
    assert (
        str(file) in line
        and what in line
        and planted not in line
        and KEY not in line
        and not made.exists()
    )


def test_words_that_only_look_like_keys_pass(base: Path) -> None:
    text = "task-0123456789abcdefghijkl, bearer of the standard, sk-learn-is-a-library-of-many, https://x.org:443/a@b\n"
    (next(base.glob("judge/*")) / "log.txt").write_text(text)
    make(base)


def test_links_in_the_results_and_cells_are_refused(base: Path, tmp_path: Path) -> None:
    """What they lead to was not meant to be published."""
    (secret := tmp_path / "secret.txt").write_text("a diary")
    link = results(base) / "tables" / "diary.txt"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(secret)
    log = next(base.glob("judge/*")) / "log.txt"
    log.unlink()
    log.symlink_to(secret)
    with pytest.raises(UserError) as error:
        make(base)
    assert sorted(p.where for p in error.value.problems) == sorted([str(log), str(link)])
    assert {problem.what for problem in error.value.problems} == {"is a link"}


def test_a_cell_outside_the_runs_folder_is_not_packed(base: Path, tmp_path: Path) -> None:
    """A manifest names its inputs by paths, and may have been edited."""
    (outside := tmp_path / "model/secret").mkdir(parents=True)
    (outside / "manifest.json").write_text('{"identity": "a", "inputs": {}}')
    file = next(base.glob("analysis/*/manifest.json"))
    manifest = json.loads(file.read_text())
    source = next(iter(manifest["inputs"].values()))
    source |= {"cell": os.path.relpath(outside, base), "identity": "a"}
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="model/secret: lies outside the runs folder"):
        make(base)


def test_a_study_without_results_is_refused_with_the_command_that_makes_them(base: Path) -> None:
    with pytest.raises(UserError, match=r"ends in .tar.gz or .zip"):
        make(base, "a.rar")
    place = next(base.glob("model/*"))
    (place / "manifest.json").unlink()
    with pytest.raises(UserError) as error:
        cells_behind(next(base.glob("analysis/*")))
    assert error.value.lines == (
        f"{place}: is not finished, but the published results need it; run the study again",
    )
    shutil.rmtree(results(base))
    with pytest.raises(UserError, match="results/small: holds no results; publish them again: "):
        make(base)


def test_the_readme_says_how_the_analysis_is_done_again(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.unpack_archive(
        make(base)["path"], tmp_path
    )  # extractall(filter=) came with Python 3.11.4
    readme = (tmp_path / "small/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    code = code.replace("PATH/small", str(tmp_path / "small"))
    exec(code, {})
    same = eval(capsys.readouterr().out)
    assert same["scores"] and same["contrasts"] and same["arms"] and all(same.values())
