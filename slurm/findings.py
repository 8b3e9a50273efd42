"""What doctor's small jobs found: a verdict for every line of its report."""

import re
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm import checks, scheduler
from slurm.checks import FAILED, OK, UNKNOWN, WARNING, Check
from slurm.profile import Profile, Shape

SLOW_SECONDS = 5  # a file that shows later than this makes a job miss what the one before it wrote

NOISE = re.compile(r"Exited with exit code|Terminating|STEP \S+ ON .* CANCELLED|Force Terminated")
LONGER = "give it longer: --wait SECONDS"
NOT_SHARED = "--runs on a disk that nodes share, by the same path"

Facts = dict[str, Any]
Verdict = tuple[str, str, str] | None  # state, what was found, fix; None: nothing was asked for


@dataclass
class Visit:
    """One small job on the nodes that some shapes ask for, and what has come of it."""

    label: str
    shape: Shape
    stages: list[str]
    profile: Profile
    job: str | None = None
    refusal: str = ""
    queued: scheduler.Queued | None = None  # as it was last seen, if it was not over
    facts: list[dict[str, Any]] = field(default_factory=list)  # of each of its nodes
    addresses: dict[str, list[str]] = field(default_factory=dict)  # host:port -> stages that call it

    @property
    def whole(self) -> bool:
        """Every node has written everything."""
        return len(self.facts) == self.shape.nodes and all(set(f["sections"]) <= set(f) for f in self.facts)


def _error(facts: Facts, section: str, fix: str) -> Verdict:
    value = facts[section]
    return (FAILED, value["error"], fix) if isinstance(value, dict) and value.get("error") else None


def shared(facts: Facts, visit: Visit) -> Verdict:
    """The folder is the same there and here, and files show soon."""
    if verdict := _error(facts, "shared", NOT_SHARED):
        return verdict
    same, seconds = facts["shared"]["same"], facts["shared"]["seconds"]
    if not same or not facts.get("back"):
        return FAILED, "what is written on one side does not show on the other", NOT_SHARED
    if seconds is None or seconds > SLOW_SECONDS:
        took = "not within a minute" if seconds is None else f"after {seconds:.0f} s"
        lost = f"an answer showed {took}: a job may miss what the one before it wrote"
        return WARNING, lost, "submit again where that happens, or another --runs (NFS: mount option actimeo)"
    return OK, f"same content both ways; there and back in {seconds:.1f} s", ""


def rename(facts: Facts, visit: Visit) -> Verdict:
    """A file that is replaced is old or new for a reader on another machine, never missing or torn."""
    found, fix = facts["shared"], "another --runs: a half-written file could pass for a finished one"
    if why := found.get("rename"):
        return FAILED, f"a file can't be replaced: {why}", fix
    if bad := facts.get("torn"):
        return FAILED, f"a reader met a missing or half-written file {bad} times while it was replaced", fix
    return (OK, "replacing a file is atomic, seen from here", "") if "torn" in facts else None


def locks(facts: Facts, visit: Visit) -> Verdict:
    """flock holds, and holds on all machines."""
    found = facts["shared"]
    if "error" in found:
        return None
    if (own := found.get("own lock")) != "taken":
        return FAILED, f"flock: {own}", "another --runs (Lustre: mount option flock)"
    if found["doctor lock"] == "taken":
        lost = "flock does not hold between machines: two submissions or jobs could write one folder"
        return WARNING, lost, "submit from one machine, or another --runs (Lustre: flock, not localflock)"
    return OK, "flock holds between machines", ""


def python(facts: Facts, visit: Visit) -> Verdict:
    """The same minor version as here; Slurm's commands, for ranks and requeues and jobs that submit more."""
    if missing := facts["commands"]:
        state = FAILED if "scontrol" in missing else WARNING
        return state, f"no {', '.join(missing)} on PATH there", "setup: [module load slurm], or export PATH=..."
    there, here = ".".join(map(str, facts["python"])), ".".join(map(str, sys.version_info[:3]))
    if facts["python"][:2] != list(sys.version_info[:2]):
        return WARNING, f"Python {there}, but {here} here", "python: the same in the profile as the one that submits"
    return OK, f"Python {there}", ""


