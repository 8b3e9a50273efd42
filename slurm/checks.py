"""What can be told about a cluster without a job: commands, limits against the profile, accounts, room on the disk."""

import getpass
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from core.cell.identity import Cell
from core.errors import UserError
from core.paths import ROOT
from slurm import scheduler
from slurm.executor import executor, script
from slurm.profile import Profile, Shape

OK, WARNING, FAILED, UNKNOWN = "ok", "warning", "failed", "not checked"
GIB = 2**30
# A study of toys needs less than the first of each; the second is little for one of 8 B models.
LEAST_GIB, LITTLE_GIB, LEAST_FILES, LITTLE_FILES = 2, 200, 5_000, 100_000

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Check:
    """One line of the report. `state` is ok, warning, failed or not checked; `fix` is one thing to type or change."""

    name: str
    state: str
    found: str
    fix: str = ""


def of_error(name: str, error: UserError) -> Check:
    """The check that a user's mistake is."""
    found, _, fix = error.lines[0].rpartition("; ")
    return Check(name, FAILED, found or fix, fix if found else "")


def commands() -> Check:
    """Slurm's commands and version."""
    try:
        scheduler.must_be_here()
        version = scheduler._ask("sbatch", "--version").strip()
    except UserError as error:
        return of_error("commands", error)
    if lacking := [name for name in ("sacct", "sacctmgr") if not shutil.which(name)]:
        lost = f"{version}; without {', '.join(lacking)}: no reasons of ended jobs, no limits of accounts"
        return Check("commands", WARNING, lost, "use a login node that has them, if there is one")
    return Check("commands", OK, version)


@dataclass(frozen=True)
class Cluster:
    """Partitions by name, users' accounts and qos, as Slurm's commands list them; no accounts where none are kept."""

    partitions: dict[str, dict[str, str]]
    user: Rows
    qos: Rows

    def named(self, shape: Shape) -> list[str]:
        """The partitions a shape may go to: its own (a list by commas), or Slurm's default if there is one."""
        if shape.partition:
            return shape.partition.split(",")
        return [name for name, facts in self.partitions.items() if facts.get("Default") == "YES"]

    def rows(self, shape: Shape) -> Rows:
        """What limits a job of this shape: the user's account, the job's qos, the partition's qos."""
        of = ("", *self.named(shape))
        mine = [row for row in self.user if row["Account"] == (shape.account or row["DefaultAccount"])]
        mine = [row for row in mine if row["Partition"] in of]
        names = {shape.qos or next((row["DefaultQOS"] for row in mine if row["DefaultQOS"]), "normal")}
        names |= {self.partitions[name].get("QoS", "") for name in self.named(shape) if name in self.partitions}
        return mine + [row for row in self.qos if row["Name"] in names]


def ask_cluster() -> Cluster:
    """Raises UserError where Slurm doesn't answer."""
    lines = scheduler._ask("scontrol", "--all", "--oneliner", "show", "partition").splitlines()
    facts = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
    user: Rows = []
    qos: Rows = []
    if scheduler.has_accounts() and shutil.which("sacctmgr"):
        common = ("MaxSubmitJobs", "GrpSubmitJobs", "MaxWall")
        user = _table(
            "DefaultAccount", "Account", "Partition", "DefaultQOS", *common, of=("user", getpass.getuser(), "withassoc")
        )
        qos = _table("Name", "MaxSubmitJobsPU", "MaxSubmitJobsPA", "GrpSubmitJobs", "MaxWall", of=("qos",))
    return Cluster({f["PartitionName"]: f for f in facts if "PartitionName" in f}, user, qos)


def _table(*columns: str, of: tuple[str, ...]) -> Rows:
    lines = scheduler._ask("sacctmgr", "-nP", "show", *of, f"format={','.join(columns)}").splitlines()
    return [dict(zip(columns, line.split("|"), strict=False)) for line in lines]


