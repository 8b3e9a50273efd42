"""Documents or a prompt: which system prompt an arm's documents are worth."""

from collections.abc import Mapping

from analysis.headline import doses, percent
from analysis.rows import Results, Row
from analysis.verdicts import DECIDED, INCONCLUSIVE

OPPOSITE = {"higher": "lower", "lower": "higher"}


def prompt_rows(results: Results, prompts: Mapping[str, str]) -> list[Row]:
    """One row for each arm on documents that is contrasted with arms under a prompt.

    Args:
        results: With `arms` and `contrasts`.
        prompts: Arms under a prompt, and what they are prompted with.

    Returns:
        Rows with `arm`, `benchmark`, `dose`, `mean` (score units), `prompts` (the lowest mean
        first: `arm`, `prompt`, `mean`, and `verdict`: of the documents less the prompt) and
        `worth`, a sentence.
    """
    means = {(row["benchmark"], row["dose"], row["arm"]): row["mean"] for row in results["arms"]}
    rows: dict[tuple[str, int, str], Row] = {}
    for contrast in results["contrasts"]:
        sides = [contrast["treatment"], contrast["control"]]
        compared = [contrast["dose"], contrast["control_dose"]]
        verdict = contrast["verdict"]
        if sides[0] in prompts:
            sides.reverse()
            compared.reverse()
            verdict = OPPOSITE.get(verdict, verdict)
        documents, prompted = sides
        # Of an arm and the same arm under a prompt, none is on documents and the other is not.
        if documents in prompts or prompted not in prompts:
            continue
        if "corpus" not in contrast["differences"] or compared[0] is None:
            continue
        benchmark = contrast["benchmark"]
        key = (benchmark, compared[0], documents)
        row = {"arm": documents, "benchmark": benchmark, "dose": compared[0], "prompts": []}
        row |= {"control_dose": None, "mean": means.get(key)}
        rows.setdefault(key, row)["prompts"].append(
            {
                "arm": prompted,
                "prompt": prompts[prompted],
                "mean": means.get((benchmark, compared[1], prompted)),
                "verdict": verdict,
            }
        )
    for row in rows.values():
        row["prompts"].sort(key=lambda prompt: (prompt["mean"] or 0.0, prompt["arm"]))
        row["worth"] = _sentence(row)
    return list(rows.values())


def _sentence(row: Row) -> str:
    """What the documents are worth, by the verdicts of the contrasts with the prompts."""
    scope = f"On {row['benchmark']} at SFT dose {doses(row)} the documents of {row['arm']}"
    judged = {verdict: _listed(row, verdict) for verdict in (*DECIDED, INCONCLUSIVE)}
    if not any(judged.values()):
        return f"{scope} can't be compared with a prompt: no contrast with one has a verdict."
    parts = []
    if judged["higher"]:
        parts.append(f"score above {judged['higher']}")
    if judged[INCONCLUSIVE]:
        parts.append(f"are not told apart from {judged[INCONCLUSIVE]}")
    if judged["lower"]:
        parts.append(f"score below {judged['lower']}")
    without = [prompt for prompt in row["prompts"] if prompt["verdict"] not in judged]
    if without:
        parts.append(f"have no verdict against {', '.join(prompt['arm'] for prompt in without)}")
    return f"{scope} ({percent(row['mean'])}) {'; '.join(parts)}."


def _listed(row: Row, verdict: str) -> str:
    return ", ".join(
        f"{prompt['arm']} ({percent(prompt['mean'])})"
        for prompt in row["prompts"]
        if prompt["verdict"] == verdict
    )
