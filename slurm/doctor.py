"""Check a cluster before the first submission: one line per check, with a fix for each problem."""

import contextlib
import json
import shutil
import signal
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from core.cell.identity import Cell
from core.errors import UserError
from core.files import locked, write_atomically
from core.paths import ROOT
from core.stages import STAGE_INFO, STAGES, TRAINING_STAGES, VLLM_STAGES
from slurm import checks, slurm_cli
from slurm.checks import FAILED, OK, UNKNOWN, WARNING, Check
from slurm.cluster_limits import ask_cluster, gpus
from slurm.executor import executor, script, submit
from slurm.findings import Facts, Visit, ended, report_visit
from slurm.job_limits import job_limits
from slurm.probe import Probe, torn_reads
from slurm.profile import Profile, Resources, load_profile
from slurm.setup_lines import watched
from slurm.snapshot import snapshot
from slurm.submit import continuation_resources

# The most that a visiting job requests.
MINUTES = 10
MEM_GB = 16.0
RANK_GB = 4.0  # for each further task on a node
LATE_SECONDS = 30  # a shared folder may show a job's last file this long after the job
LEAVE_SECONDS = 60  # to cancel and tidy up: longer than Slurm's KillWait on most clusters
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTIBLE = (signal.SIG_DFL, signal.default_int_handler)

StagesByResources = dict[Resources, list[str]]


def doctor(
    profile_path: Path,
    runs: Path,
    cells: list[Cell] | None,
    wait: float,
    checkpoint_bytes: dict[str, int] | None = None,
) -> list[Check]:
    """Check a cluster profile, Slurm, the runs folder and one node of each kind requested.

    Small jobs visit the nodes. Those that have not ended after `wait` seconds are cancelled and
    reported as not checked. No job and no file is left behind.

    Args:
        profile_path: A profile's file, or its name in slurm/clusters.
        runs: The folder of the cells.
        cells: Those of a study, whose endpoints, keys and models are checked too. None: no study.
        wait: Seconds.
        checkpoint_bytes: Size of the largest step checkpoint of each stage that trains.

    Raises:
        UserError: The profile has mistakes.
    """
    profile = load_profile(profile_path)
    used = {cell.stage for cell in cells or ()} or set(STAGES)
    used -= {stage for stage in STAGES if profile.is_on_login(stage)}
    by_resources: StagesByResources = defaultdict(list)
    for stage in STAGES:
        if stage in used:
            by_resources[profile.resources(stage)].append(stage)
    kinds = f"{len(by_resources)} kinds of jobs for {len(used)} stages"
    report = [Check("profile", OK, f"{profile_path}: {kinds}")]
    if cells is not None:
        report.append(checks.keys(cells))
    else:
        fix = "name one: doctor STUDY --cluster NAME"
        report.append(Check("study", UNKNOWN, "none given: no endpoints, keys, models", fix))
    with slurm_cli.clean_environment():
        report.append(checks.commands())
        if report[-1].state == FAILED:
            return report
        try:
            cluster = ask_cluster()
            requests = {
                resources: checks.request(stages, resources, profile, cluster)
                for resources, stages in by_resources.items()
            }
            report += requests.values()
            report.append(checks.arrays(profile))
            report.append(checks.submit_limits(profile, list(by_resources), cluster))
            report.append(checks.accounting(list(by_resources)))
            report.append(checks.requeue(profile, list(by_resources), cluster))
            possible = {
                resources: stages
                for resources, stages in by_resources.items()
                if requests[resources].state != FAILED
            }
            visits = _visits(profile, possible, cells or [])
            limited = bool(job_limits(profile, cluster, profile.resources("default")))
            for visit in visits:
                sizes = [(checkpoint_bytes or {}).get(stage, 0) for stage in visit.stages]
                visit.checkpoint_bytes = max(sizes)
                visit.limited = limited
            report += _visit_nodes(visits, runs.absolute(), cells or [], wait)
        except UserError as error:
            report.append(checks.of_error("Slurm", error))
    return report


def show(report: list[Check]) -> str:
    """The report as text: a line per check, and the number of checks in each state."""
    width = max(len(check.name) for check in report)
    lines = []
    for check in report:
        fix = f"; {check.fix}" if check.fix and check.state != OK else ""
        lines.append(f"{check.state:<12} {check.name:<{width}}  {check.finding}{fix}")
    counts = [
        f"{sum(check.state == state for check in report)} {state}"
        for state in (OK, WARNING, FAILED, UNKNOWN)
    ]
    return "\n".join([*lines, "", ", ".join(counts)])


