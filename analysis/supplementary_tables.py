"""LaTeX tables beside the verdicts.

Erosion, other methods, more data, corpora, judges, missing grades, claims and robustness.
"""

from collections.abc import Callable

from analysis.headline import (
    components_text,
    counted_names,
    crossing_text,
    detectable_text,
    doses,
    interval,
    of_total,
    percent,
    scope_note,
)
from analysis.rows import Results, Row
from analysis.tables import (
    braced,
    in_study_order,
    interval_heading,
    number,
    p_cell,
    table,
    tex,
)

SHOWN_P = 0.001  # a smaller p has no digits


def erosion_table(results: Results) -> str:
    """The change of each advantage between two doses, and where half of it or all of it is lost."""
    rows = [
        [
            *(tex(row[key]) for key in ("name", "benchmark")),
            f"{change['first']} to {change['second']}",
            percent(change["estimate"], "+"),
            braced(interval(change, "+")),
            p_cell(change["p_holm"]),
            *(crossing_text(row[key]) if n == 0 else "" for key in ("half", "zero")),
        ]
        for row in results["erosion"]
        for n, change in enumerate(row["changes"])
    ]
    caption = (
        "Erosion under SFT: the change of each contrast between two doses in points, paired "
        "within seeds and questions; $p$ by Holm over the changes of a family. Half and gone: "
        "the dose at which half of the first advantage, and all of it, is lost, read as linear "
        "between doses or as decay at a constant rate, and the trained doses around its 95\\,\\% "
        "interval."
    )
    headers = [
        "Contrast",
        "Benchmark",
        "SFT doses",
        "Points",
        "95\\,\\% interval",
        "$p$ (Holm)",
        "Half",
        "Gone",
    ]
    return table(headers, rows, "lllS[table-format=-3.1]rrrr", caption, "tab:erosion", results)


def sensitivity_table(results: Results) -> str:
    """The contrasts by other methods than the deciding one."""
    rows = []
    for row in results["sensitivity"]:
        mixed = row["mixed"]
        permutation = row["permutation"]
        equivalence = row["equivalence"]
        p = p_cell(permutation["p"])
        smallest = permutation["smallest_p"]
        if smallest is not None and smallest >= SHOWN_P:
            p += f" ($\\geq$ {p_cell(smallest)})"
        rows.append(
            [
                *(tex(row[key]) for key in ("name", "benchmark")),
                doses(row),
                braced(interval(row["bootstrap"], "+")),
                p,
                percent(mixed["estimate"], "+"),
                braced(interval(mixed, "+")),
                p_cell(mixed["p"]),
                "-" if equivalence is None else percent(equivalence["margin"]),
                "-" if equivalence is None else p_cell(equivalence["p"]),
            ]
        )
    caption = (
        "Sensitivity analyses; verdicts rest on the two-way test alone. Bootstrap: studentised "
        "interval over seeds, scenarios and answers (10\\,000 resamples). Permutation of "
        "training seeds, with the smallest $p$ so few seeds allow. Mixed model: REML, crossed "
        "intercepts of run, scenario and arm by scenario, Satterthwaite. Equivalence: two "
        "one-sided tests within the declared margin. In points."
    )
    headers = [
        "Contrast",
        "Benchmark",
        "SFT dose",
        "Bootstrap",
        "Permutation $p$",
        "Mixed",
        "95\\,\\% interval",
        "$p$",
    ]
    headers += ["Margin", "Equivalence $p$"]
    columns = "llrrrS[table-format=-3.1]rrrr"
    return table(headers, rows, columns, caption, "tab:sensitivity", results)


def dimension_tests_table(results: Results) -> str:
    """The primary contrasts dimension by dimension, with the false discovery rate held."""
    rows = [
        [
            *(tex(row[key]) for key in ("name", "benchmark")),
            doses(row),
            tex(row["dimension"]),
            percent(row["estimate"], "+"),
            braced(interval(row, "+")),
            p_cell(row["p"]),
            p_cell(row["q"]),
            str(row["questions"]),
        ]
        for row in results["dimension_tests"]
    ]
    caption = (
        "Primary contrasts by dimension, in points, by the two-way test; $q$: $p$ adjusted for "
        "the false discovery rate (Benjamini and Hochberg) over the dimensions of one contrast. "
        "Exploratory."
    )
    headers = [
        "Contrast",
        "Benchmark",
        "SFT dose",
        "Dimension",
        "Points",
        "95\\,\\% interval",
        "$p$",
        "$q$",
        "Questions",
    ]
    return table(
        headers, rows, "llrlS[table-format=-3.1]rrrr", caption, "tab:dimensiontests", results
    )


