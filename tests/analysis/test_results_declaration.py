"""What report, headline and tables say of the study's declaration, and in which line dates stand."""

import json
from pathlib import Path

import pytest

from analysis.declaration import DATES, dates_line
from analysis.run import run
from core.declaration import FILE, short, write_declaration
from core.errors import UserError
from tests.analysis.small_study import declared_study
from tests.place import comparable

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]
TEXTS = ("report.html", "headline.txt", "macros.tex", "tables/*.tex", "tables/*.md")


def texts(folder: Path) -> dict[str, str]:
    paths = [path for pattern in TEXTS for path in folder.glob(pattern)]
    assert len(paths) > 6
    return {path.name: path.read_text() for path in paths if path.name != "all.tex"}


def test_an_edit_after_the_data_is_in_every_text(tmp_path: Path) -> None:
    differences = ["contrast a: family second (declared primary)", "families regrouped: x"]
    context = declared_study(tmp_path, differences)
    run(context)
    declared = short(context.settings["declaration"]["sha256"])
    for name, text in texts(context.folder).items():
        assert f"Not as declared before the data (declaration {declared}):" in text, name
        assert all(difference in text for difference in differences), name
    report, headline = (context.folder / name for name in ("report.html", "headline.txt"))
    assert report.read_text().index(differences[1]) < report.read_text().index("<h2")
    assert headline.read_text().splitlines()[1:3] == differences


def test_without_edits_it_says_when_and_another_run_has_the_same_bytes(tmp_path: Path) -> None:
    folders = []
    for name, day in (("one", "2026-03-01"), ("two", "2026-04-02")):
        context = declared_study(tmp_path / name)
        record = json.loads((context.folder.parents[1] / FILE).read_text())
        for number, folder in enumerate(context.inputs.values()):
            ended = f"{day}T00:00:{number:02}Z"
            (folder / "manifest.json").write_text(json.dumps({"identity": "", "ended": ended}))
        record["time"] = f"{day}T00:00:00Z"
        (context.folder.parents[1] / FILE).write_text(json.dumps(record))
        run(context)
        folders.append(context.folder)
        for text in ("report.html", "headline.txt"):
            (line,) = (
                line for line in (context.folder / text).read_text().splitlines() if DATES in line
            )
            assert f"declared {day}T00:00:00Z; first score {day}T00:00:00Z" in line
        assert json.loads((context.folder / FILE).read_text()) == record
    first, second = folders
    files = {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    assert {Path(FILE), Path("looks.json")} < files
    for name in files - {Path(FILE)}:
        assert comparable(first / name) == comparable(second / name), name
    declared = short(context.settings["declaration"]["sha256"])
    for name, text in texts(first).items():
        assert f"As declared before the data (declaration {declared})." in text, name
        assert (day[:4] in text) == (name in ("report.html", "headline.txt")), name


def test_without_a_record_it_says_so_and_no_look_is_recorded(tmp_path: Path) -> None:
    context = declared_study(tmp_path)
    context.settings["declaration"] = None
    base = context.folder.parents[1]
    (base / FILE).unlink()
    run(context)
    for name, text in texts(context.folder).items():
        assert "No record that this was declared before the data." in text, name
    assert not (base / "looks.json").exists() and not (context.folder / FILE).exists()


def test_an_analysis_that_was_planned_with_another_declaration_is_refused(tmp_path: Path) -> None:
    context = declared_study(tmp_path)
    path = context.folder.parents[1] / FILE
    path.unlink()
    with pytest.raises(UserError, match="is not the declaration that this analysis was planned"):
        run(context)
    write_declaration(path.parent, {"seeds": [9]})
    with pytest.raises(UserError, match="is not the declaration"):
        run(context)
    context.settings["declaration"] = None
    with pytest.raises(UserError, match="is not the declaration"):
        run(context)


def test_a_declaration_after_the_first_score_is_no_declaration_before_it() -> None:
    line = dates_line("2026-02-02T00:00:00Z", "2026-01-01T00:00:00Z")
    assert (
        line
        == f"{DATES}declared 2026-02-02T00:00:00Z, after the first score of 2026-01-01T00:00:00Z"
    )
    assert dates_line(None, "2026-01-01T00:00:00Z").startswith(f"{DATES}not declared; first score")
