"""The table of stages: complete, and true of the modules it names."""

from typing import get_args

from core.cell.local_executor import GROUPS, SHARED_GROUPS
from core.paths import ROOT
from core.stages import (
    EVALUATION_STAGES,
    SHARDING_STAGES,
    STAGE_INFO,
    STAGES,
    TRAINING_STAGES,
    VLLM_STAGES,
    Stage,
)


def test_the_table_lists_the_stages_of_the_literal_in_their_order() -> None:
    assert get_args(Stage) == STAGES == tuple(STAGE_INFO)
    assert all(info.profile_fallback in (None, *STAGES) for info in STAGE_INFO.values())


def test_every_module_exists_and_defines_run_of_one_context() -> None:
    for info in STAGE_INFO.values():
        source = (ROOT / f"{info.module.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert "\ndef run(" in source, info


def test_what_is_derived_from_the_table() -> None:
    assert set(SHARDING_STAGES) == {"drafts"}
    assert TRAINING_STAGES == ("midtrain", "sft", "rl")
    evaluations = {"generate", "likelihood", "lm_eval"}
    assert evaluations | {"agent", "rl"} == VLLM_STAGES
    assert evaluations | {"agent", "probe"} == EVALUATION_STAGES
    assert {"contamination", "evaluate", "probe", "judge"} == SHARED_GROUPS
    assert GROUPS.index("sft") < GROUPS.index("evaluate") < GROUPS.index("judge")
    assert {STAGE_INFO[stage].group for stage in evaluations} == {"evaluate"}