def minutes(text: str) -> float:
    """Slurm's [days-]hours:minutes:seconds; anything else (UNLIMITED, nothing) is no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not found:
        return math.inf
    days, hours, mins, seconds = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + mins + seconds / 60


def gpus(shape: Shape) -> int:
    """GPUs per node that a shape asks for."""
    return int(str(shape.gpus_per_node).split(":")[-1])


def request(stages: list[str], shape: Shape, profile: Profile, cluster: Cluster) -> Check:
    """Whether jobs of this shape can ever start: limits of the partition, of accounts and qos, nodes, sbatch's word.

    EnforcePartLimits is off on many clusters: sbatch then takes a job over the limits, which waits for ever.
    """
    stage = "default" if shape == profile.shape("default") else ", ".join(stages)
    name, where = f"request {stage}", f"stages.{stage.split(', ')[0]}"
    known = [cluster.partitions[p] for p in cluster.named(shape) if p in cluster.partitions]
    if not known:
        lacking = f"no partition {shape.partition}" if shape.partition else "no partition is the default"
        return Check(name, FAILED, lacking, f"partition: one of {', '.join(sorted(cluster.partitions))}")
    partition = ",".join(facts["PartitionName"] for facts in known)
    limits = [(max(minutes(facts.get("MaxTime", "")) for facts in known), f"partition {partition}")]
    for row in cluster.rows(shape):
        limits.append((minutes(row["MaxWall"]), f"qos {row['Name']}" if "Name" in row else f"account {row['Account']}"))
    longest, of = min(limits)
    if shape.minutes > longest:
        asked = f"{shape.minutes} minutes; {of} allows {longest:g}"
        return Check(name, FAILED, asked, f"{where}: minutes: {longest:g}; a longer job is requeued and continues")
    most = max(math.inf if not (n := facts.get("MaxNodes", "")).isdigit() else int(n) for facts in known)
    if shape.nodes > most:
        return Check(name, FAILED, f"{shape.nodes} nodes; {partition} allows {most:g}", f"{where}: nodes: {most:g}")
    nodes = _nodes(partition)
    fitting = [node for node in nodes if node.fits(shape)]
    wanted = _wanted(shape)
    if nodes and len(fitting) < shape.nodes:
        largest = f"{max(node.cpus for node in nodes)} cores, {max(node.gib for node in nodes):g} GiB"
        lacking = f"{shape.nodes} nodes of {wanted}; {partition} has {len(fitting)} of {len(nodes)} (at most {largest})"
        return Check(name, FAILED, lacking, f"{where}: ask for less, or another partition (sinfo -N -l)")
    up = [node for node in fitting if node.up]
    states = "".join(f"; {facts['PartitionName']} is {s}" for facts in known if (s := facts.get("State", "UP")) != "UP")
    if (nodes and len(up) < shape.nodes) or states:
        found = f"{len(up)} of {len(fitting)} nodes with {wanted} are up{states}"
        return Check(name, WARNING, found, "jobs wait until more are: see sinfo -R")
    # Only here: sbatch --test-only refuses as well where the nodes are down for a while.
    if reason := scheduler.refused(script(executor(stages[0], shape, profile, ROOT, ROOT))):
        return Check(name, FAILED, reason, f"{where}: {wanted}, {_named(shape)}: change what is refused")
    most_minutes = "any time" if longest == math.inf else f"{longest:g} minutes"
    return Check(name, OK, f"{shape.nodes} x {wanted} on {partition}: {len(up)} nodes fit; {most_minutes} allowed")


@dataclass(frozen=True)
class Node:
    """A line of sinfo."""

    cpus: int
    gib: float
    gres: str
    features: set[str]
    state: str

    @property
    def up(self) -> bool:
        return bool(re.match(r"(idle|mix|alloc|comp|plan|resv|reserved)", self.state)) and not self.state.endswith("*")

    def fits(self, shape: Shape) -> bool:
        """Whether a node's share of such a job has room on it, once it is empty."""
        enough = self.cpus >= shape.cpus * shape.tasks_per_node and self.gib >= (shape.mem_gb or 0)
        kind = str(shape.gpus_per_node).rpartition(":")[0]
        cards = re.findall(r"gpu(?::([^:,()]+))??:(\d+)", self.gres)
        return (
            enough and self._has(shape.constraint) and gpus(shape) <= sum(int(n) for k, n in cards if kind in ("", k))
        )

    def _has(self, constraint: str | None) -> bool:
        if not constraint or re.search(r"[^\w.\-|&]", constraint):
            return True  # counts and brackets are left to sbatch
        return any(set(every.split("&")) <= self.features for every in constraint.split("|"))


def _nodes(partition: str) -> list[Node]:
    lines = scheduler._ask("sinfo", "-h", "-N", "-p", partition, "-o", "%N|%c|%m|%G|%f|%T").splitlines()
    fields = {line.split("|")[0]: line.strip().split("|")[1:] for line in lines if line.count("|") >= 5}
    return [Node(int(c), int(m) / 1024, g, set(f.split(",")), s) for c, m, g, f, s in fields.values()]


def _wanted(shape: Shape) -> str:
    parts = [
        f"{shape.cpus * shape.tasks_per_node} cores",
        f"{shape.mem_gb:g} GiB" if shape.mem_gb else None,
        f"GPUs {shape.gpus_per_node}" if gpus(shape) else None,
        shape.constraint,
    ]
    return ", ".join(filter(None, parts))


def _named(shape: Shape) -> str:
    return ", ".join(f"{k} {v}" for k in ("partition", "account", "qos") if (v := getattr(shape, k))) or "no account"


