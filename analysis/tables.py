"""LaTeX tables: booktabs rules, siunitx number columns, captions with the basis of the numbers."""

from collections.abc import Callable, Sequence

import pandas as pd

from analysis.declaration import declaration_note
from analysis.flow import ANSWERS, STAGES
from analysis.headline import (
    doses,
    dummy_note,
    interval,
    interval_header,
    missing_lines,
    notes_of,
    of_total,
    opposite_text,
    p_value,
    percent,
    prediction,
    runs_text,
    scope_note,
)
from analysis.rows import Results, Row
from analysis.rungs import rung_lines

PREAMBLE = r"% needs \usepackage{booktabs,siunitx} and nothing else"
COUNTED = ("answers", "grades")
SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
}


def tex(text: object) -> str:
    """Any text as it should print.

    LaTeX's special characters are escaped, letters of other alphabets are kept (UTF-8).
    """
    return "".join(SPECIAL.get(letter, letter) for letter in str(text))


def scores_table(results: Results) -> str:
    """Mean of each arm on each benchmark and dose, in percent, with interval, seeds and counts."""
    rows = [
        [
            *(tex(row[key]) for key in ("benchmark", "dose", "arm")),
            percent(row["mean"]),
            braced(interval(row)),
            percent(row["dimension_normalized_avg"]),
            "fixed" if row["fixed"] else runs_text(row["seeds"], row["corpora"]),
            *(str(row[key]) for key in ("questions", "n", "missing", "grades")),
        ]
        for row in in_study_order(results, results["arms"])
    ]
    caption = (
        "Scores in percent: mean over questions of means over seeds and epochs, with a 95\\,\\% "
        "interval for new seeds and new questions (two-way variance, Student's $t$); none for an "
        "arm with one training seed. ``fixed'': one checkpoint without a training seed, so its "
        "interval is for new questions only. By dimension: the official "
        "\\texttt{dimension\\_normalized\\_avg}, the mean of dimension means. An answer has a "
        "grade on each of its dimensions."
    )
    headers = [
        "Benchmark",
        "SFT dose",
        "Arm",
        "Score",
        "95\\,\\% interval",
        "By dimension",
        "Seeds",
        "Questions",
        "Answers",
        "No grade",
        "Grades",
    ]
    columns = "lrlS[table-format=3.1]rS[table-format=3.1]rrrrr"
    return table(headers, rows, columns, caption, "tab:scores", results, is_wide=True)


def contrasts_table(results: Results) -> str:
    """The declared contrasts in percentage points, by the deciding test and the paper's test."""
    rows = [
        [
            tex(row["name"]).replace(" - ", " $-$ ") + _varied(row),
            tex(row["benchmark"]),
            doses(row),
            percent(row["estimate"]),
            braced(interval(row, "+")),
            "/".join(
                runs_text(row[f"{side}_seeds"], row[f"{side}_corpora"])
                for side in ("treatment", "control")
            ),
            number(row["df"], ".1f"),
            p_cell(row["p"]),
            p_cell(row["p_holm"]),
            tex(f"{row['family']} ({row['family_size']})"),
            row["verdict"],
            p_cell(row["p_response_level"]),
        ]
        for row in results["contrasts"]
    ]
    caption = (
        "Declared contrasts in percentage points. Interval and test: two-way (seed and question) "
        "variance, Student's $t$ with df degrees of freedom; verdicts from Holm-adjusted $p$ "
        "within the declared family (its number of tests) at .05. Under each name: in what its "
        "arms differ. Seeds: training seeds of the first and second arm (0: a fixed checkpoint). "
        "The last column is the paper's "
        "response-level Welch test, which takes all answers as independent: for comparison only, "
        f"it never decides. {tex(scope_note(results['writers']))}"
    )
    if notes := _contrast_notes(results["contrasts"]):
        caption += f" Notes: {tex('; '.join(notes))}."
    headers = [
        "Contrast",
        "Benchmark",
        "SFT dose",
        "Points",
        interval_heading(results),
        "Seeds",
        "df",
        "$p$",
        "$p$ (Holm)",
        "Family (tests)",
        "Verdict",
        "Paper's $p$",
    ]
    columns = "p{2.2cm}lrS[table-format=-3.1]rrrrrp{1.3cm}p{1.5cm}r"
    return table(headers, rows, columns, caption, "tab:contrasts", results, is_wide=True)


