"""Grades by people: a blind sample of answers as a spreadsheet, and its labels as scores like any
judge's."""

import csv
import hashlib
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cell.context import StageContext
from core.errors import Problem, UserError
from core.files import read_rows
from core.row_formats import csv_table, open_binary, open_text
from eval.scorer import SCORE_COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    from inspect_ai.log import EvalSample

HUMAN = "human"
SHEET = ["label_id", "question", "answer", "dimension", "guiding question", "indicators", "grade"]
PASS = ("1", "pass", "yes", "y", "true", "c")
FAIL = ("0", "fail", "no", "n", "false", "i")
GRADES = dict.fromkeys(PASS, 1) | dict.fromkeys(FAIL, 0)
CHECKPOINT = ["benchmark", "dose", "arm", "seed"]
RESPONSE = ["question", "epoch", "dimension"]
UNIT = [*CHECKPOINT, *RESPONSE]  # what is graded: one dimension of one response of a checkpoint
SHOWN_ROWS = 5  # in a problem
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
    arms and benchmarks may have changed since. Grades are 0/1 (also 1.0, 1,00), pass/fail, yes/no,
    y/n, true/false or C/I in any case; empty is not labelled and gives no row. The score of a
    dimension that was graded for several animals is the mean of their grades; where only some of
    them are labelled it is NaN and `missing` says so. The key is beside the sheet. Commas,
    semicolons or tabs separate the columns.

    Raises UserError with a problem for all labels that are unknown, all that are there twice and
    all grades that are none of these.
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
    return (
        table[["answers", *SCORE_COLUMNS]]
        .reset_index(drop=True)
        .astype(dict.fromkeys(TEXT_COLUMNS, "str"))
    )


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
        by_part = table["dimension"] != "overall"
        by_dimension = table[by_part]
        unknown = sorted(
            name
            for name in set(by_dimension["dimension"])
            if names and name.casefold() not in names
        )
        if unknown:
            what = f"unknown dimensions {', '.join(unknown)}"
            problems.append(Problem(str(folder), what, "give the file they were graded with"))
        # Without rubrics of dimensions, people grade by the question's own.
        graded = by_dimension if names and len(by_dimension) else table[~by_part]
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
    rows = _sheet_rows(path)
    grades: dict[str, float] = {}
    seen: set[str] = set()
    mistakes: dict[tuple[str, str], list[tuple[int, str]]] = {}  # (what, fix) -> rows and values
    for number, cells in rows:
        if not any(cells.values()):
            continue
        label = cells.get("label_id", "")
        grade = cells.get("grade", "")
        value = _grade(grade)
        if label not in labels:
            key = ("unknown label", "restore its label_id or the sheet's own key")
            mistakes.setdefault(key, []).append((number, label))
        elif label in seen:
            key = ("a label twice", "remove one")
            mistakes.setdefault(key, []).append((number, label))
        elif grade and value is None:
            key = ("unknown grade", "write 1 or 0, pass or fail, yes or no, true or false, C or I")
            mistakes.setdefault(key, []).append((number, grade))
        elif value is not None:
            grades[label] = value
        seen.add(label)
    if mistakes:
        raise UserError.of(
            _mistake(path, what, fix, places) for (what, fix), places in mistakes.items()
        )
    return grades


def _mistake(path: Path, what: str, fix: str, places: list[tuple[int, str]]) -> Problem:
    """One problem for all rows with this mistake."""
    numbers = ", ".join(str(number) for number, _ in places[:SHOWN_ROWS])
    more = f" and {len(places) - SHOWN_ROWS} more" if places[SHOWN_ROWS:] else ""
    values = list(dict.fromkeys(value for _, value in places))
    shown = ", ".join(map(repr, values[:SHOWN_ROWS])) + (" ..." if values[SHOWN_ROWS:] else "")
    rows = "row" if len(places) == 1 else "rows"
    return Problem(f"{path}, {rows} {numbers}{more}", f"{what} {shown}", fix)


def _sheet_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(number of the row, cells by the header in lower case) of a sheet.

    Only ASCII is read back, so letters may be lost in whatever encoding the sheet was saved in.
    """
    try:
        with open_binary(path) as file:
            header, rows = csv_table(open_text(file, "", errors="replace"))
            table = list(rows)
    except csv.Error as error:
        fix = "save the sheet as CSV again"
        raise UserError(where=str(path), what=f"not CSV ({error})", fix=fix) from None
    names = [name.strip().casefold() for name in header]
    for name in ("label_id", "grade"):
        if names.count(name) != 1:
            what = "no column" if name not in names else f"{names.count(name)} columns"
            fix = "save the sheet as CSV with its first line as it was"
            raise UserError(where=str(path), what=f"{what} {name}", fix=fix)
    return [
        (number, dict(zip(names, (cell.strip() for cell in cells), strict=False)))
        for number, (_, cells) in enumerate(table, 2)
    ]


def _grade(cell: str) -> int | None:
    """A grade as 0 or 1; None where it is neither, or empty."""
    with suppress(ValueError):
        return GRADES.get(f"{float(cell.replace(',', '.')):g}")
    return GRADES.get(cell.casefold())
