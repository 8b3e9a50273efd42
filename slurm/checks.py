"""Checks of a cluster that need no job: commands, limits against the profile, accounts, disk."""

import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from core.cell.identity import Cell
from core.errors import Problem, UserError
from core.paths import ROOT
from slurm import slurm_cli
from slurm.cluster_limits import Cluster, Node, ask_nodes, gpus, minutes
from slurm.executor import executor, script
from slurm.job_limits import job_limits
from slurm.profile import Profile, Resources

OK = "ok"
WARNING = "warning"
FAILED = "failed"
UNKNOWN = "not checked"

GIB = 2**30
LEAST_JOBS = 3  # two that wait for each other, and one that submits more
# Toy studies need less than LEAST. LITTLE is tight for a study of models with 8 B parameters.
LEAST_GIB = 2
LITTLE_GIB = 200
LEAST_FILES = 5_000
LITTLE_FILES = 100_000


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    state: str  # OK, WARNING, FAILED or UNKNOWN
    finding: str
    fix: str = ""  # one thing to type or change
    measured: dict[str, float] = field(default_factory=dict)
    """Rates by their names in `measured` of a cluster profile."""


def of_error(name: str, error: UserError) -> Check:
    """A failed check, from the first problem of an error."""
    problem = error.problems[0]
    return Check(name, FAILED, str(Problem(problem.where, problem.what)), problem.fix)


def commands() -> Check:
    """Slurm's commands and version."""
    name = "commands"
    try:
        slurm_cli.require_slurm()
        version = slurm_cli.ask("sbatch", "--version").strip()
    except UserError as error:
        return of_error(name, error)
    if missing := [command for command in ("sacct", "sacctmgr") if not shutil.which(command)]:
        lost = "no reasons of ended jobs, no limits of accounts"
        finding = f"{version}; without {', '.join(missing)}: {lost}"
        return Check(name, WARNING, finding, "use a login node that has them, if there is one")
    return Check(name, OK, version)


def request(stages: list[str], resources: Resources, profile: Profile, cluster: Cluster) -> Check:
    """Whether jobs with these resources can ever start.

    Checks the limits of partition, accounts and QOS, then the nodes, then asks sbatch. The limits
    come first because many clusters have EnforcePartLimits off: there sbatch accepts a job over
    the limits, and the job waits for ever.
    """
    stage = "default" if resources == profile.resources("default") else ", ".join(stages)
    name = f"request {stage}"
    key = f"stages.{stage.split(', ')[0]}"
    names = cluster.partition_names(resources)
    partitions = [cluster.partitions[p] for p in names if p in cluster.partitions]
    if not partitions:
        missing = "no partition is the default"
        if resources.partition:
            missing = f"no partition {resources.partition}"
        fix = f"partition: one of {', '.join(sorted(cluster.partitions))}"
        return Check(name, FAILED, missing, fix)
    partition = ",".join(facts["PartitionName"] for facts in partitions)
    longest, limited_by = time_limit(resources, partitions, cluster)
    if resources.minutes > longest:
        finding = f"{resources.minutes} minutes; {limited_by} allows {longest:g}"
        fix = f"{key}: minutes: {longest:g}; a longer job is requeued and continues"
        return Check(name, FAILED, finding, fix)
    most_nodes = _most_nodes(partitions)
    if resources.nodes > most_nodes:
        finding = f"{resources.nodes} nodes; {partition} allows {most_nodes:g}"
        return Check(name, FAILED, finding, f"{key}: nodes: {most_nodes:g}")
    if over := cluster.over_limit(resources):
        return Check(name, FAILED, over, f"{key}: ask for less, or another qos")
    nodes = ask_nodes(partition)
    fitting = [node for node in nodes if node.fits(resources)]
    if nodes and len(fitting) < resources.nodes:
        finding = _too_few(resources, partition, nodes, len(fitting))
        fix = f"{key}: ask for less, or another partition (sinfo -N -l)"
        return Check(name, FAILED, finding, fix)
    up = [node for node in fitting if node.up]
    states = "".join(
        f"; {facts['PartitionName']} is {state}"
        for facts in partitions
        if (state := facts.get("State", "UP")) != "UP"
    )
    per_node = _per_node(resources)
    if (nodes and len(up) < resources.nodes) or states:
        finding = f"{len(up)} of {len(fitting)} nodes with {per_node} are up{states}"
        return Check(name, WARNING, finding, "jobs wait until more are: see sinfo -R")
    # Last, because sbatch --test-only refuses too where the nodes are down for a while.
    if reason := slurm_cli.test_submission(
        script(executor(stages[0], resources, profile, ROOT, ROOT))
    ):
        fix = f"{key}: {per_node}, {_accounting_fields(resources)}: change what is refused"
        return Check(name, FAILED, reason, fix)
    allowed = "any time" if longest == math.inf else f"{longest:g} minutes"
    requested = f"{resources.nodes} x {per_node} on {partition}"
    return Check(name, OK, f"{requested}: {len(up)} nodes fit; {allowed} allowed")


