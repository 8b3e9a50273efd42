"""Judge what doctor's small jobs reported from the nodes: one verdict per line of the report."""

import errno
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.cell.failures import explain
from slurm import slurm_cli
from slurm.checks import FAILED, OK, UNKNOWN, WARNING, Check
from slurm.cluster_limits import gpus as gpus_requested
from slurm.profile import Profile, Resources
from slurm.setup_lines import LineEnd, read_ends

# A file that shows later than this makes a job miss what the one before it wrote.
SLOW_SECONDS = 5
CLOCK_SECONDS = 2

NOISE = re.compile(r"Exited with exit code|Terminating|STEP \S+ ON .* CANCELLED|Force Terminated")
LONGER = "give it longer: --wait SECONDS"
UNTIL_DONE = "on a login node submit with --until-done, in place of sbatch slurm/study.sbatch"
FULL = {os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT)}
NOT_SHARED = "--runs on a disk that nodes share, by the same path"

Facts = dict[str, Any]  # section -> what slurm.probe wrote about one node
Verdict = tuple[str, str, str]  # state, finding, fix
SEVERITY = (OK, WARNING, UNKNOWN, FAILED)


@dataclass
class Visit:
    """One small job on nodes of one kind, and its result so far."""

    label: str
    resources: Resources
    stages: list[str]
    profile: Profile
    job: str | None = None
    refusal: str = ""
    queued: slurm_cli.Queued | None = None  # as last seen; None: it has ended
    refused_here: str = ""  # why sbatch refuses the job that submits more, on the login node
    limited: bool = False  # whether a limit on queued jobs needs such a job
    checkpoint_bytes: int = 0  # of the largest step checkpoint; 0: no study, or no training
    facts: list[Facts] = field(default_factory=list)  # one per task
    addresses: dict[str, list[str]] = field(default_factory=dict)  # host:port -> its stages

    @property
    def complete(self) -> bool:
        """Whether every task has written every section."""
        written = [set(facts["sections"]) <= set(facts) for facts in self.facts]
        return len(written) == self.tasks and all(written)

    @property
    def tasks(self) -> int:
        """Tasks on all nodes."""
        return self.resources.nodes * self.resources.tasks_per_node


def _error(facts: Facts, section: str, fix: str) -> Verdict | None:
    value = facts[section]
    if isinstance(value, dict) and value.get("error"):
        return FAILED, value["error"], fix
    return None


