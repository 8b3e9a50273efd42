"""The doses of instruction tuning at which each arm is evaluated."""

from study.spec.schema import Sft, Study


def doses(study: Study, arm: str) -> list[int]:
    """The doses of SFT at which an arm is evaluated."""
    sft = sft_of(study, arm)
    selected = study.arms[arm].doses
    return [dose for dose in (sft.doses if sft else [0]) if selected is None or dose in selected]


def sft_of(study: Study, arm: str) -> Sft | None:
    """The instruction tuning of an arm."""
    name = study.arms[arm].sft
    return study.sfts[name] if name else study.sft
