"""Partitions, accounts, QOS and nodes of a cluster, as Slurm's commands list them."""

import math
import re
import shutil
from dataclasses import dataclass, field

from core.errors import Problem, UserError
from slurm import slurm_cli
from slurm.profile import Resources

Rows = list[dict[str, str]]

_USER_COLUMNS = ("Cluster", "DefaultAccount", "Account", "Partition", "DefaultQOS")
_USER_LIMITS = ("MaxSubmitJobs", "GrpSubmitJobs", "MaxWall", "MaxTRES", "GrpTRES")
_ACCOUNT_COLUMNS = ("Cluster", "Account", "User", "GrpSubmitJobs", "GrpTRES")
_QOS_COLUMNS = (
    *("Name", "MaxSubmitJobsPU", "MaxSubmitJobsPA", "GrpSubmitJobs", "MaxWall"),
    *("MaxTRES", "MaxTRESPU", "MaxTRESPA", "GrpTRES"),
)
# gpu[:TYPE][:no_consume]:NUMBER of a list; a type may begin with a digit, or be a number (3090).
_CARDS = re.compile(r"(?:^|,)gpu:(?:(?!no_consume:)([^,:()]+):)?(?:no_consume:)?(\d+)(?=[,(]|$)")
_UP = re.compile(r"(idle|mix|alloc|comp|plan|resv|reserved)")


@dataclass(frozen=True)
class Cluster:
    """What limits jobs. `user` and `qos` are empty where the cluster keeps no accounts."""

    partitions: dict[str, dict[str, str]]  # by name; the fields of `scontrol show partition`
    user: Rows  # the user's associations
    qos: Rows
    accounts: Rows = field(default_factory=list)  # the limits of the user's accounts as a whole
    enforced: str = ""  # AccountingStorageEnforce
    trouble: str = ""  # why the limits are not known

    @property
    def keeps_limits(self) -> bool:
        """Whether Slurm refuses jobs over the limits of accounts and QOS."""
        return bool(re.search(r"limits|safe|all", self.enforced))

    def partition_names(self, resources: Resources) -> list[str]:
        """The partitions that a job may go to.

        These are the requested ones (a list with commas), or else Slurm's default if there is one.
        """
        if resources.partition:
            return resources.partition.split(",")
        return [name for name, facts in self.partitions.items() if facts.get("Default") == "YES"]

    def limits(self, resources: Resources) -> Rows:
        """The rows of the user, of the account, of the job's QOS and of the partition's QOS."""
        names = self.partition_names(resources)
        associations = [
            row
            for row in self.user
            if row["Account"] == (resources.account or row["DefaultAccount"])
            and row["Partition"] in ("", *names)
        ]
        accounts = {row["Account"] for row in associations}
        default_qos = [row["DefaultQOS"] for row in associations if row["DefaultQOS"]]
        qos = {resources.qos or next(iter(default_qos), "normal")}
        qos |= {self.partitions[name].get("QoS", "") for name in names if name in self.partitions}
        return [
            *associations,
            *(row for row in self.accounts if row["Account"] in accounts),
            *(row for row in self.qos if row["Name"] in qos),
        ]

    def over_limit(self, resources: Resources) -> str:
        """What such a job asks for beyond a limit on TRES or time; it would wait for ever.

        TRES are what Slurm counts: cores, memory, nodes, GPUs. Empty: nothing.
        """
        requested = _tres(resources)
        rows = self.limits(resources) if self.keeps_limits else []
        limits = [
            (row, key, name, most)
            for row in rows
            for key, text in row.items()
            for name, most in (_limits_of(text) if "TRES" in key else ())
        ]
        for row, key, name, most in _first_defined(limits):
            if requested.get(name, 0) > most:
                asked = f"{name} {requested[name]:g}"
                return f"{asked} in a job; {owner(row)} allows {most:g} ({key})"
        longest, limited_by = self.longest(resources)
        if resources.minutes > longest:
            return f"{resources.minutes} minutes; {limited_by} allows {longest:g} (MaxWall)"
        return ""

    def longest(self, resources: Resources) -> tuple[float, str]:
        """The longest time limit in minutes by account and QOS, and what sets it."""
        rows = self.limits(resources) if self.keeps_limits else []
        limits = [(row, "MaxWall", "", minutes(row.get("MaxWall", ""))) for row in rows]
        set_ones = [limit for limit in limits if limit[3] < math.inf]
        return min(
            ((most, owner(row)) for row, _, _, most in _first_defined(set_ones)),
            default=(math.inf, ""),
        )


