"""The page of `doctor --shakedown`: a row for each fault, cell and stop, and how they are shown."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from tabulate import tabulate

from core.cell.failures import KNOWN_FAILURES
from slurm.checks import FAILED, Check

WORKS, FAILS, WAITS = "works", "fails", "still waits"
NOT_RUN, NOT_SEEN, LEFT_OUT = "not run", "not seen", "left out"
NO_FLOAT8 = "it has no float8"  # core.gpu.check_capability, asked by recipes.float8
AGAIN = "the same command again, once that is mended"
Row = dict[str, Any]


def make_row(layout: str, what: str, state: str, finding: str, fix: str = "") -> Row:
    """A row: what was tried and on which layout, its state, what was found, what to do."""
    return {"layout": layout, "what": what, "state": state, "finding": finding, "fix": fix}


def fault_rows(report: Iterable[Check]) -> list[Row]:
    """A row for each fault that the short checks found.

    Checks of one kind of nodes that fail by the same line are one fault.
    """
    lines: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for check in report:
        if check.state == FAILED:
            nodes, _, line = check.name.rpartition(": ")
            lines[nodes, check.finding, check.fix].append(line)
    return [
        make_row(f"on {nodes}" if nodes else "", ", ".join(names), FAILS, finding, fix)
        for (nodes, finding, fix), names in lines.items()
    ]


def left_out_rows(reasons: Iterable[str]) -> list[Row]:
    """A row for each reason for which cells were not submitted. `reasons`: one for each cell."""
    names = list(reasons)
    return [
        make_row("", f"{names.count(name)} cells", NOT_RUN, f"not submitted: {name} failed", AGAIN)
        for name in dict.fromkeys(names)
    ]


def cell_rows(states: Iterable[Row], layouts: Iterable[str]) -> list[Row]:
    """What each cell shows. What is behind one that is left out is left out too.

    states: rows of `status`.
    """
    rows = []
    absent = set()
    for state, layout in zip(states, layouts, strict=True):
        row = _cell_row(state, layout)
        if row["state"] == LEFT_OUT:
            absent.add(state["folder"])
        elif state.get("behind") in absent:
            row["state"] = LEFT_OUT
        rows.append(row)
    return rows


def _cell_row(state: Row, layout: str) -> Row:
    what = f"{state['stage']} {state['cell']}"
    if state["state"] == "done":
        return make_row(layout, what, WORKS, "")
    if state["state"] == "failed":
        lines = [line.strip() for line in state["last_lines"] if line.strip()] or ["no log"]
        patterns = [
            failure.pattern for failure in KNOWN_FAILURES if failure.name == state.get("cause")
        ]
        telling = [line for line in lines for pattern in patterns if pattern.search(line)]
        line = (telling or lines)[-1]
        if any(NO_FLOAT8 in line for line in lines):
            return make_row(layout, what, LEFT_OUT, "a GPU before the H100, which has no float8")
        cause = f"{state['cause']}: " if "cause" in state else ""
        fix = state.get("fix", f"see {state.get('log', 'its log')}")
        fix = fix.replace("run or submit again", "the same command again")
        return make_row(layout, what, FAILS, f"{cause}{line}", fix)
    if state["state"] == "to do" and "behind" not in state:
        finding = "it has no job: the submission was refused, or the job was cancelled"
        return make_row(layout, what, NOT_RUN, finding, "the same command again")
    if "behind" in state or state["state"] == "blocked":
        return make_row(layout, what, NOT_RUN, f"behind {state.get('behind', 'a failed cell')}")
    finding = f"{state['state']}: {state.get('reason', state.get('progress', ''))}"
    return make_row(layout, what, WAITS, finding, "the same command again waits for it")


def show(rows: list[Row], rates: dict[str, float] | None = None) -> str:
    """The page: failures first, each with its fix, then what works with its numbers.

    rates: as `measured` of a cluster profile takes them.
    """
    order = (FAILS, NOT_RUN, NOT_SEEN, LEFT_OUT, WAITS, WORKS)
    lines = []
    for row in sorted(rows, key=lambda row: order.index(row["state"])):
        if row["state"] == WORKS:
            continue
        words = " ".join(filter(None, [row["what"], row["layout"]]))
        lines.append(f"{row['state']:<12} {words}: {row['finding']}")
        if row["fix"]:
            lines.append(f"{'':<12} {row['fix']}")
    columns = {
        "tokens/s a rank": lambda row: f"{row['tokens_per_second']:,.0f}",
        "TFLOP/s": lambda row: f"{row['flops'] / 1e12:.3g}",
        "MFU": lambda row: f"{row['mfu']:.1%}",
        "GB": lambda row: f"{row['peak_gb']:.1f}",
    }
    keys = ("tokens_per_second", "flops", "mfu", "peak_gb")
    table = [
        [
            row["what"],
            row["layout"],
            *(
                text(row) if key in row else ""
                for key, text in zip(keys, columns.values(), strict=True)
            ),
            row["finding"],
        ]
        for row in rows
        if row["state"] == WORKS
    ]
    if table:
        lines += ["", tabulate(table, headers=["works", "on", *columns, ""])]
    if rates:
        lines += ["", "measured: " + ", ".join(f"{key} {rates[key]:.3g}" for key in rates)]
    numbers = Counter(row["state"] for row in rows)
    counts = [f"{numbers[state]} {state}" for state in reversed(order) if numbers[state]]
    return "\n".join([*lines, "", ", ".join(counts)])
