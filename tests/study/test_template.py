"""A template is checked when the study is planned: a typo must not switch off its gates."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from core.errors import UserError
from core.paths import ROOT
from study.spec import template
from study.spec.load import load_study
from study.spec.template import template_problems

TEMPLATES = sorted(path.stem for path in (ROOT / "sdf/templates").glob("*.yaml"))
GOOD = "name: t\ntopic: hens\nprompt: A {document_type} on {domain}.\ngates: {words: [1, 9]}\n"


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    template_problems.cache_clear()
    yield
    template_problems.cache_clear()


@pytest.mark.parametrize("name", sorted({*TEMPLATES} - {"slots"}))
def test_the_kits_own_have_no_mistake(name: str) -> None:
    assert template_problems(name) == ()


WRONG = {
    "gates: {words: [1, 9]}": ("gate: {words: [1, 9]}", "unknown key (did you mean gates?)"),
    "words:": ("wrods:", "unknown key (did you mean words?)"),
    "prompt: A": ("promt: A", "unknown key (did you mean prompt?)"),
    "{domain}": ("{domian}", "unknown placeholder {domian}"),
    "on {domain}": ("on {domain", "unmatched brace"),
    "name: t": ("topics: t", "unknown key (did you mean topic?)"),
    "[1, 9]": ("[1]", "should have at least 2 items"),
    "topic: hens": ("topic: hens\ntopic: cows", "given twice"),
    "prompt:": ("slots: {domain: [x]}\nprompt:", "is a slot of all templates"),
}


@pytest.mark.parametrize("right", WRONG)
def test_each_mistake_has_its_line(
    right: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, what = WRONG[right]
    path = tmp_path / "sdf/templates/t.yaml"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(template, "ROOT", tmp_path)
    path.write_text(GOOD)
    assert template_problems("t") == ()
    template_problems.cache_clear()
    path.write_text(GOOD.replace(right, wrong))
    found = template_problems("t")
    assert any(what in problem.what for problem in found), found
    assert all(problem.where.startswith(f"{path}:") for problem in found)


def test_a_study_is_refused_for_its_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sdf/templates/animal_welfare.yaml"
    path.parent.mkdir(parents=True)
    content = yaml.safe_load((ROOT / path.relative_to(tmp_path)).read_text())
    content["gate"] = content.pop("gates")
    path.write_text(yaml.safe_dump(content))
    (path.parent / "urban_density.yaml").write_text(GOOD)
    monkeypatch.setattr(template, "ROOT", tmp_path)
    with pytest.raises(UserError) as error:
        load_study(ROOT / "studies/tiny.yaml")
    found = {problem.what for problem in error.value.problems}
    assert found == {"unknown key (did you mean gates?)", "missing"}
