"""`review`: planted sins are found, and a clean study has none but the dummy endpoint."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.paths import ROOT
from study.cli import main
from study.review.answers import family
from tests.study.test_archive import SMALL, finished, make

pytestmark = pytest.mark.multiprocess

SINS = (
    "seeds=[0]",  # one seed
    "arms.animal.recipe=recipes/tiny_midtrain.yaml",  # a confounded recipe
    "contrasts=[{name: animal - urban, treatment: animal, control: urban, benchmarks: [ahb],"
    " varies: [corpus, recipe]}]",
    # A judge of the models' family.
    "endpoints.judge={base_url: https://api.example.org/v1, model: meta-llama/Llama-3.3-70B, key_env: JUDGE_KEY}",
    "benchmarks.ahb.judge=judge",
)


@pytest.fixture(scope="module")
def early() -> Any:
    """The declaration comes before the scores, which are of February."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.utc.text", lambda seconds=None: "2026-01-31T00:00:00Z")
        yield


@pytest.fixture(scope="module")
def clean(early: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("clean") / "runs", "seeds=[0, 1, 2]")


@pytest.fixture(scope="module")
def sinful(early: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = finished(tmp_path_factory.mktemp("sinful") / "runs", *SINS)
    first, second = sorted(base.glob("judge/*/scores.parquet"))[:2]
    content = first.read_bytes()
    shutil.copyfile(second, first)
    second.write_bytes(content)
    record = json.loads((base / "declaration.json").read_text())
    record["declared"]["contrasts"][0]["benchmarks"] = ["concern"]
    (base / "declaration.json").write_text(json.dumps(record))
    return base


def reviewed(
    base: Path, out: Path, capsys: pytest.CaptureFixture[str], *overrides: str
) -> dict[str, Any]:
    """The answers by their keys; the page is at `out`."""
    sets = [word for text in overrides for word in ("--set", text)]
    words = [str(SMALL), "--runs", str(base.parent), *sets, "--out", str(out), "--json"]
    capsys.readouterr()
    assert main(["review", *words]) == 0
    data = json.loads(capsys.readouterr().out)
    return {answer["key"]: answer for answer in data["answers"]}


def reds(answers: dict[str, Any]) -> set[str]:
    return {key for key, answer in answers.items() if answer["light"] == "red"}


def test_a_clean_study_has_no_fault_but_the_dummy(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = reviewed(clean, tmp_path / "page.html", capsys, "seeds=[0, 1, 2]")
    assert len(answers) == 12 and reds(answers) == {"judge"}
    assert "dummy" in answers["judge"]["text"]


def test_five_planted_sins_are_found(
    sinful: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = reviewed(sinful, tmp_path / "page.html", capsys, *SINS)
    assert reds(answers) == {"seeds", "confounds", "judge", "declaration", "hashes"}
    assert any("recipe.lr" in line for line in answers["confounds"]["details"])
    assert "Llama-3.3-70B" in answers["judge"]["text"] and "base" in answers["judge"]["text"]
    assert "another sha256" in answers["declaration"]["text"]
    swapped = answers["hashes"]["details"]
    assert len(swapped) == 2 and all("is now scores.parquet of judge/" in row for row in swapped)


def test_the_page_needs_nothing_and_its_links_lead_to_files(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "deeper/page.html"
    reviewed(clean, page, capsys, "seeds=[0, 1, 2]")
    text = page.read_text()
    links = re.findall(r'<a href="([^"]*)"', text)
    assert len(links) == 12 and all((page.parent / link).is_file() for link in links)
    assert "<script" not in text and not re.search(r"""(src|url\()\s*=?\s*["']?http""", text)
    assert text.count('<li id="') == 12


def test_an_archive_is_reviewed_as_its_study_is(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = reviewed(clean, tmp_path / "page.html", capsys, "seeds=[0, 1, 2]")
    packed = shutil.copy(make(clean)["path"], tmp_path / "lab.tar.gz")
    page = tmp_path / "lab-review.html"
    assert main(["review", str(packed), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {a["key"]: a["light"] for a in data["answers"]} == {
        key: answer["light"] for key, answer in study.items()
    }
    shutil.unpack_archive(packed, tmp_path)
    links = re.findall(r'<a href="([^"]*)"', page.read_text())
    assert len(links) == 12 and all((tmp_path / link).is_file() for link in links)


def test_an_archive_takes_no_options_of_a_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--seeds", "0"], ["--set", "seeds=[0]"]):
        assert main(["review", str(tmp_path / "a.zip"), *words]) == 2
        assert "has no meaning for an archive" in capsys.readouterr().err
    assert main(["review", str(tmp_path / "a.zip")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, expected",
    [
        ("meta-llama/Llama-3.1-8B", "llama"),
        ("recipes/tiny_llama.yaml", "llama"),
        ("/models/Llama-3.1-8B/", "llama"),
        ("gemini-2.5-flash-lite", "gemini"),
        ("claude-haiku-4.5", "claude"),
        ("gpt-4o-mini", "gpt"),
        ("Mixtral-8x7B", "mistral"),
        ("Qwen/Qwen3-8B-Base", "qwen"),
        ("some-lab/Nova-7B", "nova"),
    ],
)
def test_the_family_of_a_model(name: str, expected: str) -> None:
    assert family(name) == expected


def test_the_page_is_styled_as_the_report(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reviewed(clean, tmp_path / "page.html", capsys, "seeds=[0, 1, 2]")
    assert (ROOT / "analysis/report.css").read_text() in (tmp_path / "page.html").read_text()
