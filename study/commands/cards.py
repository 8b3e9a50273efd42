"""Write model cards and data set cards for the Hugging Face Hub."""

import argparse
import json
from pathlib import Path

from core.cell.publish import results
from core.errors import UserError
from study.commands.common import load, relative_to_cwd, study_args
from study.spec import expand
from study.upkeep.cards import Names, dataset_card, model_card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--license",
        default="",
        metavar="NAME",
        help="licence of the corpora, and of models whose licence is unknown (default: other)",
    )


def cards(args: argparse.Namespace) -> None:
    """Write a card for every finished corpus and checkpoint of the study."""
    study, base = load(args)
    published = results(base)
    folder = published.with_name(f"{base.name}-cards")
    paths: list[Path] = []
    cells = expand.in_order(expand.analysis(study, base))
    today = Names(study.study, {cell.identity: cell.name for cell in cells})
    for cell in cells:
        if not (base / cell.relpath / "manifest.json").exists():
            continue
        if cell.stage == "documents":
            text = dataset_card(base / cell.relpath, args.license or "other", today)
        elif cell.stage in ("midtrain", "sft"):
            scores = published if published.is_dir() else None
            text = model_card(base / cell.relpath, scores, args.license, today=today)
        else:
            continue
        path = folder / cell.stage / (base / cell.relpath).name / "README.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    if not paths:
        raise UserError(
            where=str(base),
            what="no corpus and no training is finished",
            fix=f"python -m study run {study_args(args)}",
        )
    if args.json:
        return print(json.dumps([str(path) for path in paths], indent=1))
    shown = relative_to_cwd(folder)
    print(f"{len(paths)} cards below {shown}; put each beside the files of its cell as README.md")