def packages(facts: Facts, visit: Visit) -> Verdict:
    """What the cells of these jobs import can be imported."""
    if verdict := _error(facts, "packages", "look at python and setup in the profile"):
        return verdict
    found = facts["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    if found["failed"]:
        why = f"{found['failed']}: {found['why']} ({versions})"
        return FAILED, why, "pip install -r requirements.txt, for the python of the profile"
    return OK, f"{versions}; imported in {found['seconds']:.0f} s", ""


def writable(facts: Facts, visit: Visit) -> Verdict:
    """Scratch and cache can be made and written."""
    found = facts["writable"]
    if bad := [f"{place}: {why}" for place, why in found.items() if why]:
        return FAILED, bad[0], "scratch, cache: folders that can be made there"
    return (OK, ", ".join(found), "") if found else None


def keys(facts: Facts, visit: Visit) -> Verdict:
    """What is set here is set there."""
    if missing := facts["keys"]:
        return FAILED, f"not set in jobs: {', '.join(missing)}", "export them before submitting; unset SBATCH_EXPORT"
    return None


def paths(facts: Facts, visit: Visit) -> Verdict:
    """Models and data files that the study names."""
    if missing := facts["paths"]:
        return FAILED, f"no {', '.join(missing)}", "put it on a disk that nodes share, and name that path in the study"
    return None


def addresses(facts: Facts, visit: Visit) -> Verdict:
    """The endpoints' hosts, from the nodes of the stages that call them; others should know that they're offline."""
    found = facts["addresses"]
    if not found:
        return None
    bad = {address: why for address, why in found.items() if why}
    for address, why in bad.items():
        if users := visit.addresses[address]:
            fix = f"stages.{users[0]}: a partition whose nodes reach it, or another endpoint"
            return FAILED, f"{', '.join(users)} call {address}: {why}", fix
    if bad and not visit.profile.offline:
        return WARNING, f"no way to {', '.join(bad)}", "offline: true"
    return OK, f"no way to {', '.join(bad)}, as offline says" if bad else f"reaches {', '.join(found)}", ""


def gpus(facts: Facts, visit: Visit) -> Verdict:
    """As many GPUs as asked for, and a driver that runs torch's CUDA."""
    if verdict := _error(facts, "gpus", "torch must load: see packages"):
        return verdict
    found, asked = facts["gpus"], checks.gpus(visit.shape)
    versions = f"torch {found['torch']} for CUDA {found['built for']}, driver for CUDA {found['driver']}"
    if not found["built for"]:
        return FAILED, f"torch {found['torch']} is built without CUDA", "pip install -r requirements.txt"
    if found["driver"] and int(found["driver"].split(".")[0]) < int(found["built for"].split(".")[0]):
        return FAILED, f"the driver is too old: {versions}", "ask the site for a newer driver, or another partition"
    if len(found["cards"]) < asked:
        return FAILED, f"{len(found['cards'])} of {asked} GPUs seen; {versions}", "nvidia-smi there; tell the site"
    name, gib = found["cards"][0]
    return OK, f"{len(found['cards'])} x {name}, {gib} GiB; {versions}", ""


def all_reduce(facts: Facts, visit: Visit) -> Verdict:
    """Two nodes can add up numbers."""
    why = facts["all-reduce"].get("error", "")
    loads = "interfaces here" in why
    fix = "interface: the network between the nodes (ip -brief address there)" if loads else "see packages"
    if verdict := _error(facts, "all-reduce", fix):
        return verdict
    found = facts["all-reduce"]
    if not found["right"]:
        return FAILED, f"a wrong sum by {found['backend']}", "ask the site: the network or a GPU is broken"
    by = f"{found['backend']}, interface {visit.profile.interface or 'guessed'}"
    return OK, f"16 MiB in {found['seconds']:.2f} s by {by}", ""


# Name of the line -> the section of the facts it comes from, and who judges.
LINES: dict[str, tuple[str, Callable[[Facts, Visit], Verdict]]] = {
    "shared folder": ("shared", shared),
    "rename": ("shared", rename),
    "locks": ("shared", locks),
    "python": ("python", python),
    "packages": ("packages", packages),
    "scratch, cache": ("writable", writable),
    "keys": ("keys", keys),
    "models, data": ("paths", paths),
    "endpoints": ("addresses", addresses),
    "GPUs": ("gpus", gpus),
    "all-reduce": ("all-reduce", all_reduce),
}


def judged(visit: Visit, folder: Path) -> list[Check]:
    """The lines of a visit whose job wrote into `folder`."""
    name = f"{visit.label}: node"
    if visit.refusal:
        return [Check(name, UNKNOWN, f"sbatch refused a small job: {visit.refusal}", "change what it names")]
    if visit.queued and not visit.facts:
        waits = visit.queued.state == "PENDING"
        state = f"still waits in the queue ({visit.queued.reason})" if waits else "runs, but has said nothing yet"
        return [Check(name, UNKNOWN, f"job {visit.job} {state}", LONGER)]
    if not visit.facts:
        end = f"job {visit.job} ended ({ended(visit)})"
        if log := _log(visit, folder):
            return [Check(name, FAILED, f"{end}: {log}", "see python and setup in the profile")]
        lost = f"{end} and left nothing in {folder.parent}: the nodes see no such folder, or another one"
        return [Check(f"{visit.label}: shared folder", FAILED, lost, NOT_SHARED)]
    found, silent = [], _silent(visit, folder)
    for line, (section, judge) in LINES.items():
        told: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for facts in visit.facts:
            if section in facts["sections"] and (verdict := judge(facts, visit) if section in facts else silent):
                told[verdict].append(facts["host"])
        if told:
            state, what, fix = max(told, key=lambda verdict: (OK, WARNING, UNKNOWN, FAILED).index(verdict[0]))
            hosts = [host for verdict, hosts in told.items() for host in hosts if verdict[0] == state]
            found.append(Check(f"{visit.label}: {line}", state, f"{', '.join(hosts)}: {what}", fix))
    if lacking := visit.shape.nodes - len(visit.facts):
        lost = f"{lacking} of {visit.shape.nodes} nodes left nothing in {folder.parent}"
        found.append(Check(name, silent[0], lost, LONGER if visit.queued else f"{NOT_SHARED}; or leave that node out"))
    return found


def _silent(visit: Visit, folder: Path) -> tuple[str, str, str]:
    """The verdict on what a job did not write."""
    if visit.queued:
        return UNKNOWN, f"job {visit.job} has not said yet", LONGER
    return FAILED, f"job {visit.job} ended before it said: {_log(visit, folder)}", "see that line, or the node's state"


def ended(visit: Visit) -> str:
    """How Slurm says that a job ended."""
    line = scheduler._call("scontrol", "--oneliner", "show", "job", str(visit.job)).stdout
    words = dict(word.split("=", 1) for word in line.split() if "=" in word)
    return f"{words.get('JobState', 'gone')}, exit code {words.get('ExitCode', 'unknown')}"


def _log(visit: Visit, folder: Path) -> str:
    """The last line of the job's logs that says something; nothing where there are no logs."""
    logs = sorted((folder / "jobs").glob(f"{visit.job}_*log.*"))
    lines = [line.strip() for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if not NOISE.search(line)), lines[-1] if lines else "")
