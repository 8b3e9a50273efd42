"""A cluster profile (slurm/clusters/*.yaml) as dataclasses, read strictly."""

import copy
import os
import re
from collections.abc import Iterable
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from core.errors import Problem, UserError
from core.stages import EVALUATION_STAGES, STAGE_INFO, STAGES, TRAINING_STAGES, Stage
from core.strict_yaml import (
    LineNumbers,
    Rate,
    in_file_order,
    located,
    override,
    read_yaml,
    validate_file,
)
from slurm.sbatch_options import MEMORY, Options, merged

_STRICT = ConfigDict(extra="forbid", strict=True)

Count = Annotated[int, Field(ge=1)]


def _as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value  # an account may be a number


Word = Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^\S+$")]
# Slurm lets an account have blanks.
Account = Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^\S+( +\S+)*$")]
Stages = Literal["default", Stage]
FOLDER = Path(__file__).parent / "clusters"
# Stages that need neither a GPU nor much of a machine.
LOGIN_STAGES = [name for name in STAGES if name not in {*TRAINING_STAGES, *EVALUATION_STAGES}]
EXAMPLES = {"lab", "partitions", "university"}


def _check_gpus(request: int | str) -> int | str:
    if not re.fullmatch(r"([^\s:]+:)?\d+", str(request)):
        raise ValueError("must be a count, or a type and a count, such as h100:8")
    return request


Gpus = Annotated[int | str, AfterValidator(_check_gpus)]


@dataclass(config=_STRICT, frozen=True)
class Resources:
    """What one job of a stage requests from Slurm."""

    minutes: Annotated[int, Field(ge=0)] = 0
    """Time limit; required, but for `where: login`. A job that reaches it is requeued and
    continues."""
    where: Literal["login"] | None = None
    """login: cells of this stage are left to `run --stages` on a login node, for want of internet
    on compute nodes. `submit` sends what needs them when they are finished."""
    nodes: Count = 1
    """Nodes of the job."""
    tasks_per_node: Count = 1
    """Processes on each node: one per GPU for a training over several GPUs."""
    gpus_per_node: Gpus = 0
    """A count, or a type and a count, such as h100:8."""
    gpu_type: Word | None = None
    """Type of the GPUs for the forecast, such as h100, in place of the profile's. None: the type in
    gpus_per_node."""
    cpus: Count = 1
    """Cores per task."""
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory per node, in GiB. None: the partition's default, or mem-per-cpu or mem-per-gpu of
    `sbatch`, for sites that refuse memory per node."""
    gpu_memory_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory of one GPU, for the forecast of trainings. Slurm is not asked for it.
    None: the forecast does not check memory."""
    tokens_per_second: Annotated[float, Field(gt=0)] | None = None
    """Measured training speed, for the forecast. None: the forecast estimates it."""
    partition: Word | None = None
    """Partition, in place of the profile's."""
    account: Account | None = None
    """Account, in place of the profile's."""
    qos: Word | None = None
    """Quality of service, in place of the profile's."""
    constraint: Word | None = None
    """Node features, in place of the profile's."""
    # A dict has no hash. Resources are equal where these are equal too.
    sbatch: Options = field(default_factory=dict, hash=False)
    """Other options of sbatch, such as {reservation: x, exclude: [n1], exclusive: true}, beside the
    profile's; false leaves out one of those. Nodes that the profile excludes stay excluded."""


@dataclass(config=_STRICT, frozen=True)
class Measured:
    """Rates measured on this cluster, for the forecast: `doctor --shakedown --write` writes them.
    A rate that is not given is assumed, as docs/cost-model.md lists."""

    training_flops: Rate | None = None
    """FLOP/s of one GPU in an optimizer step, counted as for MFU: rows of documents, compiled,
    without activation checkpointing."""
    prefill_flops: Rate | None = None
    """FLOP/s of one GPU while vLLM reads prompts, 2 for each parameter and token."""
    decode_flops: Rate | None = None
    """FLOP/s of one GPU while vLLM writes answers, 2 for each parameter and token."""
    node_bytes_per_second: Rate | None = None
    """Bytes that a rank receives in a second when the ranks of a node gather weights."""
    network_bytes_per_second: Rate | None = None
    """Bytes that a node receives in a second when ranks of several nodes gather weights."""
    write_bytes_per_second: Rate | None = None
    """Bytes that a node writes in a second to the runs folder."""
    start_seconds: Rate | None = None
    """From the start of Python in a job to the start of its cell, after the imports and before the
    weights."""