def _visit_nodes(visits: list[Visit], runs: Path, cells: list[Cell], wait: float) -> list[Check]:
    try:
        with _interrupts() as interrupts, _temporary_folder(runs) as folder:
            report = [Check("runs folder", OK, f"{runs} can be written"), checks.room(folder)]
            token = (folder / "token").read_text()
            code = snapshot(ROOT, folder / "slurm")
            for visit in visits:
                _send(visit, _probe(visit, folder, code, token, cells), wait)
            _await(visits, folder, token, wait, interrupts)
            return report + [check for visit in visits for check in report_visit(visit, folder)]
    except OSError as error:
        finding = f"{error.filename or runs}: {error.strerror}"
        return [Check("runs folder", FAILED, finding, "another --runs")]


@dataclass
class Interrupts:
    """Whether a signal has asked this process to end.

    Its handler raises KeyboardInterrupt. Python drops an exception that is raised in a destructor,
    such as the one of each subprocess.Popen, so who waits must check, too.
    """

    received: bool = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the signal and raise (a handler for signal.signal)."""
        self.received = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt where a signal has been received."""
        if self.received:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _interrupts() -> Iterator[Interrupts]:
    """Take a closed terminal and a plain kill for Ctrl-C: all must tidy up.

    What nohup ignores stays ignored.
    """
    interrupts = Interrupts()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {n: old for n, old in handlers.items() if old in INTERRUPTIBLE}
    for number in handlers:
        signal.signal(number, interrupts.handle)
    try:
        yield interrupts
    finally:
        for number, old in handlers.items():
            signal.signal(number, old)


@contextlib.contextmanager
def _temporary_folder(runs: Path) -> Iterator[Path]:
    """A fresh folder in `runs` with a token, and a lock that is held.

    At the end its jobs are cancelled and the folder is removed.
    """
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=runs))
    try:
        (folder / "token").write_text(uuid.uuid4().hex)
        with locked(folder / "lock"):
            yield folder
    finally:
        _clean_up(folder)


def _clean_up(folder: Path) -> None:
    deadline = time.monotonic() + LEAVE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(UserError):
            # By the comment, since an interrupted sbatch gave no id. The jobs' deadline ends
            # those that this misses.
            jobs = [
                job.job
                for job in slurm_cli.queue()
                if folder.name in job.comment or (folder / f"sent-{job.job}").exists()
            ]
            if not jobs:
                break
            slurm_cli.scancel(jobs)
        time.sleep(0.5)
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)


def _visits(profile: Profile, by_resources: StagesByResources, cells: list[Cell]) -> list[Visit]:
    """One visit for each partition, constraint and kind of GPUs.

    It goes to two nodes where one of its stages requests several, with as many tasks on each as the
    stage has: trainings have one a GPU.
    """
    groups: dict[tuple[str | None, str | None, int | str], list[Resources]] = defaultdict(list)
    for resources in by_resources:
        groups[resources.partition, resources.constraint, resources.gpus_per_node].append(resources)
    visits = []
    for (partition, constraint, gpus_per_node), group in groups.items():
        largest = max(group, key=lambda resources: (resources.nodes, resources.tasks_per_node))
        mem_gb = MEM_GB + RANK_GB * (largest.tasks_per_node - 1)
        small = replace(
            largest,
            minutes=min(MINUTES, largest.minutes),
            nodes=min(2, largest.nodes),
            mem_gb=min(mem_gb, largest.mem_gb) if largest.mem_gb else None,
        )
        gpu_words = f"GPUs {gpus_per_node}" if gpus_per_node else None
        words = [partition or "default partition", constraint, gpu_words]
        stages = [stage for resources in group for stage in by_resources[resources]]
        visit = Visit(" ".join(filter(None, words)), small, stages, profile)
        for cell in cells:
            if url := cell.resources.get("address", {}).get("base_url"):
                users = visit.addresses.setdefault(_host_and_port(url), [])
                if cell.stage in stages and cell.stage not in users:
                    users.append(cell.stage)
        visits.append(visit)
    return visits


