"""The short table that ends a run on the terminal (headline.txt)."""

import textwrap
from collections.abc import Sequence

from tabulate import tabulate

from analysis.declaration import declaration_lines
from analysis.rows import Results, Row
from analysis.rungs import rung_lines

ROWS = 6  # of a table
LINES = 3  # of a list
WIDTH = 100  # of a note


def percent(value: float | None, sign: str = "") -> str:
    """A score in 0..1 as percent with one decimal: `45.2`; with sign="+" `+3.1`; None: a dash."""
    if value is None:
        return "-"
    # + 0.0 turns the -0.0 of a rounded small number into 0.0
    return f"{round(100 * value, 1) + 0.0:{sign}.1f}"


def interval(row: Row, sign: str = "") -> str:
    """`[40.1, 50.3]` in percent from `low` and `high`; a dash where the row lacks one."""
    if None in (row["low"], row["high"]):
        return "-"
    return f"[{percent(row['low'], sign)}, {percent(row['high'], sign)}]"


def prediction(row: Row) -> str:
    """The prediction interval of a row of contrasts, written as `interval`."""
    ends = {"low": row["prediction_low"], "high": row["prediction_high"]}
    return interval(ends, "+")


def of_total(counts: Sequence[int] | None) -> str:
    """`28 of 30`; a dash for None."""
    return "-" if counts is None else f"{counts[0]} of {counts[1]}"


def opposite_text(row: Row) -> str:
    """The questions of a row of contrasts that differ with the other sign; a dash without one."""
    opposite = row["questions_opposite"]
    return of_total(None if opposite is None else (opposite, row["questions"]))


def p_value(p: float | None) -> str:
    """Three decimals, `< .001` below that; a dash for None."""
    if p is None:
        return "-"
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def doses(row: Row) -> str:
    """The SFT dose of a row: `200`; `200 v 0` where a contrast compares two; a dash where none."""
    if row["dose"] is None:
        return "-"
    if row.get("control_dose") in (None, row["dose"]):
        return str(row["dose"])
    return f"{row['dose']} v {row['control_dose']}"


def confidence(row: Row) -> str:
    """`95 %`, of the interval of a row of contrasts; `98.86 %` at one of several looks."""
    return f"{100 - 100 * row['level']:.2f}".removesuffix(".00") + " %"


def interval_header(rows: Sequence[Row]) -> str:
    """What the intervals of the rows of contrasts are called; notes name the level of a look."""
    levels = {confidence(row) for row in rows}
    return f"{levels.pop()} interval" if len(levels) == 1 else "interval"


def notes_of(row: Row) -> list[str]:
    """What has to be read beside a contrast's verdict: its reason, a caution, a look's level."""
    notes = [note for note in (row["reason"], row["caution"]) if note]
    if row["recomputed"]:
        notes.append(f"as recorded at its look; recomputed: {row['recomputed']}")
    if row["level"] < 0.05:  # one of several looks
        notes.append(f"at the look at {row['look']} seeds; interval at {confidence(row)}")
    return notes


def crossing_text(crossing: Row) -> str:
    """`113 or 65, between 0 and 200`: both readings of a crossing, and the doses around it.

    Linear between doses, and at a constant rate. A dash where there is none.
    """
    readings = [crossing[key] for key in ("dose", "constant_rate") if crossing[key] is not None]
    if not readings:
        return "-"
    text = " or ".join(f"{reading:.0f}" for reading in readings)
    low, high = crossing["low"], crossing["high"]
    if low is None and high is None:
        return text
    if low is None:
        return f"{text}, at most {high}"
    return f"{text}, at least {low}" if high is None else f"{text}, between {low} and {high}"


def missing_lines(results: Results) -> list[str]:
    """A line per planned checkpoint without scores, and one per benchmark with missing grades."""
    lines = []
    for row in results["missing"]:
        seed = "no training seed" if row["seed"] is None else f"seed {row['seed']}"
        checkpoint = f"{row['arm']}, {seed}, dose {row['dose']}, on {row['benchmark']}"
        lines.append(f"not finished: {checkpoint}")
    for benchmark in results["benchmarks"]:
        rows = [
            row for row in results["scores"] if row["benchmark"] == benchmark and row["missing"]
        ]
        if rows:
            missing = sum(row["missing"] for row in rows)
            arms = {row["arm"] for row in rows}
            of_arms = [
                row["n"] + row["missing"]
                for row in results["scores"]
                if row["benchmark"] == benchmark and row["arm"] in arms
            ]
            counts = f"{missing} of {sum(of_arms)} answers"
            lines.append(f"no grade: {counts}, on {benchmark} (arms {', '.join(sorted(arms))})")
    return lines


def dummy_note(results: Results) -> str | None:
    """Which parts of the study a deterministic dummy wrote or judged; None where it did not."""
    corpora = [writer["corpus"] for writer in results["writers"] if writer["dummy"]]
    judged = [name for name, benchmark in results["benchmarks"].items() if benchmark["dummy"]]
    parts = []
    if corpora:
        parts.append(f"wrote the documents of {_listed(corpora)}")
    if judged:
        parts.append(f"judged {_listed(judged)}")
    if not parts:
        return None
    return f"A deterministic rule-based dummy, not a language model, {' and '.join(parts)}."


def detectable_text(difference: float | None) -> str:
    """A detectable difference in points; `>100` where none that scores can have is detectable."""
    return ">100" if difference is not None and difference > 1 else percent(difference)


