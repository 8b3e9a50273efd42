"""Partitions, accounts, QOS and nodes of a cluster, as Slurm's commands list them."""

import math
import re
import shutil
from dataclasses import dataclass

from slurm import slurm_cli
from slurm.profile import Resources

Rows = list[dict[str, str]]

_USER_COLUMNS = ("DefaultAccount", "Account", "Partition", "DefaultQOS")
_ACCOUNT_LIMITS = ("MaxSubmitJobs", "GrpSubmitJobs", "MaxWall")
_QOS_COLUMNS = ("Name", "MaxSubmitJobsPU", "MaxSubmitJobsPA", "GrpSubmitJobs", "MaxWall")
_UP = re.compile(r"(idle|mix|alloc|comp|plan|resv|reserved)")


@dataclass(frozen=True)
class Cluster:
    """What limits jobs. `user` and `qos` are empty where the cluster keeps no accounts."""

    partitions: dict[str, dict[str, str]]  # by name; the fields of `scontrol show partition`
    user: Rows  # the user's associations
    qos: Rows

    def partition_names(self, resources: Resources) -> list[str]:
        """The partitions that a job may go to.

        These are the requested ones (a list with commas), or else Slurm's default if there is one.
        """
        if resources.partition:
            return resources.partition.split(",")
        return [name for name, facts in self.partitions.items() if facts.get("Default") == "YES"]

    def limits(self, resources: Resources) -> Rows:
        """The rows of the user's account, of the job's QOS and of the partition's QOS."""
        names = self.partition_names(resources)
        associations = [
            row
            for row in self.user
            if row["Account"] == (resources.account or row["DefaultAccount"])
            and row["Partition"] in ("", *names)
        ]
        default_qos = [row["DefaultQOS"] for row in associations if row["DefaultQOS"]]
        qos = {resources.qos or next(iter(default_qos), "normal")}
        qos |= {self.partitions[name].get("QoS", "") for name in names if name in self.partitions}
        return associations + [row for row in self.qos if row["Name"] in qos]


@dataclass(frozen=True)
class Node:
    """A node, as a line of sinfo describes it."""

    cpus: int
    mem_gib: float
    gres: str
    features: set[str]
    state: str

    @property
    def up(self) -> bool:
        """Whether the node answers the controller (sinfo marks the others with *) and runs jobs."""
        return bool(_UP.match(self.state)) and not self.state.endswith("*")

    def fits(self, resources: Resources) -> bool:
        """Whether the node, when empty, has room for its part of such a job."""
        gpu_type = str(resources.gpus_per_node).rpartition(":")[0]
        cards = re.findall(r"gpu(?::([^:,()]+))??:(\d+)", self.gres)
        suitable = sum(int(number) for name, number in cards if gpu_type in ("", name))
        return (
            self.cpus >= resources.cpus * resources.tasks_per_node
            and self.mem_gib >= (resources.mem_gb or 0)
            and self._has_features(resources.constraint)
            and suitable >= gpus(resources)
        )

    def _has_features(self, constraint: str | None) -> bool:
        if not constraint or re.search(r"[^\w.\-|&]", constraint):
            return True  # counts and brackets are left to sbatch
        alternatives = constraint.split("|")
        return any(set(features.split("&")) <= self.features for features in alternatives)


def ask_cluster() -> Cluster:
    """Raises UserError where Slurm does not answer."""
    lines = slurm_cli.ask("scontrol", "--all", "--oneliner", "show", "partition").splitlines()
    facts = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
    partitions = {row["PartitionName"]: row for row in facts if "PartitionName" in row}
    if not slurm_cli.has_accounts() or not shutil.which("sacctmgr"):
        return Cluster(partitions, user=[], qos=[])
    user = _sacctmgr(
        "user", slurm_cli.user_name(), "withassoc", columns=_USER_COLUMNS + _ACCOUNT_LIMITS
    )
    return Cluster(partitions, user, _sacctmgr("qos", columns=_QOS_COLUMNS))


def ask_nodes(partition: str) -> list[Node]:
    """The nodes of a partition (a list with commas).

    Raises UserError where Slurm does not answer.
    """
    output = slurm_cli.ask("sinfo", "-h", "-N", "-p", partition, "-o", "%N|%c|%m|%G|%f|%T")
    # A node of several partitions is listed once for each.
    by_name = {line.split("|")[0]: line for line in output.splitlines() if line.count("|") >= 5}
    nodes = []
    for line in by_name.values():
        _, cpus, mib, gres, features, state = line.strip().split("|")
        nodes.append(Node(int(cpus), int(mib) / 1024, gres, set(features.split(",")), state))
    return nodes


def _sacctmgr(*words: str, columns: tuple[str, ...]) -> Rows:
    output = slurm_cli.ask("sacctmgr", "-nP", "show", *words, f"format={','.join(columns)}")
    return [dict(zip(columns, line.split("|"), strict=False)) for line in output.splitlines()]


def minutes(text: str) -> float:
    """Minutes of Slurm's [days-]hours:minutes:seconds; infinite for UNLIMITED and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not match:
        return math.inf
    days, hours, mins, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + mins + seconds / 60


def gpus(resources: Resources) -> int:
    """GPUs requested per node."""
    return int(str(resources.gpus_per_node).split(":")[-1])
