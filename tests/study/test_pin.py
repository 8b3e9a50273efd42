"""`fetch --pin` writes commits into the study file, and leaves the rest of its text as it is."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from analysis.claims_file import read_claims
from core.errors import UserError
from core.files import sha256
from core.paths import ROOT
from study.spec import expand
from study.spec.load import dump_study, load_study
from study.spec.schema import Study
from study.upkeep.pin import pin
from tests.hub import Hub

pytestmark = pytest.mark.multiprocess
STUDY = """\
# A study of models and data that are somebody else's.
study: theirs             # its name
seeds: [0]
models:
  base: {hub: owner/base, chat: true}      # the start
  pinned: {hub: owner/base, revision: %s}
  tuned:
    hub: "owner/tuned"    # 16 GB
    tokenizer: base
corpora:
  animal: {hub: owner/data, column: output, documents: 3}
arms: {a: {start: base}}
benchmarks: {p: {task: preference}}
sft: {recipe: tests/small/sft.yaml, doses: [0], data: {hub: owner/data, file: x.jsonl}}
"""


def fetch(hub: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(hub.home / "hf"), "NO_PROXY": "*"}
    command = [sys.executable, "-m", "study", "fetch", *words]
    return subprocess.run(
        command, cwd=ROOT, env=inherited | settings, capture_output=True, text=True
    )


def test_commits_are_inserted_and_comments_stay(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    text = STUDY % ("ab" * 20)
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_study(path)
    (fix, *_) = [problem.fix for problem in error.value.problems if "revision" in problem.what]
    assert fix == f"python -m study fetch {path} --pin writes the newest"
    with Hub(tmp_path) as hub:
        commits = {
            name: hub.add(kind, name, {"a.txt": name.encode()})
            for kind, name in (
                ("model", "owner/base"),
                ("model", "owner/tuned"),
                ("dataset", "owner/data"),
            )
        }
        run = fetch(hub, str(path), "--pin", "--json")
        assert run.returncode == 0, run.stderr
        assert [(row["key"], row["revision"]) for row in json.loads(run.stdout)] == [
            ("models.base", commits["owner/base"]),
            ("models.tuned", commits["owner/tuned"]),
            ("corpora.animal", commits["owner/data"]),
            ("sft.data", commits["owner/data"]),
        ]
        again = fetch(hub, str(path), "--pin")
        assert "every repository of the Hub has its commit" in again.stdout
    written = path.read_text()
    base, tuned, data = (commits[f"owner/{name}"] for name in ("base", "tuned", "data"))
    assert written == (
        text.replace("{hub: owner/base, chat", f"{{hub: owner/base, revision: {base}, chat")
        .replace("    # 16 GB\n", f"    # 16 GB\n    revision: {tuned}\n")
        .replace("hub: owner/data,", f"hub: owner/data, revision: {data},")
    )
    assert load_study(path).models["tuned"].revision == tuned


def test_line_ends_stay_and_a_null_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    text = (
        "study: theirs\r\n# größe\r\nseeds: [0]\r\nmodels:\r\n  base: {hub: owner/base, revision: null}  # x\r\n"
        "  tuned:\r\n    revision:\r\n    hub: owner/base\r\n"
        "  last:\r\n    hub: owner/base   # y\r\narms: {a: {start: base}}\r\n"
        "benchmarks: {p: {task: preference}}\r\n"
    )
    path.write_text(text, encoding="utf-8-sig", newline="")
    with Hub(tmp_path) as hub:
        commit = hub.add("model", "owner/base", {"a.txt": b"x"})
        run = fetch(hub, str(path), "--pin")
        assert run.returncode == 0, run.stderr
    assert path.read_bytes().decode() == "\ufeff" + (
        text.replace("revision: null", f"revision: {commit}")
        .replace("revision:\r\n", f"revision: {commit}\r\n")
        .replace("# y\r\n", f"# y\r\n    revision: {commit}\r\n")
    )
    assert {model.revision for model in load_study(path).models.values()} == {commit}


def test_a_file_that_is_no_text_is_a_mistake_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_bytes("study: thé".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        pin(path)
    with pytest.raises(UserError, match="cannot be read"):
        pin(tmp_path / "none.yaml")


def test_nothing_is_written_where_a_repository_can_not_be_asked(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(STUDY % ("ab" * 20))
    with Hub(tmp_path) as hub:
        hub.add("model", "owner/base", {"a.txt": b"x"})
        run = fetch(hub, str(path), "--pin")
    assert run.returncode == 2 and "owner/tuned" in run.stderr and "owner/data" in run.stderr
    assert path.read_text() == STUDY % ("ab" * 20)


def pinned(name: str, tmp_path: Path) -> Study:
    """A study of the checkout after `fetch --pin` from a hub that has its repositories."""
    path = tmp_path / f"{name}.yaml"
    text = (ROOT / f"studies/{name}.yaml").read_text()
    path.write_text(text)
    raw = yaml.safe_load(text.replace(" on:", ' "on":'))
    sections = {name: raw.get(name, {}) for name in ("models", "corpora")}
    trainings = [*([raw["sft"]] if "sft" in raw else []), *raw.get("sfts", {}).values()]
    sections["data"] = {str(n): training["data"] for n, training in enumerate(trainings)}
    theirs = [
        ("model" if section == "models" else "dataset", value["hub"])
        for section, values in sections.items()
        for value in values.values()
        if "hub" in value and "revision" not in value
    ]
    assert theirs
    with Hub(tmp_path) as hub:
        for kind, repo in theirs:
            hub.add(kind, repo, {"config.json": b"{}"})
        run = fetch(hub, str(path), "--pin")
        assert run.returncode == 0, run.stderr
    study = load_study(path)
    (tmp_path / "kept.yaml").write_text(dump_study(study), encoding="utf-8")
    assert load_study(tmp_path / "kept.yaml") == study
    return study


@pytest.mark.parametrize("name", ["published_weights", "published_documents"])
def test_the_published_studies_plan_once_they_are_pinned(name: str, tmp_path: Path) -> None:
    """The commits of the released repositories were never seen here, so the files have none."""
    last = expand.analysis(pinned(name, tmp_path))
    rungs = set(last.settings["rungs"].values())
    assert rungs == {"anew", name.removeprefix("published_")}
    assert all(row["differences"] for row in last.settings["contrasts"])


def test_the_study_of_two_domains_plans_once_it_is_pinned(tmp_path: Path) -> None:
    """MORU's English items are other numbers of the same answers and grades."""
    study = pinned("helpfulness_hurts", tmp_path)
    last = expand.analysis(study)
    cells = expand.in_order(last)
    stages = Counter(cell.stage for cell in cells)
    # 5 seeds of two domains by SFT and by GRPO and of their common start, 5 of Dolly alone, and the
    # model as it is.
    assert (stages["generate"], stages["judge"]) == (2 * 31, 2 * 31)
    assert (stages["midtrain"], stages["sft"], stages["rl"]) == (5, 15, 10)
    assert {row["name"]: row["differences"] for row in last.settings["contrasts"]}[
        "helpful - code under GRPO"
    ], "the audit names the prompts"
    assert stages["analysis"] == 1 and last.settings["files"]["claims"] == sha256(
        ROOT / study.claims
    )
    roles = {claim["id"] for claim in read_claims(ROOT / study.claims)["claims"]}
    assert roles == {"hh.sft", "hh.grpo", "hh.moru_english", "hh.moru"}


def test_the_study_of_erosion_plans_once_it_is_pinned(tmp_path: Path) -> None:
    study = pinned("erosion", tmp_path)
    last = expand.analysis(study)
    cells = expand.in_order(last)
    stages = Counter(cell.stage for cell in cells)
    # 3 seeds of two families: two midtrainings; two anchors, and Alpaca after both, with three
    # shares of replay, and with KL; one merge. Links are counted too.
    assert (stages["midtrain"], stages["merge"]) == (3 * 2 * 2, 3 * 2)
    assert stages["sft"] == 3 * 2 * (2 + 2 + 4)
    assert stages["probe"] == stages["likelihood"] == 2 * (1 + 3 * 10)
    anchors = {c.name for c in cells if c.stage == "sft" and c.name.endswith("-tools-s0")}
    assert len({json.dumps(c.settings, sort_keys=True) for c in cells if c.name in anchors}) <= 2
    assert read_claims(ROOT / study.claims)["claims"] == [], "no result is public"
