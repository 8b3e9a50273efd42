"""Tables as LaTeX, CSV and Markdown: one set of digits, and those of results.json."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from analysis.headline import percent
from analysis.run import write_tables
from analysis.supplementary_tables import SUPPLEMENTARY_TABLES
from analysis.table_latex import float_file, label, prose, sample_file, tabular_file, tex
from analysis.table_layout import PAPERS, floats, layout, num_lines, pieces
from analysis.table_text import Column, Table, grouped, to_csv, to_markdown
from analysis.tables import TABLES, contrasts_table, scores_table
from tests.analysis.large_study import ARMS, large_results
from tests.analysis.small_study import results_of, study
from tests.analysis.tables import markdown_rows, tabular_rows


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch) -> Any:
    context = study(tmp_path_factory.mktemp("study"))
    results_of(context)
    return context.folder


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    """No figure is drawn and few samples are taken."""
    from analysis import figures, sensitivity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda *_: {})
        patch.setattr(sensitivity, "RESAMPLES", 100)
        yield patch


def test_notes_name_the_quantile_that_a_fixed_side_gets(small: Any) -> None:
    """Student's t with the printed df does not give the printed p there."""
    results = json.loads((small / "results.json").read_text())
    assert not any("Cochran" in note for note in contrasts_table(results).notes)
    results["contrasts"][0]["reference"] = [[0.5, 2], [0.5, 25]]
    (note,) = (note for note in contrasts_table(results).notes if "Cochran" in note)
    assert "one side alone" in note
    assert any("logit" in note for note in scores_table(results).notes)


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / f"tables/{name}.csv").read_text())))


def points(text: str) -> float | None:
    return None if text == "" else float(text) / 100


def near(text: str, value: float | None) -> bool:
    number = points(text)
    if value is None or number is None:
        return number is value is None
    return abs(number - value) <= 0.0005 + 1e-9


def ends(text: str) -> list[str]:
    return re.findall(r"[-+\d.]+", text) or ["", ""]


def test_csv_gives_the_numbers_of_results_json(small: Path) -> None:
    results = json.loads((small / "results.json").read_text())
    scores = {(r["Benchmark"], r["SFT dose"], r["Arm"]): r for r in rows_of(small, "scores")}
    assert len(scores) == len(results["arms"]) == 10
    for row in results["arms"]:
        shown = scores[row["benchmark"], str(row["dose"]), row["arm"]]
        assert near(shown["Score"], row["mean"]) and int(shown["Answers"]) == row["n"]
        low, high = ends(shown["95 % interval"])
        assert near(low, row["low"]) and near(high, row["high"])
    contrasts = rows_of(small, "contrasts")
    assert len(contrasts) == len(results["contrasts"]) == 4
    for shown in contrasts:
        (row,) = [
            row
            for row in results["contrasts"]
            if (row["benchmark"], str(row["dose"])) == (shown["Benchmark"], shown["SFT dose"])
        ]
        assert near(shown["Points"], row["estimate"]) and shown["Points"][0] in "+-"
        assert [near(*pair) for pair in zip(ends(shown["95 % interval"]),
                                            (row["low"], row["high"]), strict=True)] == [True] * 2  # fmt: skip
        assert all(end[0] in "+-" for end in ends(shown["95 % interval"]))
        assert float(shown["df"]) == pytest.approx(row["df"], abs=0.05)
        assert shown["Verdict"] == row["verdict"]
    for shown, row in zip(rows_of(small, "flow"), sorted(results["flow"], key=lambda r: r["benchmark"]), strict=True):  # fmt: skip
        assert int(shown["Planned"]) == row["planned"] and shown["Arm"] == row["arm"]


def test_notes_spell_a_benchmark_out(small: Path) -> None:
    notes = (small / "tables/scores.md").read_text()
    assert "- ahb, Animal Harm Benchmark (ANIMA): " in notes and "- concern: " in notes


def test_every_form_of_a_table_has_the_same_cells(small: Path) -> None:
    names = {path.stem for path in (small / "tables").glob("*.csv")}
    assert names >= {*TABLES, "erosion", "sensitivity", "variance", "robustness"}
    for name in names:
        rows = list(csv.reader(io.StringIO((small / f"tables/{name}.csv").read_text())))
        assert markdown_rows((small / f"tables/{name}.md").read_text()) == rows
        tabular = tabular_rows((small / f"tables/{name}.tabular.tex").read_text())
        assert tabular_rows((small / f"tables/{name}.tex").read_text()) == tabular
        printed = len(tabular[0])
        assert [row[-printed:] for row in rows[1:]] == tabular[1:], name


