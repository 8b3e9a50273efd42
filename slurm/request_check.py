"""Ask Slurm about each kind of request before the first job goes in: refused, or in for a wait."""

from collections.abc import Callable, Iterable
from dataclasses import asdict

from core.errors import Problem, UserError
from slurm import slurm_cli
from slurm.cluster_limits import Cluster, Node, ask_nodes
from slurm.profile import Resources

# In these states a partition takes no jobs; in the state DOWN they wait in it.
_CLOSED = ("DRAIN", "INACTIVE")
_LATER = "submit again when it does, or name another: partition in the cluster profile"


def check_requests(
    kinds: dict[Resources, str], cluster: Cluster, script: Callable[[Resources], str]
) -> list[str]:
    """Ask about each request. `kinds`: the kind of its jobs. `script`: the batch script for it.

    Returns a line for each kind of job that has to wait for nodes. Raises UserError with a problem
    for each request that is refused or could never start.
    """
    _check_accounts(kinds)
    refusals, waits = [], []
    for resources, kind in kinds.items():
        reason = slurm_cli.test_submission(script(resources))
        try:
            wait = waiting(resources, cluster)
        except UserError:  # without an answer sbatch's own decides
            wait = ""
        if problem := _refusal(f"{kind} jobs", resources, cluster, reason, wait):
            refusals.append(problem)
        elif wait:
            waits.append(f"{kind} jobs: {wait}")
    if refusals:
        raise UserError.of(refusals)
    return waits


def _refusal(
    jobs: str, resources: Resources, cluster: Cluster, reason: str | None, wait: str
) -> Problem | None:
    """Why these jobs can't be submitted, or could never start; None: they can."""
    names = cluster.partition_names(resources)
    # A partition may be hidden from the user.
    unknown = [name for name in names if cluster.partitions and name not in cluster.partitions]
    if reason and unknown:
        valid = ", ".join(sorted(cluster.partitions))
        what = f"no partition {', '.join(unknown)} on this cluster"
        return Problem(jobs, what, f"partition in the cluster profile: one of {valid}")
    states = {name: cluster.partitions.get(name, {}).get("State", "UP") for name in names}
    closed = [f"{name} is {state}" for name, state in states.items() if state in _CLOSED]
    if reason and closed and len(closed) == len(names):
        return Problem(jobs, f"partition {', '.join(closed)}: it takes no jobs now", _LATER)
    if over := cluster.over_limit(resources):
        return Problem(jobs, over, "ask for less in the cluster profile, or name another qos")
    # sbatch queues what it calls impossible in a test while the nodes are down.
    if reason is None or wait:
        return None
    fix = "change the cluster profile"
    if slurm_cli.BUSY.search(reason):
        fix = "the controller is busy: the same command later"
    fields = ", ".join(f"{key} {value}" for key, value in asdict(resources).items() if value)
    return Problem(jobs, f"{reason}; requested: {fields}", fix)


def _check_accounts(requests: Iterable[Resources]) -> None:
    """Raise UserError where the profile names accounts on a cluster that keeps none."""
    names = sorted({name for r in requests if (name := r.account or r.qos)})
    if names and not slurm_cli.has_accounts():
        raise UserError(
            where=", ".join(names),
            what="this cluster keeps no accounts and would ignore it",
            fix="delete account and qos from the cluster profile",
        )


def waiting(resources: Resources, cluster: Cluster) -> str:
    """Why such a job waits though nothing runs: nodes or partitions are down. Empty: it need not.

    Raises UserError where sinfo does not answer.
    """
    names = cluster.partition_names(resources)
    states = [
        f"partition {name} is {state}"
        for name in names
        if (state := cluster.partitions.get(name, {}).get("State", "UP")) != "UP"
    ]
    if states and len(states) == len(names):
        return "; ".join(states)
    fitting = [node for node in ask_nodes(",".join(names)) if node.fits(resources)]
    up = [node for node in fitting if node.up]
    if len(fitting) < resources.nodes or len(up) >= resources.nodes:
        return ""
    lost = dict.fromkeys(_state(node) for node in fitting if not node.up)
    of = f" in {','.join(names)}" if names else ""
    return f"{len(up)} of {len(fitting)} nodes{of} that fit are up ({'; '.join(lost)})"


def _state(node: Node) -> str:
    state = "does not answer" if node.state.endswith("*") else node.state
    return f"{state}: {node.reason}" if node.reason else state
