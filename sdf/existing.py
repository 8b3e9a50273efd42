"""An existing corpus: a local file or a dataset of the Hugging Face Hub, through the same gates."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.cell.context import StageContext
from core.errors import Problem, UserError
from sdf.corpus_writer import load_rules, rejection_counts
from sdf.duplicates import find_duplicates
from sdf.gates import GateRules, Rejection, failed_question, first_failed_gate
from sdf.rows import DocumentRow, write_json_lines
from sdf.settings import ORIGINAL, CorpusSettings
from sdf.source_rows import Text, local_rows, read_texts, select_rows

REJECTED = "rejected.jsonl"
REPORTED = "reported.jsonl"
EXCERPT_CHARACTERS = 200
UNREADABLE = "unreadable"  # the gate of a row that can't be read, or whose column is no text


def read_existing(
    context: StageContext, settings: CorpusSettings
) -> tuple[list[DocumentRow], dict[str, Any]]:
    """Sample `documents` texts that pass the gates and repeat no other.

    Texts are taken in an order drawn by the corpus' seed. `id` of a row is its number in the
    source, from 0. Rows have no slots. Rejected rows are listed in rejected.jsonl: `id`, `gate`,
    `detail` and an `excerpt` of the text. Of questions and answers the text is the answer; the
    question passes gates of its own. Where gates are only reported, the texts that fail one stay,
    and are listed in reported.jsonl.

    Returns:
        The documents sorted by id, and the counts for the manifest.

    Raises:
        UserError: the source can't be read, or too few texts pass.
    """
    assert settings.source, "an existing corpus has a source"
    path = context.resources["files"]["source"]
    source = path
    if settings.source.hub:
        source = f"{settings.source.hub} at {settings.source.revision}"
    rows = local_rows(Path(path))
    if settings.source.hub and not settings.source.file:
        rows = _hub_rows(context, path, settings.source.split, source)
    selected = select_rows(rows, settings.source.filter, source)
    texts, questions = read_texts(selected, settings.source, source)
    order = random.Random(f"{settings.seed}/existing").sample(range(len(texts)), len(texts))
    rules = load_rules(context, settings.template)
    rejected: dict[int, Rejection] = {}
    reported: dict[int, Rejection] = {}  # they stay
    passed: list[int] = []
    for n, i in enumerate(order, 1):
        context.progress(n, len(order), "documents")
        text = texts[i]
        if isinstance(text, Problem):
            rejected[i] = Rejection(UNREADABLE, str(text))
            continue
        rejection = _failed_gate(text, questions[i], rules)
        if rejection and (rejection.gate == "empty" or not settings.source.report_gates):
            rejected[i] = rejection
            continue
        passed.append(i)
        if rejection:
            reported[i] = rejection
    if settings.dedup_threshold:
        duplicates = find_duplicates((str(texts[i]) for i in passed), settings.dedup_threshold)
        repeats = {
            passed[n]: Rejection("duplicate", f"repeats {passed[earlier]}")
            for n, earlier in duplicates.items()
        }
        if settings.source.report_gates:
            reported = repeats | reported
        else:
            rejected |= repeats
            passed = [i for n, i in enumerate(passed) if n not in duplicates]
    write_json_lines(context.folder / REJECTED, _rejected_rows(texts, rejected))
    counts = Counter(rejection.gate for rejection in rejected.values())
    if len(passed) < settings.documents:
        reasons = ", ".join(f"{count} x {gate}" for gate, count in sorted(counts.items()))
        raise UserError(
            where=source,
            what=f"{len(passed)} of {len(texts)} texts pass the gates, but documents is "
            f"{settings.documents} (rejected: {reasons or 'none'})",
            fix=f"ask for fewer documents; {context.folder / REJECTED} lists the others",
        )
    if counts[UNREADABLE]:
        number = counts[UNREADABLE]
        context.warn(f"{number} of {len(texts)} rows have no text that can be read: {REJECTED}")
    sample = sorted(passed[: settings.documents])
    return [_row(i, texts[i], questions[i]) for i in sample], {
        "read": len(texts),
        **rejection_counts(counts),
        **_report(context, texts, reported),
    }


def _failed_gate(text: str, question: str | None, rules: GateRules) -> Rejection | None:
    """The first gate that a text or its question fails; `empty` before all others."""
    failed = [first_failed_gate(text, "stop", rules)]
    if question is not None:
        failed.append(failed_question(question, rules))
    rejections = sorted(filter(None, failed), key=lambda rejection: rejection.gate != "empty")
    return next(iter(rejections), None)


def _row(i: int, text: Text, question: str | None) -> DocumentRow:
    row: DocumentRow = {"id": i, "text": str(text).strip()}
    if question is not None:
        row["forms"] = {ORIGINAL: question.strip()}
    return row


def _report(
    context: StageContext, texts: list[Text], reported: dict[int, Rejection]
) -> dict[str, int]:
    """List the texts that stay though they fail a gate. Returns their counts by gate."""
    if not reported:
        return {}
    write_json_lines(context.folder / REPORTED, _rejected_rows(texts, reported))
    counts = sorted(Counter(rejection.gate for rejection in reported.values()).items())
    listed = ", ".join(f"{count} x {gate}" for gate, count in counts)
    context.warn(f"gates are reported only; texts that stay though they fail one: {listed}")
    return {f"reported_{gate}": count for gate, count in counts}


def _rejected_rows(texts: list[Text], rejected: dict[int, Rejection]) -> Iterator[dict[str, Any]]:
    for i, rejection in sorted(rejected.items()):
        text = texts[i]
        excerpt = text[:EXCERPT_CHARACTERS] if isinstance(text, str) else ""
        # Half of a surrogate pair can't be written.
        excerpt = excerpt.encode("utf-8", "replace").decode()
        yield {"id": i, "gate": rejection.gate, "detail": rejection.detail, "excerpt": excerpt}


def _hub_rows(context: StageContext, path: str, split: str, source: str) -> Iterator[Any]:
    import datasets

    # The library would take an older file's rows from its own cache, which goes by path and time.
    with TemporaryDirectory(dir=context.folder) as cache:
        try:
            yield from datasets.load_dataset(path, split=split, cache_dir=cache)
        except Exception as error:  # the library raises whatever its readers raise
            cause = error.__cause__ or error
            message = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
            raise UserError(
                where=source,
                what=f"can't read the dataset ({message})",
                fix="check that the file is there and complete",
            ) from None