def components_text(name: str, row: Row) -> str:
    """`corpus x question` for `seed x question` where replicates of a corpus stand for seeds."""
    unit = row["training_unit"]
    return name.replace("seed", unit if " " not in unit else f"({unit})")


def counted_names(row: Row) -> dict[str, str]:
    """What a purchase of a row of `variance` counts, by key."""
    seeds = {"seed": "seeds", "corpus": "corpora"}.get(row["training_unit"], "seeds or corpora")
    return {"seeds": seeds, "questions": "questions", "epochs": "epochs"}


def scope_note(writers: Sequence[Row]) -> str:
    """Whether verdicts are about the corpora as written, or about new documents too."""
    once = [writer["corpus"] for writer in writers if "replicates" not in writer]
    several = [
        f"{writer['corpus']} ({writer['replicates']} times)"
        for writer in writers
        if "replicates" in writer
    ]
    if not several:
        return (
            "Verdicts are about the corpora as written: all seeds are trained on the same "
            "documents."
        )
    note = (
        f"Independently written several times: {_listed(several)}. There the replicate takes the "
        "place of the seed, with the mean of the runs on it, and verdicts are for new documents of "
        "the same template and writer too."
    )
    return f"{note} About the corpora as written: {_listed(once)}." if once else note


def runs_text(seeds: int, corpora: Sequence[int] | None) -> str:
    """`5` seeds; `3 corpora x 2 runs` where an arm's corpus was written several times.

    `corpora`: the runs on each replicate.
    """
    if not corpora:
        return str(seeds)
    count = f"{len(corpora)} corp{'us' if len(corpora) == 1 else 'ora'}"
    if len(set(corpora)) > 1:
        return f"{count} with {_listed([str(runs) for runs in corpora])} runs"
    return f"{count} x {corpora[0]} run{'' if corpora[0] == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


def headline(results: Results, dates: str) -> str:
    """Plain text: arms x benchmarks at each dose, contrasts with verdicts, and what is missing.

    Of a long list the first lines are shown and the rest is counted, so that it fits a screen.
    `dates`: the line of `declaration.dates_line`.
    """
    text = [
        *_shortened(declaration_lines(results), LINES),
        dates,
        "",
        f"Study {results['study']}: scores in percent, "
        "mean [95 % interval for new seeds and questions]",
        _score_table(results),
    ]
    if rungs := rung_lines(results):
        text += ["", *_shortened(rungs, LINES)]
    if results["contrasts"]:
        text += ["", _contrast_table(results)]
    missing = missing_lines(results)
    if missing:
        text += ["", *_shortened(missing, LINES)]
    if results["notes"]:
        text += ["", *_shortened(results["notes"], LINES)]
    note = dummy_note(results)
    if note:
        text += ["", note]
    return "\n".join(text)


def _score_table(results: Results) -> str:
    benchmarks = list(results["benchmarks"])
    cells = {(row["dose"], row["arm"], row["benchmark"]): row for row in results["arms"]}
    scored = {(dose, arm) for dose, arm, _ in cells}
    lines = []
    for dose in sorted({dose for dose, _ in scored}):
        for arm in results["arm_order"]:
            if (dose, arm) in scored:
                rows = [cells.get((dose, arm, benchmark)) for benchmark in benchmarks]
                scores = [f"{percent(row['mean'])} {interval(row)}" if row else "-" for row in rows]
                lines.append([dose, arm, *scores])
    text = tabulate(lines, headers=["SFT dose", "arm", *benchmarks], disable_numparse=True)
    return "\n".join(_shortened(text.splitlines(), ROWS + 2))


def _contrast_table(results: Results) -> str:
    contrasts = results["contrasts"]
    shown = contrasts if len(contrasts) <= ROWS else contrasts[: ROWS - 1]
    # Text -> its mark in the table; a verdict without notes has none.
    marks = {"": ""}
    for row in shown:
        marks.setdefault("; ".join(notes_of(row)), f" [{len(marks)}]")
    lines = [
        [
            row["name"],
            row["benchmark"],
            doses(row),
            percent(row["estimate"], "+"),
            interval(row, "+"),
            p_value(row["p_holm"]),
            row["verdict"] + marks.get("; ".join(notes_of(row)), ""),
        ]
        for row in contrasts
    ]
    intervals = interval_header(results["contrasts"])
    headers = ["contrast", "on", "SFT dose", "points", intervals, "Holm p", "verdict"]
    text = tabulate(lines, headers=headers, disable_numparse=True).splitlines()
    text = _shortened(text, ROWS + 2)
    if len(lines) > ROWS:
        verdicts = [
            "no verdict" if row["verdict"] == "none" else row["verdict"]
            for row in results["contrasts"]
        ]
        counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
        text.append(f"all {len(lines)}: {', '.join(counts)}")
    wrapped = [
        line
        for note, mark in marks.items()
        for line in textwrap.wrap(f"{mark} {note}".strip(), WIDTH, subsequent_indent="    ")
    ]
    return "\n".join([*text, *_shortened(wrapped, ROWS)])


def _shortened(lines: Sequence[str], count: int) -> list[str]:
    """At most `count` lines, the last of which says how many are left out."""
    if len(lines) <= count:
        return [*lines]
    return [*lines[: count - 1], f"... and {len(lines) - count + 1} more in report.html"]
