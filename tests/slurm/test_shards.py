"""On a real Slurm: several jobs write one corpus, and it is the corpus that one job writes."""

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from core.cell.identity import create_cell_dir
from core.cell.manifest import read_manifest
from core.cell.run import run_cell
from core.endpoints.client import PAID
from core.endpoints.ledger import read_ledger
from core.files import sha256
from slurm.profile import Profile, Resources
from slurm.submit import submit
from study.spec import expand as plan
from study.spec.load import load_study
from tests.slurm.places import Lab
from tests.slurm.test_limit import SMALL

pytestmark = pytest.mark.slurm

PROFILE = Profile(stages={"default": Resources(minutes=5, mem_gb=2.0)}, partition="cpu")


def test_a_corpus_by_three_jobs_is_that_of_one(lab: Lab, tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json")
    )
    study = load_study(SMALL, None, ["corpora.animal.shards=3", "corpora.animal.tokens=null"])
    (corpus,) = (
        c
        for c in plan.in_order(plan.analysis(study))
        if c.stage == "documents" and c.name == "animal"
    )
    shards = {role: cell for role, cell in corpus.inputs.items() if cell.stage == "drafts"}
    tokenizer = tmp_path / "tokenizer.json"
    resources = corpus.resources | {
        "files": {**corpus.resources["files"], "tokenizer": str(tokenizer)}
    }
    settings = corpus.settings | {
        "files": {**corpus.settings["files"], "tokenizer": sha256(tokenizer)}
    }
    shared = replace(corpus, settings=settings, inputs=shards, resources=resources)
    facts = submit([*shards.values(), shared], tmp_path / "runs/shared", PROFILE, "lab")
    assert (facts["submitted"], [job["tasks"] for job in facts["jobs"]]) == (4, [3, 1])
    lab.wait()

    alone = replace(shared, inputs={})
    assert alone.identity == shared.identity
    run_cell(create_cell_dir(alone, tmp_path / "alone"))
    there, here = tmp_path / "runs/shared" / shared.relpath, tmp_path / "alone" / alone.relpath
    manifest = read_manifest(there)
    assert manifest, (there / "log.txt").read_text()
    alone_counts = (read_manifest(here) or {})["counts"]
    assert manifest["counts"] == alone_counts | dict.fromkeys(PAID, 0), "its jobs had paid"
    assert (there / "documents.jsonl").read_bytes() == (here / "documents.jsonl").read_bytes()
    entries = read_ledger(there / "calls.jsonl")[0].values()
    assert entries and all(entry.copied_from for entry in entries)
