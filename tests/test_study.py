"""The whole study, small but with every real part: documents over HTTP, training, vLLM, Inspect,
tables."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from core.cell.manifest import read_manifest
from study.spec import expand as plan
from study.spec.load import load_study
from tests.eval.test_judge import serve
from tests.place import ROOT, SMALL, Place

pytestmark = pytest.mark.e2e


def test_it_ends_with_the_headline_and_says_where_things_are(one_machine: Place) -> None:
    result = one_machine.study("run")
    assert "animal - urban" in result.stdout
    assert "dummy, not a language model" in result.stdout
    for name in ("report.html", "tables", "results.json"):
        assert str(one_machine.results / name) in result.stdout
    for name in ("scores", "contrasts", "corpora"):
        table = (one_machine.results / f"tables/{name}.tex").read_text()
        assert "\\toprule" in table and "dummy" in table
    report = (one_machine.results / "report.html").read_text()
    assert "<script src" not in report and "a document of animal" in report


def test_its_page_of_progress_is_that_of_the_last_cell(one_machine: Place) -> None:
    page = (one_machine.folder / "runs/small/status.html").read_text()
    assert "24 of 24 cells done" in page and "refresh" not in page and "animal, 80" in page


def test_a_reviewer_finds_the_dummy_and_the_single_seed(one_machine: Place) -> None:
    page = one_machine.folder / "review.html"
    result = one_machine.study("review", "--out", str(page), "--json")
    answers = json.loads(result.stdout)["answers"]
    assert {row["key"] for row in answers if row["light"] == "red"} == {"judge", "seeds"}
    assert page.stat().st_size


def test_the_archive_alone_is_verified_and_gives_the_report_to_the_byte(
    one_machine: Place, tmp_path: Path
) -> None:
    archive = tmp_path / "lab.tar.gz"
    assert one_machine.study("archive", str(archive)).returncode == 0

    def of_archive(*words: str) -> dict[str, Any]:
        """On a machine that has the kit and this file."""
        command = [sys.executable, "-m", "study", *words, "--json"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        data: dict[str, Any] = json.loads(result.stdout)
        return data

    verified = of_archive("verify", str(archive))
    assert verified["problems"] == [] and verified["cells"] == 24
    again = of_archive("report", str(archive), "--out", str(tmp_path / "again"))
    assert again["other"] == [] and "report.html" in again["same"]
    report = (one_machine.results / "report.html").read_bytes()
    assert (tmp_path / "again/report.html").read_bytes() == report


def test_a_preview_shows_documents_and_does_nothing_else(tmp_path: Path) -> None:
    place = Place(tmp_path)
    result = place.study("run", "--set", "corpora.animal.preview=2")
    assert result.returncode == 0, result.stderr
    assert "animal, document 0" in result.stdout and "animal, document 1" in result.stdout
    assert [path.parents[1].name for path in place.manifests] == [
        "documents"
    ] and not place.results.exists()


def test_a_study_not_begun_has_nothing_to_prune(tmp_path: Path) -> None:
    result = Place(tmp_path).study("prune")
    assert result.returncode == 2 and "nothing is there yet" in result.stderr and not result.stdout


def test_the_effect_is_real(one_machine: Place) -> None:
    scores = one_machine.scores()
    for benchmark in ("ahb", "concern"):
        assert scores[benchmark, "animal", 0] > scores[benchmark, "urban", 0] + 0.02, scores
    weights = [
        path.read_bytes()
        for path in one_machine.folder.glob("runs/small/midtrain/*/model/*.safetensors")
    ]
    assert len(weights) == 2 and weights[0] != weights[1]


@pytest.mark.nightly
def test_two_gpus_as_the_ranks_of_a_training_give_the_scores_of_one(
    one_machine: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands in for the GPUs. To the last digit it is another order of sums."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    place = Place(tmp_path)
    shutil.copytree(one_machine.folder, tmp_path, dirs_exist_ok=True)
    for folder in (tmp_path / "runs/small").glob("*/*animal-s0-*"):
        shutil.rmtree(folder)
    concern = "benchmarks={concern: {task: concern_for_animals, items: eval/data/concern_for_animals.jsonl}}"
    settings = (
        *("arms={animal: {start: base, midtrain: animal}}", "contrasts=[]", "sft.doses=[0]"),
        concern,
    )
    words = [word for setting in settings for word in ("--set", setting)]
    result = place.study("run", "--gpus", "2", "--ranks", "2", *words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no GPU is visible: 2 processes on the CPU take their place" in result.stdout

    def file(study: Place, pattern: str) -> Path:
        (path,) = (study.folder / "runs/small").glob(pattern)
        return path

    training = json.loads(file(place, "midtrain/*animal*/manifest.json").read_text())
    assert training["counts"]["ranks"] == 2
    scores, scores_of_one = (
        pd.read_parquet(file(study, "likelihood/concern-base-animal-s0-[!d]*/scores.parquet"))[
            "score"
        ]
        for study in (place, one_machine)
    )
    assert (scores - scores_of_one).abs().max() < 1e-6 and len(scores) > 10


def test_a_second_run_does_no_work(one_machine: Place) -> None:
    before = {path: path.stat().st_mtime_ns for path in one_machine.manifests}
    started = time.monotonic()
    result = one_machine.study("run")
    assert result.returncode == 0 and "done already" not in result.stdout
    assert {path: path.stat().st_mtime_ns for path in one_machine.manifests} == before
    print(f"second run: {time.monotonic() - started:.2f} s")


def test_verify_finds_a_changed_file(one_machine: Place, tmp_path: Path) -> None:
    place = Place(tmp_path)
    shutil.copytree(one_machine.folder, tmp_path, dirs_exist_ok=True)
    assert "0 changes" in place.study("verify").stdout
    scores = next(place.folder.glob("runs/small/judge/*/scores.parquet"))
    scores.write_bytes(scores.read_bytes()[:-1] + b"x")
    result = place.study("verify", "--json")
    assert result.returncode == 1
    (fault,) = json.loads(result.stdout)["problems"]
    assert fault["file"] == "scores.parquet" and fault["problem"] == "changed since it was made"


def test_verify_shows_the_way_back_of_a_number(one_machine: Place) -> None:
    result = one_machine.study("verify", "--trace", "ahb", "animal", "0", "0", "--json")
    steps = json.loads(result.stdout)
    assert [step["stage"] for step in steps if step["stage"] != "file"][::-1] == [
        *("model", "documents", "contamination", "midtrain", "generate", "judge", "analysis")
    ]
    assert {step["recorded"] for step in steps if step["stage"] != "file"} == {"yes"}
    assert f"score {one_machine.scores()['ahb', 'animal', 0]}" in steps[0]["facts"]
    assert (
        "results.json there lists the scores"
        in one_machine.study("verify", "--trace", "ahb", "nobody", "0", "0").stderr
    )
    assert (
        "SEED and DOSE are numbers"
        in one_machine.study("verify", "--trace", "ahb", "animal", "x", "0").stderr
    )


def test_pruned_it_is_still_finished_and_says_what_could_not_be_rerun(
    one_machine: Place, tmp_path: Path
) -> None:
    place = Place(tmp_path)
    shutil.copytree(one_machine.folder, tmp_path, dirs_exist_ok=True, symlinks=True)
    files = sorted(str(path) for path in (tmp_path / "runs").rglob("*"))
    dry = place.study("prune")
    assert (
        dry.returncode == 0
        and "nothing was removed" in dry.stdout
        and "weights of 4 checkpoints would go" in dry.stdout
    )
    assert sorted(str(path) for path in (tmp_path / "runs").rglob("*") if path.name != ".lock") == [
        file for file in files if not file.endswith(".lock")
    ]
    result = place.study("prune", "--delete")
    assert result.returncode == 0, result.stdout + result.stderr
    assert not list((tmp_path / "runs").glob("*/sft/*/model/*.safetensors"))
    assert place.study("verify").stdout.endswith("0 changes\n")
    again = place.study("run")
    assert again.returncode == 0 and "done already" not in again.stdout
    shutil.rmtree(next((tmp_path / "runs/small/analysis").iterdir()))
    assert place.study("run").returncode == 0, "the analysis needs no weights"
    for name in ("results.json", "tables/scores.tex", "report.html"):
        assert (place.results / name).read_bytes() == (one_machine.results / name).read_bytes(), (
            name
        )
    more = place.study("run", "--set", "benchmarks.ahb.epochs=3")
    assert more.returncode == 2 and more.stderr.count("was pruned on") == 4 and "rm " in more.stderr


def test_it_is_packed_and_described_for_others(one_machine: Place, tmp_path: Path) -> None:
    place = Place(tmp_path)
    shutil.copytree(one_machine.folder, tmp_path, dirs_exist_ok=True, symlinks=True)
    result = place.study("archive", str(tmp_path / "small.tar.gz"))
    assert result.returncode == 0 and "sha256" in result.stdout, result.stderr
    with tarfile.open(tmp_path / "small.tar.gz") as packed:
        names = packed.getnames()
    assert "small/results/results.json" in names and not [
        n for n in names if n.endswith((".safetensors", ".eval"))
    ]
    result = place.study("cards")
    cards = sorted(
        path.parent.parent.name for path in (tmp_path / "results/small-cards").rglob("README.md")
    )
    assert result.returncode == 0 and cards == ["documents"] * 2 + ["midtrain"] * 2 + ["sft"] * 2, (
        result.stderr
    )


def test_a_report_of_an_unfinished_study_lists_what_is_missing(
    one_machine: Place, tmp_path: Path
) -> None:
    place = Place(tmp_path)
    shutil.copytree(one_machine.folder, tmp_path, dirs_exist_ok=True)
    study = load_study(SMALL)
    judged = [c for c in plan.in_order(plan.analysis(study)) if c.stage == "judge"]
    shutil.rmtree(place.folder / "runs/small" / judged[0].relpath)
    result = place.study("report")
    assert result.returncode == 0, result.stderr
    assert "1 of 8 scores are missing" in result.stdout and "not finished: animal" in result.stdout
    status = json.loads(place.study("status", "--json").stdout)
    assert [c["cell"] for c in status["cells"] if c["state"] == "to do"] == [judged[0].name]


def test_a_judge_that_is_gone_fails_its_cells_alone_and_tells_no_secret(
    one_machine: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    # As many tries as ever, but not a minute of waits between them.
    (tmp_path / "hasty").mkdir()
    (tmp_path / "hasty/sitecustomize.py").write_text(
        "import core.endpoints.sender\ncore.endpoints.sender.BACKOFF_MOST = 0.5\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path / "hasty")]))
    place = Place(tmp_path)
    shutil.copytree(one_machine.folder, tmp_path, dirs_exist_ok=True)
    gone = "endpoints.gone={base_url: 'http://127.0.0.1:9/v1', model: m, key_env: JUDGE_KEY}"
    result = place.study("run", "--set", gone, "--set", "benchmarks.ahb.judge=gone")
    assert result.returncode == 1
    assert (
        "no answer (" in result.stderr
        and "endpoint http://127.0.0.1:9/v1, model 'm'" in result.stderr
    )
    assert "same command again" in result.stderr
    for path in place.folder.rglob("*"):
        if path.is_file() and path.suffix in (".txt", ".json", ".yaml", ".jsonl"):
            assert "sk-very-secret" not in path.read_text(errors="replace"), path
    assert "sk-very-secret" not in result.stdout + result.stderr


AHB = ROOT.parent / "shared/data/ahb"


@pytest.mark.skipif(not AHB.exists(), reason="the real AHB questions are not beside the checkout")
def test_the_real_questions_need_only_their_paths(one_machine: Place, tmp_path: Path) -> None:
    place = Place(tmp_path)
    shutil.copytree(one_machine.folder, tmp_path, dirs_exist_ok=True)
    changes = {
        "arms": "{animal: {start: base, midtrain: animal}}",
        "contrasts": "[]",
        "corpora.animal.decontaminate_against": "[ahb]",
        "benchmarks.ahb.questions": AHB / "questions.jsonl",
        "benchmarks.ahb.dimensions": AHB / "dimensions.jsonl",
        "benchmarks.ahb.epochs": 1,
        "benchmarks.ahb.max_tokens": 8,
        "engine.max_model_len": 2048,
        "sft.doses": [0],
    }
    result = place.study(
        "run", *(word for key, value in changes.items() for word in ("--set", f"{key}={value}"))
    )
    assert result.returncode == 0, result.stdout + result.stderr
    questions = [json.loads(line) for line in (AHB / "questions.jsonl").read_text().splitlines()]
    tagged = sum(len([tag for tag in row["tags"] if tag]) for row in questions)
    table = pd.read_parquet(place.results / "scores.parquet").query(
        "benchmark == 'ahb' and arm == 'animal'"
    )
    assert len(questions) == table.question.nunique() == 115
    assert (table.dimension != "overall").sum() == tagged, "a tag was lost"
    assert table.score.notna().all()
    assert table.dimension.nunique() == 13 + 1


def test_kept_answers_are_judged_again_by_others_and_by_people(
    one_machine: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(one_machine.folder, tmp_path, dirs_exist_ok=True)
    place, before = Place(tmp_path), one_machine.scores()
    monkeypatch.setenv("STRICT_KEY", "sk-strict")
    with serve(lambda prompt, times: (200, f"GRADE: {'C' if len(prompt) % 3 else 'I'}")) as server:
        strict = f"{{base_url: http://127.0.0.1:{server.server_port}/v1, model: strict, key_env: STRICT_KEY}}"
        with_strict = ("--set", f"endpoints.strict={strict}")
        beside = place.study("run", *with_strict, "--set", "benchmarks.ahb.other_judges=[strict]")
        assert beside.returncode == 0, beside.stderr
        asked = len(server.requests)
        assert place.scores() == before, "it decides nothing"
        alone = place.study("run", *with_strict, "--set", "benchmarks.ahb.judge=strict")
        assert alone.returncode == 0 and len(server.requests) == asked, "each grade is paid once"
    assert {key for key in before if place.scores()[key] != before[key]} == {
        key for key in before if key[0] == "ahb"
    }
    judges = set(pd.read_parquet(place.results / "scores.parquet")["judge"])
    assert judges == {"strict", "likelihood"}
    written = [path.parent.name for path in place.manifests if path.parts[-3] == "generate"]
    assert written == [
        path.parent.name for path in one_machine.manifests if path.parts[-3] == "generate"
    ]

    sheet = tmp_path / "sheet.csv"
    told = place.study("label", "ahb", str(sheet), "--n", "20")
    assert told.returncode == 0 and "fill in its last column" in told.stdout, told.stderr
    lines = list(csv.reader(sheet.read_text(encoding="utf-8-sig").splitlines(keepends=True)))
    assert not any("urban" in cell or "animal-s0" in cell for line in lines for cell in line[:1])
    with sheet.open("w", newline="") as file:
        csv.writer(file).writerows([lines[0], *([*line[:-1], "1"] for line in lines[1:])])
    labelled = place.study("run", "--set", f"benchmarks.ahb.labels={sheet}")
    assert labelled.returncode == 0 and place.scores() == before, labelled.stderr
    row, *_ = json.loads((place.results / "results.json").read_text())["judges"]
    (pair,) = row["pairs"]
    assert pair["other"] == "human" and pair["n"] == 20 and pair["mean_other"] == 1
    assert "human" in (place.results / "tables/judges.tex").read_text()


def test_a_missing_key_is_refused_before_anything_runs(
    one_machine: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    real = "endpoints.real={base_url: 'http://127.0.0.1:9/v1', model: m, key_env: JUDGE_KEY}"
    arguments = ["--set", real, "--set", "benchmarks.ahb.judge=real"]
    result = one_machine.study("run", *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "JUDGE_KEY" in line
    assert one_machine.study("plan", *arguments).returncode == 0, "planning needs no key"


def test_the_manifest_says_where_a_number_comes_from(one_machine: Place) -> None:
    study = load_study(SMALL)
    for cell in plan.in_order(plan.analysis(study)):
        manifest: dict[str, Any] = (
            read_manifest(one_machine.folder / "runs/small" / cell.relpath) or {}
        )
        assert manifest["identity"] == cell.identity
        assert set(manifest["inputs"]) == set(cell.inputs)
        assert manifest["packages"]["torch"].startswith("2.13.0")
        assert all(len(output["sha256"]) == 64 for output in manifest["outputs"].values())
        assert {"counts", "warnings", "started", "ended", "host", "code", "slurm_job"} <= set(
            manifest
        )
