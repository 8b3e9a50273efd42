"""A file has the same rows, or the same refusal, in every place that reads rows."""

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from core import contamination
from core.errors import Problem, UserError
from core.files import read_rows
from eval import anima, likelihood, rubric
from recipes.conversations import read_conversations
from sdf.source_rows import local_rows, read_column
from study.forecast import cell_cost, training_size
from study.spec import benchmarks
from study.spec.schema import Benchmark

TEXTS = [
    f"Document {n}\u2028 says \u0085 of hens, caf\xe9s and \U0001f414 that all is well."
    for n in range(3)
]
ROWS: list[dict[str, Any]] = [
    {
        "id": f"q{n}",
        "text": text,
        "question": text,
        "rubric": text,
        "tags": ["Care"],
        "choices": [text, "no"],
        "answer": 0,
        "prompt": text,
        "response": text,
    }
    for n, text in enumerate(TEXTS)
]
DIMENSION = {
    "dimension": "Care",
    "guiding_question": "Does it care?",
    "scoring": "binary",
    "observable_indicators": "care",
    "default_weighting": 1,
}
INSTRUCT = Path(__file__).parents[1].parent / "shared/data/instruct"
CASES = Path(__file__).parents[1].parent / "shared/cases/rows"


def lines(end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in ROWS)


def table(separator: str) -> str:
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    return str(pd.DataFrame(columns).to_csv(index=False, sep=separator))


def parquet() -> bytes:
    file = io.BytesIO()
    pd.DataFrame(ROWS).to_parquet(file)
    return file.getvalue()


FORMS: dict[str, tuple[str, bytes]] = {
    "plain": ("a.jsonl", lines().encode()),
    "ascii": ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode()),
    "CRLF": ("a.jsonl", lines("\r\n").encode()),
    "byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + lines().encode()),
    "upper case": ("A.JSONL", lines().encode()),
    "another ending": ("a.ndjson", lines().encode()),
    "gzip": ("a.jsonl.gz", gzip.compress(lines().encode())),
    "gzip in upper case": ("A.JSONL.GZ", gzip.compress(lines().encode())),
    "blank lines": ("a.jsonl", ("\n" + lines("\n\n  \n")).encode()),
    "no last line break": ("a.jsonl", lines().removesuffix("\n").encode()),
    "brackets": ("a[1].jsonl", lines().encode()),
    "UTF-16": ("a.jsonl", lines("\r\n").encode("utf-16")),
    "UTF-16, big end first": ("a.jsonl", b"\xfe\xff" + lines().encode("utf-16-be")),
    "UTF-32": ("a.jsonl", lines().encode("utf-32")),
    "UTF-32, big end first": ("a.jsonl", b"\0\0\xfe\xff" + lines().encode("utf-32-be")),
    "a list in UTF-32": ("a.json", json.dumps(ROWS).encode("utf-32")),
    "two parts of gzip": (
        "a.jsonl.gz",
        b"".join(map(gzip.compress, lines().encode().splitlines(True))),
    ),
    "a list": ("a.json", json.dumps(ROWS, indent=1).encode()),
    "a list in gzip": ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    "the list of an object": ("a.json", json.dumps({"licence": "MIT", "rows": ROWS}).encode()),
    "parquet": ("a.parquet", parquet()),
    "a folder": ("folder/deep/a.jsonl", lines().encode()),
}
TABLES: dict[str, tuple[str, bytes]] = {
    "CSV": ("a.csv", table(",").encode()),
    "Excel's CSV": ("A.CSV", ("\ufeffsep=;\r\n" + table(";")).encode()),
    "semicolons in UTF-16": ("a.csv", table(";").encode("utf-16")),
    "semicolons in UTF-32": ("a.csv", table(";").encode("utf-32")),
    "tabs": ("a.tsv.gz", gzip.compress(table("\t").encode())),
}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
# The refusal: what it says at least, and its place behind the file's name.
REFUSED: dict[str, tuple[str, bytes, str, str]] = {
    "text": ("a.txt", TEXTS[0].encode(), "unknown kind of file '.txt'", ""),
    "Latin-1": ("a.jsonl", lines().replace(TEXTS[1], "caf\xe9").encode("latin-1", "replace"), "not UTF-8", ":1"),
    "half a character": ("a.jsonl", (json.dumps(ROWS[0]) + "\n").encode("utf-16")[:-1], "not UTF-16", ":1"),
    "Git LFS": ("a.jsonl", LFS, "a pointer of Git LFS", ""),
    "Git LFS, parquet": ("a.parquet", LFS, "a pointer of Git LFS", ""),
    "Git LFS, gzip": ("a.jsonl.gz", LFS, "a pointer of Git LFS", ""),
    "half a UTF-32": ("a.jsonl", (json.dumps(ROWS[0]) + "\n").encode("utf-32")[:-3], "not UTF-32", ":1"),
    "no JSON": ("a.jsonl", b"text\n", "not JSON", ":1"),
    "half a list": ("a.json", json.dumps(ROWS).encode()[:-9], "not JSON", ""),
    "an object": ("a.json", json.dumps(ROWS[0]).encode(), "neither a list of rows", ""),
    "two lists": ("a.json", json.dumps({"rows": ROWS, "more": ROWS}).encode(), "neither a list of rows", ""),
    "a surrogate": ("a.jsonl", json.dumps(ROWS[0] | {"text": "\ud83d"}).encode(), "has a lone surrogate", ":1"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(lines().encode() * 99)[:-20], "cannot be read", ""),
    "damaged gzip": ("a.jsonl.gz", gzip.compress(lines().encode() * 99)[:60] + bytes(99), "cannot be read", ""),
    "no gzip": ("a.jsonl.gz", lines().encode(), "cannot be read", ""),
    "no parquet": ("a.parquet", lines().encode(), "cannot be read", ""),
    "an open quote": ("a.csv", b'id,text\n1,"a\n2,b\n', "not CSV", ":2"),
    "two columns": ("a.csv", b"id,text,text\n1,a,b\n", "two columns 'text'", ":1"),
}  # fmt: skip