def time_limit(
    resources: Resources, partitions: list[dict[str, str]], cluster: Cluster
) -> tuple[float, str]:
    """The longest time limit in minutes, and what sets it."""
    names = ",".join(facts["PartitionName"] for facts in partitions)
    longest = max(minutes(facts.get("MaxTime", "")) for facts in partitions)
    return min((longest, f"partition {names}"), cluster.longest(resources))


def _most_nodes(partitions: list[dict[str, str]]) -> float:
    limits = [facts.get("MaxNodes", "") for facts in partitions]
    return max(int(limit) if limit.isdigit() else math.inf for limit in limits)


def _too_few(resources: Resources, partition: str, nodes: list[Node], fitting: int) -> str:
    cpus = max(node.cpus for node in nodes)
    mem_gib = max(node.mem_gib for node in nodes)
    return (
        f"{resources.nodes} nodes of {_per_node(resources)}; {partition} has {fitting} of "
        f"{len(nodes)} (at most {cpus} cores, {mem_gib:g} GiB)"
    )


def _per_node(resources: Resources) -> str:
    parts = [
        f"{resources.cpus * resources.tasks_per_node} cores",
        f"{resources.mem_gb:g} GiB" if resources.mem_gb else None,
        f"GPUs {resources.gpus_per_node}" if gpus(resources) else None,
        resources.constraint,
    ]
    return ", ".join(filter(None, parts))


def _accounting_fields(resources: Resources) -> str:
    keys = ("partition", "account", "qos")
    fields = [f"{key} {value}" for key in keys if (value := getattr(resources, key))]
    return ", ".join(fields) or "no account"


def arrays(profile: Profile) -> Check:
    """The profile's max_array against Slurm's MaxArraySize."""
    name = "arrays"
    largest = slurm_cli.largest_array()
    if profile.max_array and profile.max_array > largest:
        finding = f"max_array {profile.max_array}; Slurm takes {largest}"
        return Check(name, WARNING, finding, f"max_array: {largest}")
    return Check(name, OK, f"{profile.max_array or largest} tasks in one")


def submit_limits(profile: Profile, requests: list[Resources], cluster: Cluster) -> Check:
    """Jobs queued at once, by the profile, accounts and QOS: `submit` keeps to it."""
    name = "jobs at once"
    if cluster.trouble:
        fix = "doctor again when it answers; submit goes without the limits"
        return Check(name, UNKNOWN, f"limits are not known: {cluster.trouble}", fix)
    if not cluster.user and not cluster.qos:
        fix = "max_submit: N, if your site tells you of a limit"
        return Check(name, UNKNOWN, "no accounts to ask", fix)
    if not cluster.keeps_limits:
        return Check(name, OK, f"limits are not enforced ({cluster.enforced})")
    limits = [limit for r in requests for limit in job_limits(profile, cluster, r)]
    if not limits:
        return Check(name, OK, "no limit of accounts or qos")
    lowest = min(limits, key=lambda limit: limit.most)
    finding = f"{lowest.most} at most: {lowest.owner}"
    if lowest.most < LEAST_JOBS:
        fix = "submit with --until-done: no place for a job that submits"
        return Check(name, WARNING, finding, fix)
    return Check(name, OK, finding)