@dataclass(frozen=True)
class Node:
    """A node, as a line of sinfo describes it."""

    cpus: int
    mem_gib: float
    gres: str
    features: set[str]
    state: str
    reason: str = ""  # why it is down or drained, by whom who did that

    @property
    def up(self) -> bool:
        """Whether the node answers the controller (sinfo marks the others with *) and runs jobs."""
        return bool(_UP.match(self.state)) and not self.state.endswith("*")

    @property
    def cards(self) -> list[tuple[str, int]]:
        """(type, number) of its GPUs, of `gpu:3090:8(S:0-1),gpu:2`; "" where they have no type."""
        entries = re.findall(_CARDS, self.gres)
        return [(kind, int(number)) for kind, number in entries]

    def fits(self, resources: Resources) -> bool:
        """Whether the node, when empty, has room for its part of such a job."""
        gpu_type = str(resources.gpus_per_node).rpartition(":")[0]
        suitable = sum(number for name, number in self.cards if gpu_type in ("", name))
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
    """Raises UserError where the controller does not answer. Without slurmdbd: `trouble`."""
    lines = slurm_cli.ask("scontrol", "--all", "--oneliner", "show", "partition").splitlines()
    facts = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
    partitions = {row["PartitionName"]: row for row in facts if "PartitionName" in row}
    config = slurm_cli.settings()
    accounting = config.get("AccountingStorageType", "")
    if "slurmdbd" not in accounting or not shutil.which("sacctmgr"):
        return Cluster(partitions, user=[], qos=[])
    try:
        user = ask_rows(
            "user", slurm_cli.user_name(), "withassoc", columns=_USER_COLUMNS + _USER_LIMITS
        )
        qos = ask_rows("qos", columns=_QOS_COLUMNS)
        names = ",".join(sorted({row["Account"] for row in user}))
        rows: Rows = []
        if names:
            rows = ask_rows("assoc", "where", f"account={names}", columns=_ACCOUNT_COLUMNS)
    except UserError as error:
        problem = error.problems[0]
        trouble = str(Problem(problem.where, problem.what))
        return Cluster(partitions, user=[], qos=[], trouble=trouble)
    # Clusters may share one slurmdbd.
    here = ("", config.get("ClusterName", "").lower())
    user = [row for row in user if row["Cluster"].lower() in here]
    accounts = [row for row in rows if not row["User"] and row["Cluster"].lower() in here]
    enforced = config.get("AccountingStorageEnforce", "")
    return Cluster(partitions, user, qos, accounts, enforced)


def ask_nodes(partition: str) -> list[Node]:
    """The nodes of a partition (a list with commas; empty: of all partitions).

    Raises UserError where Slurm does not answer.
    """
    options = ["-p", partition] if partition else []
    output = slurm_cli.ask("sinfo", "-h", "-N", *options, "-o", "%N|%c|%m|%G|%f|%T|%E")
    # A node of several partitions is listed once for each.
    by_name = {line.split("|")[0]: line for line in output.splitlines() if line.count("|") >= 6}
    nodes = []
    for line in by_name.values():
        _, cpus, mib, gres, features, state, reason = line.strip().split("|", 6)
        reason = reason if reason != "none" else ""
        nodes.append(
            Node(int(cpus), int(mib) / 1024, gres, set(features.split(",")), state, reason)
        )
    return nodes


def ask_rows(*words: str, columns: tuple[str, ...]) -> Rows:
    """What `sacctmgr show WORDS` answers. Raises UserError where slurmdbd does not answer."""
    output = slurm_cli.ask("sacctmgr", "-nP", "show", *words, f"format={','.join(columns)}")
    lines = [line.split("|") for line in output.splitlines()]
    # Other lines are a site's greeting.
    return [dict(zip(columns, line, strict=True)) for line in lines if len(line) == len(columns)]


_Limit = tuple[dict[str, str], str, str, float]  # whose row, its column, the TRES, the most


def _first_defined(limits: list[_Limit]) -> list[_Limit]:
    """The limits that hold: what a QOS states holds in place of what accounts state."""
    of_qos = {(key, name) for row, key, name, _ in limits if "Name" in row}
    return [limit for limit in limits if "Name" in limit[0] or limit[1:3] not in of_qos]


def owner(row: dict[str, str]) -> str:
    """Whose limits a row states."""
    if "Name" in row:
        return f"qos {row['Name']}"
    return f"account {row['Account']}"


def _tres(resources: Resources) -> dict[str, float]:
    tasks = resources.nodes * resources.tasks_per_node
    return {
        "cpu": tasks * resources.cpus,
        "node": resources.nodes,
        "mem": (resources.mem_gb or 0) * resources.nodes,
        "gres/gpu": gpus(resources) * resources.nodes,
    }


def _limits_of(text: str) -> list[tuple[str, float]]:
    """The limits in cpu=64,mem=100G,gres/gpu=4; memory in GiB."""
    units = {"K": 2**-20, "M": 2**-10, "G": 1, "T": 2**10, "P": 2**20}
    limits = []
    for name, number, unit in re.findall(r"([\w/:]+)=([\d.]+)([KMGTP]?)", text):
        factor: float = units[unit or "M"] if name == "mem" else 1
        limits.append((name, float(number) * factor))
    return limits


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
