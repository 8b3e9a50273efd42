"""LaTeX tables: booktabs rules, siunitx number columns, captions that say what the numbers rest on."""

from typing import Any

import pandas as pd

from analysis.headline import interval, missing_lines, p_value, percent, stand_in_note

PREAMBLE = r"% needs \usepackage{booktabs,siunitx} and nothing else"
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''",
}  # fmt: skip


def tex(text: object) -> str:
    """Any text as it should print: LaTeX's special characters escaped, letters of other alphabets kept (UTF-8)."""
    return "".join(SPECIAL.get(letter, letter) for letter in str(text))


def scores_table(results: dict[str, Any]) -> str:
    """Mean of each arm on each benchmark and dose, in percent, with interval, seeds and counts."""
    rows = [
        [
            *(tex(row[key]) for key in ("benchmark", "dose", "arm")),
            percent(row["mean"]),
            braced(interval(row)),
            "fixed" if row["fixed"] else str(row["seeds"]),
            *(str(row[key]) for key in ("questions", "n", "missing")),
        ]
        for row in in_order(results, results["arms"])
    ]
    caption = [
        "Scores in percent: mean over questions of means over seeds and epochs, with a 95\\,\\% interval for new seeds",
        "and new questions (two-way variance, Student's $t$); none for an arm with one training seed.",
        "``fixed'': one checkpoint without a training seed, so its interval is for new questions only.",
    ]
    headers = ["Benchmark", "SFT dose", "Arm", "Score", "95\\,\\% interval", "Seeds", "Questions", "Grades", "No grade"]
    return table(headers, rows, "lrlS[table-format=3.1]rrrrr", " ".join(caption), "tab:scores", results)


def contrasts_table(results: dict[str, Any]) -> str:
    """The declared contrasts in percentage points, with the deciding test and the paper's test beside it."""
    rows = [
        [
            tex(row["name"]).replace(" - ", " $-$ "),
            tex(row["benchmark"]),
            "-" if row["dose"] is None else tex(row["dose"]),
            percent(row["estimate"]),
            braced(interval(row, "+")),
            f"{row['seeds_of']}/{row['seeds_against']}",
            p_cell(row["p_holm"]),
            row["verdict"],
            p_cell(row["p_response_level"]),
        ]
        for row in results["contrasts"]
    ]
    caption = [
        "Declared contrasts in percentage points. Interval and test: two-way (seed and question) variance,",
        "Student's $t$; verdicts from Holm-adjusted $p$ within the declared family at .05.",
        "Seeds: training seeds of the first and second arm (0: a fixed checkpoint).",
        "The last column is the paper's response-level Welch test, which takes all answers as independent:",
        "for comparison only, it never decides.",
    ]
    reasons = dict.fromkeys(f"{row['name']}: {row['reason']}" for row in results["contrasts"] if row["reason"])
    caption += [f"No verdict: {tex('; '.join(reasons))}."] if reasons else []
    headers = ["Contrast", "Benchmark", "SFT dose", "Points", "95\\,\\% interval", "Seeds", "$p$ (Holm)", "Verdict"]
    headers.append("$p$ (responses)")
    return table(headers, rows, "llrS[table-format=-3.1]rrrlr", " ".join(caption), "tab:contrasts", results)


def dimensions_table(results: dict[str, Any]) -> str:
    """Mean per dimension, arms as columns; described, not tested."""
    arms = [arm for arm in results["arm_order"] if any(row["arm"] == arm for row in results["dimensions"])]
    cells: dict[tuple[str, int, str], dict[str, Any]] = {}
    for row in results["dimensions"]:
        cells.setdefault((row["benchmark"], row["dose"], row["dimension"]), {})[row["arm"]] = row
    rows = []
    for (benchmark, dose, dimension), found in cells.items():
        questions = str(max(row["questions"] for row in found.values()))
        scores = [percent(found[arm]["score"]) if arm in found else "-" for arm in arms]
        rows.append([tex(benchmark), tex(dose), tex(dimension), questions, *scores])
    caption = (
        "Scores per dimension in percent: mean over questions of means over seeds and epochs; described, not tested."
    )
    headers = ["Benchmark", "SFT dose", "Dimension", "Questions", *map(tex, arms)]
    return table(headers, rows, "lrlr" + "S[table-format=3.1]" * len(arms), caption, "tab:dimensions", results)


