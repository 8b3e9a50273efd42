"""The lesson of `report --lesson`: its numbers are those of the results, its page is one file."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from analysis.lesson import LEVEL, Lesson, lesson_page, make_lesson, null_studies
from core.errors import UserError
from core.paths import ROOT
from study.commands.report import write_lesson
from study.spec import expand
from study.spec.load import load_study
from tests.analysis.small_study import run, study

SEEDS = 5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], pd.DataFrame]:
    context = study(tmp_path_factory.mktemp("lesson"), seeds=SEEDS)
    run(context)
    results = json.loads((context.folder / "results.json").read_text())
    table = pd.read_parquet(context.folder / "scores.parquet")
    # A training's seed moves all of its answers.
    for (arm, seed), rows in table.groupby(["arm", "seed"]):
        shift = 0.04 * ((hash_of(arm) + 3 * int(seed)) % 5)
        table.loc[rows.index, "score"] = (rows["score"] + shift).clip(0, 1)
    return results, table


def hash_of(arm: str) -> int:
    return sum(map(ord, arm))


@pytest.fixture(scope="module")
def lesson(made: tuple[dict[str, Any], pd.DataFrame]) -> Lesson:
    return make_lesson(*made)


def test_the_null_study_is_all_pairs_of_trainings_of_one_arm(
    made: tuple[dict[str, Any], pd.DataFrame], lesson: Lesson
) -> None:
    _, table = made
    contrast = lesson.contrast
    assert len(lesson.pairs) == 2 * SEEDS * (SEEDS - 1) // 2
    assert [pair.p for pair in lesson.pairs] == sorted(pair.p for pair in lesson.pairs)
    for pair in lesson.pairs:
        first, second = (
            table[
                (table.benchmark == contrast["benchmark"])
                & (table.dimension == "overall")
                & (table.arm == pair.arm)
                & (table.dose == contrast["dose"])
                & (table.seed == seed)
                & (table.judge == contrast["judge"])
            ].score
            for seed in pair.seeds
        )
        assert pair.p == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)
    assert lesson.num_found == sum(pair.p < LEVEL for pair in lesson.pairs) > 0


def test_the_test_over_answers_finds_effects_in_null_studies() -> None:
    null = null_studies()
    assert null.answers_found > 0.3 and 0.03 < null.seeds_found < 0.07
    assert null.p_answers < LEVEL <= null.p_seeds
    assert null_studies() == null


def test_the_answers_are_those_of_the_results(
    made: tuple[dict[str, Any], pd.DataFrame], lesson: Lesson
) -> None:
    results, _ = made
    row = lesson.contrast
    assert row in results["contrasts"] and row["treatment_seeds"] == SEEDS
    answers = " ".join(answer for _, answer in lesson.questions)
    assert f"{100 * row['estimate']:+.1f}, interval [{100 * row['low']:+.1f}" in answers
    assert f"On {row['questions_opposite']} of {row['questions']}" in answers
    assert f"{100 * row['question_se']:.1f} by questions" in answers
    assert f"The test over answers finds {lesson.num_found}." in answers
    for arm, by_seed in lesson.scores.items():
        planned = {
            score["seed"]: score["score"]
            for score in results["scores"]
            if (score["arm"], score["benchmark"], score["dose"])
            == (arm, row["benchmark"], row["dose"])
        }
        assert by_seed == planned and len(planned) == SEEDS


def test_the_page_is_one_file_that_hides_what_is_to_be_predicted(
    made: tuple[dict[str, Any], pd.DataFrame], lesson: Lesson
) -> None:
    page = lesson_page(made[0], lesson)
    assert not re.search(r"https?:|<script|src=|@import|url\(", page)
    shown = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    verdict = f"Verdict: <strong>{lesson.contrast['verdict']}</strong>"
    assert verdict in page and verdict not in shown
    assert page.count("<circle") == 2 + 2 * SEEDS and shown.count("<circle") == 2
    assert page.count("<details>") == page.count("</details>") == 2 + len(lesson.questions)
    assert "Nothing. Both arms are drawn alike" in page
    assert "Nothing. Both arms" not in shown
    assert f"{lesson.num_found} of {len(lesson.pairs)}</strong>" in page


def test_the_page_is_written_beside_the_results(
    made: tuple[dict[str, Any], pd.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, table = made
    (tmp_path / "results.json").write_text(json.dumps(results))
    table.to_parquet(tmp_path / "scores.parquet")
    write_lesson(tmp_path, SimpleNamespace(json=False))
    page = (tmp_path / "lesson.html").read_text(encoding="utf-8")
    assert page == lesson_page(results, make_lesson(results, table))
    assert capsys.readouterr().out == f"lesson  {tmp_path / 'lesson.html'}\n"


def test_the_study_of_the_lesson_takes_no_more_cells_than_the_miniature() -> None:
    counts = []
    for name in ("class", "tiny"):
        study = load_study(ROOT / f"studies/{name}.yaml")
        counts.append(len(expand.in_order(expand.analysis(study))))
    assert counts[0] <= counts[1]
    lesson_study = load_study(ROOT / "studies/class.yaml")
    assert len(lesson_study.seeds) == 5
    assert lesson_study.contrasts[0].name == "animal - urban"
    recipe = (ROOT / "Makefile").read_text().split("\nclass: environment\n")[1].split("\n\n")[0]
    assert "study run studies/class.yaml" in recipe and "studies/class.yaml --lesson" in recipe


def test_a_study_of_one_seed_gives_no_lesson(tmp_path: Path) -> None:
    context = study(tmp_path, seeds=1)
    run(context)
    results = json.loads((context.folder / "results.json").read_text())
    with pytest.raises(UserError, match="no contrast between two arms of several seeds"):
        make_lesson(results, pd.read_parquet(context.folder / "scores.parquet"))
