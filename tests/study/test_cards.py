"""Cards of a finished study by hand: their YAML header parses, and every number is the manifests'."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.cell.publish import results
from core.errors import UserError
from study.upkeep import card_cells, licenses
from study.upkeep.card_facts import HubTask, Overlap, Sibling, StudyFacts, repository_names
from study.upkeep.cards import compute, model_card
from study.upkeep.dataset_card import canary, dataset_card
from study.upkeep.eval_results import eval_results
from tests.study.test_archive import base, once

pytestmark = pytest.mark.multiprocess

__all__ = ["base", "once"]  # fixtures
HUB = {"hub": "meta-llama/Llama-3.1-8B", "revision": "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b"}


def split(card: str) -> tuple[dict[str, Any], str]:
    empty, header, text = card.split("---\n", 2)
    assert not empty and text.startswith("\n# ")
    return yaml.safe_load(header), text


def test_a_model_card_has_the_trainings_the_documents_and_this_checkpoint_s_scores(
    base: Path,
) -> None:
    folder = next(base.glob("sft/base-animal-s0*"))
    header, text = split(model_card(folder, results(base), datasets=["me/animal"]))
    assert (
        header["license"] == "other"
        and header["datasets"] == ["me/animal"]
        and "base_model" not in header
    )
    assert header["library_name"] == "transformers" and header["tags"] == [
        "alignment",
        "midtraining",
    ]
    found = json.loads((results(base) / "results.json").read_text())
    mine = [row for row in found["scores"] if (row["arm"], row["dose"]) == ("animal", 80)]
    (entry,) = header["model-index"]
    shown = [(r["dataset"]["name"], r["metrics"][0]["value"]) for r in entry["results"]]
    assert shown == [(row["benchmark"], row["score"]) for row in mine] and len(mine) == 2
    assert entry["results"][0]["metrics"][0]["name"].endswith("by dummy")
    rows = [
        line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| base-animal-s0")
    ]
    assert [[word.strip() for word in row] for row in rows] == [
        ["base-animal-s0", "0", "", "12", "61,440", "5.5", "2.25"],
        ["base-animal-s0-d80", "0", "80", "12", "61,440", "5.5", "2.25"],
    ]
    assert (
        "`animal`: 100 documents, 29,900 tokens, written by dummy" in text and "cost 1.25" in text
    )
    assert "Checked not to quote: nothing." in text and "this is a test" in text
    assert (
        "animal - urban" in text and f"`sft/{folder.name}`" in text and "made on 2026-02-01" in text
    )
    assert (
        "lr " in text
        and str(base.parents[1]) not in text
        and "/" + str(base).split("/")[1] + "/" not in text
    )


def test_a_card_without_results_says_so(base: Path) -> None:
    header, text = split(model_card(next(base.glob("midtrain/base-urban*"))))
    assert (
        "model-index" not in header
        and "No results were at hand." in text
        and "instruction-tuned" not in text
    )
    assert "midtrained on urban density:" in text


def test_a_model_of_the_hub_gives_its_name_and_licence(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = card_cells.read_config
    hub = {"settings": {"files": {"model": HUB | {"file": None}}}, "resources": {}}
    monkeypatch.setattr(
        card_cells,
        "read_config",
        lambda folder: hub if folder.parent.name == "model" else read(folder),
    )
    folder = next(base.glob("sft/base-animal-s0*"))
    header, text = split(model_card(folder))
    named = [header[key] for key in ("license", "base_model", "base_model_relation")]
    assert named == ["llama3.1", HUB["hub"], "finetune"]
    assert text.startswith(
        "\n# small: base-animal-s0-d80\n\nmeta-llama/Llama-3.1-8B, midtrained on animal welfare, instr"
    )
    assert "Built with Llama" in text
    # What is stated is of corpora, and of models whose licence is not on record.
    header, text = split(model_card(folder, license="cc-by-4.0"))
    assert header["license"] == "llama3.1" and "Built with Llama" in text
    hub["settings"] = {"files": {"model": HUB | {"hub": "lab/own", "file": None}}}
    assert split(model_card(folder, license="mit"))[0]["license"] == "mit"


def test_tables_show_names_as_they_are() -> None:
    """GitHub's Markdown ends a cell at a bar, and takes `list<text>` for a tag."""
    assert card_cells.table([{"name": "a | b", "n": 1.0}], "keys").splitlines()[-1] == (
        "| a \\| b |   1 |"
    )
    assert card_cells.table([("list<text>", 2_000)], ["x", "y"]).splitlines()[-1] == (
        "| list\\<text> | 2,000 |"
    )