def _anima(path: Path) -> list[str]:
    dimensions = _beside(path, "dimensions.jsonl")
    dimensions.write_text(json.dumps(DIMENSION) + "\n", encoding="utf-8")
    return [
        row["question"]
        for row in anima.read({"questions": path, "dimensions": dimensions}).questions
    ]


def _beside(path: Path, name: str) -> Path:
    (folder := path.parent / "beside").mkdir(exist_ok=True)
    return folder / name


def _texts_of_items(path: Path) -> list[str]:
    return [texts[1] for _, texts in contamination.read_benchmark_items(path)]


def _conversations(path: Path) -> list[str]:
    conversations, bad = read_conversations(path)
    if bad:
        raise UserError.of([bad[0].problem])
    return [row.messages[-1]["content"] for row in conversations]


def _planned_conversations(path: Path) -> list[str]:
    conversations, bad = training_size._conversations.__wrapped__(str(path))
    if bad:
        raise UserError.of([bad[0].problem])
    return [row.messages[0]["content"] for row in conversations]


PLACES: dict[str, Callable[[Path], list[str]]] = {
    "corpus, also in plan": lambda path: [str(t) for t in read_column(local_rows(path), "text", str(path))],
    "SFT": _conversations,
    "SFT in plan": _planned_conversations,
    "questions": lambda path: [row["rubric"] for row in rubric.read({"questions": path}).questions],
    "questions in plan": lambda path: [row["question"] for row in cell_cost._rows(cell_cost._state(str(path)))],
    "texts that no document may quote": _texts_of_items,
}  # fmt: skip
LISTS = {  # their rows hold lists, which CSV has not
    "ANIMA's questions": _anima,
    "items": lambda path: [item["choices"][0] for item in likelihood.read(path)],
}


