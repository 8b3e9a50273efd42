"""A cluster profile (clusters/*.yaml) as dataclasses: every key there is, read strictly."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from core.errors import UserError
from core.stages import STAGE_INFO, Stage
from core.strict_yaml import explain, in_file_order, located, read_yaml, validate

_STRICT = ConfigDict(extra="forbid", strict=True)

Count = Annotated[int, Field(ge=1)]
Word = Annotated[str, Field(pattern=r"^\S+$")]
Stages = Literal["default", Stage]
FOLDER = Path(__file__).parent / "clusters"


@dataclass(config=_STRICT, frozen=True)
class Shape:
    """What one job of a stage asks for."""

    minutes: Count  # time limit; a job that reaches it is requeued and continues
    nodes: Count = 1
    tasks_per_node: Count = 1  # processes: one per GPU for a training over several GPUs
    gpus_per_node: int | Word = 0  # a count, or a type and a count such as h100:8
    cpus: Count = 1  # cores per task
    mem_gb: Annotated[float, Field(gt=0)] | None = None  # per node; none: the partition's default
    # Of one GPU, for trainings; nothing is asked of Slurm. None: memory is not checked, speed is guessed.
    gpu_memory_gb: Annotated[float, Field(gt=0)] | None = None
    tokens_per_second: Annotated[float, Field(gt=0)] | None = None
    partition: Word | None = None  # these four instead of the profile's own
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None


@dataclass(config=_STRICT, frozen=True)
class Profile:
    """One cluster, for one user."""

    stages: dict[Stages, Shape]
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    python: str | None = None  # the command that starts Python in a job; none: the Python that submits
    setup: list[str] = Field(default_factory=list)  # shell lines before it, such as `module load cuda`
    scratch: str | None = None  # TMPDIR of jobs, on the node's own disk
    cache: str | None = None  # where Hugging Face, vLLM and compilers keep what they fetch or build; shared
    interface: Word | None = None  # network interface for trainings over several nodes, such as ib0
    offline: bool = False  # compute nodes have no internet: libraries are told not to try
    requeue: Annotated[int, Field(ge=0)] = 20  # time limits one job may use up; 0: never requeued, whatever ends it
    array_parallelism: Count = 256  # tasks of one array that run at the same time
    max_array: Count | None = None  # tasks in one array; none: Slurm's own MaxArraySize
    max_submit: Annotated[int, Field(ge=3)] | None = (
        None  # jobs of yours queued at once; none: what Slurm's accounts say
    )

    def shape(self, stage: str) -> Shape:
        """A stage's shape, with the profile's partition, account, qos and constraint where it names none."""
        info = STAGE_INFO.get(stage)
        fallback = (info and info.profile_fallback) or "default"
        found = self.stages.get(stage) or self.stages.get(fallback) or self.stages["default"]  # type: ignore[call-overload]
        names = ("partition", "account", "qos", "constraint")
        return replace(found, **{name: getattr(found, name) or getattr(self, name) for name in names})


def load_profile(path: Path) -> Profile:
    """The profile in a file, or of that name in slurm/clusters.

    Raises UserError with one line per mistake and the valid keys.
    """
    if not path.suffix and not path.exists():
        path = FOLDER / f"{path}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise UserError(f"{path}: no such cluster profile; give a file, or one of: {known}")
    raw, where, mistakes = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must be a mapping with `stages:`; copy one of {FOLDER}")
    try:
        profile: Profile | None = validate(Profile, raw)
    except ValidationError as error:
        profile = None
        mistakes += explain(path, error, Profile, where)
    if profile and "default" not in profile.stages:
        mistakes.append(located(path, ("stages",), "needs `default`, for stages not named", where))
    if mistakes or profile is None:
        raise UserError(*in_file_order(mistakes))
    return _expanded(profile)


def _expanded(profile: Profile) -> Profile:
    # $USER and the like in paths; the node's own variables ($SLURM_JOB_ID) are left for the job's shell.
    paths: dict[str, Any] = {name: getattr(profile, name) for name in ("python", "cache")}
    return replace(profile, **{name: os.path.expandvars(p) if p else p for name, p in paths.items()})
