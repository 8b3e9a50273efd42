"""Answers of both arms of the first primary contrast side by side, by a rule that looks at no score."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
QUESTIONS = 3  # the first of the benchmark's, each with the first answer of the lowest seed


def examples(rows: list[Row], contrasts: list[Row], inputs: dict[str, Path]) -> list[Row]:
    """Of each judged benchmark, at its first dose with numbers: what was `asked`, and both arms' `answers`.

    An answer is arm, dose, seed, response, score. `rows` are the analysis' settings; `inputs[role]` may
    hold examples.jsonl.
    """
    primary = [row for row in contrasts if row["family"] == "primary" and row["estimate"] is not None]
    found: list[Row] = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in primary):
        first = next(row for row in primary if row["benchmark"] == benchmark)
        asked: dict[str, Row] = {}
        for arm, dose in ((first["of"], first["dose"]), (first["against"], first["against_dose"])):
            mine = [
                r for r in rows if (r["benchmark"], r["arm"], r["dose"]) == (benchmark, arm, dose) and "judge" not in r
            ]
            mine = sorted(mine, key=lambda r: -1 if r["seed"] is None else r["seed"])
            path = inputs[mine[0]["role"]] / "examples.jsonl" if mine else Path("none")
            for text in path.read_text(encoding="utf-8").splitlines()[:QUESTIONS] if path.exists() else ():
                line = json.loads(text)
                about = {
                    "benchmark": benchmark,
                    "dose": first["dose"],
                    "question": line["question"],
                    "asked": line["asked"],
                }
                answers = asked.setdefault(line["question"], about | {"answers": []})["answers"]
                said = {key: line[key] for key in ("response", "score")}
                answers.append({"arm": arm, "dose": dose, "seed": mine[0]["seed"], **said})
        found += [row for row in asked.values() if len(row["answers"]) == 2]
    return found
