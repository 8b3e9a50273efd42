"""Verdicts of the declared contrasts, family by family."""

from collections.abc import Sequence

from analysis.estimates import ALPHA, Estimate, adjusted
from analysis.rows import Row

DECIDED = ("higher", "lower")
INCONCLUSIVE = "inconclusive"
JUDGED = (*DECIDED, INCONCLUSIVE)
INTERIM = "interim"
HANGS = "hangs on missing grades"


def decide(rows: Sequence[Row], worst_cases: Sequence[Sequence[Estimate]], level: float) -> None:
    """Add `p_holm`, `family_size`, `p_needed`, `verdict` and perhaps a `reason` to the rows.

    `p_holm` is by Holm over every test declared in the family, times .05 / `level`: it is compared
    with .05 at any level. A test that could not be made counts with p = 1. `p_needed` is the
    largest unadjusted p that Holm rejects, with the other tests of the family as they are. The
    verdict is `higher` or `lower` at .05, else `inconclusive`. It is `none` where there is no test.
    A test of which checkpoints are unfinished counts with p = 1 for those that are finished, so
    that no verdict rests on data that are still to come. One that these may yet make `higher` or
    `lower` is INTERIM.
    Where grades are missing the whole family is tested again with them filled, all its contrasts
    alike: against and for the treatments. A verdict that such a test changes is HANGS.

    Args:
        rows: of analysis.contrasts.
        worst_cases: of each row, its estimates with the missing grades filled; empty where none is
            missing.
        level: what a family may reject in error.
    """
    for family in {row["family"] for row in rows}:
        numbers = [n for n, row in enumerate(rows) if row["family"] == family]
        waiting = [bool(rows[n]["unfinished"]) for n in numbers]
        tests = [(rows[n]["p"], rows[n]["estimate"]) for n in numbers]
        as_graded = _verdicts(tests, waiting, level)
        filled = []
        if any(worst_cases[n] for n in numbers):
            for side in (0, 1):
                tests = [_test(rows[n], worst_cases[n], side) for n in numbers]
                filled.append([verdict for _, verdict in _verdicts(tests, waiting, level)])
        for position, n in enumerate(numbers):
            row = rows[n]
            row["family_size"] = len(numbers)
            others = [
                None if rows[other]["unfinished"] and not row["unfinished"] else rows[other]["p"]
                for other in numbers
                if other != n
            ]
            row["p_needed"] = _p_needed(others, level)
            row["p_holm"], row["verdict"] = as_graded[position]
            if row["verdict"] == INTERIM:
                row["reason"] = "Holm's correction waits for unfinished tests of its family"
            if row["verdict"] != "none" and {of[position] for of in filled} - {row["verdict"]}:
                row["verdict"] = HANGS
                verdicts = ", ".join(of[position] for of in filled)
                row["reason"] = (
                    f"with the missing grades filled against and for {_side(row)}: {verdicts}"
                )


def _side(row: Row) -> str:
    """The treatment, with its dose where the control is the same arm at another."""
    is_same_arm = row["treatment"] == row["control"]
    return f"{row['treatment']} at dose {row['dose']}" if is_same_arm else str(row["treatment"])


def _test(
    row: Row, worst_cases: Sequence[Estimate], side: int
) -> tuple[float | None, float | None]:
    test = worst_cases[side] if worst_cases else None
    return (row["p"], row["estimate"]) if test is None else (test.p, test.estimate)


def _verdicts(
    tests: Sequence[tuple[float | None, float | None]], waiting: Sequence[bool], level: float
) -> list[tuple[float | None, str]]:
    """(adjusted p, verdict) of each of a family's tests, given as (p, estimate).

    `waiting`: which of them wait for checkpoints.
    """
    verdicts: list[tuple[float | None, str]] = []
    ps = [p for p, _ in tests]
    corrected = adjusted(ps, "holm")
    if any(waiting):
        of_finished = [None if waits else p for p, waits in zip(ps, waiting, strict=True)]
        finished = adjusted(of_finished, "holm")
        corrected = [
            now if waits else final
            for now, final, waits in zip(corrected, finished, waiting, strict=True)
        ]
    for (alone, estimate), p, waits in zip(tests, corrected, waiting, strict=True):
        if alone is None or p is None or estimate is None:
            verdicts.append((None, "none"))
            continue
        p_holm = min(1.0, p * ALPHA / level)
        verdict = direction(estimate) if p_holm <= ALPHA else INCONCLUSIVE
        if verdict == INCONCLUSIVE and alone <= level and any(waiting) and not waits:
            verdict = INTERIM
        verdicts.append((p_holm, verdict))
    return verdicts


def direction(estimate: float) -> str:
    """The verdict that a test finds which rejects."""
    return DECIDED[0] if estimate > 0 else DECIDED[1]


def _p_needed(others: Sequence[float | None], level: float) -> float:
    """The largest p that Holm rejects beside the p of `others` in the family."""
    tests = len(others) + 1
    for rejected, p in enumerate(sorted(1.0 if p is None else p for p in others)):
        if p > level / (tests - rejected):
            return level / (tests - rejected)
    return level
