"""Identity, manifests, inputs and locks of cells: no stale cell passes for a finished one."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from core.cell import run as run_cell
from core.cell.context import StageContext
from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import check_inputs, code_version, read_manifest, write_manifest
from core.cell.stage import DistributedHooks
from core.errors import UserError
from core.files import locked, sha256, write_atomically
from core.paths import ROOT
from study.spec import expand as plan
from study.spec.load import load_study

TINY = ROOT / "studies/tiny.yaml"


def finished(base: Path, cell: Cell, **outputs: str) -> Path:
    folder = create_cell_dir(cell, base)
    for name, text in outputs.items():
        (folder / name).write_text(text)
    write_manifest(folder, read_config(folder), "", "", counts={}, warnings=[])
    return folder


def identities(*overrides: str) -> dict[str, str]:
    return {
        f"{c.stage} {c.name}": c.identity
        for c in plan.in_order(plan.analysis(load_study(TINY, None, list(overrides))))
    }


def test_a_changed_setting_changes_just_what_depends_on_it(tmp_path: Path) -> None:
    before, after = identities(), identities("corpora.urban.max_tokens=241")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if "urban" in name or name.startswith("analysis")}


def test_resources_and_names_are_not_identity() -> None:
    cell = Cell("midtrain", "a", {"lr": 1}, {}, {"path": "/here", "concurrency": 4})
    assert replace(cell, resources={}, name="b").identity == cell.identity
    assert replace(cell, settings={"lr": 2}).identity != cell.identity
    assert identities() == identities("concurrency=3")
    assert identities() == identities(
        "endpoints.dummy.requests_per_minute=600", "endpoints.dummy.timeout=9"
    )
    shared = identities("corpora.animal.shards=4")
    assert identities() == {
        name: identity for name, identity in shared.items() if not name.startswith("drafts")
    }
    assert len(shared) == len(identities()) + 4


def test_the_address_of_an_endpoint_is_not_identity_but_its_model_is() -> None:
    real = "endpoints.dummy={base_url: 'https://%s/v1', model: %s, key_env: KEY}"
    assert identities(real % ("a.example", "m")) == identities(real % ("b.example", "m"))
    assert identities(real % ("a.example", "m")) != identities(real % ("a.example", "n"))


def test_files_of_the_checkout_that_stages_read_are_identity() -> None:
    cells = plan.in_order(plan.analysis(load_study(TINY)))
    read = {
        str(Path(path).relative_to(ROOT)): cell.settings["files"][key]
        for cell in cells
        for key, path in cell.resources.get("files", {}).items()
    }
    assert read.keys() == {
        "analysis/claims/2604.13076v3.yaml",
        "analysis/report.css",
        "analysis/report.html.j2",
        "analysis/report.js",
        "core/endpoints/dummy_endpoint.yaml",
        "eval/data/anima_like/dimensions.jsonl",
        "eval/data/anima_like/questions.jsonl",
        "eval/data/concern_for_animals.jsonl",
        "recipes/data/llama3_chat.jinja",
        "recipes/data/neutral_chat.jsonl",
        "recipes/data/neutral_prose.txt",
    }
    assert all(sha256(ROOT / path) == digest for path, digest in read.items())


def test_seeds_differ_between_cells_and_purposes_and_repeat() -> None:
    contexts = [StageContext(Path(), identity, {}, {}, {}) for identity in identities().values()]
    seeds = {context.seed("order") for context in contexts} | {
        context.seed("torch") for context in contexts
    }
    assert len(seeds) == 2 * len(contexts)
    assert (
        contexts[0].seed("order", 1) == contexts[0].seed("order", 1) != contexts[0].seed("order", 2)
    )


def test_every_cell_has_a_folder_of_its_own_inside_the_study() -> None:
    places = [c.relpath for c in plan.in_order(plan.analysis(load_study(TINY)))]
    assert len(set(places)) == len(places) == 71
    assert not any(".." in place or place.startswith("/") for place in places)


@pytest.mark.multiprocess
def test_a_cell_without_its_inputs_says_which_and_how_to_make_them(tmp_path: Path) -> None:
    parent = Cell("documents", "animal", {"n": 1})
    child = create_cell_dir(Cell("midtrain", "m", {}, {"documents": parent}), tmp_path)
    with pytest.raises(
        UserError, match=f"needs documents .*; python -m study cell {tmp_path}/documents/animal-"
    ):
        check_inputs(child, read_config(child))
    folder = finished(tmp_path, parent, text="whole")
    assert check_inputs(child, read_config(child)) == {"documents": folder}
    (folder / "text").write_text("cut")
    with pytest.raises(UserError, match="missing or cut short"):
        check_inputs(child, read_config(child))


@pytest.mark.multiprocess
def test_outputs_of_equal_size_that_were_swapped_are_refused(tmp_path: Path) -> None:
    """Two score files of one size, each in the other's place: the results would be swapped too."""
    parents = {name: Cell("judge", name, {"arm": name}) for name in ("a", "b")}
    folders = {
        name: finished(tmp_path, cell, scores=f"score of {name}", **{"calls.jsonl": "{}"})
        for name, cell in parents.items()
    }
    child = create_cell_dir(Cell("analysis", "all", {}, parents), tmp_path)
    assert check_inputs(child, read_config(child)) == folders
    (folders["a"] / "calls.jsonl").write_text("[]")  # a record, from which nothing is computed
    assert check_inputs(child, read_config(child)) == folders
    contents = [(folders[name] / "scores").read_text() for name in ("a", "b")]
    for name, content in zip(("b", "a"), contents, strict=True):
        (folders[name] / "scores").write_text(content)
    with pytest.raises(UserError) as error:
        check_inputs(child, read_config(child))
    assert [problem.where for problem in error.value.problems] == [
        str(folder / "scores") for folder in folders.values()
    ]
    assert all(
        problem.what == "has another content than when its cell finished"
        and problem.fix.startswith("to make it anew: rm -rf ")
        for problem in error.value.problems
    )


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "1", "null", '"a"', '{"identity": 1}', '{"outputs": []}', "\udcff"]
)
def test_a_damaged_manifest_is_named_and_its_cell_is_unfinished(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path, Cell("documents", "animal", {"n": 1}), text="whole")
    path = folder / "manifest.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_manifest(folder) is None and read_manifest(folder) is None
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {path}: is cut short or edited, and counts as missing; ")
    assert warning.count("\n") == 1, "once in a process"