def accounting(requests: list[Resources]) -> Check:
    """Whether Slurm records why jobs ended, and keeps the accounts that the profile names."""
    name = "accounting"
    if not slurm_cli.has_accounts():
        if names := sorted({word for r in requests for word in (r.account, r.qos) if word}):
            finding = f"off: {', '.join(names)} would be ignored"
            return Check(name, FAILED, finding, "delete account and qos")
        finding = "off: Slurm keeps no reasons of ended jobs (out of memory, time limit) "
        finding += "and no limits of users"
        return Check(name, WARNING, finding, "nothing to type: `status` goes by the cells' logs")
    if shutil.which("sacct"):
        try:
            slurm_cli.ask("sacct", "--noheader", "--allocations", "--starttime=now")
        except UserError as error:
            finding = of_error(name, error).finding
            fix = "reasons of ended jobs are missing until it answers"
            return Check(name, WARNING, finding, fix)
    return Check(name, OK, "slurmdbd")


def requeue(profile: Profile, requests: list[Resources], cluster: Cluster) -> Check:
    """Whether a job is requeued after a preemption or a node failure."""
    name = "requeue"
    if profile.requeue == 0:
        finding = "requeue 0: a time limit, a preemption or a node's failure ends a cell"
        return Check(name, WARNING, finding, "requeue: 20, or submit again each time")
    partitions = {
        p for r in requests for p in cluster.partition_names(r) if p in cluster.partitions
    }
    modes = {p: cluster.partitions[p].get("PreemptMode", "OFF") for p in sorted(partitions)}
    if cancelling := [partition for partition, mode in modes.items() if "CANCEL" in mode]:
        finding = f"jobs preempted in {', '.join(cancelling)} are cancelled, not requeued"
        return Check(name, WARNING, finding, "submit again each time, or another partition")
    parts = [f"{partition}: preemption {mode}" for partition, mode in modes.items()]
    return Check(name, OK, ", ".join(parts))


def keys(cells: list[Cell]) -> Check:
    """Whether the variables with the API keys of the cells' endpoints are set."""
    name = "API keys"
    names = key_names(cells)
    if missing := [key for key in names if not os.environ.get(key)]:
        fix = f"export {missing[0]}=..."
        return Check(name, FAILED, f"not set: {', '.join(missing)}", fix)
    return Check(name, OK, f"set: {', '.join(names)}" if names else "the study needs none")


def key_names(cells: list[Cell]) -> list[str]:
    """Environment variables that hold API keys."""
    names = {cell.resources.get("address", {}).get("key_env") for cell in cells}
    return sorted(name for name in names if name)


def room(folder: Path) -> Check:
    """Free space and free inodes of the disk with the runs folder."""
    name = "room"
    disk = os.statvfs(folder)
    gib = disk.f_bavail * disk.f_frsize / GIB
    files = disk.f_favail if disk.f_files else math.inf
    finding = f"{gib:,.0f} GiB and {files:,} files free"
    quota_commands = [c for c in ("lfs quota", "quota -s") if shutil.which(c.split()[0])]
    if quota_commands:
        finding += f"; your own limit may be lower: {quota_commands[0]}"
    if gib < LEAST_GIB or files < LEAST_FILES:
        return Check(name, FAILED, finding, "make room, or choose another --runs")
    if gib < LITTLE_GIB or files < LITTLE_FILES:
        fix = "enough for a study of toys; 8 B models need more: another --runs"
        return Check(name, WARNING, finding, fix)
    return Check(name, OK, finding)
