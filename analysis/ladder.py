"""The reproduction ladder: each published difference beside the same one on every rung."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.claims import claim_rows
from analysis.rows import Results, Row, select
from analysis.rungs import RUNGS

SHOWN = ("estimate", "low", "high", "score_treatment", "score_control", "verdict", "reason")
NOT_RUN = "not run"


def ladder_rows(
    results: Results,
    roles: Mapping[str, Any],
    further: Sequence[Mapping[str, Any]],
    claims: Sequence[Row],
) -> list[Row]:
    """One row for each claim that this study can answer on some rung.

    Args:
        results: With `rungs`, and what `claim_rows` reads.
        roles: `claim_roles` of the study.
        further: Of each further rung, the roles that other arms have there.
        claims: Of a file of claims.

    Returns:
        Rows with `id`, `statement`, `published`, and under each of `RUNGS` None or the entries
        `SHOWN` of the claim's row. A claim is on the first rung that one of its arms is on.
    """
    rows: dict[str, Row] = {}
    for mapping in ({}, *further):
        for claim in claim_rows(results, {**roles, **mapping}, claims):
            row = select(claim, ("id", "statement", "published"))
            row = rows.setdefault(claim["id"], row | dict.fromkeys(RUNGS))
            if claim["verdict"] == NOT_RUN or claim["benchmark"] is None:
                continue  # measures of corpora are on no rung
            sides = [results["rungs"].get(claim[side]) for side in ("treatment", "control")]
            rung = next((name for name in RUNGS if name in sides), "anew")
            row[rung] = row[rung] or select(claim, SHOWN)
    return [row for row in rows.values() if any(row[rung] for rung in RUNGS)]
