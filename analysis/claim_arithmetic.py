"""The paper's figures recomputed from each other."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import hypot, prod
from typing import Any

from scipy import stats

from analysis.estimates import ALPHA
from analysis.rows import Row


@dataclass(frozen=True)
class Check:
    """A figure recomputed from others; `agrees` is None where none is printed to compare with."""

    what: str
    published: str | None
    recomputed: str
    agrees: bool | None


def arithmetic(source: dict[str, Any]) -> list[Row]:
    """The published figures recomputed: `id`, `what`, `published`, `recomputed` (text), `agrees`.

    `source`: a file of claims (analysis.claims_file).

    A printed number stands for all that round to it. n scores between 0 and 1 of mean m vary most
    if each is 0 or 1, by n m (1 - m) / (n - 1) (Bhatia and Davis, Am. Math. Mon. 107, 2000). This
    gives the largest standard error, smallest t and largest p of any test that takes answers as
    independent.
    """
    rows = []
    printed_tests = [claim["published"] | {"id": claim["id"]} for claim in source["claims"]]
    for printed in [*printed_tests, *source["either"]]:
        for make in (_checks_of_answers, _checks_of_test, _checks_of_errors):
            for check in make(printed):
                row = {"id": printed["id"], **asdict(check)}
                if "what" in printed:
                    row["what"] = f"{printed['what']}: {check.what}"
                rows.append(row)
    for count in source["counts"]:
        value = prod(map(number, count["from"])) / number(count.get("over", "1"))
        ends = count["published"]
        slack = count.get("about", 0) * value
        low = number(ends[0]) - half(ends[0]) - slack
        high = number(ends[-1]) + half(ends[-1]) + slack
        check = Check(count["what"], " to ".join(ends), f"{value:,.10g}", low <= value <= high)
        rows.append({"id": count["id"], **asdict(check)})
    return rows


def number(printed: str) -> float:
    """A number as printed: "46.70", ".029", "188k", "5.12M"."""
    return float(printed.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(printed[-1], 1.0)


def half(printed: str) -> float:
    """Half a unit of the last printed digit: .05 for "76.8"."""
    digits = printed.rstrip("kM")
    decimals = len(digits.partition(".")[2])
    return 0.5 * 10.0**-decimals * number("1" + printed[len(digits) :])


def published_difference(printed: Row) -> tuple[float, float]:
    """The published difference and how far rounding may have moved it."""
    slack = sum(
        half(printed[key]) for key in ("treatment", "control", "difference") if key in printed
    )
    if "treatment" in printed:
        difference = number(printed["treatment"]) - number(printed["control"])
    else:
        difference = number(printed["difference"])
    return difference, printed.get("step", slack)


def largest_errors(printed: Row) -> list[float]:
    """The largest standard errors that the two scores can have, in percent, from `n` answers each.

    A difference alone leaves the scores open; the error is largest at a half.
    """
    n = printed["n"]
    means = [
        number(printed[side]) / 100 if side in printed else 0.5 for side in ("treatment", "control")
    ]
    return [100 * (mean * (1 - mean) / (n - 1)) ** 0.5 for mean in means]


def _checks_of_answers(printed: Row) -> Iterator[Check]:
    """Largest errors, smallest t and largest p from two scores and `n` answers.

    The scores are in percent; their difference alone does as well.
    """
    if "n" not in printed:
        return
    n = printed["n"]
    errors = largest_errors(printed)
    difference, slack = published_difference(printed)
    t = abs(difference) / hypot(*errors)
    least_t = (abs(difference) - slack) / hypot(*errors)
    p, largest_p = (
        printed.get("sided", 2) * float(stats.t.sf(max(value, 0), 2 * n - 2))
        for value in (t, least_t)
    )
    what = f"standard errors if {n} answers each are independent"
    yield Check(what, None, f"{errors[0]:.2f} / {errors[1]:.2f} points at most", None)
    if "t" in printed:
        agrees = number(printed["t"]) + half(printed["t"]) >= least_t
        yield Check("t from the scores", printed["t"], f"{t:.2f} at least", agrees)
    if "p" in printed:
        if printed["p"] == "n.s.":
            agrees = largest_p > ALPHA
        else:
            agrees = number(printed["p"]) - half(printed["p"]) <= largest_p
        yield Check("p from the scores", printed["p"], f"{p:.2g} at most", agrees)


def _checks_of_test(printed: Row) -> Iterator[Check]:
    """p from t and 2 `n` - 2 degrees of freedom, and the degrees that would fit if those don't."""
    if "t" not in printed:
        return
    full = 2 * printed["n"] - 2
    steps = [number(printed["t"]) + sign * half(printed["t"]) for sign in (1, 0, -1)]
    p = {df: printed["sided"] * stats.t.sf(steps, df) for df in [*range(1, 99), full]}
    fits = [df for df, (low, _, high) in p.items() if _meets(low, high, printed["p"])]
    text = f"{p[full][1]:.2g} with {full:,} degrees of freedom"
    if fits and full not in fits:
        text += f"; it would fit {' or '.join(map(str, fits))}"
    yield Check("p from the printed t", printed["p"], text, full in fits)


def _checks_of_errors(printed: Row) -> Iterator[Check]:
    """p from two scores and their ±, read as standard errors and as 95 % intervals."""
    if "plus_minus" not in printed:
        return
    difference, slack = published_difference(printed)
    for reading, factor in (("a standard error", 1.0), ("half a 95 % interval", 1.96)):
        p = []
        for sign in (1, 0, -1):
            ends = [number(error) - sign * half(error) for error in printed["plus_minus"]]
            error = hypot(*ends) / factor
            distance = max(abs(difference) + sign * slack, 0)
            p.append(2 * float(stats.norm.sf(distance / error)))
        what = f"p from the scores if ± is {reading}"
        agrees = _meets(p[0], p[2], printed["p"])
        yield Check(what, printed["p"], f"{p[1]:.2g}", agrees)


def _meets(low: float, high: float, printed: str) -> bool:
    """Whether a range and a printed number have values in common."""
    return low <= number(printed) + half(printed) and high >= number(printed) - half(printed)
