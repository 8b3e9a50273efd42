"""The stages of a study: one table, in the order of the work."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

# pydantic needs the names as a Literal; the table below must list the same, in the same order.
Stage = Literal[
    "model",
    "drafts",
    "documents",
    "contamination",
    "embeddings",
    "midtrain",
    "sft",
    "rl",
    "merge",
    "generate",
    "likelihood",
    "lm_eval",
    "probe",
    "agent",
    "judge",
    "canary",
    "scores",
    "labels",
    "analysis",
]


@dataclass(frozen=True)
class StageInfo:
    """What the kit must know of a stage without importing its module.

    Attributes:
        name: The stage's name, as in `runs/STUDY/STAGE/`.
        module: The module with the stage's `run` (see `core.cell.stage.Stage`). It is named as text
            and imported only when a cell of the stage runs, so that planning imports no room.
        job_group: Stages of one group can share a job or a process. None: the stage's own name.
        shared_input: With a job_group, the role of the input whose users share a job.
        follows_input: Whether its cells run at the end of the job that makes the shared input, if
            that is not finished.
        shares_process: Whether ready cells of the group run one after another in one process of
            the local executor, because the start of a process (vLLM, Inspect) takes long.
        import_group: Stages of one import group need the same imports, which a process of the local
            executor does once for all of them. None: the job group.
        shards: Whether its cells only shard another cell's work. The number of shards is not part
            of that cell's identity.
        trains: Whether it trains a checkpoint with a recipe.
        merges: Whether it makes a checkpoint of others without training.
        profile_fallback: The stage whose entry in a cluster profile applies where the profile has
            none for this stage.
        needs_vllm: Whether its cells run a checkpoint with vLLM.
        needs_transformers: Whether its cells run a checkpoint with transformers in their process.
        calls: Whether its cells call an endpoint and keep a ledger of it.
    """

    name: Stage
    module: str
    job_group: str | None = None
    shared_input: str | None = None
    follows_input: bool = False
    shares_process: bool = False
    import_group: str | None = None
    shards: bool = False
    trains: bool = False
    merges: bool = False
    profile_fallback: Stage | None = None
    needs_vllm: bool = False
    needs_transformers: bool = False
    calls: bool = False

    @property
    def group(self) -> str:
        """The job group: `job_group`, or the stage's own name."""
        return self.job_group or self.name

    @property
    def imports(self) -> str:
        """The import group: `import_group`, or the job group."""
        return self.import_group or self.group


# In the order of the work: a cell's inputs are of earlier stages, but for those that make
# checkpoints: a chain of trainings has them in any order.
STAGE_INFO: dict[str, StageInfo] = {
    info.name: info
    for info in (
        StageInfo("model", "recipes.tiny_llama", import_group="train"),
        StageInfo("drafts", "sdf.drafts", shards=True, profile_fallback="documents", calls=True),
        StageInfo("documents", "sdf.documents", calls=True),
        StageInfo(
            "contamination",
            "eval.contamination",
            job_group="contamination",
            shared_input="documents",
            follows_input=True,
            shares_process=True,
        ),
        StageInfo("embeddings", "sdf.embeddings"),
        StageInfo("midtrain", "recipes.finetune", import_group="train", trains=True),
        StageInfo("sft", "recipes.finetune", import_group="train", trains=True),
        StageInfo(
            "rl",
            "recipes.grpo",
            import_group="train",
            trains=True,
            profile_fallback="generate",
            needs_vllm=True,
        ),
        StageInfo("merge", "recipes.merge", import_group="train", merges=True),
        StageInfo(
            "generate",
            "eval.generate",
            job_group="evaluate",
            shared_input="checkpoint",
            shares_process=True,
            needs_vllm=True,
        ),
        StageInfo(
            "likelihood",
            "eval.likelihood",
            job_group="evaluate",
            shared_input="checkpoint",
            shares_process=True,
            needs_vllm=True,
        ),
        StageInfo(
            "lm_eval",
            "eval.harness",
            job_group="evaluate",
            shared_input="checkpoint",
            shares_process=True,
            profile_fallback="likelihood",
            needs_vllm=True,
        ),
        # Not with vLLM's stages: the engine keeps its share of the GPU's memory until it is closed.
        StageInfo(
            "probe",
            "eval.probe",
            job_group="probe",
            shared_input="checkpoint",
            shares_process=True,
            profile_fallback="likelihood",
            needs_transformers=True,
        ),
        # A server of its own, which ends with the cell.
        StageInfo(
            "agent",
            "eval.agent",
            job_group="agent",
            shared_input="checkpoint",
            profile_fallback="generate",
            needs_vllm=True,
        ),
        StageInfo("judge", "eval.judge", shares_process=True, calls=True),
        StageInfo(
            "canary",
            "eval.canary",
            import_group="judge",
            profile_fallback="judge",
            calls=True,
        ),
        StageInfo("scores", "eval.existing_scores"),
        StageInfo("labels", "eval.labels"),
        StageInfo("analysis", "analysis.run"),
    )
}
assert tuple(STAGE_INFO) == get_args(Stage), "the Literal and the table must list the same stages"

STAGES: tuple[str, ...] = tuple(STAGE_INFO)
SHARDING_STAGES = frozenset(name for name, info in STAGE_INFO.items() if info.shards)
TRAINING_STAGES = tuple(name for name, info in STAGE_INFO.items() if info.trains)
# Those whose cells hold weights that this study has made.
CHECKPOINT_STAGES = tuple(name for name, info in STAGE_INFO.items() if info.trains or info.merges)
VLLM_STAGES = frozenset(name for name, info in STAGE_INFO.items() if info.needs_vllm)
# Those whose cells run a checkpoint on a GPU.
EVALUATION_STAGES = VLLM_STAGES.difference(TRAINING_STAGES) | {
    name for name, info in STAGE_INFO.items() if info.needs_transformers
}
CALLING_STAGES = tuple(name for name, info in STAGE_INFO.items() if info.calls)


def in_stage_order(stages: Mapping[str, str], inputs: Mapping[str, Iterable[str]]) -> list[str]:
    """Names of cells stage by stage, inputs before their users.

    A training that starts from a checkpoint of a later stage comes after that. Unknown inputs do
    not count.

    Args:
        stages: The stage of each cell, inputs before their users.
        inputs: The names of each cell's inputs.
    """
    position: dict[str, int] = {}
    for name, stage in stages.items():
        before = (position.get(used, 0) for used in inputs[name])
        position[name] = max([STAGES.index(stage), *before])
    return sorted(position, key=position.__getitem__)