def sample(rows: list[list[str]], **changed: Any) -> Table:
    columns = (Column("Arm"), Column("Points", is_number=True), Column("Note"))
    values = {"name": "t", "study": "s", "title": "T", "caption": "C", "notes": ("N.",)}
    return Table(**values | {"columns": columns, "rows": tuple(map(tuple, rows))} | changed)


def test_signs_thousands_and_none_are_the_same_everywhere() -> None:
    table = sample([["a - b", "+3.1", "-"], ["c", "-2.0", "12345"], ["d", "12345", "x"]])
    assert to_csv(table) == "Arm,Points,Note\na - b,+3.1,\nc,-2.0,12345\nd,12345,x\n"
    markdown = to_markdown(table)
    assert "| a − b | +3.1 | – |" in markdown and "| c | −2.0 | 12345 |" in markdown
    assert "| d | 12\u202f345 | x |" in markdown
    latex = float_file(table, "single")
    assert "a $-$ b & +3.1 & -- " in latex and "c & $-$2.0 & 12345" in latex
    assert r"d & 12\,345 & x" in latex and "siunitx" not in latex
    assert grouped("4000 v 0, 0.12345 and 1234.5", " ") == "4 000 v 0, 0.12345 and 1234.5"
    assert prose('3 corpora x 2 "runs" at 95 %') == r"3 corpora $\times$ 2 ``runs'' at 95\,\%"


def test_a_first_cell_in_brackets_is_no_argument_of_the_line_before() -> None:
    assert "\n{}[a] & 1" in float_file(sample([["[a]", "1", ""]]), "single")


def test_letters_beyond_latin_are_named_at_the_top_of_the_file() -> None:
    table = sample([["動物", "1", "ä é – ≥"]])
    for text in (float_file(table, "single"), tabular_file(table, "single")):
        comments = [line for line in text.splitlines() if line.startswith("%")]
        assert any("動物" in line and "lualatex" in line for line in comments)
    assert "動物" in sample_file([table], "single")
    assert "lualatex" not in float_file(sample([["ä", "1", "≥ κ × – “a”"]]), "single")
    assert "動物" in to_csv(table) and "動物" in to_markdown(table)


def test_letters_that_the_default_fonts_lack_are_named_at_the_top_of_the_file() -> None:
    for text in (f(sample([["Łódź «ð»", "1", ""]]), "single") for f in (float_file, tabular_file)):
        assert "% Letters «»ð: pdflatex also needs \\usepackage[T1]{fontenc}.\n" in text
    assert "[T1]" not in float_file(sample([["Łódź éß", "1", ""]]), "single")
    assert "lualatex" in float_file(sample([["ħ", "1", ""]]), "single")


def test_signs_of_a_name_are_not_joined_and_accents_are_composed() -> None:
    assert tex("a--b ``c'' ?`") == r"a-{}-b \`{}\`{}c'{}' ?\`{}"
    assert tex("Zoe\u0308") == "Zo\u00eb" and prose("e\u0301" * 20).count("\u00e9") == 20
    # rows are counted for single spacing, whatever the paper's is
    assert all(
        "\\centering\\linespread{1}\n" in part
        for part in float_file(sample([["a", "1", ""]] * 90), "single").split("\\begin{table}")[1:]
    )
    named = float_file(sample([["Zoe\u0308", "1", ""]]), "single")
    assert "lualatex" not in named


def test_a_table_without_a_row_is_no_file(small: Path, tmp_path: Path) -> None:
    results = json.loads((small / "results.json").read_text())
    write_tables(results | {"contrasts": [], "dimensions": []}, tmp_path, "single")
    names = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert "scores" in names and not names & {"contrasts", "contrast_details", "dimensions"}
    assert "input{contrasts}" not in (tmp_path / "all.tex").read_text()