def variance_table(results: Results) -> str:
    """Variance components, and the difference that more data would make detectable."""
    rows = []
    for row in results["variance"]:
        start = [tex(row["benchmark"]), doses(row)]
        for part in row["components"]:
            upper = None if part["upper"] is None else part["upper"] ** 0.5
            numbers = [percent(part["sd"]), percent(upper), number(part["df"], ".0f")]
            name = components_text(part["component"], row)
            rows.append([*start, name, *numbers, "", "", "", ""])
        for option in row["purchases"]:
            cost = "-" if option["cost"] is None else f"{option['cost']:g} {tex(row['unit'])}"
            counts = (f"{option[key]} {name}" for key, name in counted_names(row).items())
            detectable = [
                detectable_text(option[key]).replace(">", "$>$")
                for key in ("detectable", "detectable_at_upper")
            ]
            sizes = ", ".join(counts)
            rows.append([*start, option["purchase"], "", "", "", *detectable, cost, sizes])
        if row["settled"] is False:
            rows.append([*start, "order not settled", *[""] * 7])
    caption = (
        "Variance components (standard deviations in points, their one-sided 95\\,\\% upper "
        "limits, and the degrees of freedom that show them) and the smallest difference of two "
        "arms that the two-way test would find in 80\\,\\% of studies: now, and after a further "
        "purchase, the best gain per cost first. At limit: with the variance over seeds at its "
        "upper limit. Not settled: the order is another there."
    )
    headers = [
        "Benchmark",
        "SFT dose",
        "Component or purchase",
        "SD",
        "Upper limit",
        "df",
        "Detectable",
        "At limit",
        "Cost",
        "Then",
    ]
    return table(headers, rows, "lrlrrrrrrl", caption, "tab:variance", results)


def corpora_table(results: Results) -> str:
    """The corpora as trained on: sizes, diversity, and the drafts that gates rejected."""
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
        "Corpora as trained on. Type-token ratio and shares of distinct bi- and trigrams over "
        "the first 100\\,000 words at most; mean cosine over pairs of documents by "
        f"{tex(' and '.join(sorted({row['similarity_by'] for row in results['corpora']})))}, "
        "and the Vendi score, the effective number of different documents. Rejected: "
        "drafts that a gate stopped and that were written again."
    )
    headers = [
        "Corpus",
        "Documents",
        "Held out",
        "Tokens",
        "Median words",
        "Type-token",
        "Bigrams",
        "Trigrams",
    ]
    headers += ["Similarity", "Vendi", "Rejected"]
    columns = "lrrrr" + "S[table-format=1.3]" * 4 + "S[table-format=3.1]r"
    return table(headers, rows, columns, caption, "tab:corpora", results)


def judges_table(results: Results) -> str:
    """Agreement of the judges that graded the same answers, for each pair and arm."""
    rows = []
    keys = ("mean_judge", "mean_other", "agreement", "kappa", "alpha")
    for row in results["judges"]:
        start = [tex(row["benchmark"]), tex(row["arm"] or "all arms")]
        for pair in row["pairs"]:
            judges = [tex(pair["judge"]), tex(pair["other"]), str(pair["n"])]
            rows.append([*start, *judges, *(number(pair[key], ".3f") for key in keys)])
        if len(row["judges"]) > 2:
            together = [f"all {len(row['judges'])} judges", "", str(row["units"])]
            rows.append([*start, *together, *["-"] * 4, number(row["alpha"], ".3f")])
    caption = (
        "Judges over the same answers. The first decides; the other is reported only. Means and "
        "agreement over the grades that both gave, Cohen's $\\kappa$ for grades of 0 or 1, "
        "Krippendorff's $\\alpha$ of the pair, and of all judges where there are more than two."
    )
    headers = [
        "Benchmark",
        "Arm",
        "Judge",
        "Other judge",
        "Grades",
        "Mean",
        "Other's mean",
        "Agreement",
    ]
    headers += [r"$\kappa$", r"$\alpha$"]
    return table(headers, rows, "llllr" + "S[table-format=1.3]" * 5, caption, "tab:judges", results)


def bounds_table(results: Results) -> str:
    """The bounds of each arm's mean: had all of its missing grades failed, or passed."""
    rows = [
        [
            *(tex(row[key]) for key in ("benchmark", "dose", "arm", "dimension")),
            f"{row['missing']} of {row['grades']}",
            *(percent(row[key]) for key in ("mean", "low", "high")),
        ]
        for row in results["bounds"]["arms"]
        if row["missing"]
    ]
    caption = (
        "Missing grades and what they could change: means in percent as graded, had all failed, "
        "had all passed."
    )
    headers = [
        "Benchmark",
        "SFT dose",
        "Arm",
        "Dimension",
        "Missing",
        "As graded",
        "All failed",
        "All passed",
    ]
    return table(headers, rows, "lrllr" + "S[table-format=3.1]" * 3, caption, "tab:bounds", results)


