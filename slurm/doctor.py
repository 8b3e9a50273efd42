"""Look at a cluster before anybody submits to it: one line per check, and one thing to do where it isn't well."""

import contextlib
import io
import json
import shutil
import signal
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from submitit.core.utils import FailedJobError, FailedSubmissionError

from core.cell.identity import Cell
from core.errors import UserError
from core.files import locked
from core.paths import ROOT
from core.stages import STAGE_INFO, STAGES, VLLM_STAGES
from slurm import checks, scheduler
from slurm.checks import FAILED, OK, UNKNOWN, WARNING, Check
from slurm.executor import executor
from slurm.findings import Visit, ended, judged
from slurm.probe import Probe, torn
from slurm.profile import Profile, Shape, load_profile
from slurm.snapshot import snapshot

MINUTES, MEM_GB = 5, 16.0  # at most, for a job that only looks around
LATE_SECONDS = 30  # a shared folder may show a job's last file this long after the job


def doctor(profile_path: Path, runs: Path, cells: list[Cell] | None, wait: float) -> list[Check]:
    """Check a cluster profile, Slurm, the `runs` folder and one node of each kind that the profile asks for.

    Small jobs look at the nodes; none is left behind, and those that have not ended after `wait` seconds are cancelled
    and told as not checked. `cells`: those of a study, whose
    endpoints, keys and models are then checked too.

    Raises UserError where the profile has mistakes.
    """
    profile = load_profile(profile_path)
    named = {cell.stage for cell in cells or ()} or set(STAGES)
    shapes: dict[Shape, list[str]] = defaultdict(list)
    for stage in STAGES:
        if stage in named:
            shapes[profile.shape(stage)].append(stage)
    found = [Check("profile", OK, f"{profile_path}: {len(shapes)} kinds of jobs for {len(named)} stages")]
    if cells is not None:
        found.append(checks.keys(cells))
    else:
        found.append(
            Check("study", UNKNOWN, "none given: no endpoints, keys, models", "name one: doctor STUDY --cluster NAME")
        )
    with scheduler.clean_environment():
        found.append(checks.commands())
        if found[-1].state == FAILED:
            return found
        try:
            cluster = checks.ask_cluster()
            requests = {s: checks.request(stages, s, profile, cluster) for s, stages in shapes.items()}
            found += requests.values()
            found.append(checks.arrays(profile))
            found.append(checks.submissions(profile, list(shapes), cluster))
            found.append(checks.accounting(list(shapes)))
            found.append(checks.requeue(profile, list(shapes), cluster))
            good = {s: stages for s, stages in shapes.items() if requests[s].state != FAILED}
            found += _on_nodes(profile, runs.absolute(), cells or [], good, wait)
        except UserError as error:
            found.append(checks.of_error("Slurm", error))
    return found


def show(found: list[Check]) -> str:
    """The report: a line per check, and how many there are of each state."""
    width = max(len(check.name) for check in found)
    lines = [
        f"{c.state:<12} {c.name:<{width}}  {c.found}" + (f"; {c.fix}" if c.fix and c.state != OK else "") for c in found
    ]
    counts = (f"{sum(c.state == state for c in found)} {state}" for state in (OK, WARNING, FAILED, UNKNOWN))
    return "\n".join([*lines, "", ", ".join(counts)])


def _on_nodes(
    profile: Profile, runs: Path, cells: list[Cell], shapes: dict[Shape, list[str]], wait: float
) -> list[Check]:
    try:
        with _place(runs) as folder:
            found = [Check("runs folder", OK, f"{runs} can be written"), checks.room(folder)]
            token = (folder / "token").read_text()
            code = snapshot(ROOT, folder / "slurm")
            visits = _visits(profile, shapes, cells)
            for visit in visits:
                _send(visit, folder, code, token, cells, wait)
            _await(visits, folder, token, wait)
            return found + [check for visit in visits for check in judged(visit, folder)]
    except OSError as error:
        return [Check("runs folder", FAILED, f"{error.filename or runs}: {error.strerror}", "another --runs")]


@contextlib.contextmanager
def _place(runs: Path) -> Iterator[Path]:
    """A fresh folder in `runs` with a token and a lock that is held. In the end, no job of it and no folder is left."""
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=runs))
    # A closed terminal and a plain kill shall tidy up as Ctrl-C does; what nohup ignores stays ignored.
    signals = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL]
    for number in signals:
        signal.signal(number, signal.default_int_handler)
    try:
        (folder / "token").write_text(uuid.uuid4().hex)
        with locked(folder / "lock"):
            yield folder
    finally:
        _leave_nothing(folder)
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


def _leave_nothing(folder: Path) -> None:
    end = time.monotonic() + 60  # longer than Slurm's KillWait on most clusters
    while time.monotonic() < end:
        with contextlib.suppress(UserError):
            # By the comment: an interrupted sbatch has told no id. What it misses, the jobs' deadline ends.
            jobs = [q.job for q in scheduler.queue() if q.comment == folder.name or (folder / f"sent-{q.job}").exists()]
            if not jobs:
                break
            scheduler.scancel(jobs)
        time.sleep(0.5)
    while folder.exists() and time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)


