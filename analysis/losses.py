"""Losses of trainings against optimizer steps as a figure, in the manner of analysis.plots."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import plots
from analysis.curves import mark_missing, panel_grid
from analysis.plots import TOGETHER, arm_style, finite_or_none, wrapped
from analysis.rows import Row
from core.files import read_rows

Curve = list[tuple[int, float]]  # (step, loss in nats per token)
KINDS = {"training": "training", "held_out": "held-out"}
LOSS = "loss (nats per token)"
# What is drawn of a training by GRPO: keys of its metrics.jsonl and fixed_set.jsonl.
OF_ROLLOUTS = {
    "reward": "reward",
    "length": "answer's length (tokens)",
    "response_share": "share with <response>",
    "kl": "KL to the start (nats per token)",
}
POINTS = 100  # of a curve; of more, means over as many equal stretches are drawn


@dataclass(frozen=True)
class LossHistory:
    """The losses of one training, or another measure of it."""

    arm: str
    seed: int
    stage: str
    training: Curve
    held_out: Curve
    measure: str = LOSS

    @property
    def noun(self) -> str:
        """The measure without its unit."""
        return self.measure.partition(" (")[0]

    def curve(self, kind: str) -> Curve:
        """The curve of one of KINDS."""
        return self.training if kind == "training" else self.held_out


def read_histories(folder: Path, arm: str, seed: int, stage: str) -> list[LossHistory]:
    """What is drawn of a training: its losses, or of one by GRPO the measures of its rollouts.

    Its held-out curve is of the answers to the fixed set of prompts.
    """
    if not stage.endswith("rl"):
        return [read_losses(folder, arm, seed, stage)]
    files = [folder / name for name in ("metrics.jsonl", "fixed_set.jsonl")]
    histories = []
    for key, measure in OF_ROLLOUTS.items():
        training, fixed = (_read_curve(file, key) for file in files)
        if key == "reward" or any(value for _, value in training):
            histories.append(LossHistory(arm, seed, stage, training, fixed, measure))
    return histories


def read_losses(folder: Path, arm: str, seed: int, stage: str) -> LossHistory:
    """The losses in a training cell's folder; a curve is empty without its file."""
    training = _read_curve(folder / "metrics.jsonl")
    return LossHistory(arm, seed, stage, training, _read_curve(folder / "held_out.jsonl"))


def _read_curve(path: Path, key: str = "loss") -> Curve:
    """The curve of a key of a file of metrics; a last line cut short is left out."""
    if not path.exists():
        return []
    rows = (row for _, row in read_rows(path, skip_torn_line=True))
    return [(row["step"], row[key]) for row in rows if key in row]


def loss_rows(runs: Sequence[LossHistory]) -> list[Row]:
    """The held-out loss of each arm's midtraining: arm, seeds, and means over them.

    `held_out_loss` is the last one of a training, `held_out_loss_fall` the first less the last.
    """
    rows = []
    of_arms: dict[str, list[Curve]] = {}
    for run in runs:
        curve = [point for point in sorted(run.held_out) if finite_or_none(point[1]) is not None]
        if run.stage == "midtrain" and curve:
            of_arms.setdefault(run.arm, []).append(curve)
    for arm, curves in of_arms.items():
        last = [curve[-1][1] for curve in curves]
        fall = [curve[0][1] - curve[-1][1] for curve in curves]
        means = {"held_out_loss": mean(last), "held_out_loss_fall": mean(fall)}
        rows.append({"arm": arm, "seeds": len(curves), **means})
    return rows


