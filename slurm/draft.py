"""Draft a cluster profile from what Slurm says of the cluster, each value with its source.

A line marked <- is for a person: Slurm offers several values, or does not know any.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.files import write_atomically
from core.gpu_specs import find_gpu
from slurm import slurm_cli
from slurm.cluster_limits import Cluster, Node, ask_cluster, ask_nodes, ask_rows, minutes

MOST_RANKS = 4  # GPUs of one training: `plan --cluster` says where memory needs more
MEMORY_SHARE = 0.9  # of a node's: the system needs the rest
# Time limits in minutes; those of partitions may be less. A job that reaches one is requeued.
HOUR, LONG = 60, 720
TRAINING = 480


@dataclass(frozen=True)
class Partition:
    """A partition that this user may use."""

    name: str
    facts: dict[str, str]  # of `scontrol show partition`
    nodes: list[Node]

    @property
    def max_minutes(self) -> float:
        """Its longest time limit."""
        return minutes(self.facts.get("MaxTime", ""))

    @property
    def gpus(self) -> list[tuple[str, int, Node]]:
        """(type, number, node) of every node's GPUs; the type is empty where Slurm has none."""
        return [
            (kind, int(number), node)
            for node in self.nodes
            for kind, number in re.findall(r"gpu(?::([^:,()]+))??:(\d+)", node.gres)
        ]

    @property
    def order(self) -> tuple[bool, bool, float, int]:
        """The first is the one to take where several would do."""
        preempted = self.facts.get("PreemptMode", "OFF") != "OFF"
        default = self.facts.get("Default") == "YES"
        return preempted, not default, -min(self.max_minutes, LONG), -len(self.nodes)


def draft(path: Path) -> list[str]:
    """Write a profile to the file `path`. Returns what a person has to choose or to look up.

    Raises UserError where the file exists, Slurm does not answer, or no partition has nodes.
    """
    if path.exists():
        fix = "give another file, or remove it first"
        raise UserError(where=str(path), what="exists; a draft replaces no profile", fix=fix)
    with slurm_cli.clean_environment():
        slurm_cli.require_slurm()
        cluster = ask_cluster()
        lines = _lines(cluster, _partitions(cluster))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(lines) + "\n")
    return [line.partition("<- ")[2] for line in lines[2:] if "<- " in line]


def _partitions(cluster: Cluster) -> list[Partition]:
    accounts = {row["Account"] for row in cluster.user}
    partitions = []
    for name, facts in cluster.partitions.items():
        allowed = facts.get("AllowAccounts", "ALL")
        is_ours = allowed == "ALL" or not accounts.isdisjoint(allowed.split(","))
        if is_ours and facts.get("State", "UP") == "UP" and (nodes := ask_nodes(name)):
            partitions.append(Partition(name, facts, nodes))
    if not partitions:
        raise UserError(where="sinfo", what="no partition that is up has nodes for you")
    return sorted(partitions, key=lambda partition: partition.order)


def _lines(cluster: Cluster, partitions: list[Partition]) -> list[str]:
    """The profile's lines. The first two say what it is."""
    plain = [partition for partition in partitions if not partition.gpus] or partitions
    with_gpus = [partition for partition in partitions if partition.gpus]
    return [
        "# Drafted by `doctor --draft`. Look at the lines marked with an arrow, then let doctor",
        "# check it. Sources in brackets: sinfo, scontrol show partition and config, sacctmgr.",
        *_partition_line(plain),
        *_accounts(),
        "",
        "stages:",
        *_plain_stages(plain[0]),
        *_gpu_stages(with_gpus),
        "",
        *_settings(cluster),
    ]


def _line(text: str, comment: str) -> str:
    return f"{text:<52}  # {comment}"


def _partition_line(plain: list[Partition]) -> list[str]:
    first = plain[0]
    why = "the default" if first.facts.get("Default") == "YES" else "of those without GPUs"
    choice = f"{why} (scontrol show partition)"
    if first.gpus:
        choice = "<- every partition has GPUs: take the one that may run jobs without"
    return [_line(f"partition: {first.name}", choice)]


def _accounts() -> list[str]:
    """The lines about account and QOS."""
    if not slurm_cli.has_accounts():
        return ["# no account, no qos: this cluster keeps none (AccountingStorageType)"]
    columns = ("Account", "DefaultAccount", "QOS", "DefaultQOS")
    try:
        rows = ask_rows("user", slurm_cli.user_name(), "withassoc", columns=columns)
    except UserError as error:
        return [f"# account: NAME  # <- sacctmgr does not answer: {error.problems[0].what}"]
    if not rows:
        return ["# account: NAME  # <- sacctmgr lists none for you: ask your site"]
    names = sorted({row["Account"] for row in rows})
    default = rows[0]["DefaultAccount"] or names[0]
    source = "the only one (sacctmgr)"
    if len(names) > 1:
        source = f"<- who pays: {', '.join(names)}; this is your default (sacctmgr)"
    lines = [_line(f"account: {default}", source)]
    row = next((row for row in rows if row["Account"] == default), rows[0])
    qos = [name for name in row["QOS"].split(",") if name]
    if len(qos) > 1:
        usual = row["DefaultQOS"] or "the account's"
        text = f"<- {', '.join(qos)}: {usual} without this line (sacctmgr)"
        lines.append(_line(f"# qos: {qos[0]}", text))
    return lines