def _varied(row: Row) -> str:
    """In what the arms of a contrast differ, as a line below its name."""
    units = dict.fromkeys(key.partition(".")[0] for key in row["differences"])
    return f"\\newline ({tex(', '.join(units))})" if units else ""


def _contrast_notes(rows: Sequence[Row]) -> list[str]:
    """Each note with its contrast, and with benchmark and dose where it is not of all its rows."""
    rows_of: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        for note in notes_of(row):
            rows_of.setdefault((row["name"], note), []).append(row)
    texts = []
    for (name, note), noted in rows_of.items():
        subject = name
        if len(noted) < sum(row["name"] == name for row in rows):
            rows_text = ", ".join(f"{row['benchmark']}, SFT dose {doses(row)}" for row in noted)
            subject += f" ({rows_text})"
        texts.append(f"{subject}: {note}")
    return texts


def interval_heading(results: Results) -> str:
    """The heading of the intervals of contrasts in LaTeX."""
    return interval_header(results["contrasts"]).capitalize().replace(" %", "\\,\\%")


def contrast_details_table(results: Results) -> str:
    """What is reported of the contrasts beside their verdicts."""
    rows = [
        [
            tex(row["name"]).replace(" - ", " $-$ "),
            tex(row["benchmark"]),
            doses(row),
            braced(prediction(row)),
            braced(number(row["cohens_d"], "+.2f")),
            opposite_text(row),
            *(of_total(row["holds"][kind]) for kind in ("seed", "question", "scenario", "judge")),
            *(f"{row[f'{kind}_treatment']}/{row[f'{kind}_control']}" for kind in COUNTED),
        ]
        for row in results["contrasts"]
    ]
    caption = (
        "The declared contrasts beside their verdicts; nothing here decides. One new run: 95\\,\\% "
        "prediction interval in points for one new training run of each arm, on new questions. "
        "$d$: Cohen's $d$, the difference over the standard deviation of single answers. Opposite: "
        "questions whose difference has the other sign. Seed, question, scenario: in how many "
        "estimates without one of them the verdict holds, with the other tests of the family as "
        "they are. Judge: in how many by another judge. Answers and grades of the first and second "
        "arm."
    )
    headers = ["Contrast", "Benchmark", "SFT dose", "One new run", "$d$", "Opposite"]
    headers += ["Seed", "Question", "Scenario", "Judge"]
    headers += ["Answers", "Grades"]
    columns = "p{2.2cm}lrrrrrrrrrr"
    return table(headers, rows, columns, caption, "tab:details", results, is_wide=True)


def flow_table(results: Results) -> str:
    """How many checkpoints and answers of each arm come from planned to analysed."""
    rows = [
        [
            *(tex(row[key]) for key in ("benchmark", "arm")),
            *(str(row[key]) for key in (*STAGES, *ANSWERS)),
        ]
        for row in results["flow"]
    ]
    caption = (
        "From planned to analysed. Checkpoints (seeds $\\times$ SFT doses) that were planned, and "
        "that have weights, answers and scores; answers of the last, those to questions that the "
        "study file excludes, those without a grade, and those analysed."
    )
    headers = ["Benchmark", "Arm", "Planned", "Trained", "Evaluated", "Graded"]
    headers += ["Answers", "Excluded", "No grade", "Analysed"]
    return table(headers, rows, "llrrrrrrrr", caption, "tab:flow", results, is_wide=True)


def dimensions_table(results: Results) -> str:
    """Mean per dimension, arms as columns; described, not tested."""
    present = {row["arm"] for row in results["dimensions"]}
    arms = [arm for arm in results["arm_order"] if arm in present]
    cells: dict[tuple[str, int, str], dict[str, Row]] = {}
    for row in results["dimensions"]:
        key = (row["benchmark"], row["dose"], row["dimension"])
        cells.setdefault(key, {})[row["arm"]] = row
    rows = []
    for (benchmark, dose, dimension), by_arm in cells.items():
        questions = str(max(row["questions"] for row in by_arm.values()))
        scores = [percent(by_arm[arm]["score"]) if arm in by_arm else "-" for arm in arms]
        rows.append([tex(benchmark), tex(dose), tex(dimension), questions, *scores])
    caption = (
        "Scores per dimension in percent: mean over questions of means over seeds and epochs; "
        "described, not tested."
    )
    headers = ["Benchmark", "SFT dose", "Dimension", "Questions", *map(tex, arms)]
    columns = "lrlr" + "S[table-format=3.1]" * len(arms)
    return table(headers, rows, columns, caption, "tab:dimensions", results)


