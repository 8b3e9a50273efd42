"""A whole study from a shell in which every variable that Slurm's commands, submitit and git read
is set to something that disturbs them.

`hostile_shell.yaml` lists them. It was made from

- the sections on environment variables of the manual pages of squeue, sacct, scancel, scontrol,
  sinfo, sbatch and srun (Debian's 22.05.8) and of git (2.39.5), but for those that the programs
  set for others;
- the names that `strings` shows in these programs and in libslurmfull.so, without those of
  messages and those by which git checks the files of a repository;
- the input variables of newer versions of sbatch, srun and squeue (24.11, 25.05), and those that
  options of these could have by their rule of names;
- the names in submitit's source.

Not in the list: SLURM_CONF, SLURM_CONF_SERVER and SLURM_JWT, by which a shell reaches its cluster,
and SLURM_CLUSTERS and SBATCH_CLUSTERS, which every command refuses.
"""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.cell.manifest import read_manifest
from study.spec import expand
from study.spec.load import load_study
from tests.place import ROOT, SMALL, Place, comparable
from tests.slurm.places import Fake, Kit, Lab
from tests.waiting import until

pytestmark = pytest.mark.slurm
LIST: dict[str, dict[str, list[str]]] = yaml.safe_load(
    (Path(__file__).parent / "hostile_shell.yaml").read_text()
)
# A person's configuration of git: new files are hidden, and a line of it is wrong.
_GIT = {
    "home/.gitconfig": "[core]\n\tworktree = /nowhere\n[status]\n\tshowUntrackedFiles = no\n",
    "xdg/git/config": "[core\n",
    "xdg/git/ignore": "*\n",
    "broken": "[core\n",
}


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of such a shell."""
    folder = tmp_path_factory.mktemp("shell")
    for name, text in _GIT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    hostile = {
        name: value.replace("FOLDER", str(folder))
        for by_value in LIST.values()
        for value, names in by_value.items()
        for name in names
    }
    return os.environ | hostile


def names(program: str) -> list[str]:
    return [name for listed in LIST[program].values() for name in listed]


def ask(shell: dict[str, str], *words: str) -> tuple[int, str]:
    result = subprocess.run(
        words, env=shell, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return result.returncode, result.stdout


def call(kit: Kit, shell: dict[str, str], command: str) -> dict[str, Any]:
    """One of the kit's commands in this shell."""
    result = subprocess.run(kit.words(command), env=shell, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def watch(kit: Kit, shell: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    words = [word for word in kit.words("status", "--watch", "1") if word != "--json"]
    with log.open("wb") as file:
        return subprocess.Popen(words, env=shell, stdout=file, stderr=subprocess.STDOUT)


def groups(kit: Kit) -> Iterator[tuple[str, list[list[str]]]]:
    """The jobs on record, with the identities of their tasks' cells."""
    tasks: dict[str, list[list[str]]] = {}
    for event in map(json.loads, (kit.base / "slurm/jobs.jsonl").read_text().splitlines()):
        if event["event"] == "submitting":
            tasks[event["group"]] = event["tasks"]
        if event["event"] == "submitted":
            yield event["job"], tasks[event["group"]]


def test_the_shell_disturbs_every_command(lab: Lab, shell: dict[str, str]) -> None:
    """Else the list would be harmless, and the test below would show nothing."""
    job = lab.ask("sbatch", "--parsable", "--output=/dev/null", "--hold", "--wrap=true").strip()
    clean = dict(os.environ)
    for words in (
        ("squeue", "--me", "--noheader"),
        ("sinfo", "--noheader"),
        ("scontrol", "show", "job", job),
        ("git", "status", "--porcelain"),
        ("git", "rev-parse", "HEAD"),
    ):
        assert ask(shell, *words) != ask(clean, *words), words
    assert ask(shell, "sbatch", "--output=/dev/null", "--wrap=true")[0], "a job went in"
    ask(shell, "scancel", job)
    assert job in lab.jobs(), "it was cancelled"


def test_sbatch_and_so_the_jobs_get_none_of_them(
    kit: Kit, fake: Fake, shell: dict[str, str]
) -> None:
    path = {"PATH": os.environ["PATH"]}
    assert call(kit, shell | path, "submit")["submitted"]
    lines = (fake.folder / "last-environment").read_text().splitlines()
    variables = {line.split("=", 1)[0] for line in lines}
    of_slurm = {name for program in LIST if program != "git" for name in names(program)}
    assert len(of_slurm) > 300 and not variables & of_slurm


def test_another_cluster_is_refused(lab: Lab, kit: Kit, shell: dict[str, str]) -> None:
    for name in ("SLURM_CLUSTERS", "SBATCH_CLUSTERS"):
        for command in ("submit", "cancel"):
            (kit.base / "slurm").mkdir(parents=True, exist_ok=True)
            (kit.base / "slurm/jobs.jsonl").touch()
            result = subprocess.run(
                kit.words(command), env=shell | {name: "big"}, capture_output=True, text=True
            )
            assert result.returncode == 2 and f"unset {name}" in result.stderr, result.stderr
    assert not lab.jobs()


@pytest.mark.nightly  # minutes
@pytest.mark.e2e
def test_a_study_is_submitted_watched_cancelled_and_submitted_again(
    one_machine: Place, lab: Lab, kit: Kit, tmp_path: Path, shell: dict[str, str]
) -> None:
    cells = expand.in_order(expand.analysis(load_study(SMALL)))
    facts = call(kit, shell, "submit")
    assert facts["submitted"] == facts["cells"] == len(cells)
    again = call(kit, shell, "submit")
    assert (again["submitted"], again["queued"] + again["finished"]) == (0, len(cells))
    watching = watch(kit, shell, tmp_path / "first.log")
    # Until a training runs, with others queued behind it.
    until(lambda: [*kit.base.glob("midtrain/*/log.txt")] or not lab.jobs())
    assert watching.poll() is None, (tmp_path / "first.log").read_text()
    total = call(kit, shell, "status")["total"]
    assert total["running"] and total["queued"] and not total["unknown"], total
    before = set(lab.jobs())
    cancelled = call(kit, shell, "cancel")["cancelled"]
    assert before <= {*cancelled} | {job.split("_")[0] for job in cancelled}
    lab.wait()
    watching.wait(60)
    first = (tmp_path / "first.log").read_text()
    assert "Traceback" not in first and "study submit" in first.splitlines()[-1], first

    finished = {c.identity for c in cells if read_manifest(kit.base / c.relpath)}
    facts = call(kit, shell, "submit")
    assert facts["submitted"] == len(cells) - len(finished) > 0
    assert (facts["finished"], facts["queued"]) == (len(finished), 0)
    watching = watch(kit, shell, tmp_path / "second.log")
    lab.wait()
    watching.wait(120)
    second = (tmp_path / "second.log").read_text()
    assert "Traceback" not in second
    assert call(kit, shell, "submit")["submitted"] == 0
    status = call(kit, shell, "status")
    assert status["total"]["done"] == len(cells) and not status["goes_on"], second
    verified = subprocess.run(kit.words("verify"), env=shell, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout + verified.stderr

    # The undisturbed bytes.
    (theirs,) = (one_machine.folder / "runs/small/analysis").iterdir()
    ours = kit.base / "analysis" / theirs.name
    for name in ("results.json", "tables/scores.tex", "report.html", "scores.parquet"):
        assert comparable(ours / name) == comparable(theirs / name), name
    for cell in cells:
        manifest = read_manifest(kit.base / cell.relpath)
        undisturbed = read_manifest(one_machine.folder / "runs/small" / cell.relpath)
        assert manifest and undisturbed and manifest["slurm_job"]
        for key in ("code", "environment"):
            assert manifest.get(key) == undisturbed.get(key), (cell.relpath, key)

    # No job twice: a cell was in one job of each submission, and ended once.
    times = Counter(i for _, tasks in groups(kit) for cells_ in tasks for i in cells_)
    assert all(n == (1 if identity in finished else 2) for identity, n in times.items()), times
    for cell in cells:
        log = (kit.base / cell.relpath / "log.txt").read_text()
        assert log.count(" finished: ") == 1, log
        assert log.count(" starts (") <= times[cell.identity], log
    if lab.accounting:  # what was cancelled before it could start is not listed
        columns = ("--allocations", "--noheader", "--parsable2", "--format=JobID,JobName")
        rows = [line.split("|") for line in lab.ask("sacct", *columns).splitlines()]
        ids = {job.split("_")[0] for job, name in rows if name.startswith("small-")}
        assert ids and ids <= {job for job, _ in groups(kit)}
