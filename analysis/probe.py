"""Directions in the models' hidden states: are they there, and are they the reference's?

Does later training remove the direction, or only hide it? Removed: the held-out AUROC falls to that
of shuffled labels. Hidden: the AUROC stays, and projection or cosine falls, because the texts are
told apart along another direction; or all three stay while the scores of answers fall.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.headline import percent
from analysis.rows import Results, Row
from analysis.settings import Benchmark, ScoreFile
from analysis.table_text import Table
from analysis.tables import (
    BENCHMARK,
    in_study_order,
    number,
    number_columns,
    table,
    text_columns,
)

DIRECTIONS = "directions.npz"  # of a probe's cell
MEASURES = ("auroc", "shuffled", "projection", "cosine")


@dataclass(frozen=True)
class Probe:
    """What a probe's cell found in a checkpoint.

    `direction` has shape (layers, width); `auroc` and `shuffled`, the AUROC of shuffled labels,
    (layers,).
    """

    direction: np.ndarray
    auroc: np.ndarray
    shuffled: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> "Probe":
        """From the folder of a probe's cell."""
        with np.load(folder / DIRECTIONS) as arrays:
            return cls(arrays["direction"], arrays["auroc"], arrays["auroc_shuffled"])


Probes = dict[int | None, Probe]  # by training seed; None: a checkpoint without one


def probe_rows(
    files: Sequence[ScoreFile], benchmarks: Mapping[str, Benchmark], inputs: Mapping[str, Path]
) -> list[Row]:
    """A row for each arm and dose on each benchmark with a `reference`.

    Each has `benchmark`, `arm`, `dose`, `reference` and `reference_dose` (the lowest one of that
    arm), and:

    - `layers`: for each layer (from 1) the means over seeds of MEASURES. `auroc` and `shuffled` are
      held out. `projection`: of the checkpoint's direction on the reference's, as a share of the
      reference's length, so that it is 1 for the reference. `cosine`: between the two. Both compare
      checkpoints of one seed; a checkpoint without a seed is compared with the reference of each.
    - `layer`: that with the highest AUROC of the reference, the same for all rows of a benchmark,
      so that no other checkpoint chooses it; `at_layer`: MEASURES there; `by_seed`: those of each
      seed.

    `projection` and `cosine` are None, and `reason` says why, where the reference is not finished,
    lacks the seed, or has another shape. Nothing here is tested.
    """
    rows = []
    for name, benchmark in benchmarks.items():
        if benchmark.reference is None:
            continue
        probes: dict[tuple[str, int], Probes] = {}
        for file in files:
            if file.benchmark == name:
                of_arm = probes.setdefault((file.arm, file.dose), {})
                of_arm[file.seed] = Probe.read(inputs[file.role])
        doses = [dose for arm, dose in probes if arm == benchmark.reference]
        dose = min(doses, default=0)
        references = probes.get((benchmark.reference, dose), {})
        shown = _best_layer(references or _all(probes))
        for (arm, of_dose), of_arm in sorted(probes.items()):
            row: Row = {"benchmark": name, "arm": arm, "dose": of_dose, "layer": shown + 1}
            row |= {"reference": benchmark.reference, "reference_dose": dose}
            rows.append(row | _compared(of_arm, references, shown))
    return rows


def _all(probes: Mapping[tuple[str, int], Probes]) -> Probes:
    """Those of every checkpoint of the largest group with one number of layers."""
    every = [probe for of_arm in probes.values() for probe in of_arm.values()]
    layers = max((len(probe.auroc) for probe in every), default=0)
    return dict(enumerate(probe for probe in every if len(probe.auroc) == layers))


def _best_layer(probes: Probes) -> int:
    """The layer (from 0) with the highest AUROC, mean over seeds."""
    return int(np.mean([probe.auroc for probe in probes.values()], axis=0).argmax())


def _compared(probes: Probes, references: Probes, shown: int) -> Row:
    by_seed = {}
    reasons = []
    for seed, probe in sorted(probes.items(), key=lambda item: -1 if item[0] is None else item[0]):
        projection, cosine, reason = _against(probe, _references_of(seed, references))
        by_seed[seed] = np.stack([probe.auroc, probe.shuffled, projection, cosine])
        reasons.append(reason)
    mean = np.mean([*by_seed.values()], axis=0)
    numbers = [_measures(mean, layer) for layer in range(mean.shape[1])]
    layer = min(shown, len(numbers) - 1)
    return {
        "layers": [{"layer": n + 1, **measures} for n, measures in enumerate(numbers)],
        "at_layer": numbers[layer],
        "by_seed": [{"seed": seed, **_measures(of, layer)} for seed, of in by_seed.items()],
        "reason": next(filter(None, reasons), None),
    }


