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
            _braced(interval(row)),
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
    return _table(headers, rows, "lrlS[table-format=3.1]rrrrr", " ".join(caption), "tab:scores", results)


def contrasts_table(results: dict[str, Any]) -> str:
    """The declared contrasts in percentage points, with the deciding test and the paper's test beside it."""
    rows = [
        [
            tex(row["name"]).replace(" - ", " $-$ "),
            tex(row["benchmark"]),
            "-" if row["dose"] is None else tex(row["dose"]),
            percent(row["estimate"]),
            _braced(interval(row, "+")),
            f"{row['seeds_of']}/{row['seeds_against']}",
            _p(row["p_holm"]),
            row["verdict"],
            _p(row["p_response_level"]),
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
    return _table(headers, rows, "llrS[table-format=-3.1]rrrlr", " ".join(caption), "tab:contrasts", results)


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
    return _table(headers, rows, "lrlr" + "S[table-format=3.1]" * len(arms), caption, "tab:dimensions", results)


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
    return _table(headers, rows, columns, caption, "tab:corpora", results)


def judges_table(results: dict[str, Any]) -> str:
    """Agreement of the judges that graded the same answers, for each pair and arm."""
    rows = [
        [
            *(tex(text) for text in (row["benchmark"], row["arm"] or "all arms", pair["judge"], pair["other"])),
            str(pair["n"]),
            *(number(pair[key], ".3f") for key in ("mean_judge", "mean_other", "agreement", "kappa")),
            number(row["alpha"], ".3f"),
        ]
        for row in results["judges"]
        for pair in row["pairs"]
    ]
    caption = (
        "Judges over the same answers. The first decides; the other is reported only. Means and agreement over the "
        "grades that both gave, Cohen's $\\kappa$ for grades of 0 or 1, Krippendorff's $\\alpha$ over all judges."
    )
    headers = ["Benchmark", "Arm", "Judge", "Other judge", "Grades", "Mean", "Other's mean", "Agreement"]
    headers += [r"$\kappa$", r"$\alpha$"]
    return _table(headers, rows, "llllr" + "S[table-format=1.3]" * 5, caption, "tab:judges", results)


def bounds_table(results: dict[str, Any]) -> str:
    """What the missing grades of each arm could change: its mean had all of them failed, or passed."""
    found = [row for row in results["bounds"]["arms"] if row["missing"]]
    rows = [
        [
            *(tex(row[key]) for key in ("benchmark", "dose", "arm", "dimension")),
            f"{row['missing']} of {row['grades']}",
            *(percent(row[key]) for key in ("mean", "low", "high")),
        ]
        for row in found
    ]
    caption = "Missing grades and what they could change: means in percent as graded, had all failed, had all passed."
    headers = ["Benchmark", "SFT dose", "Arm", "Dimension", "Missing", "As graded", "All failed", "All passed"]
    return _table(headers, rows, "lrllr" + "S[table-format=3.1]" * 3, caption, "tab:bounds", results)


def claims_table(results: dict[str, Any]) -> str:
    """The paper's claims beside this study's numbers (those on corpora have units of their own and stay out)."""
    rows = [
        [
            *(tex(row[key]) for key in ("id", "statement", "published")),
            percent(row["estimate"], "+"),
            _braced(interval(row, "+")),
            _p(row["p_holm"]),
            row["verdict"],
            tex(row["reason"] or ""),
        ]
        for row in results["claims"]
        if row["benchmark"] or row["verdict"] != "none"
    ]
    caption = "The paper's claims. Published as printed; ours in points, first arm minus second; Holm-adjusted $p$."
    headers = ["Claim", "Statement", "Published", "Points", "95\\,\\% interval", "$p$ (Holm)", "Verdict", "Why"]
    return _table(headers, rows, "lp{4.5cm}lS[table-format=-3.1]rrlp{3cm}", caption, "tab:claims", results)


def arithmetic_table(results: dict[str, Any]) -> str:
    """The paper's figures recomputed from each other, where something is printed to compare with."""
    rows = [
        [
            *(tex(row[key]) for key in ("id", "what", "published", "recomputed")),
            "agrees" if row["agrees"] else "does not agree",
        ]
        for row in results["arithmetic"]
        if row["agrees"] is not None
    ]
    caption = "The paper's figures recomputed from each other."
    headers = ["Claim", "Figure", "Printed", "Recomputed", "Agreement"]
    return _table(headers, rows, "lp{5cm}lp{4cm}l", caption, "tab:arithmetic", results)


def robustness_table(results: dict[str, Any]) -> str:
    """Each primary contrast under one other choice at a time."""
    rows = [
        [
            *(tex(row[key]) for key in ("name", "benchmark", "dose", "variant")),
            percent(row["estimate"], "+"),
            _braced(interval(row, "+")),
            _p(row["p"]),
            tex(row["which"] or row["reason"] or ""),
        ]
        for row in results["robustness"]
    ]
    caption = "The primary contrasts under one other choice at a time, in points; $p$ unadjusted; nothing here decides."
    headers = ["Contrast", "Benchmark", "SFT dose", "Variant", "Points", "Interval or range", "$p$", "Note"]
    return _table(headers, rows, "llrlS[table-format=-3.1]rrp{4cm}", caption, "tab:robustness", results)


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


def _p(p: float | None) -> str:
    return p_value(p).replace("< ", "$<$ ")


def _braced(text: str) -> str:
    return "{--}" if text == "-" else "{" + text.replace("-", "$-$") + "}"


def _table(
    headers: list[str], rows: list[list[str]], columns: str, caption: str, label: str, results: dict[str, Any]
) -> str:
    notes = [f"{tex('. '.join(made_of(results)))}."]
    notes += [tex(note) for note in [stand_in_note(results)] if note]
    notes += [tex(f"Missing: {'; '.join(missing_lines(results))}.")] if missing_lines(results) else []
    # braces keep siunitx from reading headers and dashes as numbers
    table = pd.DataFrame([["{--}" if cell == "-" else cell for cell in row] for row in rows], columns=headers)
    body = table.style.hide(axis="index").to_latex(
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