# Written in every analysis; file name (without .tex) -> function of results.json.
TABLES: dict[str, Callable[[Results], str]] = {
    "scores": scores_table,
    "contrasts": contrasts_table,
    "contrast_details": contrast_details_table,
    "flow": flow_table,
    "dimensions": dimensions_table,
}


def in_study_order(results: Results, rows: Sequence[Row]) -> list[Row]:
    """Rows by benchmark, then dose, then arm in the order in which the study declares them."""
    benchmarks = list(results["benchmarks"])
    arms = results["arm_order"]

    def order(row: Row) -> tuple[int, int, int]:
        return benchmarks.index(row["benchmark"]), row["dose"], arms.index(row["arm"])

    return sorted(rows, key=order)


def data_summary(results: Results) -> list[str]:
    """One sentence per benchmark: seeds, questions, scenarios, epochs and judge."""
    lines = []
    for name, benchmark in results["benchmarks"].items():
        if not benchmark["questions"]:
            lines.append(f"{name}: no checkpoint finished")
            continue
        judge = benchmark["judge"]
        method = f"scored by {judge}" if judge in ("likelihood", "lm-eval") else f"judge {judge}"
        if benchmark["dummy"]:
            method += " (a deterministic dummy)"
        epochs = f"{benchmark['epochs']} epoch{'s' if benchmark['epochs'] != 1 else ''}"
        questions = f"{benchmark['questions']} questions in {benchmark['scenarios']} scenarios"
        arms = [row for row in results["arms"] if row["benchmark"] == name and not row["fixed"]]
        counts = {row["seeds"] for row in arms}
        seeds = "no"
        if counts:
            seeds = " to ".join(map(str, dict.fromkeys([min(counts), max(counts)])))
        trained = f"{seeds} training seed{'s' * (seeds != '1')} per arm"
        written = {runs_text(row["seeds"], row["corpora"]) for row in arms if row["corpora"]}
        if written:
            trained += f" ({', '.join(sorted(written))})"
        lines.append(f"{name}: {trained}, {questions}, {epochs}, {method}")
    return lines + rung_lines(results)


def number(value: float | None, form: str) -> str:
    """A number in Python's format `form`, "-" for None. Of rounded zeros none has a minus."""
    if value is None:
        return "-"
    text = f"{value:{form}}"
    zero = f"{0.0:{form}}"
    return zero if text == f"{-0.0:{form}}" else text


def p_cell(p: float | None) -> str:
    """A p-value in LaTeX."""
    return p_value(p).replace("< ", "$<$ ")


def braced(text: str) -> str:
    """Text for a column of numbers, with minus signs in math mode."""
    return "{--}" if text == "-" else "{" + text.replace("-", "$-$") + "}"


def table(
    headers: list[str],
    rows: Sequence[Sequence[str]],
    columns: str,
    caption: str,
    label: str,
    results: Results,
    is_wide: bool = False,
) -> str:
    """One LaTeX table.

    The caption is followed by the basis of the numbers and by what is missing. `columns` is
    LaTeX's column format; "-" in a cell prints as a dash. A wide table is set in small type with
    narrow gaps, so that it fits a page of A4.
    """
    notes = [f"{tex('. '.join(data_summary(results)))}.", tex(declaration_note(results))]
    dummy = dummy_note(results)
    if dummy:
        notes.append(tex(dummy))
    missing = missing_lines(results)
    if missing:
        notes.append(tex(f"Missing: {'; '.join(missing)}."))
    # braces keep siunitx from reading headers and dashes as numbers
    cells = [["{--}" if cell == "-" else cell for cell in row] for row in rows]
    frame = pd.DataFrame(cells, columns=headers)
    body = frame.style.hide(axis="index").to_latex(
        hrules=True,
        siunitx=True,
        column_format=columns,
        caption=" ".join([caption, *notes]),
        label=label,
        position="htbp",
        position_float="centering",
    )
    # LaTeX leaves no distance below a caption, as it expects captions under their tables
    distance = "\\setlength{\\belowcaptionskip}{0.5em}\n\\caption{"
    spaced = body.replace("\\caption{", distance, 1)
    if is_wide:
        narrow = "\\footnotesize\\setlength{\\tabcolsep}{2pt}\n\\begin{tabular}"
        spaced = spaced.replace("\\begin{tabular}", narrow, 1)
    return f"{PREAMBLE}\n{spaced}"
