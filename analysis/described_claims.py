"""Claims that are described and not tested: on corpora, dimensions, losses, malformed answers."""

from collections.abc import Sequence
from statistics import mean

from analysis.rows import Results, Row

LOSSES = ("held_out_loss", "held_out_loss_fall")
WHAT = {
    "malformed": "share of malformed answers",
    "held_out_loss": "held-out loss",
    "held_out_loss_fall": "fall of the held-out loss",
}


def is_described(claim: Row) -> bool:
    return "measure" in claim or "dimension" in claim


def quantity(claim: Row) -> str:
    """What the two sides of a described claim are compared in."""
    name: str = claim["dimension"] if "dimension" in claim else claim["measure"]
    return WHAT.get(name, name)


def described_value(claim: Row, results: Results, row: Row, side: str) -> float | None:
    """The number of one side of a described claim; None where this study has none.

    Args:
        claim: of the file of claims, with `dimension` or `measure`.
        results: results.json.
        row: the claim's row with the study's own names of its roles.
        side: "treatment" or "control".
    """
    name = row[side]
    keys: Row = {"arm": name}
    if "benchmark" in claim:
        dose = row["control_dose" if side == "control" else "dose"]
        keys |= {"benchmark": row["benchmark"], "dose": dose}
    if "dimension" in claim:
        return _value(results["dimensions"], keys | {"dimension": claim["dimension"]}, "score")
    measure = claim["measure"]
    if measure == "malformed":
        return _value(results["malformed"], keys, "malformed")
    if measure in LOSSES:
        return _value(results["losses"], keys, measure)
    of_replicates = [
        corpus[measure]
        for corpus in results["corpora"]
        # `animal.replicate1` is one of `animal`
        if corpus["name"].partition(".")[0] == name and corpus[measure] is not None
    ]
    return mean(of_replicates) if of_replicates else None


def _value(rows: Sequence[Row], keys: Row, column: str) -> float | None:
    """The column of the row that has the values `keys`."""
    matching = (row[column] for row in rows if keys.items() <= row.items())
    return next(matching, None)
