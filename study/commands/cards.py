"""Write model cards and data set cards for the Hugging Face Hub, and upload them."""

import argparse
import json
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tabulate import tabulate

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.cell.publish import results
from core.errors import Problem, UserError
from study.commands.common import load, relative_to_cwd, study_args
from study.spec import expand
from study.upkeep import hub_upload, licenses
from study.upkeep.card_cells import FinishedCell, behind, read_cell
from study.upkeep.card_facts import CARDED, StudyFacts, facts_of, repository_names
from study.upkeep.cards import model_card
from study.upkeep.dataset_card import dataset_card
from study.upkeep.eval_results import eval_results

MOST_NAMES = 8  # of cells in a message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--license",
        type=str.lower,  # as all of the Hub's names
        default="",
        metavar="NAME",
        help="licence of the corpora, and of models whose licence is unknown; other:NAME is one "
        "that the Hub does not list (default: other)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=["*"],
        metavar="CELL",
        help="only these cells, such as animal or base-*-s0*",
    )
    parser.add_argument(
        "--namespace",
        default="",
        metavar="NAME",
        help="user or organization on the Hub, for links and --upload",
    )
    parser.add_argument(
        "--upload",
        action="store_true",
        help="make a private repository of each checkpoint and corpus and send what it lacks; the "
        "token is HF_TOKEN of the environment",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="with --upload: list what would go into which repository, and send nothing",
    )
    parser.add_argument(
        "--public",
        action="store_true",
        help="with --upload: make new repositories public",
    )


@dataclass(frozen=True)
class _Card:
    """A cell with a card: the cell, its start models, the licence that it is under."""

    cell: FinishedCell
    models: list[FinishedCell]
    license: str

    @property
    def is_taken(self) -> bool:
        """Whether it is a corpus that was not written for the study: other people's data."""
        return self.cell.stage == "documents" and "writer" not in self.cell.settings


def cards(args: argparse.Namespace) -> None:
    """Write a card for every finished corpus and checkpoint of the study, and upload them."""
    _check_options(args)
    study, base = load(args)
    published = results(base)
    folder = published.with_name(f"{base.name}-cards")
    cells = expand.in_order(expand.analysis(study, base))
    chosen = [
        cell
        for cell in cells
        if cell.stage in CARDED and any(fnmatchcase(cell.name, text) for text in args.only)
    ]
    names_of_cells = [*dict.fromkeys(cell.name for cell in cells if cell.stage in CARDED)]
    if names_of_cells and not chosen:
        what = "is the name of no corpus and no training"
        fix = f"valid: {', '.join(names_of_cells[:MOST_NAMES])}"
        fix += ", ..." if names_of_cells[MOST_NAMES:] else ""
        raise UserError(where=f"--only {' '.join(args.only)}", what=what, fix=fix)
    made = {
        cell.identity: _card(base / cell.relpath, args.license)
        for cell in chosen
        if read_manifest(base / cell.relpath)
    }
    if not made:
        raise UserError(
            where=str(base),
            what="no corpus and no training is finished",
            fix=f"python -m study run {study_args(args)}",
        )
    prefixes = {identity: licenses.name_prefix(card.license) for identity, card in made.items()}
    taken = {identity for identity, card in made.items() if card.is_taken}
    named = [cell for cell in cells if cell.stage in CARDED and cell.identity not in taken]
    names = repository_names(study.study, named, prefixes, args.namespace)
    facts = facts_of(study, base, cells, names)
    folders = {
        identity: _write(card, folder, published if published.is_dir() else None, args, facts)
        for identity, card in made.items()
    }
    if args.upload:
        return _upload(args, base, cells, made, folders, names)
    paths = [path / "README.md" for path in folders.values()]
    if args.json:
        return print(json.dumps([str(path) for path in paths], indent=1))
    shown = relative_to_cwd(folder)
    print(f"{len(paths)} cards below {shown}; --upload sends them with the files of their cells")


def _check_options(args: argparse.Namespace) -> None:
    problems = [
        Problem(f"--{name.replace('_', '-')}", "has no meaning without --upload", "add --upload")
        for name in ("dry_run", "public")
        if getattr(args, name) and not args.upload
    ]
    if args.upload and not args.namespace:
        fix = "name a user or an organization of the Hub"
        problems.append(Problem("--namespace", "--upload needs it", fix))
    if problems:
        raise UserError.of(problems)


def _card(folder: Path, license: str) -> _Card:
    cell = read_cell(folder, None)
    models = [used for used in behind(cell) if used.stage == "model"]
    if cell.stage == "documents":
        return _Card(cell, [], license or licenses.OTHER)
    return _Card(cell, models, licenses.license_of(models, license))


def _write(
    card: _Card, folder: Path, published: Path | None, args: argparse.Namespace, facts: StudyFacts
) -> Path:
    """Write the card's files anew; returns their folder."""
    cell = card.cell
    target = folder / cell.stage / cell.folder.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    files = {}
    if cell.stage == "documents":
        files["README.md"] = dataset_card(cell.folder, card.license, facts)
    else:
        files["README.md"] = model_card(cell.folder, published, args.license, facts=facts)
        files |= eval_results(cell, published, facts)
        if text := licenses.notice(card.license):
            files["NOTICE"] = text
        for name, file in licenses.agreements(card.models).items():
            shutil.copyfile(file, target / name)
    for name, text in files.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(text, encoding="utf-8")
    return target


def _upload(
    args: argparse.Namespace,
    base: Path,
    cells: list[Cell],
    made: dict[str, _Card],
    folders: dict[str, Path],
    names: dict[str, str],
) -> None:
    problems = _unfinished(args, base, cells[-1])
    repositories = []
    taken = []
    for identity, card in made.items():
        if card.is_taken:
            taken.append(card.cell.name)
            continue
        problems += licenses.problems(card.cell, card.models, card.license)
        repositories.append(hub_upload.repository(card.cell, names[identity], folders[identity]))
    problems += hub_upload.problems(repositories)
    token = ""
    if not args.dry_run:
        try:
            token = hub_upload.token_of_environment()
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError.of(problems)
    if args.dry_run:
        rows = hub_upload.listing(repositories, args.public)
    else:
        rows = hub_upload.upload(repositories, token, args.public)
    if args.json:
        return print(json.dumps(rows, indent=1))
    print(tabulate(rows, headers="keys", intfmt=","))
    if taken:
        print(f"not uploaded, because they are other people's data: {', '.join(taken)}")


def _unfinished(args: argparse.Namespace, base: Path, analysis: Cell) -> list[Problem]:
    """A problem where the published results are not those of the study file."""
    published = read_manifest(results(base))
    if published and published["identity"] == analysis.identity:
        return []
    what = "is not finished, and an upload has the study's scores on its cards"
    return [Problem(str(base), what, f"python -m study run {study_args(args)}")]
