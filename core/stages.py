"""The stages of a study, in the order of the work."""

from typing import Literal, get_args

# In the order of the work: a cell's inputs are of earlier stages, or come before it in its own.
Stage = Literal[
    "model",
    "drafts",
    "documents",
    "midtrain",
    "sft",
    "generate",
    "likelihood",
    "lm_eval",
    "judge",
    "labels",
    "analysis",
]
STAGES: tuple[str, ...] = get_args(Stage)
# Cells of these stages only share out another cell's work: into how many, changes no result.
SHARDING_STAGES = {"drafts"}
# The rooms are named here as text and imported only when a cell of theirs runs.
STAGE_MODULES = {
    "model": "recipes.tiny_llama",
    "drafts": "sdf.drafts",
    "documents": "sdf.documents",
    "midtrain": "recipes.finetune",
    "sft": "recipes.finetune",
    "generate": "eval.generate",
    "judge": "eval.judge",
    "likelihood": "eval.likelihood",
    "lm_eval": "eval.harness",
    "labels": "eval.labels",
    "analysis": "analysis.run",
}
