"""Chains of trainings: the short form is one of them, beginnings are shared, any step can vary."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.cell.identity import Cell
from core.errors import UserError
from core.model_size import KNOWN, flops_per_token, memory, parameters
from core.paths import ROOT
from core.recipe import Lora, Training
from study.cli import main
from study.spec import expand
from study.spec.checkpoint import Checkpoint
from study.spec.contrast_arms import audit
from study.spec.expansion import Expansion
from study.spec.load import dump_study, load_study
from tests.place import SMALL

CHAIN = ROOT / "tests/small/chain.yaml"
SPELLED_OUT = "{start: base, train: [{documents: %s}, {sft: sft}]}"


def cells_of(file: Path, *overrides: str) -> list[Cell]:
    return expand.in_order(expand.analysis(load_study(file, None, [*overrides])))


def checkpoints(*overrides: str) -> dict[tuple[str, int | None, int], Checkpoint]:
    rows = Expansion(load_study(CHAIN, None, [*overrides])).checkpoints()
    return {(row.arm, row.seed, row.dose): row for row in rows}


def identities(cells: list[Cell]) -> list[tuple[str, str, str]]:
    return [(cell.stage, cell.name, cell.identity) for cell in cells]


def test_the_short_form_is_the_chain_of_a_midtraining_and_an_sft() -> None:
    spelled_out = [f"arms.{name}={SPELLED_OUT % name}" for name in ("animal", "urban")]
    assert identities(cells_of(SMALL, *spelled_out)) == identities(cells_of(SMALL))
    study = load_study(SMALL)
    assert study.arms["animal"].midtrain is None and study.arms["animal"].train


PAPER = pytest.param(ROOT / "studies/paper.yaml", marks=pytest.mark.slow)


@pytest.mark.parametrize("file", [SMALL, CHAIN, PAPER])
def test_a_kept_study_file_is_read_as_the_same_study(file: Path, tmp_path: Path) -> None:
    kept = tmp_path / "study.yaml"
    kept.write_text(dump_study(load_study(file)))
    assert identities(cells_of(kept)) == identities(cells_of(file))


def test_arms_share_the_trainings_with_which_their_chains_begin_alike() -> None:
    trainings = [c for c in cells_of(CHAIN) if c.stage in ("midtrain", "sft")]
    # Of a seed: midtrained; anchored, urban, two doses; short, two doses; short, animal; one dose.
    assert len({cell.identity for cell in trainings}) == 2 * (1 + 4 + 3 + 2 + 1)
    rows = checkpoints()
    assert rows["anchored", 0, 24].cell is rows["chain", 0, 40].steps[1]
    assert rows["midtrained", 1, 0].cell is rows["kept", 1, 80].steps[0]
    (alone,) = checkpoints(
        "arms={alone: {start: base, midtrain: animal, doses: [0]}}", "seeds=[0]", "contrasts=[]"
    ).values()
    assert alone.cell.identity == rows["midtrained", 0, 0].cell.identity


def test_a_chain_in_any_order_has_inputs_before_their_users() -> None:
    seen: set[str] = set()
    cells = cells_of(CHAIN)
    for cell in cells:
        assert {used.identity for used in cell.inputs.values()} <= seen, cell.label
        seen.add(cell.identity)
    starts = {cell.inputs["start"].stage for cell in cells if cell.stage == "midtrain"}
    assert starts == {"model", "sft"}


def test_doses_may_be_those_of_any_step() -> None:
    arm = "arms={a: {start: base, train: [{sft: sft, doses: [0, 40, 80]}, {documents: animal}]}}"
    rows = checkpoints(arm, "contrasts=[]", "seeds=[0]")
    assert [dose for _, _, dose in rows] == [0, 40, 80]
    starts = [row.cell.inputs["start"] for row in rows.values()]
    assert [start.stage for start in starts] == ["model", "sft", "sft"]
    assert {row.cell.stage for row in rows.values()} == {"midtrain"}
    assert [row.chat for row in rows.values()] == [False, True, True]


def test_a_step_without_several_doses_takes_its_largest() -> None:
    sfts = "sfts.short.doses=[8, 24]"
    assert checkpoints(sfts)["plain", 0, 80].steps[1].settings["dose"] == 24  # type: ignore[union-attr]


def test_an_average_over_seeds_is_one_model_of_all_of_them() -> None:
    row = checkpoints()["soup", None, 0]
    seeds = [cell.settings["seed"] for cell in row.cell.inputs.values()]
    assert seeds == [0, 1] and row.cell.settings == {"weights": [0.5, 0.5]}
    alone = checkpoints("only_seeds=[1]")["soup", None, 0]
    assert alone.cell.identity == row.cell.identity, "a run of one seed plans the same average"


def test_a_merge_mixes_in_an_arm_of_the_same_seed() -> None:
    row = checkpoints()["kept", 1, 80]
    assert row.cell.settings == {"weights": [0.75, 0.25]}
    midtrained = checkpoints()["midtrained", 1, 0].cell
    assert row.cell.inputs["other1"].identity == midtrained.identity


def test_the_corpora_of_all_steps_are_looked_through_for_the_benchmark() -> None:
    cells = cells_of(CHAIN)
    asked = next(c for c in cells if c.stage == "likelihood" and c.name.endswith("urban-s0-d40"))
    corpora = {
        role: cell.inputs["documents"].name
        for role, cell in asked.inputs.items()
        if role.startswith("contamination")
    }
    assert corpora == {"contamination": "animal", "contamination2": "urban"}
    assert asked.resources["corpus2"]["name"] == "urban"


def test_each_step_of_two_chains_is_compared() -> None:
    contrasts = [
        "{name: replay, treatment: chain, control: other, doses: [80], benchmarks: [ahb]}",
        "{name: doses, treatment: longer, control: plain, doses: [80], benchmarks: [ahb]}",
        "{name: merge, treatment: kept, control: plain, benchmarks: [ahb]}",
    ]
    other = (
        "{start: base, train: [{documents: animal}, {sft: short}, {documents: urban}, {sft: sft}]}"
    )
    longer = "{start: base, train: [{documents: animal}, {sft: sft, doses: [40]}, {sft: sft, doses: [40, 80]}]}"
    study = load_study(
        CHAIN,
        None,
        [f"contrasts=[{', '.join(contrasts)}]", f"arms.other={other}", f"arms.longer={longer}"],
    )
    audits = audit(Expansion(study).checkpoints(), study)
    listed = {row.contrast.name: row for row in audits}
    assert str(listed["replay"]) == "step2.replay 0.5 | none" and not listed["replay"].undeclared
    assert str(listed["doses"]) == "step2.dose 40 | 24"
    assert "chain documents, sft, merge | documents, sft, sft" in str(listed["merge"])
    assert [row.key for row in listed["merge"].undeclared] == ["step2.dose"]


def test_arms_that_share_their_first_training_are_compared_within_seeds() -> None:
    settings = expand.analysis(load_study(CHAIN)).settings
    assert {row["name"]: row["paired"] for row in settings["contrasts"]} == {
        "anchor": True,
        "erosion": True,
        "merged": True,
    }


def test_weights_of_steps_that_nobody_evaluates_go_with_keep_last() -> None:
    cells = cells_of(CHAIN, "keep=last")
    last = next(
        cell for cell in cells if cell.name == "base-animal-short_replay50-d24-urban-s0-d80"
    )
    assert last.resources["release"] == ["start"]


def test_plan_counts_a_chain(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", str(CHAIN), "--runs", str(tmp_path), "--json"]) == 0
    planned: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    merges = next(row for row in planned["totals"]["stages"] if row["stage"] == "merge")
    assert merges["cells"] == 3 and merges["gpu_hours"] == 0 and merges["disk_gb"] > 0
    steps = {row["cell"]: row.get("steps") for row in planned["cells"]}
    assert steps["base-animal-short_replay50-d24-urban-s0-d80"] == 20
    assert steps["base-animal-short_replay50-s0-d24"] == 9, "24 rows and 12 replayed, twice"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("[{documents: animl}]", r"arms.a.train.0.documents: there is no corpus 'animl'"),
        ("[{sft: shirt}]", r"arms.a.train.0.sft: there is no sft 'shirt'"),
        ("[{}]", r"arms.a.train.0: needs exactly one of documents, sft, rl, merge, average"),
        ("[{sft: sft, documents: animal}]", r"arms.a.train.0: needs exactly one of"),
        ("[{sft: sft, recipe: tests/small/sft.yaml}]", r"recipe: is not for a step with sft"),
        ("[{documents: animal, replay: 0.5}]", r"replay: is not for a step with documents"),
        ("[{sft: sft, doses: [7]}]", r"train.0.doses: 7 is none of its SFT's doses"),
        (
            "[{sft: sft, doses: [0, 40]}, {sft: sft, doses: [40, 80]}]",
            r"train.1.doses: a step before it has several doses",
        ),
        ("[{sft: sft, replay: 0.5}]", r"train.0: it replays documents, and no step before it"),
        ("[{sft: sft, replay_corpus: animal}]", r"replay_corpus: the step replays nothing"),
        ("[{merge: midtrained}]", r"train.0: merge needs weight"),
        ("[{merge: nobody, weight: 0.5}]", r"train.0.merge: there is no arm 'nobody'"),
        ("[{merge: a, weight: 0.5}]", r"train.0.merge: goes in a circle"),
        (
            "[{merge: late, weight: 0.5}, {documents: animal, arm: late}]",
            r"train.0.merge: goes in a circle",
        ),
        ("[{documents: animal, arm: plain}]", r"train.0.arm: there is an arm 'plain' already"),
        ("[{documents: animal, arm: midtrained}]", r"there is an arm 'midtrained' already"),
        ("[{documents: animal, recipe: none.yaml}]", r"train.0.recipe: no such file: none.yaml"),
        ("[{documents: animal, weight: 2}]", r"train.0.weight"),
    ],
)
def test_a_mistake_in_a_step_is_told_at_the_step(train: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_study(CHAIN, None, [f"arms.a={{start: base, train: {train}}}"])


def test_a_chain_beside_the_short_form_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"arms.chain.midtrain: is of the short form"):
        load_study(CHAIN, None, ["arms.chain.midtrain=animal"])


def test_arms_without_a_common_dose_need_the_doses_of_a_contrast() -> None:
    contrast = "{name: x, treatment: anchored, control: midtrained, benchmarks: [ahb]}"
    with pytest.raises(UserError, match="have no dose in common; give treatment_dose"):
        load_study(CHAIN, None, [f"contrasts=[{contrast}]"])


def test_a_step_sets_l2_and_kl_in_place_of_its_recipe() -> None:
    arm = "{start: base, train: [{documents: animal}, {sft: sft, doses: [40], kl_to_start: 0.5}]}"
    contrast = "{name: kl, treatment: held, control: kept, doses: [40], benchmarks: [ahb]}"
    study = load_study(
        CHAIN,
        None,
        [
            f"arms.held={arm}",
            "arms.kept=" + arm.replace(", kl_to_start: 0.5", ""),
            f"contrasts=[{contrast}]",
        ],
    )
    rows = {row.arm: row.cell for row in Expansion(study).checkpoints() if row.seed == 0}
    assert rows["held"].settings["recipe"]["kl_to_start"] == 0.5
    assert "l2_to_start" not in rows["held"].settings["recipe"]
    assert "kl_to_start" not in rows["kept"].settings["recipe"]
    (row,) = audit(Expansion(study).checkpoints(), study)
    assert str(row) == "sft.recipe.kl_to_start 0.5 | none"


def test_a_chain_of_any_length_has_folders_that_a_file_system_takes() -> None:
    steps = ", ".join(["{documents: animal}, {documents: urban}"] * 30)
    long = f"{{start: base, train: [{steps}, {{sft: sft, doses: [80]}}]}}"
    cells = cells_of(CHAIN, f"arms={{long: {long}}}", "contrasts=[]", "seeds=[0]")
    trained = [cell for cell in cells if cell.stage == "midtrain"]
    assert len({cell.relpath for cell in trained}) == 60
    assert max(len(part) for cell in cells for part in Path(cell.relpath).parts) < 255


def test_what_is_replayed_and_merged_is_compared() -> None:
    """What follows from the corpus of a step before is no difference of its own."""
    tuned = "[{documents: %s}, {sft: sft, doses: [80], replay: 0.5%s}]"
    merged = "[{documents: %s, arm: %s}, {sft: sft, doses: [80]}, {merge: %s, weight: 0.5}]"
    soup = "[{documents: %s}, {average: seeds}]"
    trains = {
        "animals": tuned % ("animal", ""),
        "urbans": tuned % ("urban", ""),
        "foreign": tuned % ("animal", ", replay_corpus: urban"),
        "same": tuned % ("urban", ", replay_corpus: animal"),
        "to_animal": merged % ("animal", "after_animal", "after_animal"),
        "to_urban": merged % ("urban", "after_urban", "after_urban"),
        "to_start": merged % ("animal", "again", "start"),
        "soup_animal": soup % "animal",
        "soup_urban": soup % "urban",
    }
    arms = "{start: {start: base, doses: [0]}, "
    arms += ", ".join(f"{arm}: {{start: base, train: {train}}}" for arm, train in trains.items())
    expected = {
        ("animals", "urbans"): ["corpus"],
        ("animals", "foreign"): ["sft.replay_corpus"],
        ("animals", "same"): ["corpus"],
        ("to_animal", "to_urban"): ["step1.corpus"],
        ("to_animal", "to_start"): ["step3.merge.arm"],
        ("soup_animal", "soup_urban"): ["step1.corpus"],
    }
    contrasts = ", ".join(
        f"{{name: {a} {b}, treatment: {a}, control: {b}, benchmarks: [ahb]}}" for a, b in expected
    )
    study = load_study(CHAIN, None, [f"arms={arms}}}", f"contrasts=[{contrasts}]"])
    audits = audit(Expansion(study).checkpoints(), study)
    assert {(row.contrast.treatment, row.contrast.control): row.keys for row in audits} == expected


def test_the_forecast_counts_the_start_that_l2_and_kl_hold() -> None:
    model = KNOWN["meta-llama/Llama-3.2-1B"]
    recipe = Training(seq_len=2048, epochs=1, lr=1e-5, global_batch_size=8, dtype="mixed")
    total = parameters(model).total
    plain = memory(model, recipe, 2, 2)["state"]
    for key in ("l2_to_start", "kl_to_start"):
        held = memory(model, replace(recipe, **{key: 1.0}), 2, 2)["state"]
        assert held - plain == pytest.approx(total * 4 / 2 / 1e9)
    adapters = replace(recipe, lora=Lora(rank=8, alpha=16))
    kl = replace(adapters, kl_to_start=1.0)
    assert memory(model, kl, 2, 2)["state"] == memory(model, adapters, 2, 2)["state"]
    forward = flops_per_token(model, replace(recipe, kl_to_start=1.0)) - flops_per_token(
        model, recipe
    )
    assert forward == pytest.approx(flops_per_token(model, recipe) / 3, rel=0.01)


@pytest.mark.parametrize("name", ["preservation", "preservation_1b", "beyond"])
def test_the_shipped_studies_of_preservation_share_one_midtraining(name: str) -> None:
    study = load_study(ROOT / f"studies/{name}.yaml")
    rows = Expansion(study).checkpoints()
    held = [row for row in rows if row.seed == 0 and row.steps and row.steps[0]]
    others = ("base", "urban", "swapped", "agent_urban")
    first = {row.steps[0].identity for row in held if row.arm not in others}  # type: ignore[union-attr]
    assert len(first) == 1
    audits = audit(rows, study)
    assert not [row.contrast.name for row in audits if row.undeclared or not row.differences]
