"""Which prompt the documents are worth."""

from pathlib import Path
from typing import Any

import pytest

from analysis.prompts import prompt_rows
from analysis.run import run
from tests.analysis.small_study import study

MEANS = {"documents": 0.768, "weak": 0.5, "same": 0.75, "strong": 0.9, "untrained": 0.4}
PROMPTS = {"weak": "system minimal", "same": "system standard", "strong": "system detailed"}


def contrast(
    treatment: str, control: str, verdict: str, differences: tuple[str, ...] = ("corpus", "system")
) -> dict[str, Any]:
    return {
        "treatment": treatment,
        "control": control,
        "verdict": verdict,
        "differences": list(differences),
        "benchmark": "ahb",
        "dose": 0,
        "control_dose": 0,
    }


def results(*contrasts: dict[str, Any]) -> dict[str, Any]:
    arms = [{"benchmark": "ahb", "dose": 0, "arm": arm, "mean": MEANS[arm]} for arm in MEANS]
    return {"arms": arms, "contrasts": [*contrasts]}


def test_prompts_are_ordered_by_score_and_sorted_by_verdict() -> None:
    (row,) = prompt_rows(
        results(
            contrast("strong", "documents", "higher"),
            contrast("documents", "same", "inconclusive"),
            contrast("documents", "weak", "higher"),
            contrast("documents", "untrained", "higher", ("corpus",)),
            contrast("weak", "untrained", "higher", ("system",)),
        ),
        PROMPTS,
    )
    assert [(prompt["arm"], prompt["verdict"]) for prompt in row["prompts"]] == [
        ("weak", "higher"),
        ("same", "inconclusive"),
        ("strong", "lower"),
    ]
    assert row["worth"] == (
        "On ahb at SFT dose 0 the documents of documents (76.8) score above weak (50.0); "
        "are not told apart from same (75.0); score below strong (90.0)."
    )


def test_without_verdicts_nothing_is_claimed() -> None:
    (row,) = prompt_rows(results(contrast("documents", "weak", "none")), PROMPTS)
    assert "no contrast with one has a verdict" in row["worth"]
    assert prompt_rows(results(contrast("documents", "untrained", "higher")), {}) == []


@pytest.mark.usefixtures("undrawn")
def test_the_report_says_it(tmp_path: Path) -> None:
    context = study(tmp_path)
    context.settings["prompts"] = {"urban": "system minimal"}
    context.settings["contrasts"][0]["differences"] = ["corpus", "system"]
    run(context)
    report = (context.folder / "report.html").read_text()
    assert '<h2 id="prompts">Documents or a prompt</h2>' in report
    assert "On ahb at SFT dose 0 the documents of animal (" in report
    assert "score above urban (" in report and '<td class="wrap">system minimal</td>' in report
