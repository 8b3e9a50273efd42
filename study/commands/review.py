"""Write a page that answers twelve questions of a reviewer, from a study or its archive."""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from core.cell.publish import results
from core.errors import printable
from core.files import write_atomically
from study.commands.common import (
    check_archive_options,
    load,
    relative_to_cwd,
    study_args,
)
from study.review.answers import WORDS
from study.review.evidence import (
    Evidence,
    gather,
    links_of_archive,
    links_of_study,
    published_rows,
)
from study.review.page import answers, counts_text, page
from study.upkeep.changes import find_changes
from study.upkeep.provenance import published
from study.upkeep.study_file import find_differences
from study.upkeep.unpacked import archive_changes, archive_lineage, beside, is_archive, unpack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (default: STUDY-review.html beside the results, NAME-review.html beside an "
        "archive)",
    )


def review(args: argparse.Namespace) -> None:
    """Write the page and print a line for each question."""
    if is_archive(args.study):
        file = args.out or beside(args.study, "-review.html")
        with tempfile.TemporaryDirectory() as folder:
            return _write(_of_archive(args, Path(folder)), file, args)
    study, base = load(args)
    file = args.out or results(base).with_name(f"{base.name}-review.html")
    typed = study_args(args)
    rows = published_rows(base, results(base), published(base, typed))
    changes = find_changes(rows, base, typed)
    differences = find_differences(study, base, rows)
    links = links_of_study(base, results(base), file.absolute())
    _write(gather(base, results(base), rows, changes, differences, links), file, args)


def _of_archive(args: argparse.Namespace, folder: Path) -> Evidence:
    check_archive_options(args)
    unpacked = unpack(args.study, folder)
    rows = archive_lineage(unpacked)
    changes = archive_changes(unpacked, rows)
    links = links_of_archive(unpacked.base.name)
    return gather(unpacked.base, unpacked.results, rows, changes, [], links)


def _write(evidence: Evidence, file: Path, args: argparse.Namespace) -> None:
    rows = answers(evidence)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        file, page(evidence, rows, printable(args.study.name or args.study.resolve().name))
    )
    if args.json:
        data = {"study": evidence.study, "page": str(file), "answers": [*map(asdict, rows)]}
        return print(json.dumps(data, indent=1))
    width = max(map(len, WORDS.values()))
    for number, row in enumerate(rows, 1):
        print(f"{number:>2}  {WORDS[row.light]:<{width}}  {row.question}")
        print(f"    {'':<{width}}  {row.text}")
    print(f"\n{counts_text(rows)}: {relative_to_cwd(file.absolute())}")
