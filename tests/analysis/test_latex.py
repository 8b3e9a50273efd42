"""The tables of studies in LaTeX documents of many classes and in Word, with odd names.

pdftotext shows them as text.
"""

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from analysis import figures, sensitivity
from analysis.macros import macros
from analysis.run import write_tables
from analysis.supplementary_tables import SUPPLEMENTARY_TABLES
from analysis.tables import TABLES
from core.cell.context import StageContext
from tests.analysis.large_study import large_results
from tests.analysis.paper_classes import (
    CLASSES,
    complaints,
    document,
    needs_latex,
    needs_latin_modern,
    pdflatex,
)
from tests.analysis.paper_study import paper_study
from tests.analysis.small_study import edit, results_of, study
from tests.analysis.tables import word_rows
from tests.analysis.test_corpora import BALANCE, CARD
from tests.analysis.test_malformed_shown import counted
from tests.analysis.test_probe import write

pytestmark = pytest.mark.multiprocess  # pdflatex, pandoc
NAMES = {"animal": "50 % ä_1 & $x$", "urban": "Städte #2 {~^}", "untrained": r"a\b <c> \"d\" | Zoë"}
CONTRAST = r"50 % & more_than $0 – \emph{ß} a--b... @c"


def odd_study(tmp_path: Path) -> StageContext:
    """A finished study with every table, and odd names."""
    context = study(tmp_path)
    settings = context.settings
    for row in settings["rows"]:
        row["arm"] = NAMES[row["arm"]]
    first = settings["contrasts"][0] | {
        "name": CONTRAST,
        "treatment": NAMES["animal"],
        "control": NAMES["urban"],
        "margin": 0.1,
    }
    settings["contrasts"] = [first]
    settings["claim_roles"] = {
        "documents": first["treatment"],
        "qa": first["control"],
        "before_sft": 0,
        "anima": "ahb",
    }
    settings["benchmarks"]["ahb"]["other_judges"] = ["judge_2 & co"]
    for role in list(context.inputs):
        if role.endswith("-ahb"):
            edit(
                context,
                role,
                lambda frame: frame.assign(score=frame["score"].where(frame.index != 4)),
            )
            edit(
                context,
                role,
                lambda frame: frame.assign(
                    missing=frame["missing"].where(frame.index != 4, "no & grade")
                ),
            )
            counted(context.inputs[role], 24, 3, cut_off=3)
            other = tmp_path / f"{role}-other"
            shutil.copytree(context.inputs[role], other)
            context.inputs[f"{role}-other"] = other
            edit(context, f"{role}-other", lambda frame: frame.assign(judge="judge_2 & co"))
            mine = next(row for row in settings["rows"] if row["role"] == role)
            settings["rows"].append(mine | {"role": f"{role}-other", "judge": "judge_2 & co"})
    writer = settings["writers"][0]
    settings["writers"] = [writer | {"corpus": name} for name in ("tiere_&_co", "urban")]
    for corpus in ("tiere_&_co", "urban"):
        context.inputs[f"corpus-{corpus}"] = tmp_path / corpus
        (tmp_path / corpus).mkdir()
        (tmp_path / corpus / "corpus_stats.json").write_text(json.dumps(CARD))
        (tmp_path / corpus / "match.json").write_text(json.dumps(BALANCE))
        (tmp_path / corpus / "documents.jsonl").write_text(
            "".join(f'{{"text": "a {n} of b"}}\n' for n in range(9))
        )
    return context