def _measures(of_layers: np.ndarray, layer: int) -> Row:
    values = of_layers[:, layer]
    finite = [float(value) if np.isfinite(value) else None for value in values]
    return dict(zip(MEASURES, finite, strict=True))


def _references_of(seed: int | None, references: Probes) -> list[Probe]:
    """The checkpoints of the reference that one with this seed is compared with."""
    if None in references or seed is None:
        return [*references.values()]
    return [references[seed]] if seed in references else []


def _against(probe: Probe, references: Sequence[Probe]) -> tuple[np.ndarray, np.ndarray, str]:
    """Projection and cosine by layer, means over the references; NaN with a reason."""
    alike = [ref for ref in references if ref.direction.shape == probe.direction.shape]
    if not alike:
        nothing = np.full(len(probe.auroc), np.nan)
        reason = "the reference has another number of layers or another width"
        return nothing, nothing, reason if references else "the reference of its seed is missing"
    direction = probe.direction.astype(float)
    projections, cosines = [], []
    for reference in alike:
        other = reference.direction.astype(float)
        products = (direction * other).sum(axis=1)
        lengths = np.linalg.norm(other, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            projections.append(products / lengths**2)
            cosines.append(products / lengths / np.linalg.norm(direction, axis=1))
    return np.mean(projections, axis=0), np.mean(cosines, axis=0), ""


def seeds_text(row: Row, key: str, form: str) -> str:
    """The values of the seeds, such as `0.91 0.93`."""
    return " ".join(number(seed[key], form) for seed in row["by_seed"])


def probe_table(results: Results) -> Table:
    """Held-out AUROC, projection and cosine of each arm and dose at the reference's best layer."""
    rows = []
    for row in in_study_order(results, results["probe"]):
        at_layer = row["at_layer"]
        auroc = [layer["auroc"] for layer in row["layers"]]
        rows.append(
            [
                row["benchmark"],
                f"against {row['reference']}, dose {row['reference_dose']}",
                row["arm"],
                str(row["dose"]),
                str(row["layer"]),
                number(at_layer["auroc"], ".3f"),
                number(at_layer["shuffled"], ".3f"),
                number(max(auroc), ".3f"),
                number(at_layer["projection"], "+.3f"),
                number(at_layer["cosine"], "+.3f"),
                str(len(row["by_seed"])),
            ]
        )
    columns = text_columns(BENCHMARK, "Refer\u00adence", "Arm")
    columns += number_columns("SFT dose", "Layer", "AUROC", "Shuf\u00adfled", "Highest")
    columns += number_columns("Projec\u00adtion", "Cosine", "Seeds")
    return table(
        results,
        "probe",
        "Directions in hidden states",
        "The direction between the two kinds of texts in the hidden states of each checkpoint, "
        "described and not tested",
        columns,
        rows,
        [
            "AUROC: held out, of the direction that the other folds give; means over seeds. "
            "Shuffled: the same with labels at random. Highest: that of any layer.",
            "Layer: that with the highest AUROC of the reference, where the reference's own AUROC "
            "is therefore somewhat too high.",
            "Projection: of the direction on that of the reference with the same seed, over the "
            "reference's length; cosine: between the two.",
            "Removed: AUROC as with shuffled labels. Hidden: AUROC stays, projection or cosine "
            "falls; or all stay while scores of answers fall.",
        ],
        group_by=2,
    )


def describe_probe(results: Results, benchmark: str) -> str:
    """The figure in words."""
    rows = [row for row in results["probe"] if row["benchmark"] == benchmark]
    parts = []
    for row in in_study_order(results, rows):
        at_layer = row["at_layer"]
        text = f"{row['arm']}, SFT dose {row['dose']}, layer {row['layer']}: "
        text += f"AUROC {percent(at_layer['auroc'])} % (shuffled labels "
        text += f"{percent(at_layer['shuffled'])} %)"
        if at_layer["projection"] is None:
            text += f", no projection ({row['reason'] or 'a direction has no length'})"
        else:
            text += f", projection on {row['reference']} {number(at_layer['projection'], '+.2f')}, "
            text += f"cosine {number(at_layer['cosine'], '+.2f')}"
        parts.append(text)
    return "; ".join(parts)
