"""Tables beside the verdicts.

Erosion, other methods, more data, corpora, judges, missing grades and robustness.
"""

from collections.abc import Callable

from analysis.canary_tables import canary_table
from analysis.claim_tables import arithmetic_table, claims_table
from analysis.headline import (
    components_text,
    counted_names,
    crossing_text,
    detectable_text,
    doses,
    interval,
    of_total,
    p_value,
    percent,
)
from analysis.preservation import preservation_table
from analysis.probe import probe_table
from analysis.rows import Results
from analysis.table_text import NONE, Table
from analysis.tables import (
    BENCHMARK,
    by_benchmark,
    in_study_order,
    number,
    number_columns,
    of_text,
    table,
    text_columns,
)

# In headings \u00ad marks a place for a hyphen.
SHOWN_P = 0.001  # a smaller p has no digits
_HYPHENATED = ("repet\u00aditive", "lan\u00adguage", "con\u00adtin\u00adued", "dia\u00adlogue")
HYPHENATED = {word.replace("\u00ad", ""): word for word in _HYPHENATED}
INTERVAL = "95 % interval"


def erosion_table(results: Results) -> Table:
    """The change of each advantage between two doses, and where half of it or all of it is lost."""
    rows = [
        [
            *(row[key] for key in ("name", "benchmark")),
            f"{change['first']} to {change['second']}",
            percent(change["estimate"], "+"),
            interval(change, "+"),
            p_value(change["p_holm"]),
            *(crossing_text(row[key]) if n == 0 else "" for key in ("half", "zero")),
        ]
        for row in results["erosion"]
        for n, change in enumerate(row["changes"])
    ]
    columns = text_columns("Contrast", BENCHMARK)
    columns += number_columns("SFT doses", "Points", INTERVAL, "p (Holm)")
    columns += text_columns("Half", "Gone")
    return table(
        results,
        "erosion",
        "Erosion under SFT",
        "Change of each contrast between two SFT doses in points, paired within seeds and "
        "questions",
        columns,
        rows,
        [
            "p after Holm over the changes of a family.",
            "Half and gone: the dose at which half of the first advantage, and all of it, is lost, "
            "read as linear between doses or as decay at a constant rate, and the trained doses "
            "around its 95 % interval.",
        ],
        group_by=2,
        drop_empty=True,
    )


def sensitivity_table(results: Results) -> Table:
    """The contrasts by other methods than the deciding one."""
    rows = []
    for row in results["sensitivity"]:
        mixed = row["mixed"]
        permutation = row["permutation"]
        equivalence = row["equivalence"]
        p = p_value(permutation["p"])
        smallest = permutation["smallest_p"]
        if smallest is not None and smallest >= SHOWN_P:
            p += f" (≥ {p_value(smallest)})"
        rows.append(
            [
                *(row[key] for key in ("name", "benchmark")),
                doses(row),
                interval(row["bootstrap"], "+"),
                p,
                percent(mixed["estimate"], "+"),
                interval(mixed, "+"),
                p_value(mixed["p"]),
                NONE if equivalence is None else percent(equivalence["margin"]),
                NONE if equivalence is None else p_value(equivalence["p"]),
            ]
        )
    columns = text_columns("Contrast", BENCHMARK)
    columns += number_columns(
        "SFT dose", "Bootstrap", "Permu\u00adtation p", "Mixed model", INTERVAL
    )
    columns += number_columns("p", "Margin", "Equi\u00advalence p")
    return table(
        results,
        "sensitivity",
        "Contrasts by other methods",
        "The contrasts in points by other methods than the two-way test, on which alone verdicts "
        "rest",
        columns,
        rows,
        [
            "Bootstrap: studentised interval over seeds, scenarios and answers (10000 resamples).",
            "Permutation of training seeds, with the smallest p that so few seeds allow.",
            "Mixed model: REML, crossed intercepts of run, scenario and arm by scenario, "
            "Satterthwaite.",
            "Equivalence: two one-sided tests within the declared margin.",
        ],
        group_by=2,
        drop_empty=True,
    )


