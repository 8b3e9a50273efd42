"""What the stages of a drafted profile request: as much as nodes and limits have, and Slurm takes.

A partition may be for some groups, accounts or QOS alone, and a site's plugin may ask for more: so
doctor's check of a request, which ends with `sbatch --test-only`, decides what goes where.
"""

import math
import re
from dataclasses import dataclass, replace
from functools import cached_property

from slurm import checks
from slurm.cluster_limits import Cluster, Node, minutes
from slurm.profile import Profile, Resources

MOST_RANKS = 4  # GPUs of one training: `plan --cluster` says where memory needs more
MEMORY_SHARE = 0.9  # of a node's: the system needs the rest
LONG = 720  # minutes
# Slurm's words where a partition is not for this account, QOS or user.
_CLOSED = re.compile(r"account|qos|group|permi|association", re.IGNORECASE)
Charge = tuple[str | None, str | None]  # account and QOS; None: Slurm's default for this user


@dataclass(frozen=True)
class Partition:
    """A partition that is up and may be for this user."""

    name: str
    facts: dict[str, str]  # of `scontrol show partition`
    nodes: list[Node]

    @property
    def max_minutes(self) -> float:
        """Its longest time limit."""
        return minutes(self.facts.get("MaxTime", ""))

    @property
    def is_up(self) -> bool:
        """Whether any of its nodes is."""
        return any(node.up for node in self.nodes)

    @property
    def is_preempted(self) -> bool:
        """Whether others may take the nodes from a job."""
        return self.facts.get("PreemptMode", "OFF") != "OFF"

    @property
    def has_whole_nodes(self) -> bool:
        """Whether a job gets all of a node, whatever it requests."""
        return self.facts.get("OverSubscribe", "") == "EXCLUSIVE"

    @cached_property
    def gpus(self) -> dict[tuple[str, int], list[Node]]:
        """(type, number on a node) -> nodes; the type is empty where Slurm has none.

        Nodes that are down count where no other is up.
        """
        groups: dict[tuple[str, int], list[Node]] = {}
        for node in [node for node in self.nodes if node.up] or self.nodes:
            for kind, number in node.cards:
                if number:
                    groups.setdefault((kind, number), []).append(node)
        return groups

    @property
    def order(self) -> tuple[bool, bool, bool, float, int]:
        """The first is the one to take where several would do."""
        default = self.facts.get("Default") == "YES"
        longest = -min(self.max_minutes, LONG)
        return not self.is_up, self.is_preempted, not default, longest, -len(self.nodes)

    def memory(self, node: Node, cpus: int) -> float | None:
        """GiB of a node that one job with so many cores may have. None: Slurm does not know."""
        if node.mem_gib < 0.1:  # RealMemory is 1 MB where the site has not set it
            return None
        most = [node.mem_gib * MEMORY_SHARE]
        for field, factor in (("MaxMemPerNode", 1), ("MaxMemPerCPU", cpus)):
            if (value := self.facts.get(field, "")).isdigit():
                most.append(int(value) * factor / 1024)
        return min(most)

    def cores(self, node: Node) -> int:
        """Cores of a node that jobs of this partition may use."""
        most = self.facts.get("MaxCPUsPerNode", "")
        return min(node.cpus, int(most)) if most.isdigit() else node.cpus


@dataclass(frozen=True)
class Request:
    """What a stage requests, and why Slurm or a limit refuses it (empty: it is taken)."""

    resources: Resources
    refusal: str = ""

    @property
    def charge(self) -> Charge:
        """Who pays, by which QOS."""
        return self.resources.account, self.resources.qos


