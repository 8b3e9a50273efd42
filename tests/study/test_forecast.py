"""The forecast of writing against sums done by hand, and beside what writing took."""

from pathlib import Path

import pytest

from core.cell.identity import create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.paths import ROOT
from study.forecast.corpus_cost import compare, forecast, total
from study.spec import expand as plan
from study.spec.load import load_study
from study.spec.template import template_content

REAL = (
    "endpoints.dummy={base_url: 'https://x.example/v1', model: m, key_env: K, requests_per_minute: 600,"
    " tokens_per_minute: 1000000, prompt_price: 0.1, completion_price: 0.4}"
)
SIZES = ("corpora.animal.documents=2700", "corpora.urban.documents=2700")


def rows(*overrides: str) -> list[dict]:
    study = load_study(ROOT / "studies/tiny.yaml", None, [REAL, *SIZES, *overrides])
    return forecast(plan.in_order(plan.analysis(study)), set())


def test_calls_tokens_cost_and_hours_by_hand() -> None:
    animal, urban = rows()
    prompt = round(1.2 * len(template_content("animal_welfare", None, False)["prompt"]) / 4)
    assert (animal["corpus"], animal["calls"]) == ("animal", 2700)
    assert animal["prompt_tokens"] == 2700 * prompt and animal["completion_tokens"] == 2700 * 1100
    assert abs(animal["cost"] - (2700 * prompt * 0.1 + 2700 * 1100 * 0.4) / 1e6) < 1e-9
    # 10 s a call, 16 at a time, is slower here than 600 calls and 1,000,000 tokens a minute: 4.5
    # and 3.8 minutes.
    assert abs(animal["hours"] - 2700 * 10 / 16 / 3600) < 1e-9
    together = total([animal, urban])
    assert together["calls"] == 5400 and together["hours"] == animal["hours"] + urban["hours"], (
        "one endpoint's rates"
    )


def test_a_rate_that_binds_sets_the_hours_and_shards_multiply_what_is_open() -> None:
    many = rows("corpora.animal.shards=64")[0]
    assert abs(many["hours"] - 2700 / 600 / 60) < 1e-9
    slow = rows("corpora.animal.shards=64", "endpoints.dummy.tokens_per_minute=100000")[0]
    assert (
        abs(slow["hours"] - (slow["prompt_tokens"] + slow["completion_tokens"]) / 100_000 / 60)
        < 1e-9
    )


def test_questions_and_answers_are_two_calls() -> None:
    pairs = rows("corpora.animal.template=qa_pairs")[0]
    assert pairs["calls"] == 5400 and pairs["completion_tokens"] == 2700 * (60 + 74)


def test_a_grade_is_one_more_call_that_reads_the_document() -> None:
    plain, graded = (
        rows()[0],
        rows("corpora.animal.quality_filter={min_score: 6, prompt: 'Grade {document}'}")[0],
    )
    assert (
        graded["calls"] == 2 * plain["calls"]
        and graded["completion_tokens"] == plain["completion_tokens"] + 2700 * 5
    )
    assert graded["prompt_tokens"] == plain["prompt_tokens"] + 2700 * (1100 + 4)


def test_what_is_written_needs_nothing() -> None:
    study = load_study(ROOT / "studies/tiny.yaml", None, [REAL])
    cells = plan.in_order(plan.analysis(study))
    done = {cell.identity for cell in cells if cell.name == "animal"}
    assert [row["corpus"] for row in forecast(cells, done)] == ["urban"]


@pytest.mark.multiprocess
def test_what_is_written_stands_beside_its_forecast(tmp_path: Path) -> None:
    study = load_study(ROOT / "studies/tiny.yaml", None, [REAL, *SIZES, "corpora.animal.shards=2"])
    cells = plan.in_order(plan.analysis(study))
    planned = forecast(cells, set())[0]
    counts = {"calls": 2710, "prompt_tokens": 900_000, "completion_tokens": 3_100_000, "cost": 1.33}
    times = {
        "drafts": ("2026-01-31T23:30:00Z", "2026-02-01T01:00:00Z"),
        "documents": ("2026-02-01T01:10:00Z",) * 2,
    }
    assert compare(cells, tmp_path) == []
    for cell in (
        c for c in cells if c.stage == "model" or (c.name.startswith("animal") and c.stage in times)
    ):
        folder = create_cell_dir(cell, tmp_path)
        found = counts if cell.stage == "documents" else {}
        write_manifest(
            folder, read_config(folder), *times.get(cell.stage, ("", "")), counts=found, warnings=[]
        )
    (row,) = compare(cells, tmp_path)
    hours = row["actual"].pop("hours")
    assert abs(hours - 100 / 60) < 1e-9 and row["actual"] == counts | {"calls_estimated": 0}
    assert (
        row["corpus"] == "animal"
        and row["forecast"].items() <= planned.items()
        and len(row["forecast"]) == 5
    )
    assert [
        row["corpus"] for row in forecast(cells, {c.identity for c in cells if c.name == "animal"})
    ] == ["urban"]