@dataclass(config=_STRICT, frozen=True)
class Profile:
    """One cluster, for one user."""

    stages: dict[Stages, Resources]
    """What a job of each stage requests. `default` is for the stages that are not named."""
    partition: Word | None = None
    """Partition of stages that name none. None: the cluster's default."""
    account: Account | None = None
    """Account that is charged. None: your default account."""
    qos: Word | None = None
    """Quality of service. None: the account's default."""
    constraint: Word | None = None
    """Node features that are required."""
    sbatch: Options = field(default_factory=dict)
    """Other options of sbatch for every job, by their long names, such as {mail-type: FAIL}. true
    is an option without a value. What the kit writes itself is refused."""
    python: str | None = None
    """The command that starts Python in a job. None: the Python that submits."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines that run before Python, such as `module load gcc`."""
    scratch: str | None = None
    """TMPDIR of jobs, on the node's own disk. It is removed at the end of a job if its name holds
    $SLURM_JOB_ID."""
    cache: str | None = None
    """Shared folder for what Hugging Face, vLLM and compilers download or build. None: the
    libraries' own folders in the home."""
    signal_seconds: Count = 90
    """How long before its time limit a job is told to stop: a training then writes a checkpoint,
    of 12 bytes a parameter. `doctor` measures how fast the runs folder is written."""
    interface: Word | None = None
    """Network interface for trainings over several nodes, such as ib0."""
    offline: bool = False
    """Whether compute nodes lack internet access. Libraries then do not try to connect."""
    requeue: Annotated[int, Field(ge=0)] = 20
    """How many time limits one job may reach. 0: a job is never requeued, whatever ends it."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often one job is queued again after a failure that passes by itself: of a node, a GPU or
    the network, or a killed process. 0: never. Other failures are not retried."""
    array_parallelism: Count = 256
    """Tasks of one array that run at the same time."""
    max_array: Count | None = None
    """Tasks in one array. None: Slurm's own MaxArraySize."""
    max_submit: Annotated[int, Field(ge=3)] | None = None
    """Jobs of this user that are queued at once. The limits of accounts and QOS hold beside it."""
    disk_gb: Annotated[float, Field(gt=0)] | None = None
    """Room for a study in the runs folder, in GB (1e9 bytes). Where the study file does not keep
    all weights (`keep`), `submit` starts as many trainings at once as fit. None: all."""
    notify: str | None = None
    """A shell line that a job runs at the study's first failure since it was submitted, and when
    its results are there, such as `mail -s "$NOTIFY_SUBJECT" me@example.org`. The message is on its
    standard input. None: nobody is told."""
    gpu_type: Word | None = None
    """Type of the GPUs for the forecast, such as h100. None: the type in gpus_per_node."""
    measured: Measured = Field(default_factory=Measured)
    """Rates measured on this cluster."""

    def is_on_login(self, stage: str) -> bool:
        """Whether the stage's cells are not submitted, but run on a login node."""
        return self.resources(stage).where == "login"

    def resources(self, stage: str) -> Resources:
        """The resources of a stage.

        A stage without an entry of its own has those of the stage that does the same work, or else
        the default. Partition, account, qos, constraint, gpu_type and each option of sbatch default
        to the profile's.
        """
        entries = self._filled_in
        return next(entries[name] for name in _entries(stage) if name in entries)

    @cached_property
    def _filled_in(self) -> dict[str, Resources]:
        """The entries of `stages` with the profile's own settings where they have none."""
        return {
            name: replace(
                resources,
                partition=resources.partition or self.partition,
                account=resources.account or self.account,
                qos=resources.qos or self.qos,
                constraint=resources.constraint or self.constraint,
                gpu_type=resources.gpu_type or self.gpu_type,
                sbatch=merged(self.sbatch, resources.sbatch),
            )
            for name, resources in self.stages.items()
        }