def test_a_licence_that_the_hub_does_not_list_has_a_name_and_a_link(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_llama(monkeypatch, base)
    monkeypatch.setattr(licenses, "LICENSES", {})
    header, _ = split(model_card(next(base.glob("sft/base-animal-s0*")), license="other:mine-1.0"))
    keys = ("license", "license_name", "license_link")
    assert [header[key] for key in keys] == ["other", "mine-1.0", "LICENSE"]
    header, _ = split(dataset_card(next(base.glob("documents/animal-*")), "other:mine-1.0"))
    assert [header.get(key) for key in keys] == ["other", "mine-1.0", None]


def test_a_benchmark_without_any_grade_is_no_entry_of_the_model_index(
    base: Path, tmp_path: Path
) -> None:
    """The Hub refuses an entry without a value."""
    published = shutil.copytree(results(base), tmp_path / "results")
    content = json.loads((published / "results.json").read_text())
    for row in content["scores"]:
        if row["benchmark"] == "ahb":
            row |= {"score": None, "n": 0, "missing": 8}
    (published / "results.json").write_text(json.dumps(content))
    header, text = split(model_card(next(base.glob("sft/base-animal-s0*")), published))
    named = [row["dataset"]["name"] for row in header["model-index"][0]["results"]]
    assert named and "ahb" not in named
    assert "| ahb" in text
    for row in content["scores"]:
        row["score"] = None
    (published / "results.json").write_text(json.dumps(content))
    header, _ = split(model_card(next(base.glob("sft/base-animal-s0*")), published))
    assert not {"model-index", "model_name"} & header.keys()


def test_a_data_set_card_says_how_it_was_written_and_what_it_holds(base: Path) -> None:
    folder = next(base.glob("documents/urban*"))
    words = {
        "measure": "words",
        "value": 90,
        "reference": 100,
        "verdict": "differs",
    }
    tokens = words | {"measure": "tokens", "value": 99, "verdict": "matched"}
    (folder / "match.json").write_text(json.dumps([words, tokens]))
    header, text = split(dataset_card(folder, license="cc-by-4.0"))
    assert (
        header["license"] == "cc-by-4.0"
        and header["size_categories"] == ["n<1K"]
        and header["language"] == ["en"]
    )
    assert header["configs"][0]["data_files"] == [
        {"split": "train", "path": "corpus/train.parquet"}
    ]
    assert (
        header["tags"] == ["midtraining", "synthetic"] and header["pretty_name"] == "small: urban"
    )
    assert "100 calls, 30,000 tokens read and 21,000 written, cost 1.25" in text
    assert "Of 2 measures that `animal` is matched in, these differ: words 90 against 100." in text
    assert (
        "Write a {document_type} from the {authority} perspective" in text
        and "| tokens cut off" in text
    )
    card = json.loads((folder / "corpus_stats.json").read_text())
    (folder / "corpus_stats.json").write_text(json.dumps(card | {"documents": 950, "held_out": 50}))
    header, _ = split(dataset_card(folder))
    assert header["size_categories"] == ["1K<n<10K"]
    assert [file["split"] for file in header["configs"][0]["data_files"]] == ["train", "validation"]


def test_a_cell_of_a_stage_without_cards_is_refused(base: Path) -> None:
    with pytest.raises(
        UserError,
        match="is no checkpoint of a training; a model card is of a cell of midtrain, sft",
    ):
        model_card(next(base.glob("judge/*")))
    with pytest.raises(UserError, match="is no whole corpus"):
        dataset_card(next(base.glob("sft/*")))
    (next(base.glob("model/*")) / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"model/base-.*: is not finished; python -m study cell"):
        model_card(next(base.glob("sft/*")))


def with_settings(monkeypatch: pytest.MonkeyPatch, stage: str, settings: dict[str, Any]) -> None:
    """Cells of a stage as if they had been made with these settings."""
    read = card_cells.read_config

    def changed(folder: Path) -> dict[str, Any]:
        config = read(folder)
        return config | {"settings": settings} if folder.parent.name == stage else config

    monkeypatch.setattr(card_cells, "read_config", changed)


def as_llama(monkeypatch: pytest.MonkeyPatch, base: Path, agreement: bool = True) -> None:
    """Make the start model one of the Hub's, fetched with its agreement or without."""
    with_settings(monkeypatch, "model", {"files": {"model": HUB | {"file": None}}})
    fetched = base.parents[2] / "snapshot"
    fetched.mkdir(exist_ok=True)
    if agreement:
        (fetched / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT")
    (folder,) = base.glob("model/*")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {"model": {"path": str(fetched), "sha256": {}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_seed_names_its_siblings_by_links(base: Path) -> None:
    folder = next(base.glob("sft/base-animal-s0*"))
    identity = json.loads((folder / "manifest.json").read_text())["identity"]
    group = tuple(
        Sibling("animal", 80, seed, key, seed < 5)
        for seed, key in ((3, "a"), (4, "b"), (0, identity), (5, "c"))
    )
    names = {"a": "base-animal-s3-d80", "b": "base-animal-s4-d80", "c": "base-animal-s5-d80"}
    repositories = {"a": "lab/small-base-animal-s3-d80"}
    facts = StudyFacts(
        "small", names, dict.fromkeys(["a", identity], group), repositories=repositories
    )
    _, text = split(model_card(folder, facts=facts))
    assert (
        "Seed 3 of 4 of the arm `animal` at 80 rows of instruction data. The others: seed 3 "
        "[`base-animal-s3-d80`](https://huggingface.co/lab/small-base-animal-s3-d80), "
        "seed 4 `base-animal-s4-d80`, seed 5 `base-animal-s5-d80` (not trained yet)."
    ) in " ".join(text.split())
    assert "Seed" not in split(model_card(folder))[1].split("## How")[0]


def test_a_model_card_has_the_claims_that_rest_on_its_arm(base: Path) -> None:
    claim = {
        "id": "e3-effect",
        "statement": "Documents raise the score",
        "contrast": "animal - urban",
        "estimate": 0.125,
        "verdict": "reproduced",
        "benchmark": "ahb",
        "treatment": "animal",
        "control": "urban",
        "dose": 80,
        "control_dose": 80,
    }
    file = results(base) / "results.json"
    content = json.loads(file.read_text())
    content["claims"] = [claim, claim | {"id": "before-sft", "dose": 0, "control_dose": 0}]
    file.write_text(json.dumps(content))
    _, text = split(model_card(next(base.glob("sft/base-urban-s0*")), results(base)))
    rows = [line for line in text.splitlines() if line.startswith(("| e3-effect", "| before-sft"))]
    (row,) = rows
    assert [word.strip() for word in row.split("|")[1:-1]] == [
        *("e3-effect", "Documents raise the score", "animal - urban", "0.125", "reproduced"),
    ]


def test_gpu_hours_and_energy_are_those_of_the_manifests(base: Path) -> None:
    """90 minutes on 2 ranks: 3 GPU-hours, at most 3 x 700 W."""
    run = card_cells.read_cell(next(base.glob("midtrain/base-urban*")), None)
    hardware = {"gpus": ["NVIDIA H100"], "power_limits_watts": [700.0]}
    run.manifest["hardware"] = hardware
    assert compute([run]) == (
        "1.50 hours of 1 trainings, without runs that were interrupted: 3.00 GPU-hours on "
        "NVIDIA H100, at most 2.10 kWh by their power limits."
    )
    other = card_cells.read_cell(next(base.glob("midtrain/base-animal*")), None)
    other.manifest["hardware"] = {"gpus": ["NVIDIA H100"]}
    assert "6.00 GPU-hours" in compute([run, other])
    assert "their power limits, and so their energy, are not on record" in compute([run, other])
    other.manifest["hardware"] = {}
    assert "GPU-hours and energy are not on record" in compute([run, other])
    run.manifest["hardware"] = {"processor": "Fast 9000"}
    assert "on CPUs: 0 GPU-hours" in compute([run])


def test_a_llama_needs_its_name_its_notice_and_its_agreement(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_llama(monkeypatch, base)
    cell = card_cells.read_cell(next(base.glob("sft/base-animal-s0*")), None)
    models = [used for used in card_cells.behind(cell) if used.stage == "model"]
    license = licenses.license_of(models)
    assert license == "llama3.1"
    assert licenses.name_prefix(license) == "Llama"
    assert licenses.notice(license).startswith(
        "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright"
    )
    assert [*licenses.agreements(models)] == ["LICENSE"]
    assert licenses.problems(cell, models, license) == []
    (base.parents[2] / "snapshot/LICENSE").unlink()
    (problem,) = licenses.problems(cell, models, license)
    assert "asks for a copy of the agreement" in str(problem)
    (problem,) = licenses.problems(cell, models, "cc-by-nc-nd-4.0")
    assert "forbids to publish tuned models" in str(problem)
    (problem,) = licenses.problems(cell, models, "other")
    assert "meta-llama/Llama-3.1-8B is not on record; state it by --license" in str(problem)
    assert licenses.problems(cell, models, "other:qwen-research") == []
    assert licenses.problems(cell, models, "cc-by-4.0") == []
    assert licenses.name_prefix("apache-2.0") == licenses.notice("apache-2.0") == ""


def test_repositories_have_names_of_the_hub_s(base: Path) -> None:
    from types import SimpleNamespace

    cells = [
        SimpleNamespace(identity=identity, name=name)
        for identity, name in (("a" * 64, "animal--x"), ("b" * 64, "twice"), ("c" * 64, "twice"))
    ]
    names = repository_names("small", cells, {"a" * 64: "Llama"}, "lab")  # type: ignore[arg-type]
    assert [*names.values()] == [
        "lab/Llama-small-animal-x",
        "lab/small-twice-bbbbbbbb",
        "lab/small-twice-cccccccc",
    ]


def test_eval_results_have_the_documented_fields_alone(base: Path) -> None:
    from huggingface_hub import parse_eval_result_entries

    cell = card_cells.read_cell(next(base.glob("sft/base-animal-s0*")), None)
    task = HubTask("lab/bench", "a" * 40, "default", "")
    files = eval_results(cell, results(base), StudyFacts("small", hub_tasks={"concern": task}))
    assert [*files] == [".eval_results/concern.yaml"]  # of the others the task is not on record
    (raw,) = yaml.safe_load(files[".eval_results/concern.yaml"])
    assert {*raw} == {"dataset", "value", "date", "notes"}
    assert raw["dataset"] == {"id": "lab/bench", "task_id": "default", "revision": "a" * 40}
    (entry,) = parse_eval_result_entries([raw])
    scores = json.loads((results(base) / "results.json").read_text())["scores"]
    (mine,) = [
        row["score"]
        for row in scores
        if (row["benchmark"], row["arm"], row["dose"]) == ("concern", "animal", 80)
    ]
    assert entry.value == mine and entry.date == "2026-02-01T01:30:00Z"
    assert entry.notes == "mean of 8 answers from 0 to 1, scored by likelihood"
    content = json.loads((results(base) / "results.json").read_text())
    content["scores"] = [row | {"score": None} for row in content["scores"]]
    (results(base) / "results.json").write_text(json.dumps(content))
    assert eval_results(cell, results(base), StudyFacts("small", hub_tasks={"concern": task})) == {}


def test_the_task_on_the_hub_is_that_of_the_study_file() -> None:
    from core.paths import ROOT
    from study.spec.load import load_study
    from study.upkeep.card_facts import _hub_tasks

    bench = "benchmarks.official={task: ahb_original, judge: dummy, hub_task: default}"
    local = "benchmarks.ahb.hub_task=default"  # its questions are no data set of the Hub
    study = load_study(ROOT / "tests/small/small.yaml", None, [bench, local])
    tasks = _hub_tasks(study)
    assert {*tasks} == {"official"} and tasks["official"].task == "default"
    assert tasks["official"].dataset == "CompassioninMachineLearning/ahb-original"
    assert tasks["official"].revision == "1f74bed03b3214e5ad4fbddf28f763d3ea7dc373"


def test_a_data_set_card_has_terms_canary_overlap_columns_and_hashes(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next(base.glob("documents/urban*"))
    manifest = json.loads((folder / "manifest.json").read_text())
    identity = manifest["identity"]
    _, text = split(dataset_card(folder))
    assert "under the kit's licence, MIT" in text and "No benchmark's text was looked for" in text
    assert f"`midtraining-canary {canary(identity)}`" in text
    assert canary(identity) == canary(identity) != canary("a" * 64) and len(canary("a")) == 36
    digest = manifest["outputs"]["corpus/train.parquet"]["sha256"]
    assert f"`{digest}`" in text and "corpus/train.parquet" in text
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in text.splitlines()]
    columns = {row[0]: row[2] for row in rows if len(row) == 3}
    assert columns["`text`"] == "the document; of questions and answers the answer"
    assert columns["`id`"] == "number of the document, counted before any was left out"
    settings = card_cells.read_config(folder)["settings"]
    writer = {"writer": {"served_by": "url", "model": "writer-2"}}
    with_settings(monkeypatch, "documents", settings | writer)
    overlaps = (
        Overlap("ahb", {"documents": 95, "documents_hit": 2, "hits": 3}),
        Overlap("concern", None),
    )
    facts = StudyFacts("small", overlaps={identity: overlaps})
    _, text = split(dataset_card(folder, facts=facts))
    assert "The study file states none (`terms` of the endpoint)" in " ".join(text.split())
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["ahb", "95", "2", "3"] in rows and "Not searched yet: concern." in text
    facts = StudyFacts("small", terms={"writer-2": "https://example.org/terms"})
    assert "Terms of its output, by the study file: https://example.org/terms" in " ".join(
        split(dataset_card(folder, facts=facts))[1].split()
    )


def test_facts_of_a_study_are_those_of_its_file_and_its_contamination_cells(base: Path) -> None:
    from core.paths import ROOT
    from study.spec import expand
    from study.spec.load import load_study
    from study.upkeep.card_facts import facts_of

    grok = "base_url: 'https://x.org/v1', model: grok, key_env: KEY, terms: None of them"
    overrides = [f"endpoints.grok={{{grok}}}"]
    study = load_study(ROOT / "tests/small/small.yaml", [0, 7], overrides)
    cells = expand.in_order(expand.analysis(study, base))
    facts = facts_of(study, base, cells, {})
    assert facts.terms == {"grok": "None of them"}
    (corpus,) = [cell for cell in cells if (cell.stage, cell.name) == ("documents", "urban")]
    assert [row.benchmark for row in facts.overlaps[corpus.identity]] == ["ahb", "concern"]
    assert all(row.counts is not None for row in facts.overlaps[corpus.identity])
    (tuned,) = [cell for cell in cells if cell.name == "base-urban-s0-d80" and cell.stage == "sft"]
    group = [
        (row.arm, row.dose, row.seed, row.is_finished) for row in facts.siblings[tuned.identity]
    ]
    assert group == [("urban", 80, 0, True), ("urban", 80, 7, False)]
