"""The formats of files with rows: JSON lines, a JSON list, CSV and Parquet, gzipped or not.

`core.files.read_rows` reads all of them. Files in other formats are refused.
"""

import csv
import gzip
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from core.errors import UserError

LINES = (".jsonl", ".ndjson", "")  # one JSON value a line
SEPARATED = (".csv", ".tsv")
NUMBERED = (".json", ".parquet")  # their rows are told by number, not by line
FORMATS = (*LINES, *SEPARATED, *NUMBERED)
# Of a folder's files these are data. A .json file there usually describes the others.
IN_FOLDERS = (".jsonl", ".ndjson", *SEPARATED, ".parquet")
MAX_ENTRIES = 10_000  # of a folder; "/" has millions
GIVE = "give a file in .jsonl, .json, .csv, .tsv or .parquet (also with .gz)"
CONVERT = "save the file as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8"
UTF8_BOM = b"\xef\xbb\xbf"
# Byte order marks; the first that fits counts.
ENCODINGS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
SURROGATE = ("has a lone surrogate, which is no character", "remove it")
SEPARATORS = ",;\t"

# Reports a bad row by its number, with what is wrong and how to mend it.
Report = Callable[[int, str, str], None]


def row_format(path: Path) -> str:
    """The ending that tells a file's format, in lower case and without .gz, such as ".jsonl"."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def row_location(path: Path, number: int) -> str:
    """How a message names a row: by its line, or by its number where the format has no lines."""
    return f"{path}, row {number}" if row_format(path) in NUMBERED else f"{path}:{number}"


def data_file(path: Path) -> Path:
    """The file at `path`, or the data file in a folder that has exactly one.

    Raises:
        UserError: The folder has none or several; the file is not a regular file, such as a pipe,
            or its format is unknown.
    """
    # os.path, because a path's own method raises where its name is too long.
    if os.path.isdir(path):
        entries = list(itertools.islice(path.rglob("*"), MAX_ENTRIES + 1))
        files = [entry for entry in entries if row_format(entry) in IN_FOLDERS and entry.is_file()]
        if len(files) == 1 and len(entries) <= MAX_ENTRIES:
            return files[0]
        what = f"a folder with {len(files)} data files, one is expected"
        if len(entries) > MAX_ENTRIES:
            what = f"a folder with over {MAX_ENTRIES} entries, one data file is expected"
        raise UserError(where=str(path), what=what, fix="name the file itself in the study file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(where=str(path), what="not a regular file", fix=GIVE)
    if row_format(path) not in FORMATS:
        what = f"unknown kind of file {row_format(path)!r}"
        raise UserError(where=str(path), what=what, fix=GIVE)
    return path


def open_binary(path: Path) -> BinaryIO:
    """The file for reading, unpacked where its name ends in .gz (in any case).

    Raises:
        UserError: It is what git keeps in place of a file of Git LFS.
    """
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            what = "a pointer of Git LFS in place of the file"
            raise UserError(where=str(path), what=what, fix="get the file itself with git lfs pull")
    opener: Any = gzip.open if path.name.lower().endswith(".gz") else open
    return cast(BinaryIO, opener(path, "rb"))


def open_text(file: BinaryIO, newline: str, errors: str = "strict") -> TextIO:
    """The file's text: UTF-16 or 32 where it begins with that byte order mark, else UTF-8."""
    return io.TextIOWrapper(file, encoding=_encoding(file), newline=newline, errors=errors)


def _encoding(file: BinaryIO) -> str:
    start: bytes = cast(io.BufferedReader, file).peek(4)[:4]
    return next((name for mark, name in ENCODINGS.items() if start.startswith(mark)), "utf-8-sig")


def json_lines(
    file: BinaryIO, path: Path, report: Report, skip_torn_line: bool, allow_surrogates: bool
) -> Iterator[tuple[int, Any]]:
    """(line, value) of each line that is not blank. Lines end with LF or CRLF alone."""
    for number, line in enumerate(_byte_lines(file, path), 1):
        if skip_torn_line and not line.endswith(b"\n"):
            return
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8")
            value = json.loads(text)
        except UnicodeDecodeError as error:
            report(number, f"not UTF-8 ({error.reason})", CONVERT)
            continue
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)  # its own line and column are within this line
            report(number, f"not JSON ({reason})", "give one JSON value a line")
            continue
        if not allow_surrogates and SURROGATE_ESCAPE.search(text) and has_surrogate(value):
            report(number, *SURROGATE)
        else:
            yield number, value