# Of a claim, beside that of its contrast, with their signs.
CLAIM_INTERVALS = (("share", ""), ("predicted", "+"))


def claims_table(results: Results) -> str:
    """The paper's claims beside this study's numbers.

    Claims on corpora and losses have other units and are left out.
    """
    rows = [
        [
            *(tex(row[key]) for key in ("id", "statement", "published")),
            percent(row["estimate"], "+"),
            braced(interval(row, "+")),
            *(braced(interval(_ends(row, key), sign)) for key, sign in CLAIM_INTERVALS),
            p_cell(row["p_holm"]),
            row["verdict"],
            tex(row["reason"] or ""),
        ]
        for row in results["claims"]
        if row["benchmark"] or row["verdict"] != "none"
    ]
    caption = (
        "The paper's claims. Published as printed; ours in points, first arm minus second; "
        "Holm-adjusted $p$. Of published: the interval over the published difference, in percent. "
        "Predicted: the 95\\,\\% prediction interval of Patil, Peng and Leek (2016). Too small: "
        "less than the paper's test had 33\\,\\% power to find (Simonsohn, 2015). "
        f"{tex(scope_note(results['writers']))}"
    )
    headers = [
        "Claim",
        "Statement",
        "Published",
        "Points",
        interval_heading(results),
        "Of published",
        "Predicted",
        "$p$ (Holm)",
        "Verdict",
        "Why",
    ]
    columns = "lp{4.5cm}lS[table-format=-3.1]rrrrlp{3cm}"
    return table(headers, rows, columns, caption, "tab:claims", results)


def _ends(row: Row, key: str) -> Row:
    """The interval `key` of a claim's row."""
    return {"low": row[f"{key}_low"], "high": row[f"{key}_high"]}


def malformed_table(results: Results) -> str:
    """Shares of malformed answers, in percent."""
    kinds = [*results["malformed"][0]["kinds"]]
    rows = [
        [
            *(tex(row[key]) for key in ("benchmark", "dose", "arm", "answers")),
            percent(row["malformed"]),
            *(percent(row["kinds"][kind]) for kind in kinds),
        ]
        for row in in_study_order(results, results["malformed"])
    ]
    caption = (
        "Malformed answers in percent, by simple rules (docs/evaluation.md). An answer can be "
        "malformed in several ways."
    )
    headers = ["Benchmark", "SFT dose", "Arm", "Answers", "Malformed"]
    headers += [kind.replace("_", " ").capitalize() for kind in kinds]
    columns = "lrlr" + "S[table-format=3.1]" * (1 + len(kinds))
    return table(headers, rows, columns, caption, "tab:malformed", results)


def arithmetic_table(results: Results) -> str:
    """The paper's figures recomputed from each other, where one is printed to compare with."""
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
    return table(headers, rows, "lp{5cm}lp{4cm}l", caption, "tab:arithmetic", results)


def robustness_table(results: Results) -> str:
    """Each contrast under one other choice at a time."""
    rows = [
        [
            *(tex(row[key]) for key in ("name", "benchmark")),
            doses(row),
            tex(row["variant"]),
            percent(row["estimate"], "+"),
            braced(interval(row, "+")),
            p_cell(row["p"]),
            of_total(row["holds"]),
            tex(row["which"] or row["reason"] or ""),
        ]
        for row in results["robustness"]
    ]
    caption = (
        "The primary contrasts under one other choice at a time, in points; contrasts of other "
        "families without one seed, question or scenario, or by another judge. $p$ unadjusted. "
        "Holds: the estimates in which the verdict holds. Nothing here decides."
    )
    headers = [
        "Contrast",
        "Benchmark",
        "SFT dose",
        "Variant",
        "Points",
        "Interval or range",
        "$p$",
        "Holds",
        "Note",
    ]
    columns = "llrlS[table-format=-3.1]rrrp{4cm}"
    return table(headers, rows, columns, caption, "tab:robustness", results)


# Written where results.json has rows for them; file name (without .tex) -> function of it.
SUPPLEMENTARY_TABLES: dict[str, Callable[[Results], str]] = {
    "erosion": erosion_table,
    "sensitivity": sensitivity_table,
    "dimension_tests": dimension_tests_table,
    "variance": variance_table,
    "corpora": corpora_table,
    "judges": judges_table,
    "bounds": bounds_table,
    "malformed": malformed_table,
    "robustness": robustness_table,
    "claims": claims_table,
    "arithmetic": arithmetic_table,
}
