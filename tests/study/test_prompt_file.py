"""A corpus whose prompt is a file of the user's: checked, part of the identity, never shown."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import UserError
from core.files import sha256
from core.paths import ROOT
from sdf.settings import CorpusSettings
from study.commands import fetch as fetch_command
from study.forecast.corpus_cost import forecast
from study.spec import expand
from study.spec.load import load_study
from study.upkeep import dataset_card

TINY = ROOT / "studies/tiny.yaml"
PROMPT = "Write a {document_type} for {domain} on hens, by {person}.\n"


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT)
    return path


def cells(*overrides: str) -> dict[str, Any]:
    study = load_study(TINY, None, [*overrides])
    return {cell.name: cell for cell in expand.in_order(expand.analysis(study))}


def mistakes(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as error:
        load_study(TINY, None, [*overrides])
    return error.value.lines


def test_the_content_and_not_the_path_is_identity(prompt: Path, tmp_path: Path) -> None:
    plain = cells()["animal"]
    own = cells(f"corpora.animal.prompt_file={prompt}")["animal"]
    assert own.identity != plain.identity
    assert own.settings["files"]["prompt"] == sha256(prompt)
    assert "prompt" not in own.settings["template"] and PROMPT not in json.dumps(own.settings)
    assert own.settings["template"]["gates"] == plain.settings["template"]["gates"]
    copy = tmp_path / "copy.txt"
    copy.write_text(PROMPT)
    assert cells(f"corpora.animal.prompt_file={copy}")["animal"].identity == own.identity
    other = tmp_path / "other.txt"
    other.write_text(PROMPT + "More.")
    assert cells(f"corpora.animal.prompt_file={other}")["animal"].identity != own.identity


def test_an_ending_is_part_of_the_prompt() -> None:
    plain, first, neutral = (
        cells(*overrides)["animal"]
        for overrides in ([], ["corpora.animal.ending=ai"], ["corpora.animal.ending=neutral"])
    )
    assert plain.identity == first.identity != neutral.identity
    assert plain.settings["template"].keys() == neutral.settings["template"].keys()


@pytest.mark.parametrize(
    ("text", "others", "what"),
    [
        ("On {domian}.", [], "unknown placeholder {domian}"),
        ("On {domain", [], "unmatched brace"),
        ("On {domain!r}.", [], "placeholder {domain} has a conversion or a format"),
        ("On {domain:{place}}.", [], "placeholder {domain} has a conversion or a format"),
        ('{"domain": "x"}', [], 'unknown placeholder {"domain"}'),
        ("On [domain].", [], "has no slot: all documents would have the same prompt"),
        (" \n", [], "is blank"),
        (PROMPT, ["corpora.animal.ending=ai"], "has an ending of its own"),
        (PROMPT, ["corpora.animal.template=qa_pairs"], "has two prompts"),
        (PROMPT, ["corpora.animal.writer=null", "corpora.animal.path=README.md"], "with a writer"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_before_anything_is_paid(
    text: str, others: list[str], what: str, prompt: Path
) -> None:
    prompt.write_text(text)
    lines = mistakes(f"corpora.animal.prompt_file={prompt}", *others)
    assert any(what in line for line in lines), lines


def test_an_ending_and_a_file_must_exist() -> None:
    (line,) = mistakes("corpora.animal.ending=neutrl")
    assert "no ending 'neutrl'" in line and "valid: ai, neutral" in line
    (line,) = mistakes("corpora.animal.prompt_file=no/such.txt")
    assert "no/such.txt" in line
    (line,) = mistakes("corpora.animal.template=animal_welfare_non_ai", "corpora.animal.ending=ai")
    assert "valid: none" in line


def test_a_file_that_is_no_text_is_refused(prompt: Path) -> None:
    prompt.write_bytes(b"\xff\xfe{domain}")
    (line,) = mistakes(f"corpora.animal.prompt_file={prompt}")
    assert "is no text in UTF-8" in line


def test_a_byte_order_mark_is_no_part_of_a_prompt(prompt: Path) -> None:
    cell = cells(f"corpora.animal.prompt_file={prompt}")["animal"]
    context: Any = SimpleNamespace(settings=cell.settings, resources=cell.resources)
    prompt.write_text(PROMPT, encoding="utf-8-sig")
    assert CorpusSettings.of_cell(context).template["prompt"] == PROMPT


def test_its_length_is_forecast(prompt: Path) -> None:
    prompt.write_text("{domain} " * 400)
    rows = []
    for overrides in ([], [f"corpora.animal.prompt_file={prompt}"]):
        study = load_study(TINY, None, overrides)
        rows.append(forecast(expand.in_order(expand.analysis(study)), set())[0])
    assert rows[1]["prompt_tokens"] == 240 * round(1.2 * 3600 / 4) > rows[0]["prompt_tokens"]


def test_fetch_records_its_hash_beside_what_it_brings(prompt: Path, tmp_path: Path) -> None:
    study = load_study(TINY, None, [f"corpora.animal.prompt_file={prompt}"])
    record = tmp_path / "runs/fetched.json"
    hashes = {str(prompt): sha256(prompt)}
    assert fetch_command._record_prompt_files(study, record) == hashes
    assert json.loads(record.read_text()) == {"sources": [], "prompt_files": hashes}
    record.write_text('{"sources": [{"url": "u"}]}')
    fetch_command._record_prompt_files(study, record)
    assert json.loads(record.read_text()) == {"sources": [{"url": "u"}], "prompt_files": hashes}
    untouched = tmp_path / "other.json"
    assert fetch_command._record_prompt_files(load_study(TINY), untouched) == {}
    assert not untouched.exists()


def test_a_card_names_its_hash_and_not_its_words(prompt: Path) -> None:
    cell: Any = SimpleNamespace(settings={"files": {"prompt": sha256(prompt)}})
    assert (
        dataset_card._prompt_file(cell)
        == f"The writer's prompt is a file with the sha256 `{sha256(prompt)}`."
    )
    assert dataset_card._prompt_file(SimpleNamespace(settings={})) == ""  # type: ignore[arg-type]