def _byte_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines in UTF-8, without a byte order mark."""
    encoding = _encoding(file)
    if encoding == "utf-8-sig":
        for number, line in enumerate(file):
            yield line if number else line.removeprefix(UTF8_BOM)
        return
    number = 1
    try:
        for text in open_text(file, "\n"):
            yield text.encode("utf-8")
            number += 1
    except UnicodeDecodeError as error:
        what = f"not {encoding.upper()} ({error.reason})"
        raise UserError(where=f"{path}:{number}", what=what, fix=CONVERT) from None


def has_surrogate(value: Any) -> bool:
    """Whether a text in a JSON value has half of a surrogate pair, which no encoding can write."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def json_list(file: BinaryIO, path: Path, report: Report) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of each value of a JSON list, or of the one list of an object."""
    try:
        text = open_text(file, "\n").read()
        values = json.loads(text)
    except UnicodeDecodeError as error:
        what = f"not UTF-8 ({error.reason})"
        raise UserError(where=str(path), what=what, fix=CONVERT) from None
    except (ValueError, RecursionError) as error:
        fix = "a .json file is a list of rows; name it .jsonl if it has one row a line"
        raise UserError(where=str(path), what=f"not JSON ({error})", fix=fix) from None
    if isinstance(values, dict):  # such as {"scenarios": [...], "licence": ...}
        lists = [value for value in values.values() if isinstance(value, list)]
        values = lists[0] if len(lists) == 1 else None
    if not isinstance(values, list):
        fix = "name it .jsonl if it has one row a line"
        what = "neither a list of rows nor an object with exactly one list"
        raise UserError(where=str(path), what=what, fix=fix)
    check_each = SURROGATE_ESCAPE.search(text)
    for number, value in enumerate(values, 1):
        if check_each and has_surrogate(value):
            report(number, *SURROGATE)
        else:
            yield number, value


def parquet_rows(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row) of each row of a Parquet file."""
    import pyarrow.parquet

    batches = pyarrow.parquet.ParquetFile(file).iter_batches()
    return enumerate((row for batch in batches for row in batch.to_pylist()), 1)


def csv_table(text: TextIO) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header of a CSV text, and (last line, cells) of each row; a blank one has no cells.

    Commas, semicolons or tabs separate the cells: what the header has most of, or what a first line
    `sep=;` says, as Excel writes it.

    Raises:
        csv.Error: A quote is not closed. The iterator raises it too.
    """
    csv.field_size_limit(sys.maxsize)  # a document may be longer than the default of 128 KiB
    first = text.readline()
    skipped = 0
    if named := re.fullmatch(rf'"?sep=([{SEPARATORS}])"?\s*', first, re.IGNORECASE):
        first = text.readline()
        skipped = 1
    separator = named[1] if named else max(SEPARATORS, key=first.count)
    reader = csv.reader(itertools.chain([first], text), delimiter=separator, strict=True)
    header = next(reader, [])

    def rows() -> Iterator[tuple[int, list[str]]]:
        for cells in reader:
            yield reader.line_num + skipped, cells

    return header, rows()


def csv_rows(file: BinaryIO, path: Path, report: Report) -> Iterator[tuple[int, dict[str, str]]]:
    """(last line, mapping from header to text) of each row of a CSV file."""
    number = 1
    try:
        header, rows = csv_table(open_text(file, ""))
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            fix = "rename one"
            raise UserError(where=f"{path}:1", what=f"two columns {repeated[0]!r}", fix=fix)
        for number, cells in rows:
            if not cells:
                continue
            if len(cells) > len(header):
                fix = "put texts with commas in double quotes"
                report(number, "more cells than the header has", fix)
            elif len(cells) < len(header):
                report(number, "fewer cells than the header has", "add the missing cells")
            else:
                yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        # The row begins behind the last one; what follows is a part of it.
        raise UserError(
            where=f"{path}:{number + 1}",
            what=f"not CSV ({error})",
            fix="close every double quote",
        ) from None
    except UnicodeDecodeError as error:
        what = f"not UTF-8 ({error.reason})"
        raise UserError(where=f"{path}:{number + 1}", what=what, fix=CONVERT) from None
