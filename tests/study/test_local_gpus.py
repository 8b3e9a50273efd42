"""`run` gives each cell GPUs of its own: how many, by what it runs and by the forecast."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import visible_gpus as smi
from core.cell.identity import Cell
from core.errors import UserError
from core.visible_gpus import VisibleGpu, visible_gpus
from study import local_gpus
from study.spec.expand import analysis, in_order
from study.spec.load import load_study
from tests.place import SMALL

CELLS = in_order(analysis(load_study(SMALL)))


def visible(monkeypatch: pytest.MonkeyPatch, *listed: VisibleGpu) -> None:
    monkeypatch.setattr(local_gpus, "visible_gpus", lambda: list(listed))


def needs(cells: list[Cell], *options: int | None) -> dict[str, set[int]]:
    """By stage."""
    assigned = local_gpus.local_gpus(cells, *options)
    counts: dict[str, set[int]] = {}
    for cell in cells:
        counts.setdefault(cell.stage, set()).add(assigned.of(cell))
    return counts


def test_trainings_and_vllm_hold_a_gpu_and_what_calls_an_api_holds_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visible(monkeypatch, VisibleGpu("0", 80.0), VisibleGpu("1", 80.0))
    counts = needs(CELLS, None, None)
    assert {stage for stage, numbers in counts.items() if numbers == {1}} == {
        *("midtrain", "sft", "generate", "likelihood")
    }
    others = ("model", "documents", "contamination", "judge", "analysis")
    assert all(counts[stage] == {0} for stage in others)
    assert local_gpus.local_gpus(CELLS, 1, None).ids == ("0",)
    visible(monkeypatch)
    assert local_gpus.local_gpus(CELLS, None, None).ids == (), "as without the option"


def test_a_training_has_as_many_ranks_as_asked_for_or_as_its_memory_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visible(monkeypatch, *(VisibleGpu(str(number), 80.0) for number in range(4)))
    assert needs(CELLS, None, 2)["sft"] == {2}
    assert local_gpus.local_gpus(CELLS, 4, 2).ranks == {
        cell.identity for cell in CELLS if cell.stage in ("midtrain", "sft")
    }
    training = next(cell for cell in CELLS if cell.stage == "midtrain")
    monkeypatch.setattr(
        local_gpus, "memory", lambda model, recipe, ranks, within: {"total": 150 / ranks}
    )
    assert needs([training], None, None) == {"midtrain": {2}}
    with pytest.raises(
        UserError, match=r"about 150 GB on each of 1 GPUs, which have 80; .*--ranks 1"
    ):
        local_gpus.local_gpus([training], 1, None)
    assert needs([training], 1, 1) == {"midtrain": {1}}
    visible(monkeypatch, VisibleGpu("MIG-1", None))
    assert needs([training], None, None) == {"midtrain": {1}}, "its memory is not known"


def test_vllm_holds_as_many_as_its_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = next(cell for cell in CELLS if cell.stage == "generate")
    engine = {**answers.resources["engine"], "tensor_parallel_size": 2}
    answers = replace(answers, resources={**answers.resources, "engine": engine})
    address: dict[str, Any] = {"path": "/models/judge", "options": {}}
    judge = next(cell for cell in CELLS if cell.stage == "judge")
    judge = replace(judge, resources={**judge.resources, "address": address})
    visible(monkeypatch, VisibleGpu("0", 80.0), VisibleGpu("1", 80.0))
    assert needs([answers, judge], None, None) == {"generate": {2}, "judge": {1}}
    with pytest.raises(UserError, match=r"generate .*: needs 2 GPUs, there are 1; --gpus 2"):
        local_gpus.local_gpus([answers], 1, None)


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    visible(monkeypatch, VisibleGpu("0", 80.0))
    with pytest.raises(UserError, match="--gpus 2: 1 are visible here; --gpus 1"):
        local_gpus.local_gpus(CELLS, 2, None)
    visible(monkeypatch)
    with pytest.raises(UserError, match="--ranks 2: no GPU is visible here; add --gpus 2"):
        local_gpus.local_gpus(CELLS, None, 2)
    assert local_gpus.local_gpus(CELLS, 2, None).ids == ("", ""), "processes on the CPU"


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, [VisibleGpu("0", 85.899345920), VisibleGpu("1", None)]),
        ("1,0", [VisibleGpu("1", None), VisibleGpu("0", 85.899345920)]),
        ("GPU-8f2", [VisibleGpu("GPU-8f2", None)]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,1", [VisibleGpu("0", 85.899345920)]),
        ("1,7,0", [VisibleGpu("1", None)]),
        ("0, 0", [VisibleGpu("0", 85.899345920)]),
        ("MIG-1,GPU-8f2", [VisibleGpu("MIG-1", None), VisibleGpu("GPU-8f2", None)]),
    ],
)
def test_the_driver_lists_the_gpus_and_the_environment_leaves_some(
    names: str | None, expected: list[VisibleGpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, 81920'; echo '1, [N/A]'; echo 'WARNING: infoROM'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(smi, "COMMAND", (str(tool), *smi.COMMAND[1:]))
    environment = {} if names is None else {"CUDA_VISIBLE_DEVICES": names}
    assert visible_gpus(environment) == expected
    tool.write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    assert visible_gpus(environment) == []
