"""The screen, for studies that ran on one machine."""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.cell.identity import Cell
from study.commands.status import look, print_status, show

AGAIN = "python -m study run s.yaml"
WATCH = "python -m study status s.yaml --watch"


def cell(stage: str, name: str, *inputs: Cell) -> Cell:
    return Cell(stage, name, {"name": name}, {c.name: c for c in inputs})


def put(base: Path, what: Cell, **files: str) -> None:
    """Write files of a cell: log, progress, manifest."""
    folder = base / what.relpath
    folder.mkdir(parents=True, exist_ok=True)
    names = {"log": "log.txt", "progress": "progress.json", "manifest": "manifest.json"}
    for name, text in files.items():
        (folder / names[name]).write_text(text)


@contextmanager
def at_work(base: Path, what: Cell) -> Iterator[None]:
    put(base, what)
    with open(base / what.relpath / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def states(data: dict[str, Any]) -> dict[str, str]:
    return {row["cell"]: row["state"] for row in data["cells"]}


DOCUMENTS = [cell("documents", name) for name in "abc"]
TRAININGS = [cell("midtrain", f"{c.name}-t", c) for c in DOCUMENTS]
LAST = cell("analysis", "last", *TRAININGS)
CELLS = [*DOCUMENTS, *TRAININGS, LAST]


def test_a_study_from_nothing_to_its_end(tmp_path: Path) -> None:
    base = tmp_path / "s"
    data = look(CELLS, base, "s.yaml")
    assert set(states(data).values()) == {"to do"} and data["next"] == AGAIN and not data["goes_on"]
    assert not base.exists(), "looking changes nothing"
    a, b, c = DOCUMENTS
    put(base, a, manifest='{"a": 1}')
    put(base, b, log="starts (process 1)\nOSError: [Errno 122] Disk quota exceeded\n")
    put(
        base,
        c,
        log="c starts (process 1)\ndocument 12\n",
        progress='{"done": 12, "total": 1240, "unit": "documents"}',
    )
    with at_work(base, c):
        data = look(CELLS, base, "s.yaml")
        expected = {
            "a": "done",
            "b": "failed",
            "c": "running",
            "a-t": "to do",
            "b-t": "blocked",
            "c-t": "to do",
        }
        assert states(data) == expected | {"last": "blocked"}
        assert data["next"] == WATCH, "a second engine would only wait"
        assert {k: v for k, v in data["stages"][0].items() if v} == {
            "stage": "documents",
            "done": 1,
            "running": 1,
            "failed": 1,
        }
        failed = next(row for row in data["cells"] if row["state"] == "failed")
        assert (
            failed["cause"] == "no disk space"
            and "quota" in failed["last_lines"][-1]
            and failed["next"] == AGAIN
        )
        text = show(data)
        assert "done 1 of 7, running 1, failed 1, blocked 2, to do 2" in text
        assert (
            "running: documents c: 12 of 1,240 documents, 0 s" in text
            and "2 cells are blocked by it" in text
        )
        assert text.splitlines()[-1] == f"next: {WATCH}" and text.count("next:") == 1
        json.dumps(data)
    data = look(CELLS, base, "s.yaml")
    assert states(data)["c"] == "failed" and data["next"] == AGAIN and not data["goes_on"]
    assert [row["cause"] for row in data["cells"] if row["state"] == "failed"] == [
        "no disk space",
        "stopped",
    ]
    for one in CELLS:
        put(base, one, manifest='{"a": 1}')
    data = look(CELLS, base, "s.yaml")
    assert (
        set(states(data).values()) == {"done"} and data["next"] == "python -m study report s.yaml"
    )


def test_a_thousand_cells_are_one_screen(tmp_path: Path) -> None:
    many = [cell("sft", f"base-animal-s{n}", DOCUMENTS[0]) for n in range(1000)]
    put(tmp_path, DOCUMENTS[0], manifest='{"a": 1}')
    errors = [
        "CUDA out of memory",
        "KeyError: 'x7'",
        "KeyError: 'x8'",
        "HTTP 401",
        "Address already in use",
        "x error",
    ]
    for number, one in enumerate(many[:600]):
        put(tmp_path, one, log=f"{'a long line ' * 30}\nerror {number}: {errors[min(number, 5)]}\n")
    started = time.monotonic()
    data = look([*DOCUMENTS, *many], tmp_path, "s.yaml")
    lines = show(data).splitlines()
    print(
        f"1,003 cells, 600 of them failed: {time.monotonic() - started:.2f} s, {len(lines)} lines"
    )
    # A path is never cut: it is there to be copied.
    assert (
        len(lines) < 45 and max(len(line) for line in lines if not line.startswith("  log:")) <= 102
    )
    assert any("1 more with the same cause: sft base-animal-s2" in line for line in lines), (
        "numbers apart"
    )
    assert "and 595 more failing cells, of other causes; --json lists all" in lines


def test_watching_ends_with_the_study_and_tells_only_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (a, *_) = DOCUMENTS
    steps = iter([lambda: None, lambda: put(tmp_path, a, manifest='{"a": 1}')])
    monkeypatch.setattr(time, "sleep", lambda seconds: next(steps)())
    with at_work(tmp_path, a):
        print_status([a], tmp_path, "s.yaml", watch=15)
    assert capsys.readouterr().out.count("next:") == 2, "running, no change, done"

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    (tmp_path / a.relpath / "manifest.json").unlink()
    with at_work(tmp_path, a):
        print_status([a], tmp_path, "s.yaml", watch=15)
    print_status([a], tmp_path, "s.yaml", as_json=True)
    assert json.loads(capsys.readouterr().out.split("--watch\n")[-1])["total"]["to do"] == 1
