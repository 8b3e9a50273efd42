"""The steps of an arm's chain of trainings, as the study file has them (`arms.NAME.train`)."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from core.strict_yaml import STRICT, Name, Share

Dose = Annotated[int, Field(ge=0)]
Doses = Annotated[list[Dose], Field(min_length=1)]
# `sft` of a step that takes the study's own instruction tuning, which has no name.
STUDY_SFT = "sft"
KINDS = ("documents", "sft", "rl", "merge", "average")


@dataclass(config=STRICT, frozen=True)
class Step:
    """One step of a chain of trainings: it changes the weights that the step before it left.
    Exactly one of documents, sft, rl, merge, average."""

    documents: str | None = None
    """Corpus to train on."""
    recipe: str | None = None
    """With `documents`: the recipe. By default that of `midtrain`."""
    question_variant: str | None = None
    """With `documents`, for a corpus of question and answer pairs: which wording of the questions
    to train on, as conversations."""
    sft: str | None = None
    """Entry of `sfts`, or `sft`: the study's own `sft`."""
    doses: Doses | None = None
    """With `sft`: subset of its doses, 0 for the model without this step. One step of a chain may
    have several: the arm is evaluated at each, after all steps. By default all doses for the
    chain's last `sft`, the largest for others."""
    replay: Annotated[float, Field(gt=0, le=1)] | None = None
    """With `sft`: documents of `replay_corpus` that are trained on again, per row of instruction
    data. By default that of the SFT."""
    replay_corpus: str | None = None
    """With `sft`: corpus to replay. By default that of the last `documents` before the step."""
    l2_to_start: Annotated[float, Field(gt=0)] | None = None
    """With `sft`: in place of the recipe's. The start is the model before this step."""
    kl_to_start: Annotated[float, Field(gt=0)] | None = None
    """With `sft`: in place of the recipe's. The start is the model before this step."""
    rl: str | None = None
    """Entry of `rl`: reinforcement learning."""
    merge: str | None = None
    """Arm whose weights are mixed in, of the same seed and at its largest dose: each weight becomes
    (1 - weight) times this chain's plus weight times that arm's."""
    weight: Share | None = None
    """With `merge`: share of the other arm's weights."""
    average: Literal["seeds"] | None = None
    """Mean of the weights that the steps before have left with each seed of the study: one model,
    without a seed."""
    arm: Name | None = None
    """Name of an arm that ends with this step: the same trainings, evaluated after it. Contrasts
    and `merge` refer to a step by it."""

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)
