"""Grades by people: a blind sample of answers as a spreadsheet, and its labels as scores like any
judge's."""

import csv
import hashlib
import io
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cell.context import StageContext
from core.errors import Problem, UserError
from core.files import read_rows

if TYPE_CHECKING:
    import pandas as pd
    from inspect_ai.log import EvalSample

HUMAN = "human"
SHEET = ["label_id", "question", "answer", "dimension", "guiding question", "indicators", "grade"]
PASS = ("1", "1.0", "pass", "yes", "c")
FAIL = ("0", "0.0", "fail", "no", "i")
GRADES = dict.fromkeys(PASS, 1) | dict.fromkeys(FAIL, 0)
CHECKPOINT = ["benchmark", "dose", "arm", "seed"]
RESPONSE = ["question", "epoch", "dimension"]
UNIT = [*CHECKPOINT, *RESPONSE]  # what is graded: one dimension of one response of a checkpoint
TEXT_COLUMNS = ["answers", "question", "scenario", "dimension", "judge", "missing", "response"]


def run(context: StageContext) -> dict[str, int | float]:
    """Read a labelled sheet; write `scores.parquet`, with the answers of each row in it
    (`read_back`).

    Resources: files {sheet: CSV path, key: its key.json}.

    Returns counts: labels, missing.
    """
    sheet = context.resources["files"]["sheet"]
    table = read_back(Path(sheet))
    if table.empty:
        raise UserError(
            where=str(sheet),
            what="no grade in it",
            fix="fill in its last column, or take it out of the study",
        )
    table.to_parquet(context.folder / "scores.parquet", index=False)
    return {"labels": len(table), "missing": int(table["score"].isna().sum())}


def write_out(
    scored: list[tuple[dict[str, Any], Path]],
    n: int,
    seed: int,
    path: Path,
    dimensions: Path | None = None,
) -> Path:
    """Write `n` graded (response, dimension) to a CSV file for people to grade.

    Each arm gets the same number, as far as it has so many. Within an arm the sample is systematic,
    over its answers ordered by the judge's grade, then dimension. So the shares of grades and
    dimensions are those of the arm, and no answer needs a weight.

    The sheet shows what the judge was shown, neither arm nor grade, in random order. A dimension
    that was graded for several animals has a line for each. The key beside the sheet (.key.json)
    holds what each label belongs to. The same seed and cells give the same bytes.

    Args:
        scored: For each checkpoint its benchmark, dose, arm and seed, the identity of the cell of
            its answers, and the folder of its judge cell (scored.eval, scores.parquet).
        n: The number of (response, dimension) in the sample.
        seed: The sample's seed.
        path: The CSV file to write.
        dimensions: The JSONL file with the rubrics, if the benchmark has dimensions.

    Returns:
        The key's path.

    Raises:
        UserError: A file is missing or would be overwritten, a checkpoint is given twice, a
            dimension is unknown or there are fewer than `n` to choose from.
    """
    from inspect_ai.log import read_eval_log

    key_path = path.with_suffix(".key.json")
    rubrics = _read_rubrics(dimensions) if dimensions else {}
    problems = [
        Problem(str(file), "exists and may hold labels", "move it or give another path")
        for file in (path, key_path)
        if file.exists()
    ]
    units = _units(scored, set(rubrics), problems)
    if not problems and not 0 < n <= len(units):
        what = f"{n} labels of {len(units)} graded dimensions of answers"
        problems.append(Problem("--n", what, f"ask for 1 to {len(units)}"))
    if problems:
        raise UserError.of(problems)
    lines: list[list[str]] = []
    key: dict[str, dict[str, Any]] = {}
    for folder, chosen in _choose(units, n, seed).groupby("folder"):
        log = read_eval_log(Path(str(folder), "scored.eval"))
        samples = {(str(sample.id), sample.epoch): sample for sample in log.samples or []}
        records = chosen.drop(columns=["folder", "score"]).to_json(orient="records")
        for unit in json.loads(records):
            sample = samples[unit["question"], unit["epoch"]]
            # Where a benchmark has no dimensions the rubric is the official sample's target.
            target = {"guiding_question": str(sample.target)}
            rubric = rubrics.get(unit["dimension"].casefold(), target)
            for number, variables in enumerate(_variables(sample, unit["dimension"])):
                label = _label_id(seed, unit, number)
                lines.append(_sheet_line(label, sample, unit["dimension"], rubric, variables))
                key[label] = unit | {"variables": variables, "cell": Path(str(folder)).name}
    random.Random(seed).shuffle(lines)
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # Excel needs the mark
        csv.writer(file).writerows([SHEET, *lines])
    content = {"sheet": path.name, "seed": seed, "labels": key}
    key_path.write_text(
        json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )
    return key_path