@dataclass(frozen=True)
class Asker:
    """Asks Slurm about requests. `charges`: the accounts and QOS to try, the usual ones first."""

    cluster: Cluster
    charges: list[Charge]

    def after(self, usual: Charge) -> "Asker":
        """One that tries the `usual` account and QOS of the profile first.

        A profile with a QOS has one for every stage.
        """
        others = [charge for charge in self.charges if charge[1] or not usual[1]]
        return Asker(self.cluster, list(dict.fromkeys([usual, *others])))

    def ask(self, resources: Resources) -> Request:
        """The request within the limits, by the first account and QOS with which Slurm takes it.

        The last to be tried are memory per core and none, as some sites refuse that of a node.
        """
        requests: list[Request] = []
        for wanted in [resources, *_other_memory(resources)]:
            for account, qos in self._charges_for(resources):
                within = _limited(replace(wanted, account=account, qos=qos), self.cluster)
                profile = Profile(stages={"default": within})
                check = checks.request(["default"], within, profile, self.cluster)
                if check.state != checks.FAILED:
                    return Request(within)
                requests.append(Request(within, check.finding))
                if "group" in check.finding:
                    return requests[0]
            # A site may have dozens of partitions for others: what else to ask would take minutes.
            if all(_CLOSED.search(request.refusal) for request in requests):
                break
        return requests[0]

    def _charges_for(self, resources: Resources) -> list[Charge]:
        """The accounts and QOS that the partition is not closed to, as far as Slurm lists these."""
        facts = self.cluster.partitions.get(resources.partition or "", {})
        accounts, qos = (listed(facts, key) for key in ("AllowAccounts", "AllowQos"))
        charges = [
            charge
            for charge in self.charges
            if (not accounts or charge[0] in {None, *accounts})
            and (not qos or charge[1] in {None, *qos})
        ]
        return charges or self.charges[:1]


def listed(facts: dict[str, str], key: str) -> set[str]:
    """The names of a partition's field; empty where it is for all."""
    value = facts.get(key, "ALL")
    return set() if value == "ALL" else set(value.split(","))


def _other_memory(resources: Resources) -> list[Resources]:
    if not resources.mem_gb:
        return []
    cores = resources.cpus * resources.tasks_per_node
    per_core = f"{math.floor(resources.mem_gb * 1024 / cores)}M"
    without = replace(resources, mem_gb=None)
    return [replace(without, sbatch={"mem-per-cpu": per_core}), without]


def _limited(resources: Resources, cluster: Cluster) -> Resources:
    """The resources with a time limit, and on one node GPUs, that partition and QOS allow."""
    names = cluster.partition_names(resources)
    facts = [cluster.partitions[name] for name in names]
    longest, _ = checks.time_limit(resources, facts, cluster)
    limit = max(1, math.floor(min(longest, resources.minutes)))
    resources = replace(resources, minutes=limit)
    ranks = resources.tasks_per_node
    kind = str(resources.gpus_per_node).rpartition(":")[0]
    for fewer in range(ranks - 1, 0, -1):
        if not cluster.over_limit(resources):
            break
        gpus: int | str = f"{kind}:{fewer}" if kind else fewer
        memory = resources.mem_gb and _whole(resources.mem_gb / ranks * fewer)
        resources = replace(resources, tasks_per_node=fewer, gpus_per_node=gpus, mem_gb=memory)
    return resources


def of_plain_stage(partition: Partition, limit: int, cpus: int, mem_gb: int) -> Resources:
    """A stage without GPUs on a partition: of `mem_gb`, what its largest node has."""
    nodes = [node for node in partition.nodes if node.up] or partition.nodes
    cpus = min(cpus, max(partition.cores(node) for node in nodes))
    known = [most for node in nodes if (most := partition.memory(node, cpus)) is not None]
    return Resources(
        minutes=limit,
        cpus=cpus,
        mem_gb=_whole(min(mem_gb, max(known))) if known else None,
        partition=partition.name,
    )


def of_gpu_stage(partition: Partition, kind: str, number: int, limit: int, ranks: int) -> Resources:
    """A stage with `ranks` of the GPUs of such nodes, and that share of their cores and memory."""
    nodes = partition.gpus[kind, number]
    cpus = max(1, min(partition.cores(node) for node in nodes) // number)
    known = [most for node in nodes if (most := partition.memory(node, cpus * number)) is not None]
    return Resources(
        minutes=limit,
        tasks_per_node=ranks,
        gpus_per_node=f"{kind}:{ranks}" if kind else ranks,
        cpus=cpus,
        mem_gb=_whole(min(known) / number * ranks) if known else None,
        partition=partition.name,
    )


def _whole(gib: float) -> float:
    return max(1, math.floor(gib))
