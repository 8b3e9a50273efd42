"""A corpus that is written several times: which run trains on which replicate, in which cells."""

from pathlib import Path

import pytest

from core.cell.identity import Cell
from core.errors import UserError
from core.paths import ROOT
from study.commands.plan import _contaminated
from study.forecast import corpus_cost
from study.spec import expand
from study.spec.load import load_study

TINY = ROOT / "studies/tiny.yaml"
THREE = ["corpora.animal.replicates=3", "corpora.urban.replicates=3"]


def cells_of(*overrides: str, seeds: list[int] | None = None) -> list[Cell]:
    return expand.in_order(expand.analysis(load_study(TINY, seeds, [*overrides])))


def by_name(cells: list[Cell], stage: str) -> dict[str, Cell]:
    return {cell.name: cell for cell in cells if cell.stage == stage}


def test_a_run_trains_on_the_replicate_of_its_seeds_position() -> None:
    cells = cells_of(*THREE, "seeds=[5, 3, 8, 0, 1]")
    trainings = by_name(cells, "midtrain")
    written = {
        name: (cell.inputs["documents"].name, cell.inputs["documents"].settings["seed"])
        for name, cell in trainings.items()
        if "-animal-" in name
    }
    assert written == {
        "base-animal-s5": ("animal.replicate0", 0),
        "base-animal-s3": ("animal.replicate1", 1),
        "base-animal-s8": ("animal.replicate2", 2),
        "base-animal-s0": ("animal.replicate0", 0),
        "base-animal-s1": ("animal.replicate1", 1),
    }
    for number in range(3):
        control = by_name(cells, "documents")[f"urban.replicate{number}"]
        assert control.inputs["matched_to"].name == f"animal.replicate{number}"
    rows = {(row["arm"], row["seed"]): row.get("replicate") for row in cells[-1].settings["rows"]}
    assert rows["animal", 8] == rows["urban", 8] == 2 and rows["untrained", None] is None
    corpora = [role for role in cells[-1].inputs if role.startswith("corpus-animal")]
    assert corpora == [f"corpus-animal.replicate{number}" for number in range(3)]


def test_replays_and_checks_are_of_the_replicate_that_was_trained_on() -> None:
    cells = cells_of(*THREE, "sft.replay=0.1")
    for cell in cells:
        for role in ("replay", "contamination"):
            if used := cell.inputs.get(role):
                trained = used.inputs["documents"] if role == "contamination" else used
                start = cell.inputs.get("start") or cell.inputs["checkpoint"]
                while start.stage != "midtrain":
                    start = start.inputs["run" if "run" in start.inputs else "start"]
                assert start.inputs["documents"] is trained, (cell.stage, cell.name, role)
    assert {"animal.replicate1-ahb", "urban.replicate2-concern"} <= {
        *by_name(cells, "contamination")
    }
    answers = by_name(cells, "likelihood")["concern-base-animal-s1"]
    assert answers.resources["corpus"]["name"] == "animal", "what `exclude` is set for"


def test_the_first_replicate_is_the_corpus_that_is_written_once() -> None:
    assert by_name(cells_of(), "documents")["animal"].settings["seed"] == 0
    once = {cell.name: cell.identity for cell in cells_of()}
    several = {cell.name: cell.identity for cell in cells_of(*THREE)}
    assert several["animal.replicate0"] == once["animal"]
    assert several["urban.replicate0"] == once["urban"]
    assert several["base-animal-s0"] == once["base-animal-s0"]
    assert several["base-animal-s1"] != once["base-animal-s1"]
    explicit = {cell.name: cell.identity for cell in cells_of("corpora.animal.replicates=1")}
    assert explicit == once


def test_a_seed_that_is_added_later_moves_no_other() -> None:
    before = by_name(cells_of(*THREE), "midtrain")
    after = by_name(cells_of(*THREE, "seeds=[0, 1, 2, 9, 4]"), "midtrain")
    for name, cell in before.items():
        assert after[name].identity == cell.identity
    alone = by_name(cells_of(*THREE, "seeds=[0, 1, 2, 9, 4]", seeds=[4]), "midtrain")
    assert alone["base-animal-s4"].identity == after["base-animal-s4"].identity
    needed = by_name(cells_of(*THREE, "seeds=[0, 1, 2, 9, 4]", seeds=[4]), "documents")
    assert set(needed) == {"animal.replicate1", "urban.replicate1"}, "no other corpus is written"


def test_a_seed_without_a_position_in_the_file_is_refused() -> None:
    # With `--seeds 9` alone it would be the fourth, with `--seeds 7 9` the fifth.
    with pytest.raises(UserError) as caught:
        load_study(TINY, [0, 9], THREE)
    (line,) = caught.value.lines
    assert line.startswith("--seeds 9: is not in `seeds`, whose order says on which replicate")
    assert "add it at the end of `seeds` in the study file" in line
    assert load_study(TINY, [0, 9], [*THREE, "seeds=[0, 1, 2, 9]"]).only_seeds == [0, 9]
    assert load_study(TINY, [0, 9]).seeds == [0, 1, 2, 9], "a corpus written once takes any"
    with pytest.raises(UserError, match="only_seeds: 9 is none of `seeds`"):
        load_study(TINY, None, ["only_seeds=[9]"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["corpora.animal.replicates=3"],
            "corpora.urban.replicates: 1 against 3 of animal, which it is matched to; give both",
        ),
        (
            [
                "corpora.animal.replicates=3",
                "corpora.urban={path: eval/data/concern_for_animals.jsonl, documents: 240, "
                "matched_to: animal}",
            ],
            "only a corpus with a writer has replicates: take matched_to away",
        ),
        (
            [
                "corpora.urban={path: eval/data/concern_for_animals.jsonl, documents: 9, replicates: 2}"
            ],
            "corpora.urban.replicates: is for a corpus with a writer; remove it",
        ),
    ],
)
def test_replicates_that_can_not_be_are_mistakes_of_the_file(
    overrides: list[str], says: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_study(TINY, None, overrides)
    (line,) = caught.value.lines
    assert says in line


def test_every_replicate_is_forecast_and_has_its_shards() -> None:
    (once,) = [row for row in corpus_cost.forecast(cells_of(), set()) if row["corpus"] == "animal"]
    cells = cells_of(*THREE, "corpora.animal.shards=2")
    rows = corpus_cost.forecast(cells, set())
    assert [row["corpus"] for row in rows][:3] == [f"animal.replicate{n}" for n in range(3)]
    assert corpus_cost.total(rows[:3])["calls"] == 3 * once["calls"]
    shards = by_name(cells, "drafts")
    assert [*shards] == [f"animal.replicate{n}.{k}of2" for n in range(3) for k in (1, 2)]
    assert len({cell.identity for cell in shards.values()}) == 6


def test_plan_names_the_corpus_of_the_file_whose_documents_hold_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "study.commands.plan.read_manifest", lambda folder: {"counts": {"documents_hit": 1}}
    )
    rows = _contaminated(cells_of(*THREE), tmp_path)
    assert {(row["corpus"], row["benchmark"]) for row in rows} == {
        (corpus, bench) for corpus in ("animal", "urban") for bench in ("ahb", "concern")
    }
