"""`keep` of a study file: which weights go, what fits at once, and what comes back."""

import json
import random
import re
from pathlib import Path

import pytest

from core.cell.identity import Cell
from core.errors import UserError
from slurm import arrays
from slurm.disk_limit import DiskLimit, allowed
from slurm.job_limits import Places, choose
from slurm.profile import Profile, Resources, load_profile
from study.cli import main
from study.forecast import corpus_cost, disk, study_cost
from study.forecast.budget import check_budget
from study.forecast.cell_cost import estimates
from study.spec import expand
from study.spec.load import load_study
from tests.core.test_release import finish
from tests.place import ROOT

TINY = ROOT / "studies/tiny.yaml"
PROFILE = Profile(stages={"default": Resources(minutes=10)})


def cells_of(keep: str, *overrides: str) -> list[Cell]:
    study = load_study(TINY, None, [f"keep={keep}", *overrides])
    return expand.in_order(expand.analysis(study))


def going(cells: list[Cell]) -> set[str]:
    return {c.inputs[role].name for c in cells for role in c.resources.get("release", ())}


def test_keep_is_in_no_identity_and_names_what_goes(tmp_path: Path) -> None:
    plain, last, none = (cells_of(keep) for keep in ("all", "last", "none"))
    assert [c.identity for c in plain] == [c.identity for c in last] == [c.identity for c in none]
    assert not going(plain)
    trained = {c.name for c in plain if c.stage in ("midtrain", "sft")}
    assert going(none) == trained
    assert trained - going(last) == {name for name in trained if name.endswith("-d200")}
    recipe = tmp_path / "sft.yaml"
    text = (ROOT / "recipes/tiny_sft.yaml").read_text()
    recipe.write_text(re.sub("^epochs: .*$", "epochs: 1", text, flags=re.MULTILINE))
    overrides = ("sft.shared_run=true", "sft.doses=[0,80,200]", f"sft.recipe={recipe}")
    shared = cells_of("last", *overrides)
    runs = {c.name for c in shared if c.stage == "sft" and "run" not in c.inputs}
    assert not runs & going(shared), "the highest dose is the run, which has the lower ones"


