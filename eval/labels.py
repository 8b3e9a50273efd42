"""Grades by people: a blind sample of answers as a spreadsheet, and its labels as scores like any judge's."""

import csv
import hashlib
import io
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cell.context import StageContext
from core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

HUMAN = "human"
SHEET = ["label_id", "question", "answer", "dimension", "guiding question", "indicators", "grade"]
GRADES = {
    "1": 1,
    "1.0": 1,
    "pass": 1,
    "yes": 1,
    "c": 1,
    "0": 0,
    "0.0": 0,
    "fail": 0,
    "no": 0,
    "i": 0,
}
CHECKPOINT = ["benchmark", "dose", "arm", "seed"]
UNIT = [*CHECKPOINT, "question", "epoch", "dimension"]


def run(work: StageContext) -> dict[str, int | float]:
    """Read a labelled sheet; write `scores.parquet`, with the checkpoint of each row in it (`read_back`).

    Settings: hashes of the sheet and its key. Resources: sheet (CSV path). Returns counts: labels, missing.
    """
    table = read_back(Path(work.resources["sheet"]))
    if table.empty:
        raise UserError(
            f"no grade in {work.resources['sheet']}; fill in its last column, or take it out of the study"
        )
    table.to_parquet(work.folder / "scores.parquet", index=False)
    return {"labels": len(table), "missing": int(table["score"].isna().sum())}


