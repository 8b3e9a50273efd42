"""Kept against paid, with the Pareto front."""

from matplotlib.figure import Figure

from analysis import plots
from analysis.headline import percent
from analysis.plots import INK, SMALL, arm_style, wrapped
from analysis.rows import Results, Row


def _rows(results: Results, benchmark: str, control: str) -> list[Row]:
    return [
        row
        for row in results["preservation"]
        if (row["benchmark"], row["control"]) == (benchmark, control)
    ]


@plots.styled
def preservation_figure(
    results: Results, benchmark: str, control: str, width: float = plots.WIDTH
) -> Figure:
    """A point for each arm: paid in points to the right, kept in percent upwards."""
    rows = [row for row in _rows(results, benchmark, control) if row["pareto"] is not None]
    if not rows:
        reason = "no arm has both what is kept and what is paid"
        return plots.placeholder(reason, width)
    order = results["arm_order"]
    figure = plots.new_figure(3.2, width)
    axis = figure.subplots()
    letters = int(9 * width)
    axis.set_xlabel(wrapped(f"paid against {control} (points of IFEval and capability)", letters))
    axis.set_ylabel("kept (% of what midtraining gave)")
    plots.strip_frame(axis, "both")
    axis.axvline(0, color=INK, linewidth=0.8)
    front = sorted((row["paid"], row["retained"]) for row in rows if row["pareto"])
    axis.plot(
        [100 * paid for paid, _ in front],
        [100 * kept_share for _, kept_share in front],
        color=INK,
        linewidth=0.8,
        linestyle=":",
        drawstyle="steps-post",
    )
    for row in rows:
        style = arm_style(row["arm"], order)
        point = (100 * row["paid"], 100 * row["retained"])
        fill = "full" if row["pareto"] else "none"
        axis.plot(*point, style["marker"], color=style["color"], markersize=5, fillstyle=fill)
        name = wrapped(row["arm"], 20)
        axis.annotate(name, point, xytext=(4, 3), textcoords="offset points", fontsize=SMALL)
    axis.margins(0.15)
    return figure


def alt_preservation(results: Results, benchmark: str, control: str) -> str:
    rows = _rows(results, benchmark, control)
    points = plots.counted(len(rows), "arm")
    return f"What {points} keep on {benchmark} against what they pay, with the Pareto front."


def describe_preservation(results: Results, benchmark: str, control: str) -> str:
    parts = []
    for row in _rows(results, benchmark, control):
        kept_text = f"no share ({row['reason']})"
        if row["retained"] is not None:
            kept_text = f"{percent(row['retained'])} % kept"
        paid = "nothing measured as paid"
        if row["paid"] is not None:
            paid = f"{percent(row['paid'], '+')} points paid"
        front = ", on the front" if row["pareto"] else ""
        parts.append(f"{row['arm']}: {kept_text}, {paid}{front}")
    return plots.description("Kept against paid", parts)