def limit_of(cells: list[Cell], gb: float) -> DiskLimit:
    planned = estimates(cells, Path("nowhere"), {}, PROFILE)
    by_root = disk.trees(cells, planned, {})
    return DiskLimit(
        gb * max(tree.gb for tree in by_root.values()),
        {first: tree.gb for first, tree in by_root.items()},
        {identity: first for first, tree in by_root.items() for identity in tree.cells},
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keep", ["last", "none"])
def test_the_disk_holds_what_is_on_its_way_and_all_gets_done(keep: str, seed: int) -> None:
    """Submissions after any part of the queue has ended, in any order, or was killed."""
    cells, chance = cells_of(keep), random.Random(seed)
    limit = limit_of(cells, 2.0)
    done: set[str] = set()
    resources = PROFILE.resources

    def is_done(cell: Cell) -> bool:
        return cell.identity in done

    for _ in range(500):
        queued: dict[str, str] = {}
        todo = arrays.tasks(cells, resources, is_done, queued)
        if not todo:
            break
        now = choose(todo, Places({}, lambda _: []), resources, allowed(limit, cells, done, queued))
        assert now, "it never stops before the end"
        ended: set[arrays.Task] = set()
        for task in now:  # what a task needs ends before it
            needs = {need for need in task.needs if isinstance(need, arrays.Task)}
            if needs <= ended and chance.random() < 0.7:
                ended.add(task)
                done |= {cell.identity for cell in task.cells}
        chosen = {cell.identity for task in now for cell in task.cells}
        held = {
            limit.trees[c.identity]
            for c in cells
            if c.identity in limit.trees and c.identity in chosen | done
        }
        members = {tree: [i for i, t in limit.trees.items() if t == tree] for tree in held}
        busy = [tree for tree in held if not done.issuperset(members[tree])]
        assert sum(limit.tree_gb[tree] for tree in busy) <= limit.free_gb
    assert done == {cell.identity for cell in cells}


def test_a_limit_bounds_the_peak_and_costs_time(tmp_path: Path) -> None:
    cells = cells_of("none")
    free = study_cost.totals(cells, tmp_path, {}, PROFILE)
    kept = study_cost.totals(cells_of("all"), tmp_path, {}, PROFILE)
    assert free["disk"]["end_gb"] < kept["disk"]["end_gb"] == kept["study"]["disk_gb"]
    facts = disk.Forecast(**free["disk"])
    limit_gb = facts.end_gb + 2.5 * facts.tree_gb
    bounded = study_cost.totals(cells, tmp_path, {}, PROFILE, limit_gb)
    assert bounded["peak_gb"] <= limit_gb < free["peak_gb"]
    assert bounded["disk"]["at_once"] == 2 < free["disk"]["at_once"] == 9
    assert bounded["disk"]["hours"] > 0 and "2 of them run at once" in bounded["keep"]
    hours = bounded["critical_path"] + bounded["disk"]["hours"]
    check_budget(bounded, {"hours": hours + 0.01})
    with pytest.raises(UserError, match="the study takes about"):
        check_budget(bounded, {"hours": hours - 0.01})


def test_a_limit_without_room_for_one_training_is_refused(tmp_path: Path) -> None:
    cells = cells_of("none")
    facts = disk.Forecast(**study_cost.totals(cells, tmp_path, {}, PROFILE)["disk"])
    limit_gb = facts.end_gb + 0.9 * facts.tree_gb
    totals = study_cost.totals(cells, tmp_path, {}, PROFILE, limit_gb)
    assert totals["peak_gb"] == facts.end_gb + facts.tree_gb, "what one takes"
    assert "have no room for one beside what stays" in totals["keep"]
    with pytest.raises(UserError, match="the study takes about"):
        check_budget(totals, {"disk_gb": limit_gb})
    with pytest.raises(UserError, match="keep fewer weights"):
        disk.disk_limit({}, disk.Forecast(**totals["disk"]))


def test_the_papers_study_runs_in_a_terabyte() -> None:
    study = load_study(ROOT / "studies/paper.yaml", None, ["keep=none"])
    cells = expand.in_order(expand.analysis(study))
    profile = load_profile(Path("university"), ["disk_gb=1000"])
    from study.commands.common import parallel_plans

    totals = study_cost.totals(cells, Path("nowhere"), parallel_plans(profile), profile)
    assert totals["peak_gb"] <= 1000 and totals["disk"]["at_once"] > 5
    assert 0 < totals["disk"]["hours"] < 24, totals["keep"]


@pytest.mark.multiprocess
def test_weights_that_went_come_back_for_a_new_benchmark_when_a_person_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "runs/tiny"
    words = [str(TINY), "--runs", str(tmp_path / "runs"), "--set", "keep=none"]
    cells = expand.in_order(expand.analysis(load_study(TINY, None, ["keep=none"]), base))
    for cell in cells:
        weights = ["model/model.safetensors"] if cell.stage in ("midtrain", "sft") else []
        finish(cell, base, *weights)
    assert not [*base.glob("*/*/model/model.safetensors")]
    monkeypatch.setattr(corpus_cost, "compare", lambda *_: [])  # of counts that are not made up
    more = [*words, "--set", "benchmarks.ahb.epochs=3"]
    main(["plan", *more, "--json"])
    back = json.loads(capsys.readouterr().out)["needed_again"]
    assert len(back) == len(going(cells)), "answers to more epochs need every checkpoint"
    assert main(["submit", *more, "--cluster", "lab"]) == 2
    text = capsys.readouterr().err
    assert "was pruned on" in text and "--yes makes it anew" in text
