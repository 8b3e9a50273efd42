"""The contract of a stage: what a module named in `core.stages` must define."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

from core.cell.context import StageContext
from core.garbage import gc_disabled
from core.stages import STAGE_INFO


class DistributedHooks(NamedTuple):
    """How the ranks of a stage that runs as several processes agree to start.

    Attributes:
        rendezvous: Connects this rank to the others (RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
            in the environment). Afterwards the others notice when this process ends.
        sync: Broadcasts a string from rank 0. Rank 0 gives the string and blocks until all ranks
            have received it; the others give None and wait for it. Returns the string.
    """

    rendezvous: Callable[[], object]
    sync: Callable[[str | None], str]


class Stage(Protocol):
    """A stage module, as `core.cell.run` uses it.

    Three attributes of the module are optional:

    - `RESUMABLE: bool` (default False): a run continues from what an interrupted one left in the
      folder. Otherwise the folder is emptied before each run.
    - `DISTRIBUTED: DistributedHooks` (default None): the stage can run on several ranks. Then every
      rank calls `run`; otherwise rank 0 alone does, and the others end at once.
    - `preload: Callable[[], None]` (default: nothing): imports what `run` imports later, for a
      process that forks a child for each cell. It starts no thread and initializes no GPU.
    """

    def run(self, context: StageContext) -> dict[str, int | float]:
        """Run one cell: read `context.inputs`, write the outputs below `context.folder`.

        Returns:
            Counts for the manifest, such as documents, tokens, steps or calls. Only those of rank 0
            are used.

        Raises:
            UserError: An input or a setting can't be used.
        """
        ...


def import_stage(name: str) -> Stage:
    """The module of a stage."""
    with gc_disabled():  # saves a fifth of a training's start
        return cast(Stage, importlib.import_module(STAGE_INFO[name].module))


def is_resumable(stage: Stage) -> bool:
    """Whether a run of the stage continues from what an interrupted run left."""
    return bool(getattr(stage, "RESUMABLE", False))


def distributed_hooks(stage: Stage) -> DistributedHooks | None:
    """How the stage's ranks agree; None where it runs as one process."""
    return getattr(stage, "DISTRIBUTED", None)


def preload(name: str) -> None:
    """Import a stage's module and what its `run` imports later."""
    stage: Any = import_stage(name)
    with gc_disabled():
        getattr(stage, "preload", lambda: None)()