@pytest.mark.multiprocess
def test_a_cell_with_the_manifest_of_another_runs_again(tmp_path: Path) -> None:
    """What `check_inputs` prints makes it anew."""
    base = tmp_path / "runs" / "study"
    cells = [Cell("swapped", name, {"n": name}) for name in ("a", "b")]
    one, two = (finished(base, cell, text=cell.name) for cell in cells)
    manifests = [(folder / "manifest.json").read_text() for folder in (one, two)]
    for folder, manifest in zip((two, one), manifests, strict=True):
        (folder / "manifest.json").write_text(manifest)
    child = create_cell_dir(Cell("analysis", "all", {}, {"scores": cells[0]}), base)
    with pytest.raises(UserError, match=f"python -m study cell {one}"):
        check_inputs(child, read_config(child))
    ran: list[Path] = []

    def run(context: StageContext) -> dict[str, int]:
        ran.append(context.folder)
        return {}

    stage = SimpleNamespace(run=run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_cell, "_import_stage", lambda config: stage)
        run_cell.run_cell(one)
    assert ran == [one] and check_inputs(child, read_config(child)) == {"scores": one}


def test_a_config_edited_by_hand_is_refused(tmp_path: Path) -> None:
    folder = create_cell_dir(Cell("midtrain", "m", {"lr": 1}), tmp_path)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    other_settings = yaml.safe_dump({**config, "settings": {"lr": 2}})
    for edited in (other_settings, "settings: {lr: 2}", "- lr", "lr: [2", "", "inputs: [2]"):
        (folder / "config.yaml").write_text(edited)
        with pytest.raises(UserError, match="edited by hand"):
            read_config(folder)


def test_a_config_holds_every_text_that_a_study_file_can(tmp_path: Path) -> None:
    """PyYAML reads a folded U+0085 back as a line feed."""
    marks = "\t\n\r\x85\xa0\u2028\u2029\ufeff\ud7ff\U0001f404\x00\x1b:#'\"\\"
    settings = {f"prompt {n}": f"A hen{mark}and a cow." for n, mark in enumerate(marks)}
    for n, mark in enumerate(marks):
        settings |= {f"long {n}": f"A hen {mark} and a cow. " * 20, f"alone {n}": mark}
    settings |= {text: text for text in ("on", "null", "~", "1e-4", "0x1", "- a", "? b", "<<", "")}
    folder = create_cell_dir(Cell("midtrain", "m", settings), tmp_path)
    assert read_config(folder)["settings"] == settings