def corpora_table(results: dict[str, Any]) -> str:
    """What was trained on: sizes, diversity, and what the gates rejected."""
    shares = ("type_token", "distinct_2", "distinct_3", "mean_similarity")
    rows = [
        [
            tex(row["name"]),
            *(str(row[key]) for key in ("documents", "held_out", "tokens")),
            f"{row['median_words']:.0f}",
            *(number(row[key], ".3f") for key in shares),
            number(row["vendi"], ".1f"),
            str(sum(row["rejected"].values())),
        ]
        for row in results["corpora"]
    ]
    caption = (
        "Corpora as trained on. Type-token ratio and shares of distinct bi- and trigrams over the first 100\\,000 "
        "words at most; mean cosine of TF-IDF vectors over pairs of documents, and the Vendi score, the effective "
        "number of different documents. Rejected: drafts that a gate stopped and that were written again."
    )
    headers = ["Corpus", "Documents", "Held out", "Tokens", "Median words", "Type-token", "Bigrams", "Trigrams"]
    headers += ["Similarity", "Vendi", "Rejected"]
    columns = "lrrrr" + "S[table-format=1.3]" * 4 + "S[table-format=3.1]r"
    return table(headers, rows, columns, caption, "tab:corpora", results)


def in_order(results: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by benchmark, then dose, then arm in the order in which the study declares them."""
    benchmarks, arms = list(results["benchmarks"]), results["arm_order"]
    return sorted(rows, key=lambda row: (benchmarks.index(row["benchmark"]), row["dose"], arms.index(row["arm"])))


def made_of(results: dict[str, Any]) -> list[str]:
    """One plain sentence per benchmark: questions, scenarios, epochs and judge."""
    lines = []
    for name, benchmark in results["benchmarks"].items():
        if not benchmark["questions"]:
            lines.append(f"{name}: no checkpoint finished")
            continue
        by = benchmark["judge"]
        judge = f"scored by {by}" if by in ("likelihood", "lm-eval") else f"judge {by}"
        judge += " (a deterministic stand-in)" if benchmark["stand_in"] else ""
        epochs = f"{benchmark['epochs']} epoch{'s' if benchmark['epochs'] != 1 else ''}"
        questions = f"{benchmark['questions']} questions in {benchmark['scenarios']} scenarios"
        seeds = sorted({row["seeds"] for row in results["arms"] if row["benchmark"] == name and not row["fixed"]})
        trained = " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]]))) if seeds else "no"
        lines.append(f"{name}: {trained} training seed{'s' * (trained != '1')} per arm, {questions}, {epochs}, {judge}")
    return lines


def number(value: float | None, form: str) -> str:
    """A number as Python's format `form` has it, "-" for none."""
    return "-" if value is None else f"{value:{form}}"


def p_cell(p: float | None) -> str:
    return p_value(p).replace("< ", "$<$ ")


def braced(text: str) -> str:
    """Text for a column of numbers, minus signs as such."""
    return "{--}" if text == "-" else "{" + text.replace("-", "$-$") + "}"


def table(
    headers: list[str], rows: list[list[str]], columns: str, caption: str, label: str, results: dict[str, Any]
) -> str:
    """One LaTeX table with `label`; the caption goes on to say what the numbers rest on and what is missing."""
    notes = [f"{tex('. '.join(made_of(results)))}."]
    notes += [tex(note) for note in [stand_in_note(results)] if note]
    notes += [tex(f"Missing: {'; '.join(missing_lines(results))}.")] if missing_lines(results) else []
    # braces keep siunitx from reading headers and dashes as numbers
    frame = pd.DataFrame([["{--}" if cell == "-" else cell for cell in row] for row in rows], columns=headers)
    body = frame.style.hide(axis="index").to_latex(
        hrules=True,
        siunitx=True,
        column_format=columns,
        caption=" ".join([caption, *notes]),
        label=label,
        position="htbp",
        position_float="centering",
    )
    # LaTeX keeps no distance below a caption, as it expects captions under their tables.
    spaced = body.replace("\\caption{", "\\setlength{\\belowcaptionskip}{0.5em}\n\\caption{", 1)
    return f"{PREAMBLE}\n{spaced}"
