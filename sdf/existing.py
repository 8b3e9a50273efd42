"""A corpus that exists: a local file or a data set of Hugging Face, through the same gates as what is written here."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

from core.cell.context import StageContext
from core.errors import UserError
from sdf.drafting import rules_of, tally
from sdf.duplicates import duplicates
from sdf.gates import gate, rejected

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def existing(work: StageContext) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """`documents` texts that pass the gates, in an order drawn by seed, as rows {"id", "text"}; and what was rejected.

    `id` is the row's number in the source. Raises UserError when the source can't be read or has too few good texts.
    """
    settings = work.settings
    texts = _texts(settings["source"], work.resources["source"])
    order = random.Random(f"{settings['seed']}/existing").sample(range(len(texts)), len(texts))
    rules, rejections, passed = rules_of(work), Counter[str](), []
    for n, i in enumerate(order):
        work.progress(n + 1, len(order), "documents")
        if reason := rejected(texts[i], "stop", rules):
            rejections[gate(reason)] += 1
        else:
            passed.append(i)
    if settings["near_duplicates"]:
        repeats = duplicates((texts[i] for i in passed), settings["near_duplicates"])
        rejections["duplicate"] += len(repeats)
        passed = [i for n, i in enumerate(passed) if n not in repeats]
    if len(passed) < settings["documents"]:
        why = ", ".join(f"{count} x {name}" for name, count in sorted(rejections.items()) if count)
        raise UserError(
            f"{len(passed)} of {len(texts)} texts pass the gates, {settings['documents']} are wanted ({why}); "
            f"{_where(settings['source'], work.resources['source'])}; ask for fewer documents"
        )
    rows = [{"id": i, "text": texts[i].strip()} for i in sorted(passed[: settings["documents"]])]
    return rows, {"read": len(texts), **tally(rejections)}


def _texts(source: dict[str, Any], path: str) -> list[str]:
    import datasets

    where, column = _where(source, path), source["column"]
    if "hub" not in source and Path(path).suffix not in BUILDERS:
        raise UserError(f"not a kind of file that is read; {where}; give one of {', '.join(BUILDERS)}")
    try:
        if "hub" in source:
            found = datasets.load_dataset(path, split=source["split"])
        else:
            _must_be_utf8(Path(path))
            found = datasets.load_dataset(
                BUILDERS[Path(path).suffix], data_files={source["split"]: path}, split=source["split"]
            )
    except UserError:
        raise
    except Exception as error:  # the library raises what its many readers raise
        cause = error.__cause__ or error
        what = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
        raise UserError(f"the data set can't be read ({what}); {where}; see that it is there and whole") from None
    if column not in found.column_names:
        raise UserError(f"no column {column!r}; {where}; column: one of {', '.join(found.column_names)}")
    return [text if isinstance(text, str) else "" for text in found[column]]


def _must_be_utf8(path: Path) -> None:
    if path.suffix == ".parquet":
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"not UTF-8 ({error.reason}); {path}, line {number}; iconv -f WINDOWS-1252 -t UTF-8, or whatever "
                    "it is in"
                ) from None


def _where(source: dict[str, Any], path: str) -> str:
    return f"{source['hub']} at {source['revision']}" if "hub" in source else path