def arrays(profile: Profile) -> Check:
    """The profile's max_array against Slurm's."""
    largest = scheduler.largest_array()
    if profile.max_array and profile.max_array > largest:
        return Check(
            "arrays", WARNING, f"max_array {profile.max_array}; Slurm takes {largest}", f"max_array: {largest}"
        )
    return Check("arrays", OK, f"{profile.max_array or largest} tasks in one")


def submissions(profile: Profile, shapes: list[Shape], cluster: Cluster) -> Check:
    """Jobs that may be queued at once: what `submit` goes by against what accounts and qos allow."""
    name = "jobs at once"
    if not cluster.user and not cluster.qos:
        return Check(name, UNKNOWN, "no accounts to ask", "max_submit: N, if your site tells you of a limit")
    enforced = scheduler._setting("AccountingStorageEnforce")
    if not re.search(r"limits|safe|all", enforced):
        return Check(name, OK, f"limits are not enforced ({enforced})")
    found = [
        int(value)
        for shape in shapes
        for row in cluster.rows(shape)
        for key, value in row.items()
        if "Submit" in key and value.isdigit()
    ]
    if not found:
        return Check(name, OK, f"no limit of accounts or qos; max_submit {profile.max_submit or 'none'}")
    own = profile.max_submit or scheduler.submit_limit(profile.shape("default").account)
    if own is None or own > min(found):
        return Check(
            name, FAILED, f"{own or 'any number'} would be submitted; {min(found)} may", f"max_submit: {min(found)}"
        )
    return Check(name, OK, f"{own} at most, of {min(found)} that may be queued")


def accounting(shapes: list[Shape]) -> Check:
    """Whether Slurm remembers why jobs ended, and knows the accounts that the profile names."""
    if not scheduler.has_accounts():
        if named := sorted({word for shape in shapes for word in (shape.account, shape.qos) if word}):
            return Check("accounting", FAILED, f"off: {', '.join(named)} would be ignored", "delete account and qos")
        lost = "off: Slurm keeps no reasons of ended jobs (out of memory, time limit) and no limits of users"
        return Check("accounting", WARNING, lost, "nothing to type: `status` goes by the cells' logs")
    if shutil.which("sacct"):
        try:
            scheduler._ask("sacct", "--noheader", "--allocations", "--starttime=now")
        except UserError as error:
            return Check(
                "accounting",
                WARNING,
                error.lines[0].split("; ")[0],
                "reasons of ended jobs are missing until it answers",
            )
    return Check("accounting", OK, "slurmdbd")


def requeue(profile: Profile, shapes: list[Shape], cluster: Cluster) -> Check:
    """Whether a job that is preempted, or whose node fails, comes back."""
    if profile.requeue == 0:
        lost = "requeue 0: a time limit, a preemption or a node's failure ends a cell"
        return Check("requeue", WARNING, lost, "requeue: 20, or submit again each time")
    used = sorted({p for shape in shapes for p in cluster.named(shape) if p in cluster.partitions})
    modes = {name: cluster.partitions[name].get("PreemptMode", "OFF") for name in used}
    if cancelling := [name for name, mode in modes.items() if "CANCEL" in mode]:
        lost = f"jobs preempted in {', '.join(cancelling)} are cancelled, not requeued"
        return Check("requeue", WARNING, lost, "submit again each time, or another partition")
    return Check("requeue", OK, ", ".join(f"{name}: preemption {mode}" for name, mode in modes.items()))


def keys(cells: list[Cell]) -> Check:
    """The API keys that the cells' endpoints need, by the names of their variables."""
    named = key_names(cells)
    if missing := [name for name in named if not os.environ.get(name)]:
        return Check("API keys", FAILED, f"not set: {', '.join(missing)}", f"export {missing[0]}=...")
    return Check("API keys", OK, f"set: {', '.join(named)}" if named else "the study needs none")


def key_names(cells: list[Cell]) -> list[str]:
    """Environment variables that hold keys."""
    return sorted({name for cell in cells if (name := cell.resources.get("address", {}).get("key_env"))})


def room(folder: Path) -> Check:
    """Free space and free inodes where the runs are."""
    disk = os.statvfs(folder)
    gib, files = disk.f_bavail * disk.f_frsize / GIB, disk.f_favail if disk.f_files else math.inf
    own = next(
        (f"; your own limit may be lower: {c}" for c in ("lfs quota", "quota -s") if shutil.which(c.split()[0])), ""
    )
    found = f"{gib:,.0f} GiB and {files:,} files free{own}"
    if gib < LEAST_GIB or files < LEAST_FILES:
        return Check("room", FAILED, found, "make room, or choose another --runs")
    if gib < LITTLE_GIB or files < LITTLE_FILES:
        return Check("room", WARNING, found, "enough for a study of toys; 8 B models need more: another --runs")
    return Check("room", OK, found)