def _entries(stage: str) -> list[str]:
    """The entries of `stages` that hold for a stage: the first that a profile has."""
    info = STAGE_INFO.get(stage)
    fallback = info and info.profile_fallback
    return [stage, fallback, "default"] if fallback else [stage, "default"]


def _name_stage(raw: dict[str, Any], text: str) -> None:
    """Give the stage that `stages.STAGE.KEY=VALUE` changes an entry: what holds for it so far."""
    parts = text.partition("=")[0].split(".")
    stages = raw.get("stages")
    if len(parts) < 3 or parts[0] != "stages" or not isinstance(stages, dict):
        return
    if parts[1] in STAGE_INFO and parts[1] not in stages:
        entry: Any = next((stages[name] for name in _entries(parts[1]) if name in stages), {})
        stages[parts[1]] = copy.deepcopy(entry)


def load_profile(path: Path, overrides: Iterable[str] = ()) -> Profile:
    """Read the profile in the file `path`, or the one of that name in slurm/clusters.

    `overrides`: each a `key.path=value`, applied to what the file says.

    Raises UserError with one problem per mistake and the valid keys.
    """
    if not path.suffix and not path.exists():
        path = FOLDER / f"{path}.yaml"
    if not path.exists():
        names = ", ".join(sorted(profile.stem for profile in FOLDER.glob("*.yaml")))
        raise UserError(
            where=str(path), what="no such cluster profile", fix=f"give a file, or one of: {names}"
        )
    raw, lines, mistakes = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(
            where=str(path), what="must be a mapping with `stages:`", fix=f"copy one of {FOLDER}"
        )
    for text in overrides:
        _name_stage(raw, text)
        override(raw, text, "the cluster profile")
    profile, problems = validate_file(path, raw, Profile, lines)
    mistakes += problems
    if profile and "default" not in profile.stages:
        what = "needs `default`, for stages not named"
        mistakes.append(located(path, ("stages",), what, lines))
    if profile:
        mistakes += _stage_mistakes(path, profile, lines)
    if mistakes or profile is None:
        raise UserError.of(in_file_order(mistakes))
    return _expand_variables(profile)


def _stage_mistakes(path: Path, profile: Profile, lines: LineNumbers) -> list[Problem]:
    """Stages without a time limit, with two kinds of memory, or on the login node with GPUs."""
    problems = []
    for stage, resources in profile.stages.items():
        for option in MEMORY:
            if resources.mem_gb and (profile.sbatch | resources.sbatch).get(option, False):
                what = f"{option} is written in place of mem_gb, which this stage has too"
                fix = f"delete one of them, or set {option}: false in sbatch of this stage"
                at: tuple[str, ...] = ("stages", stage, "mem_gb")
                problems.append(located(path, at, what, lines, fix))
        if resources.where is None and not resources.minutes:
            at, fix = ("stages", stage, "minutes"), "this key is required"
            problems.append(located(path, at, "missing", lines, fix))
        if resources.where and stage not in LOGIN_STAGES:
            what = f"{stage} does not run on a login node"
            fix = f"where: login is for {', '.join(LOGIN_STAGES)}"
            problems.append(located(path, ("stages", stage, "where"), what, lines, fix))
    return problems


def written_profile() -> str | None:
    """The name of the one profile in slurm/clusters that is not an example.

    None where there is none, or several.
    """
    names = {path.stem for path in FOLDER.glob("*.yaml")} - EXAMPLES
    return names.pop() if len(names) == 1 else None


def _expand_variables(profile: Profile) -> Profile:
    """Fill in ~, and in `python` and `cache` $USER and the like.

    Variables of the node ($SLURM_JOB_ID in `scratch`) are left for the job's shell, which leaves a
    ~ in quotes as it is.
    """

    def home(path: str | None) -> str | None:
        return path and os.path.expanduser(path)

    return replace(
        profile,
        python=home(profile.python and os.path.expandvars(profile.python)),
        cache=home(profile.cache and os.path.expandvars(profile.cache)),
        scratch=home(profile.scratch),
    )
