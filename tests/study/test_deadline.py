"""The part of a study that fits hours, GPUs and money: by power, by forecast, as a study file."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from core.cell.identity import Cell
from core.errors import UserError
from core.paths import ROOT
from study.cli import main
from study.forecast import schedule, study_cost
from study.forecast.deadline import EFFECTS, Planner, Primary, mean_power
from study.forecast.limits import Limits
from study.spec import expand
from study.spec.doses import doses
from study.spec.load import dump_study, load_study
from study.spec.reduction import Selection, reduce_study
from study.spec.schema import Study
from study.spec.study_declaration import declare

PAPER = ROOT / "studies/paper.yaml"
LARGE = [  # the miniature with a real model, a judge that is paid, and a second benchmark of ANIMA's
    "models.base={hub: meta-llama/Llama-3.1-8B, revision: d04e592bb4f6aa9cfee91e2e20afa771667e1d4b}",
    "models.base.chat_template=recipes/data/llama3_chat.jinja",
    "seeds=[0, 1, 2, 3, 4]",
    "midtrain.recipe=recipes/llama3_1_8b_midtrain.yaml",
    "sft.recipe=recipes/llama3_1_8b_sft.yaml",
    "endpoints.judge={base_url: https://api.example.org/v1, model: m, key_env: KEY, prompt_price: 0.1, completion_price: 0.4}",
    "benchmarks.ahb.judge=judge",
    "benchmarks.ahb.epochs=30",
    "benchmarks.moral={task: anima, judge: judge, epochs: 5}",
    "contrasts=[{name: p, treatment: animal, control: urban, benchmarks: [ahb, concern]},"
    "{name: twin, treatment: animal, control: urban, benchmarks: [moral], family: twins},"
    "{name: rest, treatment: animal, control: untrained, benchmarks: [ahb], family: rest}]",
]
AMPLE = Limits(100, 10_000.0, {})


def large() -> Study:
    return load_study(ROOT / "studies/tiny.yaml", overrides=LARGE)


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    return Planner(large(), tmp_path_factory.mktemp("runs") / "tiny", {}, None)


def identities(study: Study) -> dict[str, Cell]:
    return {cell.identity: cell for cell in expand.in_order(expand.analysis(study))}


def test_where_the_whole_study_fits_nothing_is_given_up(planner: Planner) -> None:
    plan = planner.plan(AMPLE)
    assert plan.is_whole and plan.study == planner.study and plan.power == plan.whole_power


@pytest.mark.parametrize("share", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("key", ["gpu_hours", "cost"])
def test_a_plan_fits_its_budget_by_the_forecast_of_its_own_study(
    planner: Planner, share: float, key: str, tmp_path: Path
) -> None:
    whole = planner.plan(AMPLE).amounts
    plan = planner.plan(Limits(100, 10_000.0, {key: share * whole[key]}))
    (tmp_path / "part.yaml").write_text(dump_study(replace(plan.study, study="part")))
    cells = expand.in_order(expand.analysis(load_study(tmp_path / "part.yaml")))
    left = study_cost.totals(cells, tmp_path, {})["left"]
    assert 0 < left[key] <= share * whole[key]
    assert left[key] == pytest.approx(plan.amounts[key])
    assert plan.power > 0 and not plan.is_whole
    # No cell is anything but a cell of the study, unless it has fewer answers.
    there = identities(planner.study)
    fewer = {
        name
        for name, bench in plan.study.benchmarks.items()
        if bench.epochs < planner.study.benchmarks[name].epochs
    }
    for cell in cells[:-1]:
        named = cell.name.split("-")[0]
        assert cell.identity in there or named in fewer, cell.relpath


def test_more_money_never_finds_less(planner: Planner) -> None:
    whole = planner.plan(AMPLE).amounts["cost"]
    powers = [
        planner.plan(Limits(100, 10_000.0, {"cost": share * whole})).power
        for share in (0.05, 0.1, 0.3, 0.6)
    ]
    assert all(a <= b + 0.011 for a, b in pairwise(powers)), powers
    assert powers[0] < powers[-1]


def test_hours_on_few_gpus_bind_too(planner: Planner) -> None:
    whole = planner.plan(Limits(2, 10_000.0, {})).amounts
    plan = planner.plan(Limits(2, whole["hours"] / 2, {}))
    assert plan.amounts["hours"] <= whole["hours"] / 2 and not plan.is_whole


def test_hours_at_an_endpoint_s_rates_bind_and_are_used(tmp_path: Path) -> None:
    """Where calls and not GPUs take the time, the plan is no smaller than the hours ask for."""
    study = load_study(
        ROOT / "studies/tiny.yaml", overrides=[*LARGE, "endpoints.judge.requests_per_minute=20"]
    )
    planner = Planner(study, tmp_path / "tiny", {}, None)
    whole = planner.plan(AMPLE).amounts["hours"]
    for share in (0.3, 0.6):
        amounts = planner.plan(Limits(100, share * whole, {})).amounts
        assert 0.7 * share * whole <= amounts["hours"] <= share * whole


def test_what_fits_nowhere_is_a_mistake_of_the_user(planner: Planner) -> None:
    with pytest.raises(UserError, match="not even two seeds"):
        planner.plan(Limits(1, 0.001, {}))


def test_the_quick_forecast_of_a_selection_is_that_of_its_study(planner: Planner) -> None:
    for primary in list(planner.designs())[::37]:
        selection = planner.selection(primary)
        quick = planner.forecaster.amounts(selection)
        smaller = reduce_study(planner.study, "part", selection)
        exact = planner.amounts(smaller, 100)
        for key in ("gpu_hours", "cost", "calls"):
            assert quick[key] == pytest.approx(exact[key], rel=0.03), (primary, key)


def test_the_design_has_the_most_power_of_all_that_fit(planner: Planner) -> None:
    whole = planner.plan(AMPLE).amounts["cost"]
    limits = Limits(100, 10_000.0, {"cost": whole / 4})
    best = planner.power(planner.tests_of(planner._best(limits)))
    fitting = [
        planner.power(planner.tests_of(primary))
        for primary in planner.designs()
        if planner.tests_of(primary)
        and planner.forecaster.amounts(planner.selection(primary))["cost"] <= whole / 4
    ]
    assert max(fitting) - 0.01 <= best <= max(fitting)


def test_the_power_is_that_of_plan_power(planner: Planner) -> None:
    from analysis import power

    entry = next(row for row in planner.entries.values() if row.family == "primary")
    (row,) = power.rows([entry])
    in_family = row["in_family"]["power"].values()
    assert mean_power(entry, None) == pytest.approx(sum(in_family) / len(EFFECTS))


def test_the_primary_family_may_move_to_a_benchmark_on_which_it_is_declared(
    planner: Planner,
) -> None:
    assert planner.others() == ["moral"]
    doses = ((0, 0), (200, 200))
    selection = planner.selection(Primary(("p",), doses, 3, "moral", 2))
    (contrast,) = selection.contrasts
    assert (contrast.name, contrast.family) == ("twin", "primary")
    assert contrast.benchmarks == ["moral", "concern"] and "ahb" not in selection.rows
    assert selection.epochs == {"moral": 2} and selection.seeds == 3
    (moved,) = planner._moved(planner.study.contrasts[1], Primary(("p",), doses, 3, "moral", 2))
    assert (moved.name, moved.family, moved.benchmarks) == ("p", "twins", ["ahb"])


def test_a_declared_study_keeps_its_benchmark_and_its_answers(tmp_path: Path) -> None:
    study = large()
    declare(study, tmp_path / "tiny", expand.in_order(expand.analysis(study)))
    planner = Planner(study, tmp_path / "tiny", {}, None)
    assert planner.others() == []
    assert {(design.benchmark, design.epochs) for design in planner.designs()} == {(None, None)}


def test_a_smaller_study_drops_what_nothing_needs() -> None:
    study = load_study(PAPER)
    rows = {"ahb": {(arm, dose) for arm in ("base_animal", "base_urban") for dose in (0, 4000)}}
    smaller = reduce_study(study, "part", Selection(3, rows, {"ahb": 5}, (study.contrasts[0],)))
    assert list(smaller.arms) == ["base_animal", "base_urban"] and smaller.seeds == [0, 1, 2]
    assert list(smaller.models) == ["base"] and list(smaller.corpora) == ["animal", "urban"]
    assert doses(smaller, "base_animal") == [0, 4000] and smaller.benchmarks["ahb"].epochs == 5
    assert smaller.claim_roles["animal"] == "base_animal" and "gemini" not in smaller.claim_roles
    names = {cell.name for cell in identities(smaller).values() if cell.stage == "judge"}
    assert len(names) == 2 * 2 * 3


def cell(name: str, *inputs: Cell, endpoint: str = "") -> Cell:
    resources: dict[str, Any] = {}
    if endpoint:
        limits = {"requests_per_minute": 1, "tokens_per_minute": None}
        resources = {"address": {"base_url": endpoint}, "limits": limits}
    return Cell("sft", name, {"name": name}, {c.name: c for c in inputs}, resources)


def hours_of(
    cells: list[Cell], gpus: int, needed: dict[str, int], order: dict[str, int] | None = None
) -> dict[str, float]:
    """When each of some cells of one hour ends; with an endpoint, of an hour of its rates."""
    calls = {"calls": 60, "prompt_tokens": 0, "completion_tokens": 0}
    planned = {
        c.identity: {"hours": 1.0, **(calls if c.resources else {"calls": 0})} for c in cells
    }
    by_identity = {c.identity: needed.get(c.name, 0) for c in cells}
    by_rank = {c.identity: (order or {}).get(c.name, 0) for c in cells}
    ended = schedule.ends(cells, planned, gpus, by_identity, by_rank)
    return {c.name: ended[c.identity] for c in cells}


def test_a_schedule_by_hand() -> None:
    a, b, c = cell("a"), cell("b"), cell("c")
    after = cell("after", a)
    on_gpu = {"a": 1, "b": 1, "c": 1, "after": 1}
    assert hours_of([a, b, c, after], 1, on_gpu) == {"a": 1, "b": 2, "c": 3, "after": 4}
    assert hours_of([a, b, c, after], 2, on_gpu) == {"a": 1, "b": 1, "c": 2, "after": 2}
    assert hours_of([a, b, c, after], 1, {}) == {"a": 1, "b": 1, "c": 1, "after": 2}
    # The cell of the smallest rank first, also where it is listed last; inputs before users.
    ranked = hours_of([a, b, c, after], 1, on_gpu, {"a": 0, "after": 0, "b": 1, "c": 1})
    assert ranked == {"a": 1, "after": 2, "b": 3, "c": 4}
    # A cell that needs both GPUs is not overtaken by one that needs one.
    assert hours_of([a, b, c], 2, {"a": 1, "b": 2, "c": 1}) == {"a": 1, "b": 2, "c": 3}
    # Calls of one endpoint go at its rates, those of another beside them.
    x, y, z = (cell(name, endpoint=url) for name, url in (("x", "u"), ("y", "u"), ("z", "v")))
    assert hours_of([x, y, z], 1, {}) == {"x": 1, "y": 2, "z": 1}


def test_mistakes_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(PAPER), "--runs", str(tmp_path)]
    assert main([*words, "--hours", "-1", "--write", str(tmp_path / "a b/x y.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("error: ") for line in lines)
    (tmp_path / "there.yaml").write_text("x: 1\n")
    assert main([*words, "--gpus", "1", "--hours", "1", "--write", f"{tmp_path}/there.yaml"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "there.yaml").read_text() == "x: 1\n"


def test_limits_that_nothing_fits_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(ROOT / "tests/small/small.yaml"), "--runs", str(tmp_path)]
    assert main([*words, "--cluster", "university", "--gpus", "2", "--hours", "60"]) == 2
    message = "--gpus 2: is less than the 4 GPUs that a job of {} holds"
    lines = capsys.readouterr().err.splitlines()
    for line, stage in zip(lines, ("midtrain", "sft"), strict=True):
        assert message.format(stage) in line
    assert main([*words, "--gpus", "1", "--hours", "0.001"]) == 2
    assert "error: --hours: no part of the study fits it" in capsys.readouterr().err


@pytest.mark.slow
def test_the_papers_study_in_60_gpu_hours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "part.yaml"
    common = ["--cluster", str(ROOT / "slurm/clusters/university.yaml"), "--runs", str(tmp_path)]
    limits = ["--budget", "gpu_hours=60"]
    words = ["--gpus", "8", "--hours", "500", *limits, "--write", str(file), "--json"]
    assert main(["plan", str(PAPER), *common, *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["amounts"]["gpu_hours"] <= 60 and facts["power"] > facts["whole_power"] > 0.4
    assert "115 questions" in facts["keeps"]
    assert any(line.startswith("family E5") for line in facts["given_up"])
    order = facts["order"]
    assert order[0]["result"] == "primary contrasts, 2 seeds (interim)"
    assert order[0]["gpu_hours"] < 20 and order[-1]["gpu_hours"] <= 60
    assert main(["plan", str(file), *common, *limits]) == 0, "by the forecast of its own file"
    assert "# Gives up:" in file.read_text()


def test_a_smaller_study_keeps_chains_and_the_arms_that_are_mixed_in() -> None:
    study = load_study(ROOT / "tests/small/chain.yaml")
    there = identities(study)
    for arm, others in (("chain", []), ("kept", ["midtrained"]), ("soup", [])):
        rows = {"ahb": {(arm, max(doses(study, arm)))}}
        selection = Selection(len(study.seeds), rows).closed(study)
        smaller = reduce_study(study, "part", selection)
        assert sorted(smaller.arms) == sorted([arm, *others])
        new = [c for c in identities(smaller).values() if c.identity not in there]
        assert [c.stage for c in new] == ["analysis"]
