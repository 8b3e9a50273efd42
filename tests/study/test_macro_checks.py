"""Names that would give one LaTeX command are mistakes of the study file; `tables` reaches them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import UserError
from core.paths import ROOT
from study.spec import expand
from study.spec.load import load_study
from study.spec.macro_checks import macro_mistakes
from tests.study.test_load import TINY, mistakes, spoiled


def arms_named(*names: Any) -> dict[str, Any]:
    arms = yaml.safe_load(TINY.read_text())["arms"]
    return {"arms": arms | {name: {"start": "base"} for name in names}}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a_b", "aB"), "'a_b' on 'ahb' and 'aB' on 'ahb' have one name in LaTeX commands: ABAhb"),
        (("Animal",), "'animal' on 'ahb' and 'Animal' on 'ahb' have one name"),
        (("a-b",), "is not a name"),
        (("動物",), "is not a name"),
    ],
)
def test_arms_that_latex_cannot_tell_apart_are_refused(
    tmp_path: Path, names: tuple[str, ...], words: str
) -> None:
    assert any(words in line for line in mistakes(spoiled(tmp_path, **arms_named(*names))))


@pytest.mark.parametrize("name", ["675", "items", "keys", "values"])
def test_arms_named_like_numbers_or_methods_are_arms(tmp_path: Path, name: str) -> None:
    assert name in load_study(spoiled(tmp_path, **arms_named(name))).arms


def test_pairs_of_names_and_contrasts_are_told_apart_too() -> None:
    raw = {"arms": {"a": {}, "a_b": {}}, "benchmarks": {"b_c": {}, "c": {}}, "corpora": {}}
    (mistake,) = macro_mistakes(raw)
    assert mistake.at == ("arms", "a_b") and "'a_b' on 'c' and 'a' on 'b_c'" in mistake.what
    same = {"name": "x - y", "benchmarks": ["b"]}
    for other, count in (("X minus Y", 1), ("x - y", 1), ("x - z", 0)):
        contrasts = [same, same | {"name": other}]
        assert len(macro_mistakes({"contrasts": contrasts})) == count
    doses = {"treatment_dose": 5, "control_dose": 0}
    assert macro_mistakes({"contrasts": [same, same | doses]}) == []


def test_the_shipped_studies_have_no_such_names() -> None:
    for path in sorted((ROOT / "studies").glob("*.yaml")):
        assert macro_mistakes(yaml.safe_load(path.read_text())) == [], path.name


def test_the_column_of_tables_reaches_the_analysis_and_the_default_changes_nothing(
    tmp_path: Path,
) -> None:
    plain = expand.analysis(load_study(TINY))
    assert "tables" not in plain.settings
    same = expand.analysis(load_study(TINY, None, ["tables.column=single"]))
    assert same.identity == plain.identity
    double = expand.analysis(load_study(TINY, None, ["tables.column=double"]))
    assert double.settings["tables"] == {"column": "double"}
    assert double.identity != plain.identity and double.inputs.keys() == plain.inputs.keys()
    with pytest.raises(UserError, match="triple"):
        load_study(TINY, None, ["tables.column=triple"])
