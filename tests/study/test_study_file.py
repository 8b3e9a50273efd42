"""The results are compared with the study file as it is now, and keep the one they were made of."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from core.cell.publish import publish, read_start, record_start, results
from core.errors import UserError
from core.paths import ROOT
from study import cli
from study.commands import run as run_command
from study.spec import expand
from study.spec.fingerprints import load_recipe_once
from study.spec.load import dump_study, load_study
from study.upkeep.provenance import lineage, published
from study.upkeep.study_file import find_differences
from tests.study.test_archive import SMALL, finished, members

pytestmark = pytest.mark.multiprocess  # manifests ask git

# Those of published repositories are read once they are pinned (tests/study/test_pin.py).
UNPINNED = {
    *ROOT.glob("studies/published_*.yaml"),
    ROOT / "studies/helpfulness_hurts.yaml",
    ROOT / "studies/erosion.yaml",
}
STUDIES = sorted({*ROOT.glob("studies/*.yaml")} - UNPINNED)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("study") / "runs")


def edited(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(SMALL.read_text()) | changes))
    return path


def differences(base: Path, study_file: Path, *overrides: str) -> list[str]:
    rows = lineage(published(base, ""), base, hashes=False)
    return find_differences(load_study(study_file, None, list(overrides)), base, rows)


@pytest.mark.parametrize("path", [SMALL, *STUDIES], ids=lambda path: path.stem)
def test_a_kept_study_file_is_read_as_the_same_study(path: Path, tmp_path: Path) -> None:
    study = load_study(path, [5, 6], ["concurrency=3"])
    (tmp_path / "kept.yaml").write_text(dump_study(study), encoding="utf-8")
    assert load_study(tmp_path / "kept.yaml") == study


def test_results_keep_their_study_file(base: Path) -> None:
    assert load_study(results(base) / "study.yaml") == load_study(SMALL)
    manifest = json.loads((results(base) / "manifest.json").read_text())
    assert "study.yaml" in manifest["outputs"]


def test_an_unchanged_study_and_one_with_other_comments_differ_in_nothing(
    base: Path, tmp_path: Path
) -> None:
    assert not differences(base, SMALL) and not differences(base, edited(tmp_path, concurrency=2))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("seeds=[0,1]", "midtrain base-animal-s1 and 15 more: not in the results"),
        ("sft.doses=[0]", "sft base-animal-s0-d80 and 7 more: no longer in the study"),
        ("sft.replay=0.5", "sft base-animal-s0-d80 and 1 more: replay"),
        ("benchmarks.ahb.judge_max_tokens=99", "judge ahb-base-animal-s0 and 3 more: max_tokens"),
        ("contrasts.0.name=another", "analysis small: contrasts"),
    ],
)
def test_an_edit_that_was_not_run_is_named(base: Path, override: str, named: str) -> None:
    assert any(text.startswith(named) for text in differences(base, SMALL, override))


def test_a_file_that_the_study_names_is_compared_too(base: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "sft.yaml"
    text = (ROOT / "tests/small/sft.yaml").read_text()
    recipe.write_text(text)
    assert not differences(base, SMALL, f"sft.recipe={recipe}")
    recipe.write_text(text.replace("lr: 5.0e-4", "lr: 1.0e-4"))
    load_recipe_once.cache_clear()
    assert "sft base-animal-s0-d80 and 1 more: recipe.lr" in differences(
        base, SMALL, f"sft.recipe={recipe}"
    )
    recipe.write_text((ROOT / "tests/small/midtrain.yaml").read_text())
    load_recipe_once.cache_clear()
    assert "can't be planned" in differences(base, SMALL, f"sft.recipe={recipe}")[0]


def test_results_of_an_unfinished_study_are_of_its_file(base: Path, tmp_path: Path) -> None:
    study = load_study(SMALL)
    left_out = {cell.identity for cell in expand.analysis(study).inputs.values()}
    partial = expand.analysis(study, without={min(left_out)})
    rows = lineage(published(base, ""), base, hashes=False)
    kept = [row for row in rows[:-1] if (row["manifest"] or {})["identity"] != min(left_out)]
    last = {"stage": "analysis", "config": {}, "manifest": {"identity": partial.identity}}
    assert not find_differences(study, base, [*kept, last])


def test_verify_and_archive_refuse_an_edited_study_file(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ("--runs", str(base.parent))
    archive = str(tmp_path / "a.tar.gz")
    path = str(edited(tmp_path, seeds=[0, 1]))
    assert cli.main(["verify", str(SMALL), *runs]) == 0
    assert cli.main(["verify", path, *runs]) == 1
    output = capsys.readouterr().out
    assert f"{path}: the published results are of another version of it: midtrain base" in output
    assert f"fix: python -m study run {path} --runs {base.parent}, or restore" in output
    assert cli.main(["archive", path, archive, *runs]) == 2
    assert not Path(archive).exists()
    # The command that the refusal prints packs the results with the study file that made them.
    command = capsys.readouterr().err.partition("as they are: python -m study ")[2].strip()
    assert cli.main(command.split()) == 0
    packed = members(Path(archive))
    assert yaml.safe_load(packed["small/study/study.yaml"])["seeds"] == [0]
    assert packed["small/study/study.yaml"] == packed["small/results/study.yaml"]


def test_a_renamed_benchmark_leaves_no_cell_out(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "renamed.yaml"
    path.write_text(SMALL.read_text().replace("ahb", "anima_x"))
    (difference,) = differences(base, path)
    assert difference.startswith("analysis small: ")


def test_archive_refuses_results_that_were_edited(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = shutil.copytree(base.parent, tmp_path / "my runs", symlinks=True)
    shutil.copytree(results(base), results(runs / "small"))
    table = results(runs / "small") / "tables/scores.tex"
    table.write_text("edited")
    archive = tmp_path / "a.tar.gz"
    assert cli.main(["archive", str(SMALL), str(archive), "--runs", str(runs)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(table) in line and "was edited" in line and not archive.exists()


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, whose results are of SMALL."""
    runs = shutil.copytree(base.parent, tmp_path / "my runs", symlinks=True)
    shutil.copytree(results(base), results(runs / "small"))
    return runs / "small"


