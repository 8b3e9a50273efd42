"""Write model cards and data set cards for the Hugging Face Hub."""

import argparse
import json
from pathlib import Path

from core.cell.publish import results
from core.errors import UserError
from study.commands.common import load, relative_to_cwd, study_args
from study.spec import expand as planning
from study.upkeep.cards import dataset_card, model_card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--license",
        default="",
        metavar="NAME",
        help="of the corpora (other), and of models whose own is unknown",
    )


def cards(args: argparse.Namespace) -> None:
    """Write a card for every finished corpus and checkpoint of the study, for the Hugging Face Hub."""
    study, base = load(args)
    found, folder = results(base), results(base).with_name(f"{base.name}-cards")
    cells = [
        c
        for c in planning.in_order(planning.analysis(study))
        if (base / c.relpath / "manifest.json").exists()
    ]
    made: list[Path] = []
    for cell in cells:
        if cell.stage == "documents":
            text = dataset_card(base / cell.relpath, args.license or "other")
        elif cell.stage in ("midtrain", "sft"):
            text = model_card(base / cell.relpath, found if found.is_dir() else None, args.license)
        else:
            continue
        path = folder / cell.relpath / "README.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        made.append(path)
    if not made:
        raise UserError(
            f"{base}: no corpus and no training is finished; python -m study run {study_args(args)}"
        )
    if args.json:
        return print(json.dumps([str(path) for path in made], indent=1))
    print(
        f"{len(made)} cards below {relative_to_cwd(folder)}; each goes beside the files of its cell as README.md"
    )
