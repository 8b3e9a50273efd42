"""Rows are read whole and strictly, whatever a file looks like; locks are held by one holder."""

import asyncio
import errno
import fcntl
import gzip
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from core.cell.failures import diagnose
from core.cell.identity import Cell, create_cell_dir
from core.cell.run import run_cell
from core.declaration import write_declaration
from core.endpoints.rate_limit import RateLimiter
from core.errors import Problem, UserError
from core.files import content_files, locked, read_record, read_rows

ROWS = [{"text": f"Document {i} \u2028 speaks of \u0085 a hen."} for i in range(3)]


def lines(rows: list[dict[str, str]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.jsonl", lines(ROWS)),
        ("byte_order_mark.jsonl", b"\xef\xbb\xbf" + lines(ROWS)),
        ("UPPER.JSONL", lines(ROWS)),
        ("crlf.jsonl", lines(ROWS, "\r\n")),
        ("no_last_line_break.jsonl", lines(ROWS).removesuffix(b"\n")),
        ("blank_lines.jsonl", b"\n" + lines(ROWS, "\n\n  \n")),
        ("packed.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)),
        ("docs[1].jsonl", lines(ROWS)),
        ("table.csv", ('text\r\n"' + '"\r\n"'.join(r["text"] for r in ROWS) + '"\r\n').encode()),
        (
            "TABLE.CSV.GZ",
            gzip.compress(("\ufefftext\n" + "\n".join(r["text"] for r in ROWS)).encode(), mtime=0),
        ),
    ],
)
def test_rows_are_the_same_however_the_file_is_written(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert [row for _, row in read_rows(tmp_path / name)] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "line", "what"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": ', 3, "not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', 2, "not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', 2, "not a JSON object"),
        ("a.jsonl", b"[" * 100_000, 1, "not JSON"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", 3, "more cells"),
        ("a.csv", b"a,b\n1\n", 2, "fewer cells"),
        ("a.csv", b"a,a\n1,2\n", 1, "two columns 'a'"),
        ("a.csv", b'a,b\n"1,2\n', 2, "not CSV"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(
    tmp_path: Path, name: str, content: bytes, line: int, what: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_rows(path))
    (problem,) = error.value.problems
    assert problem.where == f"{path}:{line}" and problem.what.startswith(what) and problem.fix


@pytest.mark.parametrize(
    "content", [None, b"no gzip", gzip.compress(mtime=0, data=b"{}\n" * 999)[:-9]]
)
def test_a_file_that_can_not_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.jsonl.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_rows(path))
    assert error.value.problems[0].where == str(path)
    assert error.value.problems[0].what.startswith("cannot be read")


def test_all_problems_of_a_file_are_collected_and_the_other_rows_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\nno\n{"a": 2}\n3\n{"a": 4}')
    problems: list[Problem] = []
    assert list(read_rows(path, problems)) == [(1, {"a": 1}), (3, {"a": 2}), (5, {"a": 4})]
    assert [problem.where for problem in problems] == [f"{path}:2", f"{path}:4"]
    problems.clear()
    assert [n for n, _ in read_rows(path, problems, objects=False, skip_torn_line=True)] == [
        1,
        3,
        4,
    ]


def _holder(path: Path, shared: bool, ready: "multiprocessing.synchronize.Event") -> None:
    with locked(path, shared=shared):
        ready.set()
        multiprocessing.Event().wait(60)


@pytest.mark.multiprocess
@pytest.mark.parametrize("held_shared", [False, True])
def test_a_lock_goes_with_its_holder(tmp_path: Path, held_shared: bool) -> None:
    path = tmp_path / ".lock"
    with pytest.raises(FileNotFoundError), locked(path, shared=True):
        pass
    path.touch()
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_holder, args=(path, held_shared, ready))
    holder.start()
    assert ready.wait(60)
    with locked(path, wait=False) as held:
        assert not held
    with locked(path, shared=True, wait=False) as held:
        assert held is held_shared
    holder.kill()
    holder.join()
    with locked(path) as held:
        assert held
    with locked(path, wait=False) as held:
        assert held


def test_a_file_system_without_locks_is_one_line_wherever_locks_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, kind: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    cell = Cell("documents", "a", {})
    folder = create_cell_dir(cell, tmp_path / "runs/s")
    monkeypatch.setattr(fcntl, "flock", flock)
    limiter = RateLimiter(tmp_path / "limit.json", requests_per_minute=1)
    for take in (
        lambda: run_cell(folder),
        lambda: write_declaration(tmp_path / "runs/s", {}),
        lambda: asyncio.run(limiter.acquire(1)),
    ):
        with pytest.raises(UserError) as raised:
            take()
        (problem,) = raised.value.problems
        assert problem.what == "flock: Operation not supported" and "--runs" in problem.fix
        failure = diagnose(str(problem))
        assert failure and failure.name == "no locks"


def test_a_model_is_what_transformers_and_vllm_read_of_its_folder(tmp_path: Path) -> None:
    model = ("config.json", "model.safetensors", "merges.txt", "chat_template.jinja")
    more = "additional_chat_templates/tools.jinja"
    others = ("README.md", ".cache/huggingface/download/config.json.metadata", "original/a.json")
    for name in (*model, more, *others, ".gitattributes", "training_args.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert {*content_files(tmp_path)} == {*model, more}
    (tmp_path / "config.json").unlink()  # a folder of data: its README says how it is read
    assert {"README.md", "original/a.json"} < {*content_files(tmp_path)}
    assert not [name for name in content_files(tmp_path) if name.startswith(".")]


def test_half_of_a_surrogate_pair_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "\\ud83c\\udf27 whole"}\n{"text": "half \\ud83d"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl:2: has a lone surrogate, .*; remove it"):
        list(read_rows(file))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"1", b"null", b'"a"', b"{}", b'{"files": []}', b"\xff", b"[" * 100_000],
)
def test_a_damaged_record_is_named_once_and_counts_as_missing(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pruned.json"
    assert read_record(path, files=dict) is None and not capsys.readouterr().err
    path.write_bytes(content)
    assert read_record(path, files=dict) is None and read_record(path, files=dict) is None
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {path}: is cut short or edited, and counts as missing; ")
    assert warning.count("\n") == 1
    path.write_text('{"files": {}}')
    assert read_record(path, files=dict) == {"files": {}}
