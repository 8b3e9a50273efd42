"""The size of a published difference beside this study's.

Its share, the difference that the paper could hardly have seen, and what a repetition should give.
"""

from math import hypot

from scipy import stats

from analysis.claim_arithmetic import largest_errors, number, published_difference
from analysis.estimates import ALPHA
from analysis.reference import Reference
from analysis.rows import Row

SMALL_POWER = 0.33
# What `size_row` gives; None where the paper prints too little, or this study has no test.
SIZE_KEYS = (
    "difference",
    "share",
    "share_low",
    "share_high",
    "predicted_low",
    "predicted_high",
    "small_effect",
    "p_too_small",
)


def size_row(printed: Row, direction: str | None, contrast: Row | None) -> Row:
    """A claim's published size beside the study's contrast that answers it, in score units.

    Args:
        printed: `published` of the claim.
        direction: of the claim; with `none` there is no size to reproduce.
        contrast: a row of analysis.contrasts; None where the study has none.

    Returns:
        `difference`: the published one.
        `share`, `share_low`, `share_high`: this study's difference and its interval over the
        published difference, which counts as known.
        `predicted_low`, `predicted_high`: the 95 % prediction interval of Patil, Peng and Leek
        (Perspect. Psychol. Sci. 11, 2016): where this study's difference would lie if both
        estimated one number. The half-widths of both 95 % intervals are added in quadrature (Zou
        and Donner, Stat. Med. 27, 2008). The published one is of new answers alone, so that the
        prediction is rather too narrow.
        `small_effect`: the difference that the paper's own test had 33 % power to find (Simonsohn,
        "Small telescopes", Psychol. Sci. 26, 2015).
        `p_too_small`: one-sided p of this study's difference being at least that.
    """
    row: Row = dict.fromkeys(SIZE_KEYS)
    if "treatment" not in printed and "difference" not in printed:
        return row
    difference = published_difference(printed)[0] / printed.get("scale", 100)
    row["difference"] = difference
    error = published_error(printed)
    is_directional = direction in ("higher", "lower")
    if error is not None and is_directional:
        critical = stats.norm.isf(ALPHA / printed.get("sided", 2))
        row["small_effect"] = float(critical - stats.norm.isf(SMALL_POWER)) * error
    reference = None if contrast is None else Reference.of_row(contrast)
    if contrast is None or reference is None:
        return row
    if is_directional:
        ends = sorted(contrast[key] / difference for key in ("low", "high"))
        row["share"] = contrast["estimate"] / difference
        row["share_low"], row["share_high"] = ends
    if error is not None:
        published_half = float(stats.norm.isf(ALPHA / 2)) * error
        half = hypot(published_half, reference.quantile(ALPHA) * contrast["se"])
        row["predicted_low"], row["predicted_high"] = difference - half, difference + half
    if row["small_effect"] is not None:
        size = contrast["estimate"] if difference > 0 else -contrast["estimate"]
        row["p_too_small"] = reference.sf((row["small_effect"] - size) / contrast["se"])
    return row


def published_error(printed: Row) -> float | None:
    """The standard error of a published difference in the paper's own test, in score units.

    It follows from the printed t, else from the printed p, with 2 `n` - 2 degrees of freedom. It is
    at most the largest that `n` answers an arm can have (`largest_errors`), which stands for it
    where neither is printed, or p as "n.s.". None without `n`.
    """
    if "n" not in printed:
        return None
    largest = hypot(*largest_errors(printed))
    distance = abs(published_difference(printed)[0])
    if "t" in printed:
        error = distance / number(printed["t"])
    elif printed.get("p", "n.s.") != "n.s.":
        p = number(printed["p"]) / printed.get("sided", 2)
        error = distance / float(stats.t.isf(p, 2 * printed["n"] - 2))
    else:
        error = largest
    return min(error, largest) / 100