def write_out(
    scored: list[tuple[dict[str, Any], Path]],
    n: int,
    seed: int,
    path: Path,
    dimensions: Path | None = None,
) -> Path:
    """Write `n` graded (response, dimension) to the CSV file `path`, for people to grade; returns the key's path.

    `scored`: for each checkpoint its benchmark, dose, arm and seed, and the folder of its judge cell (scored.eval,
    scores.parquet); `dimensions`: the JSONL file it was graded with, if its benchmark has dimensions. Each arm gets the
    same number, as far as it has so many; within an arm the sample is systematic, over its answers ordered by the
    judge's grade, then dimension, so that both stand in it as they do in the arm and no answer needs a weight.

    The sheet shows what the judge was shown, neither arm nor grade, in random order; a dimension that was graded for
    several animals has a line for each. What a label belongs to is in the key beside it (.key.json). The same seed and
    cells give the same bytes. Raises UserError if a file is missing or would be overwritten, a checkpoint is given
    twice, a dimension is unknown or there are fewer than `n` to choose from.
    """
    from inspect_ai.log import read_eval_log

    key_path = path.with_suffix(".key.json")
    texts = {}
    for line in dimensions.read_text(encoding="utf-8").split("\n") if dimensions else []:
        if line.strip():
            texts[json.loads(line)["dimension"].casefold()] = json.loads(line)
    problems = [
        f"{p} exists and may hold labels; move it or give another path"
        for p in (path, key_path)
        if p.exists()
    ]
    units = _units(scored, set(texts), problems)
    if not problems and not 0 < n <= len(units):
        problems.append(
            f"{n} labels of {len(units)} graded dimensions of answers; ask for 1 to {len(units)}"
        )
    if problems:
        raise UserError(*problems)
    sheet, key = [], {}
    for folder, chosen in _choose(units, n, seed).groupby("folder"):
        log = read_eval_log(Path(str(folder), "scored.eval"))
        samples = {(str(sample.id), sample.epoch): sample for sample in log.samples or []}
        for unit in json.loads(chosen.drop(columns=["folder", "score"]).to_json(orient="records")):
            sample = samples[unit["question"], unit["epoch"]]
            score = next(iter((sample.scores or {}).values()))
            # the rubric of a benchmark without dimensions is the official sample's target
            text = texts.get(unit["dimension"].casefold(), {"guiding_question": str(sample.target)})
            asked = (
                (score.metadata or {})
                .get("dimension_grades", {})
                .get(unit["dimension"], [{"variables": {}}])
            )
            for number, variables in enumerate(grade["variables"] for grade in asked):
                unique = json.dumps([seed, *(unit[name] for name in UNIT), number])
                label = f"L{hashlib.sha256(unique.encode()).hexdigest()[:12]}"  # Excel takes 12e3 for a number
                guiding = text["guiding_question"]
                for name, value in variables.items():
                    guiding = guiding.replace("{{" + name + "}}", value)
                shown = [str(sample.input), sample.output.completion, unit["dimension"], guiding]
                sheet.append(
                    [label, *map(_as_text, [*shown, text.get("observable_indicators") or ""]), ""]
                )
                key[label] = unit | {"variables": variables, "cell": Path(str(folder)).name}
    random.Random(seed).shuffle(sheet)
    with path.open(
        "w", encoding="utf-8-sig", newline=""
    ) as file:  # Excel takes UTF-8 only with this mark
        csv.writer(file).writerows([SHEET, *sheet])
    about = {"sheet": path.name, "seed": seed, "labels": key}
    key_path.write_text(
        json.dumps(about, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )
    return key_path


def read_back(path: Path) -> "pd.DataFrame":
    """The labels of a sheet as rows of the long table: benchmark, dose, arm, seed and the columns of scores.parquet.

    Grades are 0/1, pass/fail, yes/no or C/I in any case; empty is not labelled and gives no row. The score of a
    dimension that was graded for several animals is the mean of their grades; where only some of them are labelled it
    is NaN and `missing` says so. The key lies beside the sheet; commas, semicolons or tabs separate the columns.

    Raises UserError with a line for each label that is unknown or there twice and each grade that is none of these.
    """
    import pandas as pd

    key_path = path.with_suffix(".key.json")
    absent = [file for file in (path, key_path) if not file.is_file()]
    if absent:
        raise UserError(
            *(f"no file {file}; keep the sheet and its key in one folder" for file in absent)
        )
    labels = json.loads(key_path.read_text(encoding="utf-8"))["labels"]
    grades = _read_sheet(path, set(labels))
    key = pd.DataFrame.from_dict(labels, orient="index").astype({"seed": "Int64"})
    key["grade"] = key.index.map(grades).astype(float)
    groups = key.groupby([*UNIT, "scenario", "response"], dropna=False)["grade"]
    table = groups.agg(score="mean", given="count", asked="size").reset_index()
    table = table[table["given"] > 0]
    whole = table["given"] == table["asked"]
    told = pd.Series("labelled for some animals only", table.index).where(~whole)
    table = table.assign(judge=HUMAN, score=table["score"].where(whole), missing=told)
    columns = [
        *CHECKPOINT,
        "question",
        "scenario",
        "dimension",
        "epoch",
        "judge",
        "score",
        "missing",
        "response",
    ]
    text = dict.fromkeys(
        ["benchmark", "arm", "question", "scenario", "dimension", "judge", "missing", "response"],
        "str",
    )
    return table[columns].reset_index(drop=True).astype(text)


def _units(
    scored: list[tuple[dict[str, Any], Path]], known: set[str], problems: list[str]
) -> "pd.DataFrame":
    """Every (response, dimension) of the cells, in an order that does not depend on theirs."""
    import pandas as pd

    parts = []
    for facts, folder in scored:
        absent = [
            name for name in ("scored.eval", "scores.parquet") if not (folder / name).is_file()
        ]
        if absent:
            problems.append(
                f"no {' and no '.join(absent)}; {folder}; give folders of finished judge cells"
            )
            continue
        table = pd.read_parquet(folder / "scores.parquet")
        single = table[table["dimension"] != "overall"]
        unknown = sorted(name for name in set(single["dimension"]) if name.casefold() not in known)
        if unknown:
            problems.append(
                f"unknown dimensions {', '.join(unknown)}; {folder}; give the file they were graded with"
            )
        table = (single if len(single) else table)[[*UNIT[4:], "scenario", "response", "score"]]
        parts.append(table.assign(**{name: facts[name] for name in CHECKPOINT}, folder=str(folder)))
    if not parts:
        return pd.DataFrame()
    units = (
        pd.concat(parts, ignore_index=True)
        .astype({"seed": "Int64"})
        .sort_values(UNIT, ignore_index=True)
    )
    for folder in units.loc[units.duplicated(UNIT), "folder"].unique():
        problems.append(f"a checkpoint that is given twice; {folder}; give one judge cell for each")
    return units


def _choose(units: "pd.DataFrame", n: int, seed: int) -> "pd.DataFrame":
    import pandas as pd

    chosen: list[pd.DataFrame] = []
    arms = sorted((len(members), str(arm), members) for arm, members in units.groupby("arm"))
    for position, (size, arm, members) in enumerate(arms):
        rng = random.Random(f"{seed} {arm}")
        number = min(size, (n - sum(map(len, chosen))) // (len(arms) - position))
        members = members.assign(draw=[rng.random() for _ in range(size)]).sort_values(
            ["score", "dimension", "draw"]
        )
        start = rng.random()
        picked = [int((start + step) * size / number) for step in range(number)]
        chosen.append(members.iloc[picked].drop(columns="draw"))
    return pd.concat(chosen).sort_values(UNIT)


def _as_text(text: str) -> str:
    """A list that begins with a dash would be a formula to a spreadsheet."""
    return f" {text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _read_sheet(path: Path, known: set[str]) -> dict[str, float]:
    # only ASCII is read back, so letters may have been lost in whatever encoding the sheet was saved in
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    rows = list(
        csv.reader(io.StringIO(text), delimiter=max(",;\t", key=text.partition("\n")[0].count))
    )
    header = [name.strip().casefold() for name in rows[0]] if rows else []
    if not {"label_id", "grade"} <= set(header):
        raise UserError(
            f"no columns label_id and grade; {path}; save the sheet as CSV with its first line as it was"
        )
    grades: dict[str, float] = {}
    seen: dict[str, int] = {}
    problems = []
    for number, row in enumerate(rows[1:], 2):
        cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
        label, grade = cells.get("label_id", ""), cells.get("grade", "")
        place = f"{path}, row {number}"
        if not any(cells.values()):
            continue
        if label not in known:
            problems.append(
                f"unknown label {label!r}; {place}; restore its label_id or the sheet's own key"
            )
        elif label in seen:
            problems.append(
                f"label {label} twice; {place}; it is also in row {seen[label]}, remove one"
            )
        elif grade and grade.casefold() not in GRADES:
            problems.append(
                f"unknown grade {grade!r}; {place}; write 1 or 0, pass or fail, yes or no, C or I"
            )
        elif grade:
            grades[label] = GRADES[grade.casefold()]
        seen.setdefault(label, number)
    if problems:
        raise UserError(*problems)
    return grades
