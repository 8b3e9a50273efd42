"""GPUs that vLLM is told to use against those of a cluster profile, and batch_invariant's cells."""

from typing import Any

import pytest

from core.cell.identity import Cell
from core.errors import UserError
from core.paths import ROOT
from slurm.profile import Profile, Resources
from study.forecast.inference_gpus import compare
from study.spec import expand
from study.spec.load import load_study

TINY = ROOT / "studies/tiny.yaml"


def cells(*settings: str) -> list[Cell]:
    return expand.in_order(expand.analysis(load_study(TINY, overrides=list(settings))))


def profile(**gpus: Any) -> Profile:
    stages: Any = {"default": Resources(minutes=60)}
    stages |= {stage: Resources(minutes=60, gpus_per_node=count) for stage, count in gpus.items()}
    return Profile(stages=stages)


def test_too_few_gpus_are_refused_and_idle_ones_warned_of() -> None:
    parallel = cells("engine.options={tensor_parallel_size: 2}")
    assert (
        compare(parallel, None) == compare(parallel, profile()) == {"refused": [], "warnings": []}
    )
    assert not any(compare(parallel, profile(generate=2, likelihood="h100:2")).values())
    told = compare(parallel, profile(generate=1, likelihood="h100:4"))
    assert told["refused"] == [
        "generate: vLLM is told to use 2 GPUs of a node, the cluster profile gives 1; set "
        "gpus_per_node: 2 for generate, or lower tensor_parallel_size"
    ]
    assert told["warnings"] == [
        "likelihood: vLLM is told to use 2 GPUs of a node, the cluster profile gives 4; set "
        "gpus_per_node: 2 for likelihood, or raise tensor_parallel_size"
    ]
    assert compare(cells(), profile(generate=1, likelihood=1)) == {"refused": [], "warnings": []}


def test_a_served_judge_has_gpus_of_its_own(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    served = cells(
        f"endpoints.grader={{served_by: vllm, path: {tmp_path}, "
        "options: {tensor_parallel_size: 4}}",
        "benchmarks.ahb.judge=grader",
    )
    told = compare(served, profile(generate=1, likelihood=1, judge=2))
    assert [line.partition(",")[0] for line in told["refused"]] == [
        "judge: vLLM is told to use 4 GPUs of a node"
    ]


def test_plan_and_submit_say_it(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from study.cli import main

    (tmp_path / "profile.yaml").write_text(
        "stages: {default: {minutes: 60}, generate: {minutes: 60, gpus_per_node: 1}}\n"
    )
    words = [
        str(TINY),
        "--runs",
        str(tmp_path / "runs"),
        "--cluster",
        str(tmp_path / "profile.yaml"),
    ]
    words += ["--set", "engine.options={tensor_parallel_size: 2}"]
    assert main(["plan", *words]) == 0
    assert "can't run: generate: vLLM is told to use 2 GPUs" in capsys.readouterr().out
    assert main(["submit", *words]) == 2
    assert "generate: vLLM is told to use 2 GPUs" in capsys.readouterr().err


def test_batch_invariance_makes_new_answers_and_its_absence_none() -> None:
    def engines(*settings: str) -> list[dict[str, Any]]:
        return [cell.settings["engine"] for cell in cells(*settings) if "engine" in cell.settings]

    plain = cells()
    assert {cell.identity for cell in cells("engine.batch_invariant=false")} == {
        cell.identity for cell in plain
    }
    assert not any("batch_invariant" in engine for engine in engines())
    invariant = engines("engine.batch_invariant=true")
    assert invariant and all(engine["batch_invariant"] is True for engine in invariant)
    with pytest.raises(UserError, match=r"engine.options.batch_invariant.*the kit sets it"):
        cells("engine.options={batch_invariant: true}")


def test_heads_that_gpus_can_not_share_are_refused_without_a_profile_too() -> None:
    refused = compare(cells("engine.options={tensor_parallel_size: 3}"), None)["refused"]
    does_not = "tensor_parallel_size 3 does not divide 4 heads; 1, 2, 4 do"
    assert refused == [f"generate: {does_not}", f"likelihood: {does_not}"]
    assert not compare(cells("engine.options={tensor_parallel_size: 4}"), None)["refused"]


def test_ranks_that_would_share_a_gpu_are_refused() -> None:
    def refused(ranks: int, gpus: int) -> list[str]:
        resources = Resources(minutes=60, gpus_per_node=gpus, tasks_per_node=ranks)
        stages: Any = {"default": Resources(minutes=60), "midtrain": resources}
        return compare(cells(), Profile(stages=stages))["refused"]

    cure = "set tasks_per_node: 3, or gpus_per_node: 4"
    assert refused(4, 3) == [f"midtrain: 4 ranks of a node would share 3 GPUs; {cure}"]
    assert refused(4, 0) == refused(4, 4) == refused(1, 2) == []


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("tensor_parallel_size=two", "'two' is no number of GPUs"),
        ("tensor_parallel_size=0", "0 is no number of GPUs"),
        ("pipeline_parallel_size=1.5", "1.5 is no number of GPUs"),
        ("gpu_memory_utilization=1.5", "1.5 is no share of a GPU's memory"),
        ("gpu_memory_utilization=true", "True is no share"),
    ],
)
def test_an_option_that_would_fail_only_on_a_gpu_is_refused(option: str, says: str) -> None:
    with pytest.raises(UserError, match=rf"engine.options.{option.partition('=')[0]}: {says}"):
        cells(f"engine.options.{option}")