def _visits(profile: Profile, shapes: dict[Shape, list[str]], cells: list[Cell]) -> list[Visit]:
    """One visit for each partition, constraint and GPUs; of two nodes where any of its shapes has several."""
    groups: dict[tuple[Any, ...], list[Shape]] = defaultdict(list)
    for shape in shapes:
        groups[shape.partition, shape.constraint, shape.gpus_per_node].append(shape)
    found = []
    for (partition, constraint, gpus), group in groups.items():
        largest = max(group, key=lambda shape: shape.nodes)
        small = replace(
            largest,
            minutes=min(MINUTES, largest.minutes),
            nodes=min(2, largest.nodes),
            tasks_per_node=1,
            mem_gb=min(MEM_GB, largest.mem_gb) if largest.mem_gb else None,
        )
        words = [partition or "default partition", constraint, f"GPUs {gpus}" if gpus else None]
        stages = [stage for shape in group for stage in shapes[shape]]
        visit = Visit(" ".join(filter(None, words)), small, stages, profile)
        for cell in cells:
            if url := cell.resources.get("address", {}).get("base_url"):
                parts = urlsplit(url)
                port = parts.port or (80 if parts.scheme == "http" else 443)
                users = visit.addresses.setdefault(f"{parts.hostname}:{port}", [])
                users += [cell.stage] * (cell.stage in stages and cell.stage not in users)
        found.append(visit)
    return found


def _texts(value: Any) -> list[str]:
    """Every text in nested resources."""
    if isinstance(value, dict | list):
        return [text for one in (value.values() if isinstance(value, dict) else value) for text in _texts(one)]
    return [value] if isinstance(value, str) else []


def _send(visit: Visit, folder: Path, code: Path, token: str, cells: list[Cell], wait: float) -> None:
    modules = ["submitit", *dict.fromkeys(STAGE_INFO[stage].module for stage in visit.stages)]
    if VLLM_STAGES & set(visit.stages):
        modules.append("vllm.platforms.cuda" if visit.shape.gpus_per_node else "vllm")  # the first loads its kernels
    paths = {value for c in cells for value in _texts(c.resources) if Path(value).is_absolute()}
    # Files of the checkout are read from the snapshot.
    paths = {path for path in paths if not (Path(path).is_relative_to(ROOT) and Path(path).is_file())}
    hosts = [address.rsplit(":", 1) for address in visit.addresses]
    probe = Probe(
        str(folder),
        str(code),
        token,
        visit.profile.interface,
        checks.gpus(visit.shape),
        tuple(modules),
        tuple(filter(None, (visit.profile.scratch, visit.profile.cache))),
        tuple((host, int(port)) for host, port in hosts),
        tuple(sorted(paths)),
        tuple(checks.key_names(cells)),
    )
    # It never comes back once it is gone, and Slurm itself drops it should this process be killed.
    once = replace(visit.profile, requeue=0)
    sender = executor("doctor", visit.shape, once, code, folder / "jobs", comment=folder.name)
    sender.parameters["additional_parameters"]["deadline"] = f"now+{int(wait) + 60 * (visit.shape.minutes + 1)}"
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            visit.job = sender.submit(probe).job_id
        (folder / f"sent-{visit.job}").touch()
    except (FailedJobError, FailedSubmissionError) as error:
        visit.refusal = scheduler.last_line(str(error))


def _await(visits: list[Visit], folder: Path, token: str, wait: float) -> None:
    """Answer the nodes and gather what they write, until all have ended or `wait` seconds are over."""
    end, asked, over = time.monotonic() + wait, 0.0, 0.0
    seen: dict[str, dict[str, Any]] = {}
    while True:
        for ping in folder.glob("ping-*"):
            name = ping.name.removeprefix("ping-")
            if not ping.suffix and name not in seen:
                (folder / f"pong-{name}").touch()
                seen[name] = {"back": ping.read_text() == token, "torn": torn(folder / f"turning-{name}")}
        for visit in visits:
            with contextlib.suppress(OSError):  # NFS, where it is replaced between opening and reading
                visit.facts = _facts(folder, visit, seen)
        now = time.monotonic()
        if all(visit.whole or visit.refusal for visit in visits) or now > end or (over and now > over):
            return
        if now - asked > 1:
            with contextlib.suppress(UserError):  # no answer now is no news
                queue = {job.job: job for job in scheduler.queue()}
                for visit in visits:
                    visit.queued = queue.get(visit.job or "")
                if not over and not any(visit.queued for visit in visits):
                    done = any(ended(v).startswith(("COMPLETED", "gone")) for v in visits if v.job and not v.whole)
                    over = now + (LATE_SECONDS if done else 1)
            asked = now
        time.sleep(0.1)


def _facts(folder: Path, visit: Visit, seen: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    files = sorted(folder.glob(f"facts-{visit.job}-*.json"))
    return [json.loads(file.read_text()) | seen.get(file.stem.removeprefix("facts-"), {}) for file in files]