def _read_rubrics(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a benchmark's dimensions, by their names in lower case."""
    return {row["dimension"].casefold(): row for _, row in read_rows(path)}


def _variables(sample: "EvalSample", dimension: str) -> list[dict[str, str]]:
    """The variables of each grade of a dimension: one for each animal, or a single empty one."""
    score = next(iter((sample.scores or {}).values()))
    grades = (score.metadata or {}).get("dimension_grades", {})
    return [grade["variables"] for grade in grades.get(dimension, [{"variables": {}}])]


def _label_id(seed: int, unit: dict[str, Any], number: int) -> str:
    """The id of a label. It begins with a letter: Excel takes 12e3 for a number."""
    unique = json.dumps([seed, *(unit[name] for name in UNIT), number])
    return f"L{hashlib.sha256(unique.encode()).hexdigest()[:12]}"


def _sheet_line(
    label: str,
    sample: "EvalSample",
    dimension: str,
    rubric: dict[str, Any],
    variables: dict[str, str],
) -> list[str]:
    """A line of the sheet (`SHEET`) without a grade."""
    guiding_question = rubric["guiding_question"]
    for name, value in variables.items():
        guiding_question = guiding_question.replace("{{" + name + "}}", value)
    texts = [
        str(sample.input),
        sample.output.completion,
        dimension,
        guiding_question,
        rubric.get("observable_indicators") or "",
    ]
    return [label, *map(_as_text, texts), ""]


def read_back(path: Path) -> "pd.DataFrame":
    """The labels of a sheet as rows of the long table.

    Columns: answers (the identity of their cell) and those of a judge's scores.parquet. Names of
    arms and benchmarks may have changed since. Grades are 0/1, pass/fail, yes/no or C/I in any
    case; empty is not labelled and gives no row. The score of a
    dimension that was graded for several animals is the mean of their grades; where only some of
    them are labelled it is NaN and `missing` says so. The key is beside the sheet. Commas,
    semicolons or tabs separate the columns.

    Raises UserError with a problem for each label that is unknown or there twice and each grade
    that is none of these.
    """
    import pandas as pd

    key_path = path.with_suffix(".key.json")
    absent = [file for file in (path, key_path) if not file.is_file()]
    if absent:
        fix = "keep the sheet and its key in one folder"
        raise UserError.of(Problem(str(file), "no such file", fix) for file in absent)
    labels = json.loads(key_path.read_text(encoding="utf-8"))["labels"]
    if not all("answers" in label for label in labels.values()):
        raise UserError(
            where=str(key_path),
            what="doesn't say which answers were graded, as keys of version 0.1",
            fix="analyze this sheet with the version that wrote it, or write and grade a new one",
        )
    grades = _read_sheet(path, set(labels))
    key = pd.DataFrame.from_dict(labels, orient="index")
    key["grade"] = key.index.map(grades).astype(float)
    groups = key.groupby(["answers", *RESPONSE, "scenario", "response"], dropna=False)["grade"]
    table = groups.agg(score="mean", labelled="count", asked="size").reset_index()
    table = table[table["labelled"] > 0]
    complete = table["labelled"] == table["asked"]
    reason = pd.Series("labelled for some animals only", table.index).where(~complete)
    table = table.assign(judge=HUMAN, score=table["score"].where(complete), missing=reason)
    columns = [
        "answers",
        "question",
        "scenario",
        "dimension",
        "epoch",
        "judge",
        "score",
        "missing",
        "response",
    ]
    return table[columns].reset_index(drop=True).astype(dict.fromkeys(TEXT_COLUMNS, "str"))


def _units(
    scored: list[tuple[dict[str, Any], Path]], names: set[str], problems: list[Problem]
) -> "pd.DataFrame":
    """Every (response, dimension) of the cells, in an order that does not depend on the cells'.

    `names`: the dimensions that have a rubric, in lower case.
    """
    import pandas as pd

    parts = []
    for facts, folder in scored:
        absent = [
            name for name in ("scored.eval", "scores.parquet") if not (folder / name).is_file()
        ]
        if absent:
            what = f"no {' and no '.join(absent)}"
            problems.append(Problem(str(folder), what, "give folders of finished judge cells"))
            continue
        table = pd.read_parquet(folder / "scores.parquet")
        by_dimension = table[table["dimension"] != "overall"]
        unknown = sorted(
            name for name in set(by_dimension["dimension"]) if name.casefold() not in names
        )
        if unknown:
            what = f"unknown dimensions {', '.join(unknown)}"
            problems.append(Problem(str(folder), what, "give the file they were graded with"))
        graded = by_dimension if len(by_dimension) else table
        part = graded[[*RESPONSE, "scenario", "response", "score"]]
        checkpoint = {name: facts[name] for name in [*CHECKPOINT, "answers"]}
        parts.append(part.assign(**checkpoint, folder=str(folder)))
    if not parts:
        return pd.DataFrame()
    units = pd.concat(parts, ignore_index=True).astype({"seed": "Int64"})
    units = units.sort_values(UNIT, ignore_index=True)
    for folder in units.loc[units.duplicated(UNIT), "folder"].unique():
        what = "a checkpoint that is given twice"
        problems.append(Problem(str(folder), what, "give one judge cell for each"))
    return units.drop_duplicates(["answers", *RESPONSE])  # two arms may be one checkpoint


def _choose(units: "pd.DataFrame", n: int, seed: int) -> "pd.DataFrame":
    """A systematic sample of `n` units, of equal size for each arm as far as it has so many."""
    import pandas as pd

    chosen: list[pd.DataFrame] = []
    # The smallest arms first: the larger ones share what these do not have.
    arms = sorted((len(members), str(arm), members) for arm, members in units.groupby("arm"))
    for position, (size, arm, members) in enumerate(arms):
        rng = random.Random(f"{seed} {arm}")
        remaining = n - sum(map(len, chosen))
        number = min(size, remaining // (len(arms) - position))
        members = members.assign(tie_break=[rng.random() for _ in range(size)])
        members = members.sort_values(["score", "dimension", "tie_break"])
        start = rng.random()
        picked = [int((start + step) * size / number) for step in range(number)]
        chosen.append(members.iloc[picked].drop(columns="tie_break"))
    return pd.concat(chosen).sort_values(UNIT)


def _as_text(text: str) -> str:
    """The text with a space before what a spreadsheet takes for a formula, such as a dash."""
    return f" {text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _read_sheet(path: Path, labels: set[str]) -> dict[str, float]:
    """The grades of a sheet, 0 or 1, by label."""
    # Only ASCII is read back, so letters may be lost in whatever encoding the sheet was saved in.
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    header_line = text.partition("\n")[0]
    rows = list(csv.reader(io.StringIO(text), delimiter=max(",;\t", key=header_line.count)))
    header = [name.strip().casefold() for name in rows[0]] if rows else []
    if not {"label_id", "grade"} <= set(header):
        raise UserError(
            where=str(path),
            what="no columns label_id and grade",
            fix="save the sheet as CSV with its first line as it was",
        )
    grades: dict[str, float] = {}
    first_rows: dict[str, int] = {}
    problems = []
    for number, row in enumerate(rows[1:], 2):
        cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
        if not any(cells.values()):
            continue
        label = cells.get("label_id", "")
        grade = cells.get("grade", "")
        where = f"{path}, row {number}"
        if label not in labels:
            fix = "restore its label_id or the sheet's own key"
            problems.append(Problem(where, f"unknown label {label!r}", fix))
        elif label in first_rows:
            fix = f"it is also in row {first_rows[label]}, remove one"
            problems.append(Problem(where, f"label {label} twice", fix))
        elif grade and grade.casefold() not in GRADES:
            fix = "write 1 or 0, pass or fail, yes or no, C or I"
            problems.append(Problem(where, f"unknown grade {grade!r}", fix))
        elif grade:
            grades[label] = GRADES[grade.casefold()]
        first_rows.setdefault(label, number)
    if problems:
        raise UserError.of(problems)
    return grades
