"""A study file is read strictly: all its mistakes at once, one line each, and nothing is made."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import UserError
from core.paths import ROOT
from study.spec import checks as references
from study.spec.load import load_study
from tests.place import SMALL

TINY = ROOT / "studies/tiny.yaml"


def spoiled(tmp_path: Path, **changes: object) -> Path:
    """studies/tiny.yaml with some top-level keys replaced."""
    path = tmp_path / "study.yaml"
    path.write_text(
        yaml.safe_dump({**yaml.safe_load(TINY.read_text().replace(" on:", ' "on":')), **changes})
    )
    return path


def mistakes(path: Path, *arguments: list[str]) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_study(path, None, *arguments)
    return list(caught.value.lines)


@pytest.mark.multiprocess
def test_eight_mistakes_are_eight_lines_and_no_folder(tmp_path: Path) -> None:
    text = (
        TINY.read_text()
        .replace("seeds: [0, 1, 2]", "seeds: [0, 1, 1]")  # a seed twice
        .replace("  base: {make:", "  ../base: {make:")  # a name that climbs out of the folder
        .replace("  base: {make:", "  base: {make:")
        .replace("start: base}", "start: ../base}")
        .replace("start: base,", "start: ../base,")
        .replace("documents: 240", "documents: -5", 1)  # a bad number
        .replace("matched_to: animal", "matched_to: urban")  # a circle
        .replace("midtrain: urban}", "midtrain: urbane}")  # a corpus that is missing
        .replace("control: urban", "control: urbann")  # an unknown arm
        .replace("max_tokens: 48", "max_tokens: many")  # a wrong type
        .replace("  data: recipes", "  dataa: 1\n  data: recipes")  # an unknown key
    )
    path = tmp_path / "study.yaml"
    path.write_text(text)
    runs = tmp_path / "runs"
    result = subprocess.run(
        [sys.executable, "-m", "study", "run", str(path), "--runs", str(runs)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    lines = result.stderr.splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 8, result.stderr
    assert all(line.startswith(f"error: {path}:") for line in lines)
    for words in (
        "seed 1 is listed twice",
        "'../base' is not a name",
        "-5: should be greater than or equal to 1",
        "goes in a circle: urban -> urban",
        "there is no corpus 'urbane' (did you mean urban?); valid: animal, urban",
        "there is no arm 'urbann' (did you mean urban?); valid: untrained, animal, urban",
        "'many': should be a valid integer",
        "unknown key (did you mean data?); valid keys: data, doses, recipe, replay, shared_run",
    ):
        assert sum(words in line for line in lines) == 1, (words, result.stderr)
    assert not runs.exists()


def test_a_line_number_points_at_the_mistake(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(TINY.read_text().replace("epochs: 4 ", "epoch: 4 "))
    (line,) = mistakes(path)
    number = int(line.split(":")[1])
    assert "epoch: 4" in path.read_text().splitlines()[number - 1]
    assert "did you mean epochs?" in line


def test_a_key_given_twice_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        TINY.read_text().replace("  untrained: {start: base}", "  animal: {start: base}")
    )
    assert any("arms.animal: given twice" in line for line in mistakes(path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": "abc"}, "'abc': should be a valid list"),
        ({"seeds": []}, "should have at least 1 item"),
        ({"study": "../x"}, "is not a name"),
        ({"contrasts": [{"varies": ["chains"]}]}, "'chains' is nothing that differs between arms"),
        ({"midtrain": None}, "the file has no `midtrain: {recipe: ...}`"),
        ({"midtrain": {"recipe": "recipes/none.yaml"}}, "no such file: recipes/none.yaml"),
        ({"models": {"base": {}}}, "needs exactly one of make, path"),
        (
            {"endpoints": {"dummy": {"base_url": "https://x/v1"}}},
            "endpoints.dummy: needs model",
        ),
        (
            {"corpora": {"a": {"documents": 1, "quality_filter": {"min_score": 5, "prompt": "?"}}}},
            "must hold {document}",
        ),
        ({"engine": {"dtype": "fp8"}}, "'fp8' is not a valid choice"),
        ({"arms": 3}, "3: should be a mapping"),
    ],
)
def test_each_kind_of_mistake_is_named(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    assert any(words in line for line in mistakes(spoiled(tmp_path, **changes)))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "corpora.urban.documents=241",
            "corpora.urban.documents: 241 against 240 of animal, which it is matched to",
        ),
        (
            "corpora.animal.held_out=0.1",
            "corpora.urban.held_out: 0.0 against 0.1 of animal, which it is matched to",
        ),
    ],
)
def test_a_control_that_can_not_match_is_a_mistake_of_the_file(override: str, says: str) -> None:
    (line,) = mistakes(TINY, [override])
    assert says in line


def test_a_control_whose_own_slot_has_other_values_is_a_mistake_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {
        "animal_welfare": {"subject": ["hens"]},
        "urban_density": {"subject": ["streets"], "street": ["x"]},
    }
    monkeypatch.setattr(references, "_own_slots", lambda template: own.get(template, {}))
    (line,) = mistakes(TINY, [])
    assert "corpora.urban.template: its slot 'subject' has other values than in animal" in line


def test_mistakes_of_all_recipes_are_shown_with_those_of_the_file(tmp_path: Path) -> None:
    changes: dict[str, object] = {"seeds": []}
    for stage, recipe in (("midtrain", "tiny_midtrain"), ("sft", "tiny_sft")):
        text = (ROOT / f"recipes/{recipe}.yaml").read_text()
        (tmp_path / f"{stage}.yaml").write_text(f"{text}\nlearning: 1\nepoch: 2\n")
        changes[stage] = {"recipe": str(tmp_path / f"{stage}.yaml")}
    toy = (ROOT / "recipes/tiny_llama.yaml").read_text()
    (tmp_path / "toy.yaml").write_text(f"{toy}\nsize: 1\n")
    changes["models"] = {"base": {"make": str(tmp_path / "toy.yaml")}}
    lines = mistakes(spoiled(tmp_path, **changes))
    for name, count in (("midtrain", 2), ("sft", 2), ("toy", 1)):
        assert sum(f"{name}.yaml:" in line for line in lines) == count, lines
    assert any("should have at least 1 item" in line for line in lines)


def test_claim_roles_are_of_the_file_of_claims() -> None:
    other = "claims=analysis/claims/2606.26102v1.yaml"
    study = load_study(SMALL, overrides=[other, "claim_roles={helpful: animal, sft_rows: 40}"])
    assert study.claim_roles == {"helpful": "animal", "sft_rows": 40}
    with pytest.raises(UserError, match="no claim has this role"):
        load_study(SMALL, overrides=[other, "claim_roles={anima_margin: 0.05}"])
    with pytest.raises(UserError, match=r"claims: no such file: nowhere\.yaml"):
        load_study(SMALL, overrides=["claims=nowhere.yaml", "claim_roles={anything: animal}"])


def test_claim_roles_are_roles_of_the_claims_and_names_of_the_file() -> None:
    overrides = [
        "claim_roles.animl=animal",
        "claim_roles.animal=animall",
        "claim_roles.urban=3",
        "claim_roles.anima_margin=ahb",
        "claim_roles.anima=ahb",
    ]
    lines = mistakes(TINY, overrides)
    assert len(lines) == 4
    for words in (
        "no claim has this role (did you mean animal?)",
        "there is no arm 'animall' (did you mean animal?)",
        "3: should be a name of arms",
        "'ahb': should be a number",
    ):
        assert sum(words in line for line in lines) == 1, (words, lines)


def test_looks_increase_to_the_number_of_seeds() -> None:
    assert load_study(TINY, None, ["looks=[3, 5]", "seeds=[0, 1, 2, 3, 4]"]).looks == [3, 5]
    for looks, words in (("[3, 4]", "last look is at 4 seeds"), ("[5, 3]", "do not increase")):
        (line,) = mistakes(TINY, [f"looks={looks}", "seeds=[0, 1, 2, 3, 4]"])
        assert words in line


def test_a_contrast_is_declared_once_also_turned_round() -> None:
    first = {"name": "first", "treatment": "animal", "control": "urban", "benchmarks": ["ahb"]}
    turned = first | {"name": "turned", "treatment": "urban", "control": "animal"}
    other_dose = turned | {"treatment_dose": 0, "control_dose": 200}
    (line,) = mistakes(TINY, [f"contrasts={json.dumps([first, turned])}"])
    assert "compares on ahb what contrast 'first' compares at dose 0, 200" in line
    load_study(TINY, None, [f"contrasts={json.dumps([first, other_dose])}"])


@pytest.mark.parametrize(
    ("doses", "shared"),
    [
        ({"doses": [200]}, "200"),
        ({"doses": [0, 200]}, "0, 200"),
        ({"treatment_dose": 0, "control_dose": 0}, "0 v 0"),
    ],
)
def test_a_test_is_declared_once_also_among_other_doses(doses: dict[str, Any], shared: str) -> None:
    """It would otherwise have two corrected p, by two families, to choose from."""
    first = {"name": "all", "treatment": "animal", "control": "urban", "benchmarks": ["ahb"]}
    again = first | {"name": "again", "family": "another"} | doses
    (line,) = mistakes(TINY, [f"contrasts={json.dumps([first, again])}"])
    assert f"compares on ahb what contrast 'all' compares at dose {shared};" in line


def test_two_corpora_matched_to_each_other_are_a_circle(tmp_path: Path) -> None:
    found = mistakes(TINY, ["corpora.animal.matched_to=urban"])
    assert any("animal -> urban -> animal" in line for line in found)


def test_broken_yaml_and_a_missing_file_are_refused_without_traceback(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("study: [1,\n")
    assert len(mistakes(path)) == 1
    assert mistakes(tmp_path / "none.yaml")[0].endswith("give the path of a YAML file")


def test_plain_scalars_mean_what_a_reader_expects(tmp_path: Path) -> None:
    """`on` is a key and 1e-3 a number, as in YAML 1.2."""
    study = load_study(TINY, None, ["benchmarks.ahb.temperature=1e-1"])
    assert study.contrasts[0].benchmarks == ["ahb", "concern"]
    assert study.benchmarks["ahb"].temperature == 0.1


def test_seeds_and_set_change_the_study() -> None:
    study = load_study(TINY, [3, 4], ["sft.doses=[0]", "contrasts.0.family=other"])
    # all seeds are planned, and those given are run
    assert (study.seeds, study.only_seeds) == ([0, 1, 2, 3, 4], [3, 4])
    assert study.sft and study.sft.doses == [0]
    assert study.contrasts[0].family == "other"
    assert "there is no 'nonsense'" in mistakes(TINY, ["study.nonsense.key=1"])[0]
    assert "must be key.path=value" in mistakes(TINY, ["seeds"])[0]


@pytest.mark.multiprocess
def test_a_folder_that_cannot_be_made_is_refused_without_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [
        sys.executable,
        "-m",
        "study",
        "run",
        str(TINY),
        "--runs",
        str(tmp_path / "file/runs"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert (
        line.startswith(f"error: {tmp_path}/file/runs")
        and "choose another folder with --runs" in line
    )
