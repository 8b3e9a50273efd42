"""How many jobs may be queued at once, and which tasks take these places."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from core.stages import STAGE_INFO, STAGES
from slurm import slurm_cli
from slurm.arrays import Task
from slurm.cluster_limits import Cluster, owner
from slurm.profile import Profile, Resources

LAST = STAGES[-1]  # the analysis, which needs all others
# Columns of sacctmgr -> whether the limit is on all users' jobs, not on the user's.
_COLUMNS = {
    "MaxSubmitJobs": False,
    "MaxSubmitJobsPU": False,
    "MaxSubmitJobsPA": True,
    "GrpSubmitJobs": True,
}


@dataclass(frozen=True)
class JobLimit:
    """A limit on queued jobs: of the cluster profile, an account or a QOS."""

    owner: str
    most: int
    of_all_users: bool = False
    account: str | None = None  # None: jobs of any
    qos: str | None = None

    def counts(self, job: "QueuedFor", user: str) -> bool:
        """Whether a job in the queue takes one of these places."""
        return (
            (self.of_all_users or job.user == user)
            and self.account in (None, job.account)
            and self.qos in (None, job.qos)
        )


@dataclass(frozen=True)
class QueuedFor:
    """Whose account and QOS a queued job is charged to."""

    user: str
    account: str
    qos: str


@dataclass
class Places:
    """Free places in the queue, by limit."""

    free: dict[JobLimit, int]
    limits: Callable[[Resources], list[JobLimit]] = field(repr=False)

    def take(self, resources: Resources) -> bool:
        """Take a place for one such job, if each of its limits has one left."""
        limits = self.limits(resources)
        if any(self.free[limit] < 1 for limit in limits):
            return False
        for limit in limits:
            self.free[limit] -= 1
        return True

    def copy(self) -> "Places":
        """The same places, to be taken by others."""
        return Places(dict(self.free), self.limits)


def job_limits(profile: Profile, cluster: Cluster, resources: Resources) -> list[JobLimit]:
    """The limits on the number of queued jobs that hold for such a job."""
    limits = []
    if profile.max_submit:
        limits.append(JobLimit("max_submit", profile.max_submit))
    for row in cluster.limits(resources) if cluster.keeps_limits else ():
        account = row.get("Account")
        for column, of_all_users in _COLUMNS.items():
            if (value := row.get(column, "")).isdigit():
                of_account = account
                if column == "MaxSubmitJobsPA":
                    defaults = (row["DefaultAccount"] for row in cluster.user)
                    of_account = resources.account or next(defaults, None)
                name = f"{owner(row)} ({column})"
                limits.append(JobLimit(name, int(value), of_all_users, of_account, row.get("Name")))
    return limits


def ask_places(
    profile: Profile,
    cluster: Cluster,
    requests: Iterable[Resources],
    leaving: Collection[str] = (),
) -> Places:
    """The places that the queue has for jobs with these resources once `leaving` are cancelled."""
    by_resources = {r: job_limits(profile, cluster, r) for r in {*requests}}
    limits = {limit for each in by_resources.values() for limit in each}
    if not limits:
        return Places({}, by_resources.__getitem__)
    user = slurm_cli.user_name()
    queued = _ask_queued(any(limit.of_all_users for limit in limits), leaving)
    free = {limit: limit.most - sum(limit.counts(job, user) for job in queued) for limit in limits}
    return Places(free, by_resources.__getitem__)


def _ask_queued(of_all_users: bool, leaving: Collection[str]) -> list[QueuedFor]:
    options = [] if of_all_users else ["--me"]
    form = "--format=%u|%a|%q|%i"
    lines = slurm_cli.ask("squeue", "--noheader", "--array", *options, form).splitlines()
    rows = [line.split("|") for line in lines if line.count("|") == 3]
    return [QueuedFor(*row[:3]) for row in rows if row[3] not in leaving]


def choose(
    todo: list[Task],
    places: Places,
    resources: Callable[[str], Resources],
    is_allowed: Callable[[Task], bool] = lambda task: True,
) -> list[Task]:
    """The tasks of `todo` that have a place in the queue, with all that they wait for.

    They are chosen chain by chain, so that the first results come early: in the order of their
    ranks; of one rank, for the first seed the trainings of every arm with their evaluations and
    grades, then for the next seed. `is_allowed`: of `slurm.disk_limit`.
    """
    chosen: dict[Task, bool] = {}
    for task in by_rank_and_seed(todo):
        needs = [need for need in task.needs if isinstance(need, Task)]
        chosen[task] = (
            all(chosen[need] for need in needs)
            and is_allowed(task)
            and places.take(resources(task.cells[0].stage))
        )
    return [task for task in todo if chosen[task]]


def by_rank_and_seed(todo: list[Task]) -> list[Task]:
    """The tasks chain by chain, each after those it waits for.

    Chains of the smallest rank come first, of one rank those of the first seed.
    """
    position = {task: number for number, task in enumerate(todo)}
    seeds: dict[Task, int] = {}
    for task in todo:  # each after what it needs
        own = [c.settings.get("seed", 0) for c in task.cells if STAGE_INFO[c.stage].trains]
        before = [seeds[need] for need in task.needs if isinstance(need, Task)]
        seeds[task] = max([*own, *before], default=0)
    ordered: dict[Task, None] = {}

    def walk(task: Task) -> None:
        if task not in ordered:
            for need in task.needs:
                if isinstance(need, Task):
                    walk(need)
            ordered[task] = None

    chains = [task for task in todo if task.kind != LAST]
    needed = {need for task in chains for need in task.needs}
    ends = [task for task in chains if task not in needed]
    for task in sorted(ends, key=lambda task: (task.rank, seeds[task], position[task])):
        walk(task)
    return [*ordered, *(task for task in todo if task.kind == LAST)]