def analysed(context: StageContext) -> Path:
    """The folder of an analysis without figures and with few resamples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda *_: {})
        patch.setattr(sensitivity, "RESAMPLES", 100)
        results_of(context)
    return context.folder


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the analysis of tests/small/paper.yaml, of made-up scores."""
    return analysed(paper_study(tmp_path_factory.mktemp("paper")))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the analysis of `odd_study`."""
    return analysed(odd_study(tmp_path_factory.mktemp("odd")))


def results_in(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def pdf_text(file: Path) -> str:
    if not shutil.which("pdftotext"):
        pytest.skip("no pdftotext: apt-get install poppler-utils")
    command = ["pdftotext", "-layout", str(file), "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_latin_modern
def test_the_sample_paper_compiles_and_shows_the_names_as_they_are(odd: Path) -> None:
    sample = odd / "tables" / "all.tex"
    names = {path.stem for path in sample.parent.glob("*.csv")}
    lacking = {"canary", "preservation", "probe"}
    assert names == {*TABLES, *SUPPLEMENTARY_TABLES} - lacking, "the study has none of these"
    assert all(f"\\input{{{name}}}" in sample.read_text() for name in names)
    pdflatex(sample)
    assert complaints(pdflatex(sample)) == []
    shown = " ".join(pdf_text(sample.with_suffix(".pdf")).split())
    for name in ("50 % ä_1", "Städte #2 {~^}", "50 % & more_than", "judge_2 & co", "tiere_&_co"):
        # a line may end behind a space and behind _
        assert "".join(name.split()) in "".join(shown.split()), name


@pytest.mark.skipif(not shutil.which("pandoc"), reason="no pandoc: apt-get install pandoc")
def test_pandoc_makes_word_tables_of_the_same_cells(odd: Path, tmp_path: Path) -> None:
    for file in sorted((odd / "tables").glob("*.md")):
        assert "a\u2013b" not in plain_text(file)
        # Straight quotes, as in CSV: pandoc would set typographic ones.
        command = ["pandoc", "--from", "markdown-smart", str(file), "-o", str(tmp_path / "t.docx")]
        subprocess.run(command, check=True)
        rows = list(csv.reader(io.StringIO(file.with_suffix(".csv").read_text())))
        assert word_rows(tmp_path / "t.docx") == rows, file.stem


def plain_text(file: Path) -> str:
    """What pandoc reads in a file as its command in the docs has it."""
    command = ["pandoc", str(file), "--to", "plain", "--wrap", "none"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compiled(results: dict[str, Any], folder: Path, name: str) -> list[str]:
    """What pdflatex complains of in a document of a class with every table of the results."""
    column, preamble = CLASSES[name]
    write_tables(results, folder, column)
    names = sorted(path.stem for path in folder.glob("*.csv"))
    (folder / "document.tex").write_text(document(preamble, names))
    return complaints(pdflatex(folder / "document.tex"))


@needs_latex
@pytest.mark.parametrize("name", ["article", "article in two columns"])
def test_every_table_fits_a_page_of_article(odd: Path, tmp_path: Path, name: str) -> None:
    assert compiled(results_in(odd), tmp_path / "small", name) == []
    large = large_results(results_in(odd), arms=20, doses=2, benchmarks=3)
    assert compiled(large, tmp_path / "large", name) == []
    text = pdf_text(tmp_path / "large" / "document.pdf")
    rows = [row for row in large["arms"] if row["arm"] == "675"]
    assert rows and all(f"{100 * row['mean']:.1f}" in text for row in rows)


@pytest.mark.nightly
@needs_latex
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("size", ["small", "paper", "large"])
def test_every_table_fits_a_page_of_nine_classes(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, size: str
) -> None:
    file = re.search(r"documentclass[^{]*{(.*?)}", CLASSES[name][1])
    assert file
    if not subprocess.run(["kpsewhich", f"{file[1]}.cls"], capture_output=True).stdout:
        pytest.skip(f"no {file[1]}.cls: apt-get install texlive-publishers texlive-latex-extra")
    results = results_in(request.getfixturevalue("paper" if size == "paper" else "odd"))
    assert compiled(large_results(results) if size == "large" else results, tmp_path, name) == []


@needs_latex
def test_two_studies_in_one_paper_keep_their_own_numbers(odd: Path, tmp_path: Path) -> None:
    results = results_in(odd)
    studies = [
        results | {"study": "one", "arms": [row | {"mean": 0.111} for row in results["arms"]]},
        results | {"study": "two", "arms": [row | {"mean": 0.222} for row in results["arms"]]},
    ]
    inputs = []
    for made in studies:
        name = made["study"]
        write_tables(made, tmp_path / name, "single")
        (tmp_path / name / "macros.tex").write_text(macros(made))
        inputs += [f"{name}/macros", f"{name}/scores", f"{name}/contrasts"]
    scores = [re.findall(r"\\newcommand\{(\\\w+Score\w+)\}", macros(made))[0] for made in studies]
    text = document(r"\documentclass{article}", inputs)
    quoted = f"Scores {scores[0]}{{}} and {scores[1]}.\n\\end{{document}}"
    (tmp_path / "paper.tex").write_text(text.replace("\\end{document}", quoted))
    pdflatex(tmp_path / "paper.tex")
    assert complaints(pdflatex(tmp_path / "paper.tex")) == []  # labels are compared in the second
    assert "Scores 11.1 and 22.2." in pdf_text(tmp_path / "paper.pdf")


@needs_latin_modern
def test_the_tables_of_probes_and_of_preservation_compile(tmp_path: Path) -> None:
    context = study(tmp_path)
    settings = context.settings
    settings["benchmarks"]["concern"]["reference"] = "animal"
    settings["contrasts"][0]["family"] = "preservation"
    settings["untrained"] = dict.fromkeys(("animal", "urban"), "untrained")
    for row in settings["rows"]:
        if row["benchmark"] == "concern":
            write(context.inputs[row["role"]], [[1, 2], [2, 1]], [0.6, 0.7])
    sample = analysed(context) / "tables/all.tex"
    assert {"probe", "preservation"} <= {path.stem for path in sample.parent.glob("*.csv")}
    pdflatex(sample)
    assert complaints(pdflatex(sample)) == []