def write(folder: Path, name: str, content: bytes) -> Path:
    """Write the file; the path that a study gives."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return folder / name.split("/")[0]


@pytest.mark.parametrize("place", [*PLACES, *LISTS])
@pytest.mark.parametrize("form", [*FORMS, *TABLES])
def test_a_file_has_the_same_rows_in_every_place(tmp_path: Path, form: str, place: str) -> None:
    if form in TABLES and place in LISTS:
        pytest.skip("CSV has no lists")
    path = write(tmp_path, *(FORMS | TABLES)[form])
    if form == "brackets":  # what its name would match as a pattern
        write(tmp_path, "a1.jsonl", json.dumps(ROWS[0]).encode())
    assert (PLACES | LISTS)[place](path) == TEXTS
    assert (
        benchmarks.num_questions(Benchmark(task="human_compassion", questions=str(path), judge="x"))
        == 3
    )


@pytest.mark.parametrize("form", REFUSED)
def test_a_bad_file_has_the_same_refusal_in_every_place(tmp_path: Path, form: str) -> None:
    name, content, what, position = REFUSED[form]
    path = write(tmp_path, name, content)
    problems: set[Problem] = set()
    for place, read in (PLACES | LISTS).items():
        with pytest.raises(UserError) as error:
            read(path)
        problem = error.value.problems[0]
        assert problem.where == f"{path}{position}" and problem.what.startswith(what), place
        assert problem.fix
        what_alone = problem.what.partition(" (1 of ")[0].partition(" (3 of ")[0]
        problems.add(Problem(problem.where, what_alone, problem.fix))
    assert len(problems) == 1


def test_a_name_that_is_too_long_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="File name too long"):
        list(read_rows(tmp_path / ("a" * 300 + ".jsonl")))


def test_a_list_in_a_line_is_told_its_ending(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", json.dumps(ROWS).encode())
    with pytest.raises(UserError, match=r"a\.jsonl:1: not a JSON object; .* ends in \.json"):
        list(read_rows(path))
    assert len(list(read_rows(write(tmp_path, "a.json", json.dumps(ROWS).encode())))) == 3


def test_pipes_and_folders_without_one_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "none").mkdir()
    for name in ("one.jsonl", "two.csv", "README.md", "info.json"):
        write(tmp_path, f"two/{name}", lines().encode())
    expected = {
        "pipe.jsonl": "not a regular file",
        "none": "a folder with 0 data files, one is expected",
        "two": "a folder with 2 data files, one is expected",
    }
    for name, what in expected.items():
        for place in ("corpus, also in plan", "SFT", "questions", "questions in plan"):
            with pytest.raises(UserError, match=what):
                PLACES[place](tmp_path / name)


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not beside the checkout")
def test_the_cases_are_read(tmp_path: Path) -> None:
    def corpus(name: str) -> list[str]:
        return PLACES["corpus, also in plan"](CASES / name)

    plain = corpus("corpus_UPPER.JSONL")
    assert len(plain) > 5 and corpus("corpus_bom.jsonl") == plain
    assert corpus("corpus_plain.jsonl.gz") == plain
    assert len(corpus("corpus_u2028.jsonl")) == len(plain)
    assert corpus("glob/docs[1].jsonl") != corpus("glob/docs1.jsonl")
    for name in ("questions_bom", "questions_u2028", "questions_special_tokens"):
        path = CASES / f"{name}.jsonl"
        assert len(anima.read({"questions": path}).questions) == len(
            cell_cost._rows(cell_cost._state(str(path)))
        )
    for name, usable, rules in (
        ("sft_blank_line", 12, []),
        ("sft_roles_mixed", 12, []),
        ("sft_weight0", 12, []),
        ("sft_surrogate", 12, ["malformed"]),
    ):
        conversations, bad = read_conversations(CASES / f"{name}.jsonl")
        assert (len(conversations), [row.rule for row in bad]) == (usable, rules), name


@pytest.mark.skipif(not INSTRUCT.exists(), reason="the real rows are not beside the checkout")
@pytest.mark.parametrize(("name", "count"), [("gsm8k_train", 7473), ("roleplay", 3146)])
def test_real_alpaca_rows_with_bad_ones_planted(tmp_path: Path, name: str, count: int) -> None:
    rows = json.loads((INSTRUCT / f"{name}.json").read_text(encoding="utf-8"))
    bad = [
        {"instruction": "a", "input": "", "output": ""},
        {"instruction": "a", "input": "", "output": None},
        {"instruction": "", "input": "", "output": "b"},
        ["no row"],
    ]
    for position, row in zip((5, 100, 101, 2000), bad, strict=True):
        rows.insert(position, row)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    conversations, unusable = read_conversations(path)
    assert len(conversations) == count
    assert sorted((row.rule, row.problem.where) for row in unusable) == [
        ("empty", f"{path}, row 102"),
        ("empty", f"{path}, row 6"),
        ("malformed", f"{path}, row 101"),
        ("malformed", f"{path}, row 2001"),
    ]
