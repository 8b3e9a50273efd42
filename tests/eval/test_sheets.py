"""Label sheets as spreadsheets save them, and their mistakes."""

from pathlib import Path

import pytest

from core.errors import UserError
from eval import labels

LABELS = [f"L{n}" for n in range(10)]
CELLS = ["1", "0", "1,00", "0,0", "TRUE", "false", "Y", "n", "", " Pass "]
GRADES = dict(zip(LABELS, [1, 0, 1, 0, 1, 0, 1, 0, None, 1], strict=True))
EXPECTED = {label: grade for label, grade in GRADES.items() if grade is not None}


def sheet(separator: str, end: str = "\r\n") -> str:
    rows = [["label_id", "answer", "grade"]]
    rows += [
        [label, f'"says {separator} é\n\nso"', f'"{c}"']
        for label, c in zip(LABELS, CELLS, strict=True)
    ]
    return "".join(separator.join(row) + end for row in rows)


@pytest.mark.parametrize(
    "content",
    [
        sheet(",").encode(),
        sheet(",").encode("utf-8-sig"),
        ("sep=;\r\n" + sheet(";")).encode(),
        ('"sep=;"\r\n' + sheet(";")).encode("utf-16"),
        sheet("\t", "\n").encode("utf-16"),
        sheet(";").encode("cp1252"),
        sheet(",").replace("label_id", " Label_ID ").encode("mac_roman"),
    ],
)
def test_a_sheet_is_read_as_any_spreadsheet_saves_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    assert labels._read_sheet(path, set(LABELS)) == EXPECTED


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ("label_id,grade,grade", "2 columns grade"),
        ("label_id,Label_ID,grade", "2 columns label_id"),
        ("label_id,score,x", "no column grade"),
    ],
)
def test_columns_must_be_there_once(tmp_path: Path, header: str, what: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f"{header}\nL0,1,0\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        labels._read_sheet(path, set(LABELS))
    (problem,) = error.value.problems
    assert problem.where == str(path) and problem.what == what


def test_mistakes_of_one_cause_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    known = [f"L{n}" for n in range(112)]
    path.write_text("label_id,grade\n" + "".join(f"{label},good\n" for label in known))
    with pytest.raises(UserError) as error:
        labels._read_sheet(path, set(known))
    (problem,) = error.value.problems
    assert problem.where == f"{path}, rows 2, 3, 4, 5, 6 and 107 more"
    assert problem.what == "unknown grade 'good'"


def test_an_open_quote_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text('label_id,grade\nL0,"1\nL1,0\n', encoding="utf-8")
    with pytest.raises(UserError, match="not CSV"):
        labels._read_sheet(path, set(LABELS))
