"""The reproduction ladder: which of a study's numbers rest on what somebody else has made."""

from analysis.rows import Results

# In order: each rung makes anew what the one before it takes from the authors.
RUNGS = {
    "logs": "their logs, our test",
    "weights": "their weights, evaluated again",
    "documents": "their documents, trained again",
    "anew": "all anew",
}
NOTES = {"logs": " (scores that were there before anything was declared here)"}


def rung_text(results: Results, arm: str) -> str | None:
    """What is not this study's own in an arm's numbers; None where nothing is."""
    rung = results.get("rungs", {}).get(arm, "anew")
    return None if rung == "anew" else RUNGS[rung]


def rung_lines(results: Results) -> list[str]:
    """A line for each rung with the arms on it; [] where this study has made everything itself."""
    rungs: dict[str, str] = results.get("rungs", {})
    if not rungs:
        return []
    scored = [arm for arm in results["arm_order"] if arm in rungs]
    if all(rungs[arm] == "anew" for arm in scored):
        return []
    return [
        f"{text}: {', '.join(arm for arm in scored if rungs[arm] == rung)}{NOTES.get(rung, '')}"
        for rung, text in RUNGS.items()
        if any(rungs[arm] == rung for arm in scored)
    ]
