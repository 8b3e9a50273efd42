"""The four kinds of site of docs/slurm.md, each walked from its profile to the last job."""

from pathlib import Path

import pytest
import yaml

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from slurm.profile import Profile, load_profile
from slurm.submit import submit
from slurm.until_done import until_done
from tests.slurm.places import Lab
from tests.slurm.test_limit import corpora
from tests.study.test_status_memory import finish

pytestmark = pytest.mark.slurm


def site(folder: Path, stages: dict[str, object], **more: object) -> Profile:
    path = folder / "site.yaml"
    default = {"minutes": 5, "mem_gb": 2}
    path.write_text(yaml.safe_dump({**more, "stages": {"default": default, **stages}}))
    return load_profile(path)


def all_done(cells: list[Cell], base: Path) -> bool:
    return all(read_manifest(base / cell.relpath) for cell in cells)


def test_the_four_kinds_of_site(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpora stand in for the stages with GPUs, so that a job takes seconds."""
    one = corpora(1)
    one_partition = site(tmp_path, {}, partition="cpu")
    submit(one, tmp_path / "one/runs/s", one_partition, "mine")
    gpus = {"minutes": 5, "mem_gb": 2, "partition": "gpu", "gpus_per_node": "h100:2"}
    typed = site(tmp_path, {"documents": gpus}, partition="cpu", offline=True)
    facts = submit(one, tmp_path / "typed/runs/s", typed, "mine")
    shown = lab.ask("scontrol", "show", "job", facts["jobs"][0]["job"])
    assert "Partition=gpu" in shown and "gpu:h100:2" in shown

    # No internet on nodes: what needs a corpus waits until it was made by hand.
    (corpus,) = one
    behind = Cell("labels", "behind", {"n": 1}, {"documents": corpus})
    base = tmp_path / "offline/runs/s"
    offline = site(tmp_path, {"documents": {"where": "login"}}, partition="cpu", offline=True)
    facts = submit([corpus, behind], base, offline, "mine")
    assert not facts["jobs"] and facts["behind"] == [behind.identity]
    finish(corpus, base)
    facts = submit([corpus, behind], base, offline, "mine")
    assert [job["stage"] for job in facts["jobs"]] == ["labels"] and not facts["login"]
    lab.ask("scancel", facts["jobs"][0]["job"])
    lab.wait()
    for name in ("one", "typed"):
        assert all_done(one, tmp_path / name / "runs/s")

    # Nodes may not submit: a shell does, within the limit.
    lab.only_here(tmp_path, monkeypatch)
    cells = corpora(4)
    limited = site(tmp_path, {}, partition="cpu", max_submit=3)
    lines: list[str] = []
    until_done(cells, tmp_path / "shell/runs/s", limited, "mine", lines.append, pause=0.5)
    assert all_done(cells, tmp_path / "shell/runs/s"), lines
