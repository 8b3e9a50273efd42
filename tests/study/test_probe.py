"""The task probe in a study file: its cells, what their identity holds, and mistakes."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from study.spec import expand
from study.spec.load import load_study
from tests.place import SMALL

INSIDE = "benchmarks.inside={task: probe, reference: animal}"


def cells(*settings: str) -> dict[str, Any]:
    last = expand.analysis(load_study(SMALL, (), settings))
    return {f"{c.stage}/{c.name}": c for c in expand.in_order(last)}


def test_a_probe_is_a_cell_for_each_checkpoint_without_an_engine() -> None:
    probes = {name: c for name, c in cells(INSIDE).items() if c.stage == "probe"}
    assert len(probes) == 4
    cell = probes["probe/inside-base-animal-s0"]
    assert {*cell.inputs} == {"checkpoint", "contamination"}
    assert {*cell.settings} == {"task", "rows", "pooling", "folds", "files"}
    assert "engine" not in cell.resources


def test_the_reference_is_no_part_of_a_probe_and_the_items_are(tmp_path: Path) -> None:
    def identity(*settings: str) -> tuple[str, str]:
        made = cells(*settings)
        return made["probe/inside-base-animal-s0"].identity, made["analysis/small"].identity

    first = identity(INSIDE)
    second = identity(INSIDE.replace("animal}", "urban}"))
    assert first[0] == second[0] and first[1] != second[1]
    items = tmp_path / "items.jsonl"
    items.write_text('{"id": 1, "question": "a", "choices": ["b", "c"], "answer": 0}\n')
    assert identity(INSIDE.replace("animal}", f"animal, items: {items}}}"))[0] != first[0]


@pytest.mark.parametrize(
    ("bench", "what"),
    [
        ("{task: probe}", "inside.reference: missing; the arm to compare with: animal, urban"),
        ("{task: probe, reference: anim}", "there is no arm 'anim'"),
        ("{task: probe, reference: animal, arms: [urban]}", "animal is none of this benchmark's"),
        ("{task: probe, reference: animal, judge: dummy}", "task probe has no such option"),
        ("{task: concern_for_animals, reference: animal}", "task concern_for_animals has no such"),
    ],
)
def test_a_probe_that_can_not_be_is_refused(bench: str, what: str) -> None:
    with pytest.raises(UserError) as error:
        load_study(SMALL, (), [f"benchmarks.inside={bench}"])
    assert what in str(error.value)


def test_an_arm_under_a_system_prompt_has_no_probe() -> None:
    prompted = "{start: base, midtrain: animal, doses: [80], system: eval/prompts/hhh.txt}"
    study = load_study(SMALL, (), [INSIDE, f"arms.prompted={prompted}"])
    rows = expand.analysis(study).settings["rows"]
    arms = {name: {r["arm"] for r in rows if r["benchmark"] == name} for name in ("ahb", "inside")}
    assert arms == {"ahb": {"animal", "urban", "prompted"}, "inside": {"animal", "urban"}}
