"""Join the contrasts of several labs' archives: estimates, heterogeneity and a forest plot."""

import argparse
import json
from collections.abc import Collection, Iterator
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from core.errors import Problem, UserError
from core.files import write_atomically
from core.stages import CHECKPOINT_STAGES
from study.upkeep.archived import ArchivedStudy, read_archive
from study.upkeep.study_file import differing_keys

SIDES = ("treatment", "control")
NOT_POOLED = "no contrast has a standard error in two of them, by the same name, benchmark and dose"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "archives", type=Path, nargs="+", metavar="ARCHIVE", help="archives, one of each lab"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("pooled"),
        metavar="DIR",
        help="folder for the tables and the forest plot (default: pooled)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def pool(args: argparse.Namespace) -> None:
    """Write and print the pooled contrasts."""
    from analysis.canary import bridge_rows
    from analysis.canary_tables import describe_canary, write_canary
    from analysis.pooled_results import describe, write_tables
    from analysis.pooling import pooled_rows

    labs = [read_archive(path) for path in args.archives]
    _check_names(labs)
    _check_sides(labs)
    by_name = {lab.name: lab.results for lab in labs}
    bridges = bridge_rows(by_name)
    dependent = _same_trainings(labs)
    if dependent and not bridges:
        raise UserError.of(dependent)
    results: dict[str, Any] = {
        "labs": [lab.name for lab in labs],
        # The scores of one training by two judges are no two estimates.
        "contrasts": [] if dependent else pooled_rows(by_name),
        "differences": [*side_differences(labs), *setting_differences(labs)],
        "unmatched": unmatched(labs),
        "shared": list(shared_cells(labs, ["documents", "scores"])),
        **({"canary": bridges} if bridges else {}),
    }
    is_pooled = any(row["pooled"] for row in results["contrasts"])
    if not is_pooled and not bridges:
        raise UserError(
            where=", ".join(map(str, args.archives)),
            what=NOT_POOLED,
            fix="name the contrasts alike and train two seeds or more in each lab",
        )
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "pooled.json", json.dumps(results, indent=1) + "\n")
    texts = []
    if is_pooled:
        write_tables(results, args.out)
        texts.append(describe(results))
    else:
        texts += [
            "Contrasts are not pooled:",
            *(map(str, dependent) if dependent else [NOT_POOLED]),
        ]
    if bridges:
        write_canary(bridges, args.out)
        texts.append(describe_canary(bridges))
    texts.append(str(args.out))
    print(json.dumps(results, indent=1) if args.json else "\n\n".join(texts))


def setting_differences(labs: list[ArchivedStudy]) -> Iterator[dict[str, Any]]:
    """The settings in which labs differ: `cells`, `key` and its value in each lab that has it.

    Cells are compared by stage and name, whatever their seed.
    """
    settings = {lab.name: lab.settings() for lab in labs}
    names = dict.fromkeys(name for of_lab in settings.values() for name in of_lab)
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name in names:
        having = {lab: of_lab[name] for lab, of_lab in settings.items() if name in of_lab}
        keys = {
            key
            for first, second in combinations(having.values(), 2)
            for key in differing_keys(first, second)
        }
        for key in sorted(keys):
            values = {lab: _value(of_lab, key) for lab, of_lab in having.items()}
            stage, _, cell = name.partition("/")
            kind = stage, key, json.dumps(values, sort_keys=True)
            rows.setdefault(kind, {"stage": stage, "cells": [], "key": key, "values": values})
            rows[kind]["cells"].append(cell)
    yield from rows.values()


def side_differences(labs: list[ArchivedStudy]) -> Iterator[dict[str, Any]]:
    """As `setting_differences`: the contrasts whose arms have other names in another lab."""
    for name, by_lab in _sides(labs).items():
        for number, key in enumerate(SIDES):
            values = {lab: arms[number] for lab, arms in by_lab.items()}
            if len({*values.values()}) > 1:
                yield {"stage": "contrast", "cells": [name], "key": key, "values": values}


def unmatched(labs: list[ArchivedStudy]) -> dict[str, list[str]]:
    """Lab -> its cells of whose name no other lab has any: their settings were not compared."""
    cells = {lab.name: lab.settings().keys() for lab in labs}
    rows = {
        lab: sorted(names - {*chain(*(cells[other] for other in cells if other != lab))})
        for lab, names in cells.items()
    }
    return {lab: names for lab, names in rows.items() if names}


def shared_cells(labs: list[ArchivedStudy], stages: Collection[str]) -> Iterator[dict[str, Any]]:
    """The cells of these stages in which two labs have the same outputs to the byte."""
    for first, second in combinations(labs, 2):
        shared = set(first.outputs.values()) & set(second.outputs.values())
        for cell, digest in sorted(first.outputs.items()):
            if digest in shared and cell.partition("/")[0] in stages:
                yield {"labs": [first.name, second.name], "cell": cell}


def _check_names(labs: list[ArchivedStudy]) -> None:
    """Raises UserError for labs that can't be told apart."""
    names = [lab.name for lab in labs]
    if len(labs) < 2:
        raise UserError(where=names[0], what="is one archive alone", fix="name two or more")
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(
            where=", ".join(sorted(twice)),
            what="names two archives",
            fix="rename one: an archive's name stands for its lab",
        )


def _sides(labs: list[ArchivedStudy]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Name of a contrast -> lab -> treatment and control."""
    sides: dict[str, dict[str, tuple[str, ...]]] = {}
    for lab in labs:
        for row in lab.results["contrasts"]:
            sides.setdefault(row["name"], {})[lab.name] = tuple(row[key] for key in SIDES)
    return sides


def _check_sides(labs: list[ArchivedStudy]) -> None:
    """Raises UserError for contrasts of one name that are turned round in another lab."""
    problems = [
        Problem(
            f"{first} and {second}",
            f"have the contrast {name!r} the other way round: {' - '.join(by_lab[first])}, and "
            f"{' - '.join(by_lab[second])}",
            "name it otherwise in one of the studies",
        )
        for name, by_lab in _sides(labs).items()
        for first, second in combinations(by_lab, 2)
        if by_lab[first] == by_lab[second][::-1] != by_lab[second]
    ]
    if problems:
        raise UserError.of(problems)


def _same_trainings(labs: list[ArchivedStudy]) -> list[Problem]:
    """A problem for each two labs that are not independent: they hold the same training."""
    trained: dict[str, str] = {}
    for row in shared_cells(labs, CHECKPOINT_STAGES):
        trained.setdefault(" and ".join(row["labs"]), row["cell"])
    fix = "pool labs that trained on their own; further seeds belong in one study"
    return [
        Problem(pair, f"hold the same training, such as {cell}", fix)
        for pair, cell in trained.items()
    ]


def _value(settings: dict[str, Any], key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
