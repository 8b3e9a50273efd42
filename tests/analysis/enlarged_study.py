"""results.json of a study as large as paper.yaml, made of the rows of a small one."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Results = dict[str, Any]
Row = dict[str, Any]


def enlarged(
    small: Results,
    arms: Sequence[str],
    doses: Sequence[int],
    benchmarks: Sequence[str],
) -> Results:
    """The results of `small_study.study` with more arms, doses and benchmarks.

    Each arm but the last is compared with the last on each benchmark at each dose. Rows are those
    of the small study with other names; their estimates differ.
    """
    rng = np.random.default_rng(0)
    treatments, control = arms[:-1], arms[-1]
    large = copy.deepcopy(small)
    large["arm_order"] = [*arms]
    large["benchmarks"] = {name: copy.deepcopy(small["benchmarks"]["ahb"]) for name in benchmarks}
    for n, name in enumerate(benchmarks):
        large["benchmarks"][name]["direction"] = ("higher", "lower", "neither")[n % 3]

    def checkpoints(rows: Sequence[Row]) -> list[Row]:
        """The rows of one arm at one dose, for every arm, dose and benchmark."""
        like = [row for row in rows if (row["benchmark"], row["arm"], row["dose"]) == SHOWN]
        return [
            row | {"benchmark": benchmark, "arm": arm, "dose": dose}
            for benchmark in benchmarks
            for dose in doses
            for arm in arms
            for row in like
        ]

    def pairs() -> Iterator[Row]:
        for arm in treatments:
            for benchmark in benchmarks:
                for dose in doses:
                    yield {
                        "name": f"{arm} - {control}",
                        "treatment": arm,
                        "control": control,
                        "benchmark": benchmark,
                        "dose": dose,
                        "control_dose": dose,
                    }

    def comparisons(rows: Sequence[Row]) -> list[Row]:
        """The rows of one contrast at one dose, for every contrast, dose and benchmark."""
        like = [row for row in rows if row["benchmark"] == "ahb" and row.get("dose", 0) == 0]
        return [row | pair for pair in pairs() for row in like]

    for name in ("arms", "scores", "dimensions"):
        large[name] = checkpoints(small[name])
    for name in ("contrasts", "sensitivity", "dimension_tests", "robustness"):
        large[name] = comparisons(small[name])
    for row in large["contrasts"]:
        estimate = round(float(rng.normal(0, 0.2)), 4)
        row |= {"estimate": estimate, "low": estimate - 0.1, "high": estimate + 0.1}
        row["verdict"] = "inconclusive"
        if abs(estimate) > 0.1:
            row["verdict"] = "higher" if estimate > 0 else "lower"
    (erosion,) = (row for row in small["erosion"] if row["benchmark"] == "ahb")
    large["erosion"] = [erosion | pair for pair in pairs() if pair["dose"] == doses[0]]
    large["variance"] = [
        small["variance"][0] | {"benchmark": benchmark} for benchmark in benchmarks
    ]
    flow = small["flow"][0]
    large["flow"] = [
        flow | {"benchmark": benchmark, "arm": arm} for benchmark in benchmarks for arm in arms
    ]
    return large


SHOWN = ("ahb", "animal", 0)
