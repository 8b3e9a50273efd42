"""The paper's claims (analysis/claims.yaml) beside this study's numbers, and the arithmetic of its own figures."""

from math import hypot, prod
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from analysis.estimates import ALPHA, adjusted
from analysis.headline import stand_in_note

Row = dict[str, Any]
Check = tuple[str, str | None, str, bool | None]  # what, published, recomputed, agrees
ROLES = ("of", "against", "dose", "against_dose", "benchmark")
OURS = ("estimate", "low", "high", "p_holm", "seeds", "questions")
OTHERS = ("difference", "score_of", "score_against", "margin", "p_equivalence", "verdict", "reason", "found")
OPPOSITE = {"higher": "lower", "lower": "higher"}


def published() -> dict[str, list[Row]]:
    """analysis/claims.yaml: `claims`, `counts`, `either`, `figures`; numbers are strings as printed."""
    return yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))


def claim_rows(results: Row, roles: dict[str, Any], claims: list[Row] | None = None) -> list[Row]:
    """One row per claim: what was published, this study's number, the verdict on the claim, and why.

    `results` is results.json; `roles` maps the role names of `claims` (none given: those of claims.yaml) to the study's
    own: arms, benchmarks and corpora by name, doses in rows of SFT, equivalence margins in score units (0..1).

    Rows have the claim's fields, `published` as text and its `difference`; the study's names of the `ROLES`;
    `score_of`, `score_against`, `estimate` (their difference), `low`, `high` (95 %; all in score units), `p_holm`,
    `seeds`, `questions`, `margin`, `p_equivalence`; `verdict` and `reason`. What there is not is None.

    `reproduced` and `contradicted` need the deciding test after Holm, in or against the claimed direction. A claim of
    no difference is reproduced where two one-sided tests (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987) within the
    margin agree after Holm over all such claims, else contradicted where the deciding test finds a difference; without
    a margin it is `inconclusive`. `not run`: a role, the contrast or its scores are lacking. `none`: there is no
    verdict from one seed per arm, from a stand-in, on a claim of unknown direction, or on corpora.
    """
    claims = claims or published()["claims"]
    rows = [(_corpora if "measure" in claim else _scores)(claim, results, roles) for claim in claims]
    unchanged = [row for row in rows if row["direction"] == "none" and row["margin"] is not None]
    # a test that could not be made still counts, as in the study's own families
    for row, p in zip(unchanged, adjusted([row["p_equivalence"] for row in unchanged], "holm"), strict=True):
        row["p_equivalence"] = p
    note = stand_in_note(results)
    for row in rows:
        found = row.pop("found")
        if row["verdict"] is None:
            row["verdict"], row["reason"] = ("none", note) if note else _verdict(row, found)
    return rows


def arithmetic() -> list[Row]:
    """The published figures recomputed from each other: `id`, `what`, `published` and `recomputed` (text), `agrees`.

    `agrees` is None where nothing is printed to compare with; printed numbers stand for what rounds to them. n scores
    between 0 and 1 of mean m vary most if each is 0 or 1, by n m (1 - m) / (n - 1) (Bhatia and Davis, Am. Math. Mon.
    107, 2000): the largest standard error, smallest t and largest p of any test that takes answers as independent.
    """
    source, rows = published(), []
    for item in [*(claim["published"] | {"id": claim["id"]} for claim in source["claims"]), *source["either"]]:
        checks = [check for find in (_of_answers, _of_test, _of_errors) for check in find(item)]
        rows += [(item["id"], f"{item['what']}: {what}" if "what" in item else what, *rest) for what, *rest in checks]
    for item in source["counts"]:
        value = prod(map(number, item["from"])) / number(item.get("over", "1"))
        ends, slack = item["published"], item.get("about", 0) * value
        agrees = number(ends[0]) - half(ends[0]) - slack <= value <= number(ends[-1]) + half(ends[-1]) + slack
        rows.append((item["id"], item["what"], " to ".join(ends), f"{value:,.10g}", agrees))
    return [dict(zip(("id", "what", "published", "recomputed", "agrees"), row, strict=True)) for row in rows]


