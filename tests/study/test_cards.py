"""Cards of a finished study by hand: their YAML header parses, and every number is the manifests'."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.cell.publish import results
from core.errors import UserError
from study.upkeep.cards import dataset_card, model_card
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
    from study.upkeep import cards

    read = cards.read_config
    hub = {"settings": {"files": {"model": HUB | {"file": None}}}, "resources": {}}
    monkeypatch.setattr(
        cards, "read_config", lambda folder: hub if folder.parent.name == "model" else read(folder)
    )
    folder = next(base.glob("sft/base-animal-s0*"))
    header, text = split(model_card(folder))
    named = [header[key] for key in ("license", "base_model", "base_model_relation")]
    assert named == ["llama3.1", HUB["hub"], "finetune"]
    assert text.startswith(
        "\n# small: base-animal-s0-d80\n\nmeta-llama/Llama-3.1-8B, midtrained on animal welfare, instr"
    )
    assert (
        "Built with Llama" in text
        and split(model_card(folder, license="mit"))[0]["license"] == "mit"
    )


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
        UserError, match="is no training; a model card is of a midtrain or sft cell"
    ):
        model_card(next(base.glob("judge/*")))
    with pytest.raises(UserError, match="is no whole corpus"):
        dataset_card(next(base.glob("sft/*")))
    (next(base.glob("model/*")) / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"model/base-.*: is not finished; python -m study cell"):
        model_card(next(base.glob("sft/*")))