def _plain_stages(partition: Partition) -> list[str]:
    memory = min(node.mem_gib for node in partition.nodes) * MEMORY_SHARE
    cores = min(node.cpus for node in partition.nodes)
    limit = f"time limit {_shown(partition)}"
    rows = (
        ("default", HOUR, 2, 8, f"{limit}; nodes have {cores} cores, {memory:.0f} GiB (sinfo)"),
        ("model", HOUR, 4, 64, "copies and checks start models"),
        ("documents", LONG, 2, 8, "calls the writer's API"),
        ("judge", LONG, 2, 8, "calls the judge's API"),
    )
    lines = []
    for stage, wanted, cpus, mem_gb, comment in rows:
        fields = [
            f"minutes: {_limited(wanted, partition)}",
            f"cpus: {min(cpus, cores)}",
            f"mem_gb: {min(mem_gb, math.floor(memory))}",
        ]
        lines.append(_line(f"  {stage}: {{{', '.join(fields)}}}", comment))
    return lines


def _gpu_stages(partitions: list[Partition]) -> list[str]:
    """The lines of trainings and evaluations, on the kind of GPUs of which there are most."""
    if not partitions:
        return ["  # <- no partition lists GPUs (sinfo): trainings would run on the CPU"]
    kinds: Counter[tuple[str, str, int]] = Counter()  # partition, type, GPUs of a node -> GPUs
    for partition in partitions:
        for kind, number, _ in partition.gpus:
            kinds[partition.name, kind, number] += number
    by_name = {partition.name: partition for partition in partitions}
    ordered = sorted(
        kinds, key=lambda key: (*by_name[key[0]].order[:1], -kinds[key], by_name[key[0]].order)
    )
    name, kind, number = ordered[0]
    partition = by_name[name]
    nodes = [node for of, count, node in partition.gpus if (of, count) == (kind, number)]
    lines = []
    if len(ordered) > 1:
        lines.append("  # <- GPUs: choose partition and type of the four stages below (sinfo)")
        for of, type_, per_node in ordered:
            count = kinds[of, type_, per_node] // per_node
            shown = f"{count} nodes of {per_node} {type_ or 'GPUs'}"
            lines.append(f"  #   partition {of}: {shown}, time limit {_shown(by_name[of])}")
    cores = max(1, min(node.cpus for node in nodes) // number)
    memory = min(node.mem_gib for node in nodes) * MEMORY_SHARE / number
    features = sorted(set.intersection(*(node.features for node in nodes)) - {"(null)"})
    if gpu := find_gpu(kind):
        lines.append(f"  # {kind}: forecast as {gpu.name} (core/gpu_specs.py)")
    else:
        of = f"; nodes have the features {', '.join(features)}" if features else ""
        lines.append(
            f"  # gpu_type: h100  # <- add it to these stages: Slurm says {kind or 'none'}{of}"
        )
    ranks = min(MOST_RANKS, number)
    for stage, wanted, gpus in (
        ("midtrain", TRAINING, ranks),
        ("sft", TRAINING, ranks),
        ("generate", HOUR * 2, 1),
        ("likelihood", HOUR * 2, 1),
    ):
        fields = [
            f"minutes: {_limited(wanted, partition)}",
            f"tasks_per_node: {gpus}",
            f"gpus_per_node: {kind + ':' if kind else ''}{gpus}",
            f"cpus: {cores}",
            f"mem_gb: {max(1, math.floor(memory * gpus))}",
            f"partition: {name}",
        ]
        comment = f"of {number} GPUs a node, {min(n.cpus for n in nodes)} cores (sinfo)"
        lines.append(_line(f"  {stage}: {{{', '.join(fields)}}}", comment))
    lines.append("  # gpu_memory_gb: 80  # <- in midtrain and sft, for `plan`: Slurm does not say")
    return lines


def _settings(cluster: Cluster) -> list[str]:
    config = slurm_cli.settings()
    scratch = config.get("TmpFS", "/tmp")
    limits = "of accounts and QOS are read at each submission"
    if not cluster.keeps_limits:
        limits = "none are enforced (AccountingStorageEnforce)"
    return [
        _line(f"scratch: {scratch}/$SLURM_JOB_ID", "TmpFS (scontrol show config)"),
        "# cache: /project/me/cache  # <- a shared folder for compiled kernels and downloads",
        "# offline: true  # <- where nodes have no internet: doctor looks from a node",
        "# interface: ib0  # <- for trainings over several nodes (ip -brief address on one)",
        "# setup: [module load gcc]  # <- where nodes have no C compiler: doctor looks",
        _line("signal_seconds: 300", "8B writes 96 GB then: doctor measures the rate"),
        _line("array_parallelism: 32", "leaves room for others"),
        f"# max_array: {slurm_cli.largest_array()}, as Slurm says (scontrol show config)",
        f"# max_submit: limits on jobs {limits}",
    ]


def _limited(wanted: int, partition: Partition) -> int:
    return max(1, math.floor(min(wanted, partition.max_minutes)))


def _shown(partition: Partition) -> str:
    longest = partition.max_minutes
    return "none" if longest == math.inf else f"{longest:g} min"