def shared(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether the runs folder is the same here and on the node, and files show soon."""
    if verdict := _error(facts, "shared", NOT_SHARED):
        return verdict
    seconds = facts["shared"]["seconds"]
    if not facts["shared"]["same"] or not facts.get("back"):
        return FAILED, "what is written on one side does not show on the other", NOT_SHARED
    if seconds is None or seconds > SLOW_SECONDS:
        delay = "not within a minute" if seconds is None else f"after {seconds:.0f} s"
        finding = f"an answer showed {delay}: a job may miss what the one before it wrote"
        fix = "submit again where that happens, or another --runs (NFS: mount option actimeo)"
        return WARNING, finding, fix
    return OK, f"same content both ways; there and back in {seconds:.1f} s", ""


def rename(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether a reader on another machine sees a replaced file as old or new, never torn."""
    fix = "another --runs: a half-written file could pass for a finished one"
    if why := facts["shared"].get("rename"):
        return FAILED, f"a file can't be replaced: {why}", fix
    if torn := facts.get("torn"):
        finding = f"a reader met a missing or half-written file {torn} times while it was replaced"
        return FAILED, finding, fix
    if "torn" not in facts:
        return None
    return OK, "replacing a file is atomic, seen from here", ""


def locks(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether flock works, also between machines."""
    shared_facts = facts["shared"]
    if "error" in shared_facts:
        return None
    if (own_lock := shared_facts.get("own lock")) != "taken":
        return FAILED, f"flock: {own_lock}", "another --runs (Lustre: mount option flock)"
    if shared_facts["doctor lock"] == "taken":
        finding = "flock does not hold between machines: "
        finding += "two submissions or jobs could write one folder"
        fix = "submit from one machine, or another --runs (Lustre: flock, not localflock)"
        return WARNING, finding, fix
    return OK, "flock holds between machines", ""


def python(facts: Facts, visit: Visit) -> Verdict | None:
    """Python's version against the one here."""
    there = ".".join(map(str, facts["python"]))
    here = ".".join(map(str, sys.version_info[:3]))
    if facts["python"][:2] != list(sys.version_info[:2]):
        fix = "python: the same in the profile as the one that submits"
        return WARNING, f"Python {there}, but {here} here", fix
    return OK, f"Python {there}", ""


def limits(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether a limit of the node (ulimit) may end a job."""
    if texts := facts["limits"]:
        fix = "ask the site to lift them for jobs (LimitCPU and the like of slurmd's service)"
        return WARNING, f"may end jobs: {', '.join(texts)}", fix
    return OK, "no ulimit that jobs reach", ""


def clock(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether the node's clock agrees with this machine's."""
    ahead, seconds = facts["shared"].get("ahead"), facts["shared"]["seconds"]
    if ahead is None or seconds is None:
        return None
    way = "ahead of" if ahead > 0 else "behind"
    finding = f"{abs(ahead):.1f} s {way} this machine's clock"
    # It is known to half of the time that the answer took.
    if abs(ahead) > CLOCK_SECONDS + seconds:
        fix = "tell the site (chronyc tracking there): times in logs are wrong, and on Lustre "
        return WARNING, finding, fix + "rates of calls too"
    return OK, finding, ""


def submit(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether a job can submit further jobs, as those do that the limit on jobs leaves over.

    Requeueing and trainings over several nodes need no Slurm command, so a container does without.
    """
    if verdict := _error(facts, "submit", UNTIL_DONE):
        return verdict
    reason = facts["submit"]
    if not reason or reason == visit.refused_here:  # then the line about the request says so
        return OK, "a job can submit jobs", ""
    if "not on PATH" in reason and not visit.limited:
        return OK, f"{reason}; no limit on jobs needs it", ""
    return WARNING, f"a job can't submit jobs: {reason}", UNTIL_DONE


def packages(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether the modules that the cells import can be imported."""
    if verdict := _error(facts, "packages", "look at python and setup in the profile"):
        return verdict
    imports = facts["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in imports["versions"].items())
    if imports["failed"]:
        finding = f"{imports['failed']}: {imports['why']} ({versions})"
        return FAILED, finding, "make cluster-env CLUSTER=NAME, and python: as it says at the end"
    return OK, f"{versions}; imported in {imports['seconds']:.0f} s", ""


def writable(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether the scratch and cache folders can be created and written."""
    folders = facts["writable"]
    for folder, why in folders.items():
        if why in FULL:
            fix = f"make room there (du -sh {folder}/*), or name another folder: scratch, cache"
            return FAILED, f"{folder}: {why}", fix
        if why:
            return FAILED, f"{folder}: {why}", "scratch, cache: folders that can be made there"
    return (OK, ", ".join(folders), "") if folders else None


def keys(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether the API keys that are set here are set in jobs."""
    if missing := facts["keys"]:
        fix = "export them before submitting; unset SBATCH_EXPORT"
        return FAILED, f"not set in jobs: {', '.join(missing)}", fix
    return None


def paths(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether the models and data files that the study names exist on the node."""
    if missing := facts["paths"]:
        fix = "put it on a disk that nodes share, and name that path in the study"
        return FAILED, f"no {', '.join(missing)}", fix
    return None


def addresses(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether the nodes reach the endpoints that their stages call.

    Nodes that reach none need `offline: true` in the profile.
    """
    reasons = facts["addresses"]
    if not reasons:
        return None
    unreachable = {address: why for address, why in reasons.items() if why}
    for address, why in unreachable.items():
        if users := visit.addresses[address]:
            fix = f"stages.{users[0]}: a partition whose nodes reach it, or another endpoint"
            return FAILED, f"{', '.join(users)} call {address}: {why}", fix
    if not unreachable:
        return OK, f"reaches {', '.join(reasons)}", ""
    if not visit.profile.offline:
        return WARNING, f"no way to {', '.join(unreachable)}", "offline: true"
    return OK, f"no way to {', '.join(unreachable)}, as offline says", ""


def gpus(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether torch sees as many GPUs as requested, and the driver supports torch's CUDA."""
    if verdict := _error(facts, "gpus", "torch must load: see packages"):
        return verdict
    torch = facts["gpus"]["torch"]
    built_for = facts["gpus"]["built for"]
    driver = facts["gpus"]["driver"]
    cards = facts["gpus"]["cards"]
    if not built_for:
        fix = "make cluster-env CLUSTER=NAME, and python: as it says at the end"
        return FAILED, f"torch {torch} is built without CUDA", fix
    versions = f"torch {torch} for CUDA {built_for}, driver for CUDA {driver}"
    if not driver and not cards:
        reason = facts["gpus"].get("why") or "nvidia-smi does not answer"
        fix = "sbatch: {exclude: [that node]} in the profile; tell the site: nvidia-smi fails there"
        return FAILED, f"no usable driver for {versions.partition(',')[0]}: {reason}", fix
    if driver and int(driver.split(".")[0]) < int(built_for.split(".")[0]):
        fix = "make cluster-env CLUSTER=NAME, which takes packages for that driver"
        return FAILED, f"the driver is too old: {versions}", fix
    requested = gpus_requested(visit.resources)
    if len(cards) < requested:
        finding = f"{len(cards)} of {requested} GPUs seen; {versions}"
        return FAILED, finding, "nvidia-smi there; tell the site"
    name, gib = cards[0]
    return OK, f"{len(cards)} x {name}, {gib} GiB; {versions}", ""


def compiler(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether the node can compile: Triton's launcher and vLLM need C and Python's headers."""
    error = facts["compiler"].get("error", "")
    failure, _ = explain([[error]])
    fix = "setup: [module load gcc], or a Python with its headers (Debian: gcc, python3-dev)"
    if verdict := _error(facts, "compiler", failure.fix if failure else fix):
        return verdict
    return OK, f"a C extension and a kernel in {facts['compiler']['seconds']:.0f} s", ""


def start_vllm(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether vLLM starts on a GPU and answers."""
    fix = facts["vLLM"].get("fix") or "see the line; then doctor again"
    if verdict := _error(facts, "vLLM", fix):
        return verdict
    return OK, f"starts and answers in {facts['vLLM']['seconds']:.0f} s", ""


def write_rate(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether a training that is told to stop has time to write its checkpoint."""
    if verdict := _error(facts, "write rate", "another --runs"):
        return verdict
    rate = facts["write rate"] * visit.resources.nodes
    gb_a_second = (
        f"{rate / 1e9:.2g} GB a second by {visit.resources.nodes} processes on the runs folder"
    )
    if not visit.checkpoint_bytes:
        return OK, gb_a_second, ""
    seconds = visit.checkpoint_bytes / rate
    finding = f"{gb_a_second}: a step checkpoint of {visit.checkpoint_bytes / 1e9:.2g} GB takes "
    finding += f"{seconds:.0f} s, signal_seconds is {visit.profile.signal_seconds}"
    if seconds > visit.profile.signal_seconds:
        fix = f"signal_seconds: {math.ceil(seconds * 1.5 / 30) * 30}, or another --runs"
        return WARNING, finding, fix
    return OK, finding, ""


def all_reduce(facts: Facts, visit: Visit) -> Verdict | None:
    """Whether an all-reduce over all ranks works."""
    result = facts["all-reduce"]
    fix = result.get("fix") or "see packages"
    if "interfaces" in result:
        fix = "interface: the network between the nodes (ip -brief address there)"
    if verdict := _error(facts, "all-reduce", fix):
        return verdict
    backend = result["backend"]
    if not result["right"]:
        return FAILED, f"a wrong sum by {backend}", "ask the site: the network or a GPU is broken"
    interface = visit.profile.interface or "guessed"
    took = f"16 MiB in {result['seconds']:.2f} s by {backend} over {result['ranks']} ranks"
    gathers = {"node": "within a node", "network": "between nodes"}
    for name, words in gathers.items():
        if rate := result.get(f"{name}_bytes_per_second"):
            took += f", gathers {rate / 1e9:.2g} GB a second {words}"
    return OK, f"{took}, interface {interface}", ""


# Name of the line -> the section of the facts that it needs, and the function that judges it.
LINES: dict[str, tuple[str, Callable[[Facts, Visit], Verdict | None]]] = {
    "shared folder": ("shared", shared),
    "rename": ("shared", rename),
    "locks": ("shared", locks),
    "python": ("python", python),
    "limits": ("limits", limits),
    "clock": ("shared", clock),
    "submit": ("submit", submit),
    "packages": ("packages", packages),
    "scratch, cache": ("writable", writable),
    "keys": ("keys", keys),
    "models, data": ("paths", paths),
    "endpoints": ("addresses", addresses),
    "write rate": ("write rate", write_rate),
    "GPUs": ("gpus", gpus),
    "compiler": ("compiler", compiler),
    "vLLM": ("vLLM", start_vllm),
    "all-reduce": ("all-reduce", all_reduce),
}


def measured(line: str, nodes: list[Facts]) -> dict[str, float]:
    """Rates that a line of the report shows, the smallest of all nodes or ranks."""
    if line == "write rate":
        rates = [facts[line] for facts in nodes if isinstance(facts.get(line), float)]
        return {"write_bytes_per_second": min(rates)} if rates else {}
    if line != "all-reduce":
        return {}
    names = ("node_bytes_per_second", "network_bytes_per_second")
    gathers = [facts.get(line, {}) for facts in nodes]
    return {
        name: min(values)
        for name in names
        if (values := [gather[name] for gather in gathers if name in gather])
    }


def report_visit(visit: Visit, folder: Path) -> list[Check]:
    """The report's lines about one visit, whose job wrote into `folder`."""
    setup = setup_check(visit, folder)
    if not visit.facts:
        return [check for check in (setup, _without_facts(visit, folder)) if check]
    report = [setup] if setup else []
    unanswered = _unanswered(visit, folder)
    for line, (section, judge) in LINES.items():
        hosts: dict[Verdict, list[str]] = defaultdict(list)
        for facts in visit.facts:
            if section in facts["sections"]:
                verdict = judge(facts, visit) if section in facts else unanswered
                if verdict:
                    hosts[verdict].append(facts["host"])
        if hosts:
            worst = max(hosts, key=lambda verdict: SEVERITY.index(verdict[0]))
            state, finding, fix = worst
            names = [name for verdict in hosts if verdict[0] == state for name in hosts[verdict]]
            finding = f"{', '.join(dict.fromkeys(names))}: {finding}"
            rates = measured(line, visit.facts)
            report.append(Check(f"{visit.label}: {line}", state, finding, fix, rates))
    if missing := visit.tasks - len(visit.facts):
        finding = f"{missing} of {visit.tasks} tasks left nothing in {folder.parent}"
        fix = LONGER if visit.queued else f"{NOT_SHARED}; or leave that node out"
        report.append(Check(f"{visit.label}: node", unanswered[0], finding, fix))
    return report


def setup_check(visit: Visit, folder: Path) -> Check | None:
    """How the profile's `setup` lines ended on a node. None: it has none, or none was begun."""
    ends = read_ends(visit.profile.setup, folder, str(visit.job))
    if not ends:
        return None
    verdicts = [_setup_verdict(end, visit) for end in ends]
    state, finding, fix = max(verdicts, key=lambda verdict: SEVERITY.index(verdict[0]))
    return Check(f"{visit.label}: setup", state, finding, fix)


def _setup_verdict(end: LineEnd, visit: Visit) -> Verdict:
    fix = "setup in the cluster profile: correct that line"
    if end.status is None:
        if visit.queued:
            return UNKNOWN, f"`{end.line}` has not ended yet", LONGER
        message = f" ({end.error})" if end.error else ""
        return FAILED, f"`{end.line}` ends the job's shell, before Python starts{message}", fix
    if end.failed:
        return FAILED, f"`{end.line}`: {end.error} (exit status {end.status})", fix
    if end.status:
        return WARNING, f"`{end.line}`: exit status {end.status}", fix
    return OK, f"{len(visit.profile.setup)} lines without an error", ""


def _without_facts(visit: Visit, folder: Path) -> Check:
    """The line about a job none of whose nodes wrote anything."""
    name = f"{visit.label}: node"
    if visit.refusal:
        finding = f"sbatch refused a small job: {visit.refusal}"
        return Check(name, UNKNOWN, finding, "change what it names")
    if visit.queued:
        state = "runs, but has written nothing yet"
        if visit.queued.state == "PENDING":
            state = f"still waits in the queue ({visit.queued.reason})"
        return Check(name, UNKNOWN, f"job {visit.job} {state}", LONGER)
    end = f"job {visit.job} ended ({ended(visit)})"
    if log := _log(visit, folder):
        return Check(name, FAILED, f"{end}: {log}", "see python and setup in the profile")
    cause = "the nodes see no such folder, or another one"
    finding = f"{end} and left nothing in {folder.parent}: {cause}"
    return Check(f"{visit.label}: shared folder", FAILED, finding, NOT_SHARED)


def _unanswered(visit: Visit, folder: Path) -> Verdict:
    """The verdict on a section that a job did not write."""
    if visit.queued:
        return UNKNOWN, f"job {visit.job} has not written it yet", LONGER
    failure, line = explain([_lines(visit, folder)])
    finding = f"job {visit.job} ended before it wrote this: {line or _log(visit, folder)}"
    return FAILED, finding, failure.fix if failure else "see that line, or the node's state"


def ended(visit: Visit) -> str:
    """How a job ended, by Slurm: its state and exit code."""
    line = slurm_cli.call("scontrol", "--oneliner", "show", "job", str(visit.job)).stdout
    fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
    return f"{fields.get('JobState', 'gone')}, exit code {fields.get('ExitCode', 'unknown')}"


def _lines(visit: Visit, folder: Path) -> list[str]:
    """The lines of the job's logs."""
    return [
        line.strip()
        for log in sorted((folder / "jobs").glob(f"{visit.job}_*log.*"))
        for line in log.read_text(errors="replace").splitlines()
        if line.strip()
    ]


def _log(visit: Visit, folder: Path) -> str:
    """The last line of the job's logs that is not noise; empty where there are no logs."""
    lines = _lines(visit, folder)
    informative = [line for line in lines if not NOISE.search(line)]
    return next(reversed(informative or lines), "")
