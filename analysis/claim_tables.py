"""Tables of a paper's claims, and of its figures recomputed."""

from analysis.headline import interval, p_value, percent, scope_note
from analysis.rows import Results, Row
from analysis.table_text import Table
from analysis.tables import interval_heading, number_columns, table, text_columns

CLAIM_INTERVALS = (("share", ""), ("predicted", "+"))


def claims_table(results: Results) -> Table:
    """The paper's claims beside this study's numbers.

    Claims on corpora and losses have other units and are left out.
    """
    claims = [row for row in results["claims"] if row["benchmark"] or row["verdict"] != "none"]
    rows = [
        [
            *(row[key] for key in ("id", "statement", "published")),
            percent(row["estimate"], "+"),
            interval(row, "+"),
            # without brackets, whose lines are not broken
            *(
                interval(_ends(row, key), sign).strip("[]").replace(", ", " to ")
                for key, sign in CLAIM_INTERVALS
            ),
            p_value(row["p_holm"]),
            row["verdict"],
            row["reason"] or "",
        ]
        for row in claims
    ]
    columns = text_columns("Claim", "Statement", "Published")
    columns += number_columns("Points", interval_heading(results), "Of published", "Predicted")
    columns += [*number_columns("p (Holm)"), *text_columns("Verdict", "Why")]
    return table(
        results,
        "claims",
        "The paper's claims",
        "The paper's claims beside this study, first arm minus second in points",
        columns,
        rows,
        [
            "Published: as printed. p after Holm.",
            "Of published: the interval over the published difference, in percent.",
            "Predicted: the 95 % prediction interval of Patil, Peng and Leek (2016).",
            "Too small: less than the paper's test had 33 % power to find (Simonsohn, 2015).",
            scope_note(results["writers"]),
        ],
        group_by=2,
        benchmarks={row["benchmark"] for row in claims},
    )


def _ends(row: Row, key: str) -> Row:
    """The interval `key` of a claim's row."""
    return {"low": row[f"{key}_low"], "high": row[f"{key}_high"]}


def arithmetic_table(results: Results) -> Table:
    """The paper's figures recomputed from each other, where one is printed to compare with."""
    rows = [
        [
            *(row[key] for key in ("id", "what", "published", "recomputed")),
            "agrees" if row["agrees"] else "does not agree",
        ]
        for row in results["arithmetic"]
        if row["agrees"] is not None
    ]
    columns = text_columns("Claim", "Figure", "Printed", "Recomputed", "Agreement")
    return table(
        results,
        "arithmetic",
        "The paper's figures recomputed",
        "The paper's figures recomputed from each other",
        columns,
        rows,
        [],
    )
