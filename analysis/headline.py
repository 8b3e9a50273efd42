"""The short table that ends a run on the terminal (headline.txt)."""

from typing import Any

from tabulate import tabulate


def percent(value: float | None, sign: str = "") -> str:
    """A score in 0..1 as percent with one decimal: `45.2`, with sign="+" `+3.1`; a dash for None."""
    # + 0.0 turns the -0.0 of a rounded small number into 0.0
    return "-" if value is None else f"{round(100 * value, 1) + 0.0:{sign}.1f}"


def interval(row: dict[str, Any], sign: str = "") -> str:
    """`[40.1, 50.3]` in percent; a dash when the row has none."""
    return "-" if row["low"] is None else f"[{percent(row['low'], sign)}, {percent(row['high'], sign)}]"


def p_value(p: float | None) -> str:
    """Three decimals, `< .001` below that; a dash for None."""
    return "-" if p is None else "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def missing_lines(results: dict[str, Any]) -> list[str]:
    """One line per planned checkpoint without scores, and one per benchmark with missing grades."""
    lines = []
    for row in results["missing"]:
        seed = "no training seed" if row["seed"] is None else f"seed {row['seed']}"
        lines.append(f"not finished: {row['arm']}, {seed}, dose {row['dose']}, on {row['benchmark']}")
    for benchmark in results["benchmarks"]:
        rows = [row for row in results["scores"] if row["benchmark"] == benchmark and row["missing"]]
        if rows:
            missing, graded = sum(row["missing"] for row in rows), sum(row["n"] for row in rows)
            where = ", ".join(sorted({row["arm"] for row in rows}))
            lines.append(f"no grade: {missing} answers against {graded} graded, on {benchmark} (arms {where})")
    return lines


def stand_in_note(results: dict[str, Any]) -> str | None:
    """What of this study was written or judged by the kit's stand-in; None when nothing was."""
    corpora = [writer["corpus"] for writer in results["writers"] if writer["stand_in"]]
    judged = [name for name, benchmark in results["benchmarks"].items() if benchmark["stand_in"]]
    parts = [f"wrote the documents of {_listed(corpora)}"] if corpora else []
    parts += [f"judged {_listed(judged)}"] if judged else []
    return f"A deterministic rule-based stand-in, not a language model, {' and '.join(parts)}." if parts else None


def _listed(names: list[str]) -> str:
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


def headline(results: dict[str, Any]) -> str:
    """Plain text: arms x benchmarks at each dose, then the contrasts with their verdicts, then what is missing."""
    benchmarks = list(results["benchmarks"])
    cells = {(row["dose"], row["arm"], row["benchmark"]): row for row in results["arms"]}
    lines = []
    for dose in sorted({dose for dose, _, _ in cells}):
        for arm in [arm for arm in results["arm_order"] if any(key[:2] == (dose, arm) for key in cells)]:
            found = [cells.get((dose, arm, benchmark)) for benchmark in benchmarks]
            lines.append([dose, arm] + [f"{percent(row['mean'])} {interval(row)}" if row else "-" for row in found])
    text = [f"Study {results['study']}: scores in percent, mean [95 % interval for new seeds and questions]"]
    text.append(tabulate(lines, headers=["SFT dose", "arm", *benchmarks], disable_numparse=True))
    rows = [
        [
            row["name"],
            row["benchmark"],
            "-" if row["dose"] is None else row["dose"],
            percent(row["estimate"], "+"),
            interval(row, "+"),
            p_value(row["p_holm"]),
            row["verdict"] + (f": {row['reason']}" if row["reason"] else ""),
        ]
        for row in results["contrasts"]
    ]
    if rows:
        headers = ["contrast", "on", "SFT dose", "points", "95 % interval", "Holm p", "verdict"]
        text += ["", tabulate(rows, headers=headers, disable_numparse=True)]
    text += ["", *missing_lines(results)] if missing_lines(results) else []
    note = stand_in_note(results)
    return "\n".join(text + (["", note] if note else []))
