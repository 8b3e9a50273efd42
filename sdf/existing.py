"""An existing corpus: a local file or a dataset of the Hugging Face Hub, through the same gates."""

import random
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.cell.context import StageContext
from core.errors import UserError
from sdf.corpus_writer import load_rules, rejection_counts
from sdf.duplicates import find_duplicates
from sdf.gates import first_failed_gate
from sdf.rows import DocumentRow
from sdf.settings import CorpusSettings, SourceSettings

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def read_existing(
    context: StageContext, settings: CorpusSettings
) -> tuple[list[DocumentRow], dict[str, Any]]:
    """Sample `documents` texts that pass the gates and repeat no other.

    Texts are taken in an order drawn by the corpus' seed. `id` of a row is its number in the
    source. Rows have no slots.

    Returns:
        The documents sorted by id, and the counts for the manifest.

    Raises:
        UserError: the source can't be read, or too few texts pass.
    """
    assert settings.source, "an existing corpus has a source"
    path = context.resources["files"]["source"]
    # The library would take an older file's rows from its own cache, which goes by path and time.
    with TemporaryDirectory(dir=context.folder) as cache:
        texts = _read_texts(settings.source, path, cache)
    order = random.Random(f"{settings.seed}/existing").sample(range(len(texts)), len(texts))
    rules = load_rules(context, settings.template)
    rejections: Counter[str] = Counter()
    passed: list[int] = []
    for n, i in enumerate(order, 1):
        context.progress(n, len(order), "documents")
        if rejection := first_failed_gate(texts[i], "stop", rules):
            rejections[rejection.gate] += 1
        else:
            passed.append(i)
    if settings.dedup_threshold:
        duplicates = find_duplicates((texts[i] for i in passed), settings.dedup_threshold)
        rejections["duplicate"] += len(duplicates)
        passed = [i for n, i in enumerate(passed) if n not in duplicates]
    if len(passed) < settings.documents:
        reasons = ", ".join(f"{count} x {gate}" for gate, count in sorted(rejections.items()))
        raise UserError(
            where=_describe(settings.source, path),
            what=f"{len(passed)} of {len(texts)} texts pass the gates, but documents is "
            f"{settings.documents} (rejected: {reasons or 'none'})",
            fix="ask for fewer documents",
        )
    sample = sorted(passed[: settings.documents])
    rows: list[DocumentRow] = [{"id": i, "text": texts[i].strip()} for i in sample]
    return rows, {"read": len(texts), **rejection_counts(rejections)}


def _read_texts(source: SourceSettings, path: str, cache: str) -> list[str]:
    import datasets

    where = _describe(source, path)
    suffix = Path(path).suffix
    if source.hub is None and suffix not in BUILDERS:
        raise UserError(
            where=where,
            what=f"unknown kind of file {suffix!r}",
            fix=f"give one of {', '.join(BUILDERS)}",
        )
    try:
        if source.hub is not None:
            dataset = datasets.load_dataset(path, split=source.split, cache_dir=cache)
        else:
            _check_utf8(Path(path))
            dataset = datasets.load_dataset(
                BUILDERS[suffix],
                data_files={source.split: path},
                split=source.split,
                cache_dir=cache,
            )
    except UserError:
        raise
    except Exception as error:  # the library raises whatever its readers raise
        cause = error.__cause__ or error
        message = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
        raise UserError(
            where=where,
            what=f"can't read the dataset ({message})",
            fix="check that the file is there and complete",
        ) from None
    if source.column not in dataset.column_names:
        raise UserError(
            where=where,
            what=f"no column {source.column!r}",
            fix=f"column: one of {', '.join(dataset.column_names)}",
        )
    return [text if isinstance(text, str) else "" for text in dataset[source.column]]


def _check_utf8(path: Path) -> None:
    if path.suffix == ".parquet":
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    where=f"{path}:{number}",
                    what=f"not UTF-8 ({error.reason})",
                    fix="convert it, for example with iconv -f WINDOWS-1252 -t UTF-8",
                ) from None


def _describe(source: SourceSettings, path: str) -> str:
    return f"{source.hub} at {source.revision}" if source.hub is not None else path
