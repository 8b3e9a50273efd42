"""Results of a study of any size, made of the rows of a small one, and never run."""

import itertools
from typing import Any

import numpy as np

Results = dict[str, Any]
Row = dict[str, Any]
# As long as those of studies/paper.yaml.
ARMS = [
    "base", "base_helpsteer", "instruct", "linked", "not_linked", "instruct_animal",
    "instruct_qa", "instruct_qa_neutral", "base_animal", "base_urban", "instruct_urban",
    "writer_gemini", "writer_grok", "writer_haiku", "base_random", "base_human",
    "base_animal_replay", "documents_675", "documents_1350", "675",
]  # fmt: skip
BENCHMARKS = [
    "ahb", "anima", "preference", "human", "moru", "intrusion", "power_seeking", "corrigibility",
    "strong_reject_content", "hellaswag",
]  # fmt: skip
DOSES = [0, 800, 2250, 4000, 5000]
CONTRASTS = [
    "E3 animal - urban (Instruct) on all 115", "E2 documents - untrained Instruct",
    "E4 HelpSteer alone", "animal - human welfare", "replay - none",
]  # fmt: skip
SHARES = ("mean", "score", "low", "high", "estimate", "share", "predicted_low", "predicted_high")


def large_results(
    small: Results,
    arms: int = len(ARMS),
    doses: int = len(DOSES),
    benchmarks: int = len(BENCHMARKS),
) -> Results:
    """`small`, with the first rows of its tables repeated for so many arms, doses and benchmarks.

    Scores are drawn anew, so that rows differ.
    """
    rng = np.random.default_rng(3)
    names, numbers, asked = ARMS[:arms], DOSES[:doses], BENCHMARKS[:benchmarks]
    result = small | {"study": "large", "arm_order": names}
    judged, likelihood = small["benchmarks"].values()
    result["benchmarks"] = {
        name: likelihood if n % 3 == 2 else judged for n, name in enumerate(asked)
    }

    def vary(row: Row) -> Row:
        shares = {
            key: round(float(rng.uniform(-1, 1)) if row[key] < 0 else float(rng.random()), 6)
            for key in SHARES
            if isinstance(row.get(key), float)
        }
        return row | shares

    def rows(template: Row, **values: list[Any]) -> list[Row]:
        return [
            vary(template | dict(zip(values, of, strict=True)))
            for of in itertools.product(*values.values())
        ]

    judged_row = next(row for row in small["arms"] if not row["fixed"])
    result["arms"] = rows(judged_row, benchmark=asked, dose=numbers, arm=names)
    score = small["scores"][-1]
    result["scores"] = rows(score, benchmark=asked, dose=numbers, arm=names, seed=[0, 1])
    dimension = small["dimensions"][0]
    kinds = [f"Evidence-Based Capacity {n}" for n in range(4)]
    result["dimensions"] = rows(
        dimension, benchmark=asked[:2], dose=numbers, dimension=kinds, arm=names
    )
    result["flow"] = rows(small["flow"][-1], benchmark=asked, arm=names)
    if small["malformed"]:
        result["malformed"] = rows(small["malformed"][0], benchmark=asked, dose=numbers, arm=names)
    on = {"name": CONTRASTS, "benchmark": asked}
    for key in ("contrasts", "sensitivity"):
        result[key] = [
            row | {"control_dose": row["dose"]} for row in rows(small[key][0], **on, dose=numbers)
        ]
    result["erosion"] = rows(small["erosion"][0], **on)
    result["dimension_tests"] = rows(
        small["dimension_tests"][0], **(on | {"benchmark": asked[:2]}), dimension=kinds
    )
    result["variance"] = rows(small["variance"][0], benchmark=asked, dose=numbers)
    result["robustness"] = [
        row | {"name": name, "benchmark": bench}
        for name, bench in itertools.product(CONTRASTS, asked)
        for row in small["robustness"][:8]
    ]
    result["missing"] = rows({"seed": 4}, benchmark=asked, dose=numbers, arm=names[:3])
    return result