@pytest.mark.multiprocess
def test_a_folder_with_outputs_but_no_manifest_is_not_finished_and_starts_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed run left must not be taken for an output of the next."""
    cell = Cell("midtrain", "m", {})
    folder = create_cell_dir(cell, tmp_path)
    (folder / "model").mkdir()
    (folder / "model/half.safetensors").write_text("half")
    assert read_manifest(folder) is None
    seen = []

    class Stage:
        @staticmethod
        def run(context: StageContext) -> dict[str, int]:
            seen.extend(p.name for p in context.folder.iterdir())
            (context.folder / "out").write_text("x")
            return {"n": 1}

    monkeypatch.setattr(run_cell, "import_stage", lambda name: Stage)
    run_cell.run_cell(folder)
    manifest = read_manifest(folder)
    assert manifest and set(manifest["outputs"]) == {"config.yaml", "out"}
    assert "model" not in seen
    run_cell.run_cell(folder)
    assert seen.count("config.yaml") == 1, "a finished cell must do nothing"


@pytest.mark.multiprocess
def test_a_resumable_stage_finds_what_its_killed_run_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = create_cell_dir(Cell("midtrain", "m", {}), tmp_path)
    (folder / "steps").mkdir()
    (folder / "calls.jsonl").write_text("{}")
    (folder / "half.json.tmp12").write_text("half")
    present = set()

    class Stage:
        RESUMABLE = True

        @staticmethod
        def run(context: StageContext) -> dict[str, int]:
            present.update(path.name for path in context.folder.iterdir())
            return {}

    monkeypatch.setattr(run_cell, "import_stage", lambda name: Stage)
    run_cell.run_cell(folder)
    assert {"steps", "calls.jsonl"} < present and "half.json.tmp12" not in present


@pytest.mark.multiprocess
@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("word", ["go", "finished"])
def test_ranks_above_0_run_a_distributed_stage_when_rank_0_says_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distributed: bool, word: str
) -> None:
    folder = create_cell_dir(Cell("midtrain", "m", {}), tmp_path)
    ran = []

    class Stage:
        DISTRIBUTED = DistributedHooks(lambda: None, lambda text: text or word)

        @staticmethod
        def run(context: StageContext) -> dict[str, int]:
            ran.append(os.environ["RANK"])
            return {}

    if not distributed:
        del Stage.DISTRIBUTED
    monkeypatch.setattr(run_cell, "import_stage", lambda name: Stage)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    run_cell.run_cell(folder)
    assert ran == (["1"] if distributed and word == "go" else []) and not read_manifest(folder)
    monkeypatch.setenv("RANK", "0")
    run_cell.run_cell(folder)
    assert ran[-1] == "0" and read_manifest(folder)


@pytest.mark.multiprocess
def test_a_manifest_never_holds_half(tmp_path: Path) -> None:
    """A writer killed at any moment leaves the old file or the new one."""
    path = tmp_path / "manifest.json"
    write_atomically(path, json.dumps({"old": 1}))
    code = f"""
import pathlib, sys; sys.path.insert(0, {str(ROOT)!r})
from core.files import write_atomically
print("ready", flush=True)
while True: write_atomically(pathlib.Path({str(path)!r}), '{{"new": "' + "x" * 3_000_000 + '"}}')
"""
    for pause in (0.01, 0.03, 0.05):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert writer.stdout
        writer.stdout.readline()
        time.sleep(pause)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        assert set(json.loads(path.read_text())) < {"old", "new"}


@pytest.mark.multiprocess
def test_two_processes_never_run_one_cell_together(tmp_path: Path) -> None:
    """Both finish; the work is done once."""
    folder = create_cell_dir(Cell("documents", "d", {}), tmp_path)
    code = f"""
import sys, time, types; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from core.cell import run as run_cell
def run(work):
    with open({str(tmp_path / "ran")!r}, "a") as f: f.write("x")
    time.sleep(0.5); return {{}}
stage = types.SimpleNamespace(run=run)
run_cell.import_stage = lambda name: stage
run_cell.run_cell(Path({str(folder)!r}))
"""
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) for _ in range(2)
    ]
    assert [p.wait() for p in both] == [0, 0]
    assert (tmp_path / "ran").read_text() == "x"


def test_a_job_does_not_wait_long_for_another_that_runs_its_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold its GPUs idle."""
    folder = create_cell_dir(Cell("documents", "d", {}), tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(run_cell, "JOB_WAIT_SECONDS", 0.1)
    with locked(folder / ".lock"), pytest.raises(UserError, match="another process is running"):
        run_cell.run_cell(folder)


@pytest.mark.multiprocess
def test_manifests_hold_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRITER_KEY", "sk-very-secret")
    real = "endpoints.dummy={base_url: 'https://a.example/v1', model: m, key_env: WRITER_KEY}"
    for cell in plan.in_order(plan.analysis(load_study(TINY, None, [real]))):
        folder = finished(tmp_path, cell)
        for file in folder.iterdir():
            assert os.environ["WRITER_KEY"] not in file.read_text()


@pytest.mark.multiprocess
@pytest.mark.skipif(not shutil.which("git"), reason="no git on this machine")
def test_a_study_and_a_profile_of_ones_own_leave_the_code_as_committed(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words],
            check=True,
        )

    for folder in ("studies", "slurm/clusters"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "studies/tiny.yaml").write_text("seeds: [0]")
    (tmp_path / "slurm/job.py").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "studies/tiny.yaml").write_text("seeds: [0, 1]")
    (tmp_path / "slurm/clusters/mine.yaml").write_text("account: me")
    assert code_version(tmp_path)["commit"] and code_version(tmp_path)["dirty"] is False
    (tmp_path / "slurm/job.py").write_text("2")
    assert code_version(tmp_path)["dirty"] is True
