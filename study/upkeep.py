"""The commands that look after what a study left: verify, prune, archive, cards."""

import argparse
import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from study import plan as planning
from study import prune as pruning
from study.archive import archive
from study.cards import dataset_card, model_card
from study.errors import UserError
from study.local import load, short, typed
from study.provenance import SCORE, chain, faults, notes, published, trace
from study.publish import results


def verify(args: argparse.Namespace) -> int:
    """Hash everything behind the published results, or show the way back of one score (`--trace`)."""
    _, base = load(args)
    if args.trace:
        steps = trace(results(base), base, *_score(args.trace))
        if args.json:
            print(json.dumps(steps, indent=1))
        else:
            shown = [[s["stage"], s["cell"], s["sha256"][:12], s["recorded"], s["facts"]] for s in steps]
            headers = ["stage", "cell or file", "sha256", "as recorded", "facts"]
            print(tabulate(shown, headers=headers, maxcolwidths=[None, 60, None, None, 60]))
        return 0
    rows = chain(published(base), base)
    found, said = faults(rows, base), notes(rows, base)
    checked = sum(len(row["checks"]) for row in rows)
    if args.json:
        data = {"study": base.name, "cells": len(rows), "files": checked, "faults": found, "notes": said}
        print(json.dumps(data, indent=1))
    else:
        for fault in found:
            print(f"{fault['cell']}: {fault['file']}: {fault['fault']}")
            print(f"  touches: {fault['consequence']}\n  cure: {fault['cure']}".replace("STUDY", typed(args)))
        for note in said:
            print(f"note: {note}".replace("STUDY", typed(args)))
        print(f"{checked} files of {len(rows)} cells checked, {len(found)} faults")
    return 1 if found else 0


def _score(words: list[str]) -> tuple[str, str, int | None, int]:
    """BENCHMARK ARM SEED DOSE as typed; `-` is the seed of an untrained model."""
    benchmark, arm, *numbers = words
    try:
        seed, dose = (None if word in ("-", "None") else int(word) for word in numbers)
    except ValueError:
        raise UserError(
            f"--trace {' '.join(words)}: SEED and DOSE are numbers (SEED - of an untrained model)"
        ) from None
    return benchmark, arm, seed, dose or 0


def prune(args: argparse.Namespace) -> int:
    """Say what may go and what must stay; remove it with `--delete`."""
    study, base = load(args)
    cells = planning.in_order(planning.analysis(study))
    rows = pruning.plan(cells, base)
    if not rows and not args.json:
        raise UserError(f"{base}: nothing is there yet; python -m study run {typed(args)}")
    left = pruning.prune(rows, cells, base, args.others) if args.delete else []
    totals = pruning.total(rows, args.others)
    if args.json:
        print(json.dumps({"deleted": args.delete, "rows": rows, "totals": totals, "left": left}, indent=1))
        return 1 if left else 0
    shown = [[r["kind"], r["cell"], _size(r["bytes"]), "goes" if r["go"] else "stays", r["why"]] for r in rows]
    shown = [row for row in shown if row[0] != "records"]
    if shown:
        print(tabulate(shown, headers=["what", "of", "GB", "", "why"], colalign=("left", "left", "right")), end="\n\n")
    print(
        tabulate([[t["kind"], _size(t["goes"]), _size(t["stays"])] for t in totals], headers=["", "GB go", "GB stay"])
    )
    for line in left:
        print(f"left: {line}")
    lost = sum(row["go"] and row["kind"] == "weights" for row in rows)
    if lost:
        print(f"\nweights of {lost} checkpoints {'are gone' if args.delete else 'would go'}: their scores, samples and")
        print(
            "tables stay; another benchmark or dose on them would train them anew (the same bytes on the same machine)"
        )
    if not args.delete:
        print(f"nothing was removed; python -m study prune {typed(args)} --delete does it")
    return 1 if left else 0


def _size(count: int) -> str:
    return f"{count / 1e9:.3f}"


def pack(args: argparse.Namespace) -> None:
    """Write the replication archive."""
    _, base = load(args)
    facts = archive(args.study, base, results(base), args.path, args.samples)
    if args.json:
        return print(json.dumps(facts, indent=1))
    print(f"{facts['path']}: {facts['files']} files of {facts['cells']} cells, sha256 {facts['sha256']}")


def cards(args: argparse.Namespace) -> None:
    """Write a card for every finished corpus and checkpoint of the study, for the Hugging Face Hub."""
    study, base = load(args)
    found, folder = results(base), results(base).with_name(f"{base.name}-cards")
    cells = [c for c in planning.in_order(planning.analysis(study)) if (base / c.place / "manifest.json").exists()]
    made: list[Path] = []
    for cell in cells:
        if cell.stage == "documents":
            text = dataset_card(base / cell.place, args.license or "other")
        elif cell.stage in ("midtrain", "sft"):
            text = model_card(base / cell.place, found if found.is_dir() else None, args.license)
        else:
            continue
        path = folder / cell.place / "README.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        made.append(path)
    if not made:
        raise UserError(f"{base}: no corpus and no training is finished; python -m study run {typed(args)}")
    if args.json:
        return print(json.dumps([str(path) for path in made], indent=1))
    print(f"{len(made)} cards below {short(folder)}; each goes beside the files of its cell as README.md")


def commands(command: Any, common: argparse.ArgumentParser) -> None:
    """Add these commands to the command line."""
    sub = command("verify", verify, "follow the published results back through every file, by hash", parents=[common])
    of = tuple(word.upper() for word in SCORE)
    sub.add_argument("--trace", nargs=4, metavar=of, help="the way back of one score (SEED - of an untrained model)")
    sub = command("prune", prune, "what may go to make room; removes it with --delete only", parents=[common])
    sub.add_argument("--delete", action="store_true", help="remove what may go, on record")
    sub.add_argument("--others", action="store_true", help="cells that the study file does not name may go too")
    sub = command("archive", pack, "everything to replicate the numbers from, as one file", parents=[common])
    sub.add_argument("path", type=Path, metavar="FILE", help="a .tar.gz or .zip to write")
    sub.add_argument("--samples", action="store_true", help="with questions and answers in full (mind their licences)")
    sub = command("cards", cards, "model cards and data set cards for the Hugging Face Hub", parents=[common])
    sub.add_argument(
        "--license", default="", metavar="NAME", help="of the corpora (other), and of models whose own is unknown"
    )