def test_results_of_an_older_file_are_published_by_the_command_that_is_printed(
    copied: Path,
) -> None:
    """An edited file was submitted, and then an analysis of the former one ended."""
    (analysis,) = (copied / "analysis").iterdir()
    shutil.rmtree(results(copied))
    record_start(copied, "0" * 64)
    with pytest.raises(UserError) as error:
        publish(analysis, last_only=True)
    assert not results(copied).exists()
    command = error.value.problems[0].fix.partition("python -m study ")[2]
    assert cli.main(shlex.split(command)) == 0
    assert load_study(results(copied) / "study.yaml") == load_study(SMALL)
    assert read_start(copied)["analysis"] == expand.analysis(load_study(SMALL), copied).identity


def test_a_run_that_ends_after_another_start_ends_in_words(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (analysis,) = (copied / "analysis").iterdir()
    (analysis / "manifest.json").rename(analysis / "hidden")
    before = (results(copied) / "manifest.json").read_bytes()
    (results(copied) / "newer").touch()

    def meanwhile(*arguments: object) -> int:
        assert read_start(copied)["analysis"] == expand.analysis(load_study(SMALL)).identity
        record_start(copied, "0" * 64)  # by `submit` of another file
        (analysis / "hidden").rename(analysis / "manifest.json")
        return 0

    monkeypatch.setattr(run_command, "_run_cells", meanwhile)
    words = ["run", str(SMALL), "--runs", str(copied.parent)]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not published: what was started last, at 20" in line
    assert (results(copied) / "newer").exists()
    assert (results(copied) / "manifest.json").read_bytes() == before


def test_verify_says_that_the_results_are_of_an_older_file(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under Slurm the command that it prints is `submit`, with the profile."""
    path = edited(tmp_path, seeds=[0, 1])
    (copied / "slurm").mkdir()
    event = {"event": "submission", "cluster": "mine", "code": "x"}
    (copied / "slurm/jobs.jsonl").write_text(json.dumps(event) + "\n")
    words = ["--runs", str(copied.parent)]
    assert cli.main(["verify", str(path), *words]) == 1
    output = capsys.readouterr().out
    again = f"python -m study submit {path} {shlex.join(words)} --cluster mine"
    assert f"fix: {again}, or restore what was edited" in output