def dimension_tests_table(results: Results) -> Table:
    """The primary contrasts dimension by dimension, with the false discovery rate held."""
    rows = [
        [
            *(row[key] for key in ("name", "benchmark")),
            doses(row),
            row["dimension"],
            percent(row["estimate"], "+"),
            interval(row, "+"),
            p_value(row["p"]),
            p_value(row["q"]),
            str(row["questions"]),
        ]
        for row in results["dimension_tests"]
    ]
    columns = text_columns("Contrast", BENCHMARK, "SFT dose", "Dimension")
    columns += number_columns("Points", INTERVAL, "p", "q", "Questions")
    return table(
        results,
        "dimension_tests",
        "Primary contrasts by dimension",
        "Primary contrasts by dimension in points, by the two-way test; exploratory",
        columns,
        rows,
        [
            "q: p adjusted for the false discovery rate (Benjamini and Hochberg) over the "
            "dimensions of one contrast.",
        ],
        group_by=3,
        drop_empty=True,
    )


def variance_table(results: Results) -> Table:
    """Variance components, and the difference that more data would make detectable."""
    rows = []
    for row in by_benchmark(results, results["variance"]):
        start = [row["benchmark"], doses(row)]
        for part in row["components"]:
            upper = None if part["upper"] is None else part["upper"] ** 0.5
            numbers = [percent(part["sd"]), percent(upper), number(part["df"], ".0f")]
            name = components_text(part["component"], row)
            rows.append([*start, name, *numbers, "", "", "", ""])
        for option in row["purchases"]:
            cost = NONE if option["cost"] is None else f"{option['cost']:g} {row['unit']}"
            counts = (f"{option[key]} {name}" for key, name in counted_names(row).items())
            detectable = [
                detectable_text(option[key]) for key in ("detectable", "detectable_at_upper")
            ]
            sizes = ", ".join(counts)
            rows.append([*start, option["purchase"], "", "", "", *detectable, cost, sizes])
        if row["settled"] is False:
            rows.append([*start, "order not settled", *[""] * 7])
    columns = text_columns(BENCHMARK, "SFT dose", "Component or purchase")
    columns += number_columns("SD", "Upper limit", "df", "Detect\u00adable", "At limit", "Cost")
    columns += text_columns("Then")
    return table(
        results,
        "variance",
        "Variance components and further data",
        "Variance components, and the smallest difference of two arms that the two-way test would "
        "find in 80 % of studies",
        columns,
        rows,
        [
            "SD: standard deviations in points, with their one-sided 95 % upper limits and the "
            "degrees of freedom that show them.",
            "Detectable: in points, now and after a further purchase, the best gain per cost "
            "first; at limit: with the variance over seeds at its upper limit.",
            "Not settled: the order is another there.",
        ],
        group_by=2,
        drop_empty=True,
    )


def corpora_table(results: Results) -> Table:
    """The corpora as trained on: sizes, diversity, and the drafts that gates rejected."""
    shares = ("type_token", "distinct_2", "distinct_3", "mean_similarity")
    rows = [
        [
            row["name"],
            *(str(row[key]) for key in ("documents", "held_out", "tokens")),
            number(row["median_words"], ".0f"),
            *(number(row[key], ".3f") for key in shares),
            number(row["vendi"], ".1f"),
            str(sum(row["rejected"].values())),
        ]
        for row in results["corpora"]
    ]
    vectors = sorted({row["similarity_by"] for row in results["corpora"]})
    columns = text_columns("Corpus")
    columns += number_columns("Docu\u00adments", "Held out", "Tokens", "Median words", "Type-token")
    columns += number_columns(
        "Bi\u00adgrams", "Tri\u00adgrams", "Cosine", "Vendi", "Re\u00adjected"
    )
    return table(
        results,
        "corpora",
        "Corpora as trained on",
        "Corpora as trained on: size, diversity and rejected drafts",
        columns,
        rows,
        [
            "Type-token ratio and shares of distinct bi- and trigrams over the first 100000 words "
            "at most.",
            f"Cosine: mean over pairs of documents, by {' and '.join(vectors)}; Vendi: the Vendi "
            "score, the effective number of different documents.",
            "Rejected: drafts that a gate stopped and that were written again.",
        ],
    )