def number(printed: str) -> float:
    """A number as printed: "46.70", ".029", "188k", "5.12M"."""
    return float(printed.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(printed[-1], 1.0)


def half(printed: str) -> float:
    """Half a unit of the last printed digit: .05 for "76.8"."""
    digits = printed.rstrip("kM")
    return 0.5 * 10.0 ** -len(digits.partition(".")[2]) * number("1" + printed[len(digits) :])


def _scores(claim: Row, results: Row, roles: Row) -> Row:
    row, given = _empty(claim), claim["published"]
    if "of" in given or "difference" in given:
        row["difference"] = _difference(given)[0] / given.get("scale", 100)
    wanted = {key: claim[key] for key in ROLES if key in claim}
    row |= {key: roles.get(role) for key, role in wanted.items()} | {"margin": roles.get(claim.get("margin", ""))}
    row["against_dose"] = row["against_dose"] if "against_dose" in claim else row["dose"]
    lacking = dict.fromkeys(role for key, role in wanted.items() if row[key] is None)
    if lacking:
        return row | {"verdict": "not run", "reason": f"this study has no {', '.join(lacking)}"}
    means = {(arm["benchmark"], arm["arm"], arm["dose"]): arm["mean"] for arm in results["arms"]}
    row["score_of"] = means.get((row["benchmark"], row["of"], row["dose"]))
    row["score_against"] = means.get((row["benchmark"], row["against"], row["against_dose"]))
    declared = [*results["contrasts"], *map(_turned, results["contrasts"])]
    matches = [found for found in declared if all(found.get(key, found["dose"]) == row[key] for key in ROLES)]
    if not matches:
        return row | {"verdict": "not run", "reason": "the study declares no such contrast"}
    # declared in several families: the largest p, so that none can be chosen for its result
    found = max(matches, key=lambda match: 2.0 if match["p_holm"] is None else match["p_holm"])
    row |= {key: found[key] for key in OURS} | {"found": found}
    if found["estimate"] is None:
        return row | {"verdict": "not run", "reason": found["reason"]}
    if row["margin"] is not None and found["p"] is not None:
        row["p_equivalence"] = float(stats.t.sf((row["margin"] - abs(found["estimate"])) / found["se"], found["df"]))
    return row


def _corpora(claim: Row, results: Row, roles: Row) -> Row:
    row, measure = _empty(claim) | {"difference": _difference(claim["published"])[0]}, claim["measure"]
    values = {corpus["name"]: corpus[measure] for corpus in results["corpora"]}
    for side in ("of", "against"):
        row |= {side: roles.get(claim[side]), f"score_{side}": values.get(roles.get(claim[side]))}
    lacking = [claim[side] for side in ("of", "against") if row[f"score_{side}"] is None]
    if lacking:
        return row | {"verdict": "not run", "reason": f"this study has no {measure} of {', '.join(lacking)}"}
    row |= {"estimate": row["score_of"] - row["score_against"], "verdict": "none"}
    same = "as" if row["estimate"] * row["difference"] > 0 else "not as"
    return row | {"reason": f"described, not tested; {same} published"}


def _empty(claim: Row) -> Row:
    row = {key: claim[key] for key in ("id", "experiment", "statement", "direction", "notes")}
    return row | {"published": _text(claim["published"])} | dict.fromkeys([*ROLES, *OURS, *OTHERS])


def _turned(found: Row) -> Row:
    """The same contrast with its arms exchanged."""
    ends = {"estimate": found["estimate"], "low": found["high"], "high": found["low"]}
    ends = {key: None if value is None else -value for key, value in ends.items()}
    sides = {"of": found["against"], "dose": found.get("against_dose", found["dose"])}
    sides |= {"against": found["of"], "against_dose": found["dose"]}
    return found | ends | sides | {"verdict": OPPOSITE.get(found["verdict"], found["verdict"])}


def _verdict(row: Row, found: Row) -> tuple[str, str | None]:
    if found["p_holm"] is None or found["seeds"] < 2:
        return "none", found["reason"] or "one seed per arm"
    if row["direction"] is None:
        return "none", "the claim's direction is not known"
    differs, unchanged = found["verdict"] in OPPOSITE, row["direction"] == "none"
    if unchanged and row["margin"] is None:
        return "inconclusive", "no equivalence margin is declared" + "; the deciding test finds a difference" * differs
    reproduced = row["p_equivalence"] <= ALPHA if unchanged else found["verdict"] == row["direction"]
    if not reproduced and not differs:
        return "inconclusive", "not shown to lie within the margin" if unchanged else "the deciding test is undecided"
    unfinished = f"{found['unfinished']} of its checkpoints are not finished" if found["unfinished"] else None
    return "reproduced" if reproduced else "contradicted", unfinished


def _difference(given: Row) -> tuple[float, float]:
    """The published difference and how far rounding may have moved it."""
    slack = sum(half(given[key]) for key in ("of", "against", "difference") if key in given)
    difference = number(given["of"]) - number(given["against"]) if "of" in given else number(given["difference"])
    return difference, given.get("step", slack)


def _text(given: Row) -> str:
    errors = [f" ± {error}" for error in given.get("plus_minus", [])] or ["", ""]
    parts = [f"{given['of']}{errors[0]} / {given['against']}{errors[1]}"] if "of" in given else []
    parts += [f"{key} = {given[key]}" for key in ("difference", "t", "p") if key in given]
    return ", ".join(parts).replace("p = n.s.", "n.s.") or "in a figure only"


def _of_answers(given: Row) -> list[Check]:
    """Largest errors, smallest t and largest p from two scores in percent (or their difference) and `n` answers."""
    if "n" not in given:
        return []
    # a difference alone leaves the levels open; the error is largest at a half
    means = [number(given[side]) / 100 if side in given else 0.5 for side in ("of", "against")]
    errors = [100 * (m * (1 - m) / (given["n"] - 1)) ** 0.5 for m in means]
    d, slack = _difference(given)
    t, least = abs(d) / hypot(*errors), (abs(d) - slack) / hypot(*errors)
    p, most = (given.get("sided", 2) * float(stats.t.sf(max(value, 0), 2 * given["n"] - 2)) for value in (t, least))
    text = f"{errors[0]:.2f} / {errors[1]:.2f} points at most"
    found: list[Check] = [(f"standard errors if {given['n']} answers each are independent", None, text, None)]
    if "t" in given:
        agrees = number(given["t"]) + half(given["t"]) >= least
        found.append(("t from the scores", given["t"], f"{t:.2f} at least", agrees))
    if "p" in given:
        agrees = most > ALPHA if given["p"] == "n.s." else number(given["p"]) - half(given["p"]) <= most
        found.append(("p from the scores", given["p"], f"{p:.2g} at most", agrees))
    return found


def _of_test(given: Row) -> list[Check]:
    """p from t and 2 `n` - 2 degrees of freedom, and the degrees that would fit if those don't."""
    if "t" not in given:
        return []
    full, steps = 2 * given["n"] - 2, [number(given["t"]) + sign * half(given["t"]) for sign in (1, 0, -1)]
    p = {df: given["sided"] * stats.t.sf(steps, df) for df in [*range(1, 99), full]}
    fits = [df for df, (low, _, high) in p.items() if _meets(low, high, given["p"])]
    text = f"{p[full][1]:.2g} with {full:,} degrees of freedom"
    text += f"; it would fit {' or '.join(map(str, fits))}" if fits and full not in fits else ""
    return [("p from the printed t", given["p"], text, full in fits)]


def _of_errors(given: Row) -> list[Check]:
    """p from two scores and their ±, read as standard errors and as 95 % intervals."""
    found: list[Check] = []
    for reading, factor in (("a standard error", 1.0), ("half a 95 % interval", 1.96)) if "plus_minus" in given else ():
        (d, slack), p = _difference(given), []
        for sign in (1, 0, -1):
            error = hypot(*(number(printed) - sign * half(printed) for printed in given["plus_minus"])) / factor
            p.append(2 * float(stats.norm.sf(max(abs(d) + sign * slack, 0) / error)))
        text, agrees = f"p from the scores if ± is {reading}", _meets(p[0], p[2], given["p"])
        found.append((text, given["p"], f"{p[1]:.2g}", agrees))
    return found


def _meets(low: float, high: float, printed: str) -> bool:
    return low <= number(printed) + half(printed) and high >= number(printed) - half(printed)