@plots.styled
def losses(
    runs: Sequence[LossHistory], arm_order: Sequence[str] = (), width: float = plots.WIDTH
) -> Figure:
    """Loss of every training.

    A thin line per seed, and a thick one for the mean where all seeds have a value.
    """
    if not runs:
        return plots.placeholder("no training was given", width)
    order = list(dict.fromkeys([*arm_order, *(run.arm for run in runs)]))
    arms = {  # that have runs of a stage and measure
        kind: [arm for arm in order if any(_kind(run) == (*kind, arm) for run in runs)]
        for kind in dict.fromkeys((run.stage, run.measure) for run in runs)
    }
    small = any(len(listed) > TOGETHER for listed in arms.values())
    panels = _panels(runs, small)
    if not panels:
        return plots.placeholder("no training has a loss yet", width)
    titled = [
        (f"{stage}: {' and '.join(KINDS[kind] for kind in kinds)} {measure}", arms[stage, measure])
        for stage, measure, kinds in panels
    ]
    thinned = any(len(run.curve(kind)) > POINTS for run in runs for kind in KINDS)
    seed_label = "a seed" + (", means over some updates" if thinned else "")
    handles = [plots.legend_entry(seed_label, linestyle="-", linewidth=0.6)]
    if small:
        handles.append(plots.legend_entry("held-out: with marks", linestyle="-", marker="o"))
    placed = panel_grid(titled, order, "step", width, *handles)
    for panel in placed:
        stage, measure, kinds = panels[panel.number]
        of_panel = [run for run in runs if (run.stage, run.measure) == (stage, measure)]
        lost = []
        for arm, kind in itertools.product(panel.arms, kinds):
            curves = [run.curve(kind) for run in of_panel if run.arm == arm]
            _draw_curves(panel.axis, curves, arm_style(arm, order), kind == "held_out")
            if not all(curves):
                count = f"{curves.count([])} of {len(curves)} seeds"
                lost.append(f"× no {KINDS[kind]} {of_panel[0].noun}: {arm}, {count}")
        text = wrapped("; ".join(lost), 36)
        corner: dict[str, Any] = {"transform": panel.axis.transAxes, "ha": "right", "va": "top"}
        panel.axis.text(1, 1, text, **corner, fontsize=plots.SMALL)
    return cast(Figure, placed[0].axis.figure)


def _kind(run: LossHistory) -> tuple[str, str, str]:
    return run.stage, run.measure, run.arm


def _panels(runs: Sequence[LossHistory], small: bool) -> list[tuple[str, str, tuple[str, ...]]]:
    """Stage, measure and kinds of each panel; both kinds share a panel where it is `small`."""
    panels: list[tuple[str, str, tuple[str, ...]]] = []
    for stage, measure in dict.fromkeys((run.stage, run.measure) for run in runs):
        of_panel = [run for run in runs if (run.stage, run.measure) == (stage, measure)]
        kinds = tuple(kind for kind in KINDS if any(run.curve(kind) for run in of_panel))
        split = [kinds] if small else [(kind,) for kind in kinds]
        panels += [(stage, measure, part) for part in split]
    return panels


def _draw_curves(axis: Axes, curves: Sequence[Curve], style: dict[str, Any], marked: bool) -> None:
    size = math.ceil(max(map(len, curves), default=0) / POINTS)
    curves = [_thinned(curve, size) for curve in curves if curve]
    for curve in curves:
        axis.plot(*zip(*curve, strict=True), color=style["color"], linewidth=0.6, alpha=0.55)
        mark_missing(axis, curve, style["color"])
    by_step = [dict(curve) for curve in curves]
    if not by_step:
        return
    steps = [step for step in by_step[0] if all(step in other for other in by_step)]
    means = [sum(values[step] for values in by_step) / len(by_step) for step in steps]
    if steps:
        marker = style["marker"] if marked else "none"
        mark = {"marker": marker, "markevery": 1 + len(steps) // 15}
        axis.plot(steps, means, **style | mark, markersize=3.5, linewidth=1.4)


def _thinned(curve: Curve, size: int) -> Curve:
    """Means over `size` points each, at the last of them; NaN where one of them is no number."""
    points = [
        (step, math.nan if finite_or_none(value) is None else value)
        for step, value in sorted(curve)
    ]
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def alt_losses(runs: Sequence[LossHistory]) -> str:
    stages = ", ".join(dict.fromkeys(run.stage for run in runs))
    trainings = plots.counted(len(runs), "training")
    return f"Curves of loss against optimizer step of {trainings}: {stages}."


def describe_losses(runs: Sequence[LossHistory]) -> str:
    parts = []
    for run in runs:
        for kind, meaning in KINDS.items():
            points = sorted(run.curve(kind))
            curve = [(step, loss) for step, loss in points if finite_or_none(loss) is not None]
            text = f"{run.stage} of {run.arm}, seed {run.seed}, {meaning} {run.noun}: "
            if curve:
                lowest = min(curve, key=lambda point: point[1])
                named = {"first": curve[0], "lowest": lowest, "last": curve[-1]}
                text += ", ".join(
                    f"{name} {loss:.4f} at update {step}" for name, (step, loss) in named.items()
                )
            else:
                text += "none"
            undefined = len(points) - len(curve)
            parts.append(text + (f", {undefined} without a number" if undefined else ""))
    return plots.description("Losses in nats per token", parts)
