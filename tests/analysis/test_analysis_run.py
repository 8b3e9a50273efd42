"""The analysis stage on small studies on disk: schema, numbers, texts, and the same bytes twice."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.headline import headline
from analysis.run import run
from analysis.table_latex import tex
from benchmarks import analysis as benchmark
from core.cell.context import StageContext
from core.errors import UserError
from tests.analysis.small_study import edit, results_of, study

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    context = study(tmp_path_factory.mktemp("study"))
    return context, results_of(context)


@pytest.mark.slow
def test_results_schema(finished):
    _, results = finished
    assert len(results["scores"]) == 2 * (1 + 2 * 3 * 2)
    for row in results["scores"]:
        assert set(row) == {"arm", "benchmark", "dose", "seed", "score", "n", "missing"}
        assert 0 <= row["score"] <= 1 and isinstance(row["n"], int) and row["missing"] == 0
        assert (row["seed"] is None) == (row["arm"] == "untrained")
    needed = {
        "name",
        "benchmark",
        "dose",
        "estimate",
        "low",
        "high",
        "seeds",
        "questions",
        "judge",
        "verdict",
        "reason",
    }
    needed |= {"se", "df", "p", "p_holm", "family", "p_response_level"}
    assert len(results["contrasts"]) == 4
    for row in results["contrasts"]:
        assert needed <= set(row)
        assert (row["verdict"], row["seeds"], row["reason"]) == ("higher", 3, None)
        assert row["low"] < row["estimate"] < row["high"]
    assert {row["judge"] for row in results["contrasts"]} == {"dummy", "likelihood"}
    assert results["missing"] == []
    untrained = [row for row in results["arms"] if row["arm"] == "untrained"]
    assert [
        (row["seeds"], row["fixed"], row["low"] < row["mean"] < row["high"]) for row in untrained
    ] == [(0, True, True)] * 2


@pytest.mark.slow
def test_scores_are_means_over_questions_of_means_over_epochs(finished):
    context, results = finished
    table = pd.read_parquet(context.folder / "scores.parquet")
    for row in results["scores"]:
        part = table[(table["arm"] == row["arm"]) & (table["benchmark"] == row["benchmark"])]
        part = part[(part["dose"] == row["dose"]) & (part["dimension"] == "overall")]
        part = part[part["seed"].isna() if row["seed"] is None else part["seed"] == row["seed"]]
        assert row["n"] == len(part)
        assert row["score"] == pytest.approx(
            part.groupby("question")["score"].mean().mean(), rel=1e-5
        )


@pytest.mark.slow
def test_contrast_is_the_difference_of_the_arms_and_swapping_negates_it(finished, tmp_path):
    _, results = finished
    swapped = results_of(study(tmp_path, swap=True))
    mean = {(row["benchmark"], row["dose"], row["arm"]): row["mean"] for row in results["arms"]}
    for row, other in zip(results["contrasts"], swapped["contrasts"], strict=True):
        key = row["benchmark"], row["dose"]
        assert row["estimate"] == pytest.approx(
            mean[*key, "animal"] - mean[*key, "urban"], abs=2e-6
        )
        assert (row["estimate"], row["low"], row["high"]) == (
            -other["estimate"],
            -other["high"],
            -other["low"],
        )
        assert (row["p"], other["verdict"]) == (other["p"], "lower")


@pytest.mark.slow
def test_same_input_gives_the_same_bytes_whatever_the_order_of_lines(finished, tmp_path, drawn):
    context, _ = finished
    again = study(tmp_path)
    for role in again.inputs:
        edit(again, role, lambda frame: frame.sample(frac=1, random_state=1))
    (again.folder / "tables").mkdir()
    (again.folder / "tables" / "scores.tex").write_text("left over from a killed run")
    run(again)

    def digests(folder: Path):
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    first, second = digests(context.folder), digests(again.folder)
    kinds = ("scores", "contrasts", "erosion", "questions-animal-urban")
    drawn = [f"{kind}-{benchmark}" for kind in kinds for benchmark in ("ahb", "concern")]
    drawn.append("dimensions-ahb")
    forms = (".pdf", ".png", "-column.pdf")
    figures = {f"figures/{name}{form}" for name in drawn for form in forms}
    figures.add("figures/corpora.json")
    made = (
        "scores",
        "contrasts",
        "contrast_details",
        "flow",
        "dimensions",
        "robustness",
        "erosion",
        "sensitivity",
        "dimension_tests",
        "variance",
    )
    tables = {
        f"tables/{name}.{kind}" for name in made for kind in ("tex", "tabular.tex", "csv", "md")
    }
    tables.add("tables/all.tex")
    others = {"results.json", "scores.parquet", "report.html", "headline.txt", "macros.tex"}
    assert set(first) == others | figures | tables
    assert first == second


def test_what_stands_beside_the_verdicts(finished):
    context, results = finished
    assert context.warnings == [], "such as a figure that could not be drawn"
    assert [(row["benchmark"], row["doses"]) for row in results["erosion"]] == [
        ("ahb", [0, 200]),
        ("concern", [0, 200]),
    ]
    contrasts = {(row["benchmark"], row["dose"]): row for row in results["contrasts"]}
    for row in results["sensitivity"]:
        decided = contrasts[row["benchmark"], row["dose"]]
        assert row["bootstrap"]["low"] < decided["estimate"] < row["bootstrap"]["high"]
        assert row["mixed"]["estimate"] == pytest.approx(decided["estimate"], abs=1e-4)
        assert row["permutation"] == {"p": 0.1, "smallest_p": 0.1, "reason": None}, (
            "3 seeds against 3: 2 of 20 ways"
        )
        assert row["equivalence"] is None
    assert {(row["dimension"], row["benchmark"]) for row in results["dimension_tests"]} == {
        ("Harm", "ahb"),
        ("Scope", "ahb"),
    }
    assert all(row["p"] <= row["q"] for row in results["dimension_tests"])
    (first, _) = results["variance"]
    assert [part["component"] for part in first["components"]][:2] == ["seed", "question"]
    costs = {row["purchase"]: row["cost"] for row in first["purchases"]}
    assert costs == {
        "now": 0,
        "one more seed per arm": 4,
        "twice the epochs": 1,
        "26 more questions": None,
    }


@pytest.mark.slow
def test_a_margin_tests_equivalence(tmp_path):
    context = study(tmp_path)
    context.settings["contrasts"][0] |= {"family": "second", "margin": 0.9}
    results = results_of(context)
    for row in results["sensitivity"]:
        assert row["equivalence"]["equivalent"] and row["equivalence"]["margin"] == 0.9
        assert -0.9 < row["equivalence"]["low"] < row["equivalence"]["high"] < 0.9
    assert all(row["margin"]["dose"] is None and row["half"] for row in results["erosion"])
    assert results["dimension_tests"] == results["variance"] == []
    variants = {row["variant"] for row in results["robustness"]}
    assert variants == {"all", "one seed left out", "one question left out"}


@pytest.mark.slow
def test_arms_of_the_same_midtraining_are_compared_within_seeds(tmp_path):
    """An advantage that is the same in every seed, though seeds differ by far more.

    Only the paired test can see it.
    """

    def level(role: str, frame: pd.DataFrame) -> pd.DataFrame:
        shift = {"0": 0.1, "1": 0.4, "2": 0.7}[role.split("-")[1]] + (
            0.05 if role.startswith("animal") else 0
        )
        noise = (
            pd.util.hash_pandas_object(frame[["question", "epoch", "dimension"]], index=False)
            % 1000
            / 20_000
        )
        return frame.assign(score=shift + noise.to_numpy() + 0.002 * (hash_of(role) % 5))

    def hash_of(role: str) -> int:
        return int(hashlib.sha256(role.encode()).hexdigest()[:4], 16)

    result = {}
    for paired in (False, True):
        context = study(tmp_path / str(paired))
        context.settings["contrasts"][0]["paired"] = paired
        for role in context.inputs:
            if not role.startswith("untrained"):
                edit(context, role, lambda frame, role=role: level(role, frame))
        result[paired] = results_of(context)
    for apart, within in zip(result[False]["contrasts"], result[True]["contrasts"], strict=True):
        assert apart["estimate"] == within["estimate"] and (
            within["treatment_seeds"],
            within["control_seeds"],
        ) == (
            3,
            3,
        )
        assert (apart["verdict"], within["verdict"]) == ("inconclusive", "higher") and within[
            "se"
        ] < apart["se"] / 10
    robust = {
        row["variant"]: row
        for row in result[True]["robustness"]
        if row["benchmark"] == "ahb" and row["dose"] == 0
    }
    assert (
        robust["all"]["p"] == result[True]["contrasts"][0]["p"]
        and robust["one seed left out"]["which"][:5] == "seed "
    )
    assert {row["permutation"]["p"] for row in result[True]["sensitivity"]} == {None}
    assert all(row["paired"] for row in result[True]["erosion"])


@pytest.mark.slow
def test_excluded_questions_count_nowhere_and_are_told(tmp_path):
    context = study(tmp_path)
    context.settings["benchmarks"]["ahb"]["exclude"] = ["q000", "q003"]
    results = results_of(context)
    assert results["notes"] == ["ahb: the study file leaves out the questions q000, q003"]
    (flow,) = (
        row for row in results["flow"] if (row["arm"], row["benchmark"]) == ("animal", "ahb")
    )
    assert (flow["answers"], flow["excluded"], flow["analysed"]) == (144, 24, 120)
    assert results["benchmarks"]["ahb"]["questions"] == 10
    assert {"q000", "q003"}.isdisjoint(
        pd.read_parquet(context.folder / "scores.parquet").query("benchmark == 'ahb'").question
    )
    context.settings["benchmarks"]["ahb"]["exclude"] = ["*00", "q003"]
    assert results_of(context)["flow"] == results["flow"]
    context.settings["benchmarks"]["ahb"]["exclude"] = ["q000", "q999"]
    with pytest.raises(UserError, match="ahb: exclude: no question q999"):
        run(context)


@pytest.mark.slow
def test_answers_of_both_arms_are_shown_side_by_side(tmp_path):
    context = study(tmp_path)
    for role, folder in context.inputs.items():
        answers = [
            {"question": f"q{n}", "asked": f"What of {n}?", "response": f"<b>{role}", "score": None}
            for n in range(5)
        ]
        (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    results = results_of(context)
    shown = [
        (row["benchmark"], row["question"], [answer["response"] for answer in row["answers"]])
        for row in results["examples"]
    ]
    assert shown == [
        (b, f"q{n}", [f"<b>{arm}-0-0-{b}" for arm in ("animal", "urban")])
        for b in ("ahb", "concern")
        for n in range(3)
    ]
    page = (context.folder / "report.html").read_text()
    assert "&lt;b&gt;animal-0-0-ahb" in page and "<b>animal" not in page and "no grade" in page


def test_stand_ins_are_named_in_every_output(finished):
    context, results = finished
    note = (
        "A deterministic rule-based dummy, not a language model, wrote the documents of animal "
        "and judged ahb."
    )
    tables = {*(context.folder / "tables").glob("*.*")} - {context.folder / "tables/all.tex"}
    for path in [context.folder / "report.html", *tables]:
        assert note in path.read_text() or path.suffix == ".csv"
    assert note in headline(results, "")
    results = results | {"writers": [], "benchmarks": {"concern": results["benchmarks"]["concern"]}}
    assert "dummy" not in headline(results, "")


NASTY = r"50% a_b & $c$ #1 {x} ~^ \d <b>"


def name_badly(context: StageContext) -> None:
    for row in context.settings["rows"]:
        row["arm"] = NASTY if row["arm"] == "animal" else row["arm"]
    context.settings["contrasts"][0] |= {"treatment": NASTY, "name": NASTY + " - urban"}


@pytest.mark.slow
def test_special_characters_are_safe_in_latex_and_html(tmp_path):
    context = study(tmp_path)
    name_badly(context)
    run(context)
    escaped = (
        r"50\% a\_b \& \$c\$ \#1 \{x\} \textasciitilde{}\textasciicircum{} "
        r"\textbackslash{}d \textless{}b\textgreater{}"
    )
    assert tex(NASTY) == escaped
    for name in ("scores", "contrasts", "dimensions"):
        text = (context.folder / "tables" / f"{name}.tex").read_text()
        assert escaped in text.replace(r"\allowbreak{}", "") and NASTY not in text
        body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
        columns = text[text.index(r"\toprule") : text.index(r"\midrule")].count(" & ")
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        rows = [line for line in lines if not line.startswith(r"\multicolumn")]
        assert rows and {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {columns}
    page = (context.folder / "report.html").read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page


def test_page_needs_no_network_and_no_script(finished):
    context, _ = finished
    page = (context.folder / "report.html").read_text()
    # the one script sorts and filters rows that are all there
    assert page.count("<script>") == 1 and not re.search(r"<\w[^>]* hidden", page)
    assert not re.search(
        r"<script [a-z]|<link|@import|url\(\s*['\"]?http|(src|href)=['\"]https?:", page
    )
    assert 'role="img" aria-label="Bars of the mean scores' in page and "<svg" in page
    assert "python -m study run studies/tiny.yaml" in page


@pytest.mark.multiprocess
def test_headline_imports_nothing_heavy(finished):
    _, results = finished
    heavy = {"pandas", "numpy", "scipy", "matplotlib"}
    code = f"import sys, analysis.headline; print({heavy} & set(sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
    text = headline(results, "")
    assert "animal - urban" in text and "higher" in text and "untrained" in text


def test_notes_of_contrasts_stand_below_the_table_of_the_headline_once(finished):
    _, results = finished
    caution = "the spread is unequal: " + "add seeds " * 20
    rows = [row | {"caution": caution, "reason": None} for row in results["contrasts"]]
    assert len(rows) > 1
    text = headline(results | {"contrasts": rows}, "")
    assert text.count("[1] the spread is unequal") == 1 and "[2]" not in text
    table = [line for line in text.splitlines() if line.startswith(rows[0]["name"])]
    assert table and all(line.endswith(" [1]") and len(line) < 110 for line in table)


@pytest.mark.slow
def test_two_doses_of_one_arm_are_a_contrast(tmp_path):
    context = study(tmp_path, doses=(0, 200))
    change = {
        "name": "what SFT does",
        "treatment": "animal",
        "control": "untrained",
        "treatment_dose": 200,
        "control_dose": 0,
    }
    context.settings["contrasts"] = [change | {"benchmarks": ["ahb"], "family": "sft"}]
    (row,) = results_of(context)["contrasts"]
    result = json.loads((context.folder / "results.json").read_text())["arms"]
    mean = {(r["arm"], r["dose"]): r["mean"] for r in result if r["benchmark"] == "ahb"}
    assert row["estimate"] == pytest.approx(mean["animal", 200] - mean["untrained", 0], abs=1e-5)
    assert (row["dose"], row["control_dose"], row["treatment_seeds"], row["control_seeds"]) == (
        200,
        0,
        3,
        0,
    )


@pytest.mark.slow
def test_the_benchmarks_study_can_be_analyzed(tmp_path: Path) -> None:
    context = benchmark.study(tmp_path, arms=3, seeds=2, questions=6, epochs=2)
    assert results_of(context)["contrasts"]