def _host_and_port(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    return f"{parts.hostname}:{port}"


def _strings(value: Any) -> list[str]:
    """Every string in nested resources."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def _probe(visit: Visit, folder: Path, code: Path, token: str, cells: list[Cell]) -> Probe:
    """The callable that the job runs on each node."""
    modules = ["submitit", *dict.fromkeys(STAGE_INFO[stage].module for stage in visit.stages)]
    if VLLM_STAGES & set(visit.stages):
        # The CUDA platform module loads vLLM's kernels.
        modules.append("vllm.platforms.cuda" if visit.resources.gpus_per_node else "vllm")
    strings = {text for cell in cells for text in _strings(cell.resources)}
    paths = {
        text
        for text in strings
        if Path(text).is_absolute()
        # Files of the checkout are read from the snapshot.
        and not (Path(text).is_relative_to(ROOT) and Path(text).is_file())
    }
    hosts = [address.rsplit(":", 1) for address in visit.addresses]
    return Probe(
        folder=str(folder),
        code=str(code),
        token=token,
        interface=visit.profile.interface,
        gpus=gpus(visit.resources),
        modules=tuple(modules),
        writable=tuple(filter(None, (visit.profile.scratch, visit.profile.cache))),
        addresses=tuple((host, int(port)) for host, port in hosts),
        paths=tuple(sorted(paths)),
        keys=tuple(checks.key_names(cells)),
        script=_continuation_script(visit, code),
        trains=bool(set(TRAINING_STAGES) & set(visit.stages)),
        vllm=bool(VLLM_STAGES & set(visit.stages)),
        compiles=bool(visit.resources.gpus_per_node)
        or any(cell.resources.get("compile") for cell in cells if cell.stage in visit.stages),
    )


def _continuation_script(visit: Visit, code: Path) -> str:
    """The batch script of a job that submits more; whether it is refused here goes to the visit."""
    jobs = executor("continue", continuation_resources(visit.profile), visit.profile, code, code)
    visit.refused_here = slurm_cli.test_submission(script(jobs)) or ""
    return script(jobs)


def _send(visit: Visit, probe: Probe, wait: float) -> None:
    """Submit the visit's job; on failure set its `refusal`."""
    folder = Path(probe.folder)
    # The job is never requeued, and has a deadline in case this process is killed.
    profile = replace(visit.profile, requeue=0, setup=watched(visit.profile.setup, folder))
    sender = executor(
        "doctor",
        visit.resources,
        profile,
        Path(probe.code),
        folder / "jobs",
        group=f"{folder.name}-{visit.stages[0]}",
    )
    deadline = int(wait) + 60 * (visit.resources.minutes + 1)
    sender.parameters["additional_parameters"]["deadline"] = f"now+{deadline}"
    result = submit(sender, [probe])
    visit.job = slurm_cli.submitted_id(result)
    if visit.job:
        (folder / f"sent-{visit.job}").touch()
    else:
        visit.refusal = slurm_cli.reason(result.stderr + result.stdout)


def _await(
    visits: list[Visit], folder: Path, token: str, wait: float, interrupts: Interrupts
) -> None:
    """Answer the nodes' pings and gather their facts.

    Returns when all jobs have ended, or after `wait` seconds.
    """
    deadline = time.monotonic() + wait
    asked = 0.0
    late_deadline = 0.0  # set once no job is queued any more
    answered: dict[str, Facts] = {}  # job and rank -> facts seen from this side
    while True:
        interrupts.check()
        for ping in folder.glob("ping-*"):
            name = ping.name.removeprefix("ping-")
            if not ping.suffix and name not in answered:
                write_atomically(folder / f"pong-{name}", repr(time.time()))
                torn = torn_reads(folder / f"replaced-{name}")
                answered[name] = {"back": ping.read_text() == token, "torn": torn}
        for visit in visits:
            # On NFS, reading fails where the file is replaced between opening and reading.
            with contextlib.suppress(OSError):
                visit.facts = _read_facts(folder, visit, answered)
        now = time.monotonic()
        if all(visit.complete or visit.refusal for visit in visits) or now > deadline:
            return
        if late_deadline and now > late_deadline:
            return
        if now - asked > 1:
            with contextlib.suppress(UserError):  # no answer: the queue stays as it was last seen
                _update_queued(visits)
                if not late_deadline and not any(visit.queued for visit in visits):
                    late_deadline = now + (LATE_SECONDS if _any_late(visits) else 1)
            asked = now
        time.sleep(0.1)


def _update_queued(visits: list[Visit]) -> None:
    queue = {job.job: job for job in slurm_cli.queue()}
    for visit in visits:
        visit.queued = queue.get(visit.job or "")


def _any_late(visits: list[Visit]) -> bool:
    """Whether a job ended well whose facts have not all shown in the shared folder."""
    incomplete = [visit for visit in visits if visit.job and not visit.complete]
    return any(ended(visit).startswith(("COMPLETED", "gone")) for visit in incomplete)


def _read_facts(folder: Path, visit: Visit, answered: dict[str, Facts]) -> list[Facts]:
    files = sorted(folder.glob(f"facts-{visit.job}-*.json"))
    return [
        json.loads(file.read_text()) | answered.get(file.stem.removeprefix("facts-"), {})
        for file in files
    ]