def judges_table(results: Results) -> Table:
    """Agreement of the judges that graded the same answers, for each pair and arm."""
    rows = []
    keys = ("mean_judge", "mean_other", "agreement", "kappa", "alpha")
    for row in by_benchmark(results, results["judges"]):
        start = [row["benchmark"], row["arm"] or "all arms"]
        for pair in row["pairs"]:
            judges = [pair["judge"], pair["other"], str(pair["n"])]
            rows.append([*start, *judges, *(number(pair[key], ".3f") for key in keys)])
        if len(row["judges"]) > 2:
            together = [f"all {len(row['judges'])} judges", "", str(row["units"])]
            rows.append([*start, *together, *[NONE] * 4, number(row["alpha"], ".3f")])
    columns = text_columns(BENCHMARK, "Arm", "Judge", "Other judge")
    columns += number_columns("Grades", "Mean", "Other's mean", "Agree\u00adment", "κ", "α")
    return table(
        results,
        "judges",
        "Agreement of judges",
        "Agreement of judges over the same answers, of which the first decides",
        columns,
        rows,
        [
            "Means and agreement over the grades that both gave; Cohen's κ for grades of 0 or "
            "1; Krippendorff's α of the pair, and of all judges where there are more than two.",
        ],
        group_by=1,
    )


def bounds_table(results: Results) -> Table:
    """The bounds of each arm's mean: had all of its missing grades failed, or passed."""
    rows = [
        [
            row["benchmark"],
            str(row["dose"]),
            *(row[key] for key in ("arm", "dimension")),
            f"{row['missing']}/{row['grades']}",
            *(percent(row[key]) for key in ("mean", "low", "high")),
        ]
        for row in results["bounds"]["arms"]
        if row["missing"]
    ]
    columns = text_columns(BENCHMARK, "SFT dose", "Arm", "Dimension")
    columns += number_columns("Missing", "As graded", "All failed", "All passed")
    return table(
        results,
        "bounds",
        "Bounds for missing grades",
        "Mean scores in percent as graded, had all missing grades failed, and had all passed",
        columns,
        rows,
        [],
        group_by=2,
    )


# Of a claim, beside that of its contrast, with their signs.
def malformed_table(results: Results) -> Table:
    """Shares of malformed answers, in percent."""
    kinds = [*results["malformed"][0]["kinds"]]
    rows = [
        [
            row["benchmark"],
            row["arm"],
            str(row["dose"]),
            str(row["answers"]),
            percent(row["malformed"]),
            *(percent(row["kinds"][kind]) for kind in kinds),
        ]
        for row in in_study_order(results, results["malformed"])
    ]
    columns = text_columns(BENCHMARK, "Arm")
    columns += number_columns("SFT dose", "An\u00adswers", "Mal\u00adformed")
    for kind in kinds:
        words = (HYPHENATED.get(word, word) for word in kind.split("_"))
        columns += number_columns(" ".join(words).capitalize())
    return table(
        results,
        "malformed",
        "Malformed answers",
        "Malformed answers in percent, by simple rules",
        columns,
        rows,
        ["The rules: docs/evaluation.md. An answer can be malformed in several ways."],
        group_by=1,
    )


def robustness_table(results: Results) -> Table:
    """Each contrast under one other choice at a time."""
    rows = [
        [
            *(row[key] for key in ("name", "benchmark")),
            doses(row),
            row["variant"],
            percent(row["estimate"], "+"),
            interval(row, "+"),
            p_value(row["p"]),
            of_text(of_total(row["holds"])),
            row["which"] or row["reason"] or "",
        ]
        for row in results["robustness"]
    ]
    columns = text_columns("Contrast", BENCHMARK, "SFT dose", "Variant")
    columns += number_columns("Points", "Interval or range", "p", "Holds")
    columns += text_columns("Note")
    return table(
        results,
        "robustness",
        "Contrasts under other choices",
        "The contrasts under one other choice at a time, in points; nothing here decides",
        columns,
        rows,
        [
            "Primary contrasts: every choice; those of other families: without one seed, question "
            "or scenario, or by another judge.",
            "p unadjusted. Holds: the estimates in which the verdict holds.",
        ],
        group_by=3,
        drop_empty=True,
    )


# Written where results.json has rows for them; file name (without ending) -> function of it.
SUPPLEMENTARY_TABLES: dict[str, Callable[[Results], Table]] = {
    "erosion": erosion_table,
    "sensitivity": sensitivity_table,
    "dimension_tests": dimension_tests_table,
    "variance": variance_table,
    "corpora": corpora_table,
    "judges": judges_table,
    "canary": canary_table,
    "bounds": bounds_table,
    "malformed": malformed_table,
    "robustness": robustness_table,
    "preservation": preservation_table,
    "probe": probe_table,
    "claims": claims_table,
    "arithmetic": arithmetic_table,
}
