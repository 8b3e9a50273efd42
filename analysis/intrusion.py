"""What arms gain on a benchmark, against how often they bring animals up off topic."""

import math
from collections.abc import Mapping

from matplotlib.figure import Figure

from analysis import plots
from analysis.headline import percent
from analysis.plots import INK, SMALL, arm_style, dose_label, is_column, wrapped
from analysis.rows import Results, Row

TASK = "topic_intrusion"


def intrusion_rows(results: Results, untrained: Mapping[str, str]) -> list[Row]:
    """Scores of each arm at each dose on the benchmarks of primary contrasts, and its intrusion.

    Args:
        results: with `arms`, `contrasts` and `benchmarks`.
        untrained: arm -> the arm that has its start model without documents and without a prompt.

    Returns:
        Rows with benchmark, intrusion_benchmark, arm, dose, score and intrusion (score units);
        `reference` and `reference_dose`, the untrained arm at this dose or else before SFT; the
        differences from it, `effect` and `added_intrusion`. None where there is no such arm.
    """
    means = {(row["benchmark"], row["arm"], row["dose"]): row["mean"] for row in results["arms"]}
    asked = [name for name, row in results["benchmarks"].items() if row["task"] == TASK]
    primary = [row["benchmark"] for row in results["contrasts"] if row["family"] == "primary"]
    rows = []
    for benchmark in dict.fromkeys(primary):
        for intrusion in asked:
            for (name, arm, dose), score in means.items():
                share = means.get((intrusion, arm, dose))
                if name != benchmark or score is None or share is None:
                    continue
                row = {"benchmark": benchmark, "intrusion_benchmark": intrusion, "arm": arm}
                row |= {"dose": dose, "score": score, "intrusion": share}
                rows.append(row | _against_untrained(row, means, untrained.get(arm)))
    return rows


def _against_untrained(
    row: Row, means: Mapping[tuple[str, str, int], float | None], reference: str | None
) -> Row:
    for dose in (row["dose"], 0):
        if reference is None:
            break
        score = means.get((row["benchmark"], reference, dose))
        share = means.get((row["intrusion_benchmark"], reference, dose))
        if score is not None and share is not None:
            return {
                "reference": reference,
                "reference_dose": dose,
                "effect": row["score"] - score,
                "added_intrusion": row["intrusion"] - share,
            }
    return dict.fromkeys(("reference", "reference_dose", "effect", "added_intrusion"))


@plots.styled
def intrusion_figure(results: Results, width: float = plots.WIDTH) -> Figure:
    """Effect against added intrusion in points, a panel for each benchmark; no effect is at 0."""
    rows = [row for row in results["intrusion"] if row["effect"] is not None]
    if not rows:
        reason = "no arm can be compared with its untrained start model"
        return plots.placeholder(reason, width)
    benchmarks = [*dict.fromkeys(row["benchmark"] for row in rows)]
    order = results["arm_order"]
    columns = 1 if is_column(width) else min(2, len(benchmarks))
    rows_of_panels = math.ceil(len(benchmarks) / columns)
    figure = plots.new_figure(2.8 * rows_of_panels + 0.2, width)
    axes = figure.subplots(rows_of_panels, columns, squeeze=False).flatten()
    for axis in axes[len(benchmarks) :]:
        axis.set_visible(False)
    label = "answers that bring animals up (added points)"
    for axis, benchmark in zip(axes, benchmarks, strict=False):
        axis.set_title(wrapped(benchmark, int(9 * width) // columns), loc="left")
        axis.set(xlabel=wrapped(label, int(9 * width) // columns), ylabel="effect (points)")
        plots.strip_frame(axis, "both")
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.axvline(0, color=INK, linewidth=0.8)
        for row in rows:
            if row["benchmark"] == benchmark:
                point = (100 * row["added_intrusion"], 100 * row["effect"])
                style = arm_style(row["arm"], order)
                axis.plot(*point, style["marker"], color=style["color"], markersize=4.5)
                shift = {"textcoords": "offset points", "xytext": (4, 3), "fontsize": SMALL}
                axis.annotate(str(row["dose"]), point, **shift)
    arms = [arm for arm in order if any(row["arm"] == arm for row in rows)]
    plots.add_legend(figure, arms, order)
    return figure


def alt_intrusion(results: Results) -> str:
    rows = [row for row in results["intrusion"] if row["effect"] is not None]
    points = plots.counted(len(rows), "checkpoint")
    return f"Effect of {points} against the answers that bring animals up, both in points."


def describe_intrusion(results: Results) -> str:
    parts = []
    for row in results["intrusion"]:
        text = f"{row['arm']} on {row['benchmark']}, {dose_label(row['dose'])}: "
        text += (
            f"score {percent(row['score'])} %, brings animals up in {percent(row['intrusion'])} %"
        )
        if row["effect"] is not None:
            text += f"; against {row['reference']} {percent(row['effect'], '+')} and "
            text += f"{percent(row['added_intrusion'], '+')} points"
        parts.append(text)
    return plots.description("Effect against topic intrusion", parts)