def test_names_that_a_template_or_latex_trips_over_are_rows_like_others(small: Path) -> None:
    results = json.loads((small / "results.json").read_text())
    odd = {"untrained": "675", "animal": "items", "urban": "a_b"}
    text = json.dumps(results)
    for old, new in odd.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    results = json.loads(text)
    for make in (scores_table, TABLES["flow"], TABLES["dimensions"]):
        table = make(results)
        arms = {row[table.headings.index("Arm")] for row in table.rows}
        assert arms == {"675", "items", "a_b"}
    named = scores_table(results)
    assert ["675", "0"] in [list(row[1:3]) for row in named.rows]
    assert r"a\_\allowbreak{}b & " in float_file(named, "single")


def test_captions_are_one_sentence_and_the_rest_is_notes(small: Path) -> None:
    results = large_results(json.loads((small / "results.json").read_text()))
    results["declaration"] = {"sha256": "ab" * 32, "differences": ["seeds: 3, declared 5"]}
    drift = {"dimension": "Harm", "answers": 9, "before": 0.5, "after": 0.25}
    drift |= {"estimate": -0.25, "low": -0.5, "high": None}
    results["canary"] = [{"judge": "dummy", "drift": [drift]}]
    made = 0
    for name, make in (TABLES | SUPPLEMENTARY_TABLES).items():
        if name in SUPPLEMENTARY_TABLES and not results.get(name):
            continue
        made += 1
        table = make(results)
        assert len(table.caption.split()) <= 25 and ". " not in table.caption
        assert len(table.title.split()) <= 8
        notes = " ".join(table.notes)
        assert "abababab" in notes and "seeds: 3, declared 5" in notes
        assert "Missing: 150 of 2150 checkpoints are not finished" in notes
        text = float_file(table, "double")
        assert f"\\label{{tab:large:{table.name}}}" in text and label(table) in text
        assert text.count("\\caption[") == 1
    assert made >= 10


def test_a_table_of_a_large_study_is_cut_to_floats_with_every_row(small: Path) -> None:
    results = large_results(json.loads((small / "results.json").read_text()))
    table = scores_table(results)
    assert len(table.rows) == 20 * 5 * 10 and len(table.columns) < len(ARMS)
    for column, paper in PAPERS.items():
        design = layout(table, paper)
        parts = floats(table, design)
        assert [row for part in parts for row in part.rows] == list(table.rows)
        assert tuple(note for part in parts for note in part.notes) == table.notes
        assert all(len(part.rows) <= design.letters.lines for part in parts)
        text = float_file(table, column)
        assert text.count("\\begin{tabular}") == len([part for part in parts if part.rows])
        assert len(tabular_rows(text)) == 1001
    assert "\\begin{table*}" in float_file(table, "double")
    assert float_file(table, "slide").count("\\begin{frame}") == text.count("\\begin{table}")


def test_columns_hold_their_longest_word_and_fill_no_more_than_the_line(small: Path) -> None:
    results = large_results(json.loads((small / "results.json").read_text()))
    for paper in PAPERS.values():
        design = layout(contrasts_table(results), paper)
        assert sum(design.widths) <= design.letters.line
        assert all(width > 1.5 for width in design.widths)
    wide = sample([["a" * 60, "1", " ".join(["word"] * 90)]])
    design = layout(wide, PAPERS["single"])
    assert num_lines(wide.rows[0][2], design.widths[2]) > 5
    assert pieces("a" * 40) == ["a" * 16, "a" * 16, "a" * 8]
    assert pieces("[+1.0, +2.0] x") == ["[+1.0,\u00a0+2.0] ", "x"]
    narrow = layout(sample([["ab", "1", "c"]]), PAPERS["single"])
    assert narrow.letters.command == r"\small" and sum(narrow.widths) < 10


def test_a_row_without_a_number_is_left_out_and_counted(small: Path) -> None:
    results = json.loads((small / "results.json").read_text())
    table = SUPPLEMENTARY_TABLES["robustness"](results)
    empty = [row for row in results["robustness"] if row["estimate"] is None]
    assert empty and len(table.rows) == len(results["robustness"]) - len(empty)
    assert f"Left out: {len(empty)} rows without a number." in table.notes


def test_percent_has_the_sign_that_is_asked_for() -> None:
    assert (percent(0.25, "+"), percent(-0.25, "+"), tex("+2")) == ("+25.0", "-25.0", "+2")
