"""How the results were made: start models, settings of training, commits, versions, study file."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from analysis.rows import Row
from core.cell.identity import read_config
from core.cell.lookup import input_folder
from core.cell.manifest import read_manifest
from core.errors import UserError

SHOWN = ("python", "torch", "torchtune", "transformers", "vllm", "inspect_evals", "lm_eval")
SOURCES = ("hub", "path", "make")


@dataclass(frozen=True)
class Training:
    """Trainings of one stage with the same settings."""

    stage: str
    arms: list[str]
    settings: str  # `key value` of the recipe, in its words
    steps: str  # `138`, or `90 to 138` where the trainings differ


@dataclass(frozen=True)
class Made:
    """What ties a page to a state of study file, code and packages."""

    identity: str  # of the analysis cell
    study_sha256: str | None  # of study.yaml beside the page
    models: dict[str, str] = field(default_factory=dict)  # name -> where it is from
    trainings: list[Training] = field(default_factory=list)
    versions: str = ""
    # On the line of the dates, since two runs of one study may differ in it.
    commits: str = ""


def made(
    identity: str,
    study_file: str | None,
    trainings: Sequence[Row],
    cells: Iterable[Path],
    base: Path,
) -> Made:
    """How results were made.

    Args:
        identity: of the analysis cell.
        study_file: text of study.yaml.
        trainings: of the analysis cell's resources; those whose folder is gone are left out.
        cells: folders of the finished cells behind the scores.
        base: the study's folder of runs.
    """
    digest = hashlib.sha256(study_file.encode()).hexdigest() if study_file else None
    folders = [input_folder(base, row) for row in trainings]
    return Made(
        identity,
        digest,
        _models(yaml.safe_load(study_file) if study_file else {}),
        _trainings(trainings, folders),
        *_code([*folders, *cells]),
    )


def _models(study: Mapping[str, Any]) -> dict[str, str]:
    models = {}
    for name, model in (study.get("models") or {}).items():
        source = next((str(model[key]) for key in SOURCES if model.get(key)), "not named")
        revision = model.get("revision")
        models[name] = f"{source} at {revision}" if revision else source
    return models


def _trainings(rows: Sequence[Row], folders: Sequence[Path]) -> list[Training]:
    groups: dict[tuple[str, str], list[tuple[Row, Path]]] = {}
    for row, folder in zip(rows, folders, strict=True):
        if not (folder / "config.yaml").exists():
            continue
        groups.setdefault((row["stage"], _recipe(folder)), []).append((row, folder))
    return [
        Training(
            stage,
            list(dict.fromkeys(row["arm"] for row, _ in group)),
            text,
            _steps([folder for _, folder in group]),
        )
        for (stage, text), group in groups.items()
    ]


def _recipe(folder: Path) -> str:
    """The settings of a training, in the words of its recipe."""
    try:
        recipe = read_config(folder)["settings"].get("recipe") or {}
    except UserError as error:
        return "unknown: " + "; ".join(error.lines)
    return ", ".join(
        f"{key} {_value(value)}"
        for key, value in recipe.items()
        if value is not None and value is not False
    )


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_value(item)}" for key, item in value.items())
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


def _steps(folders: Sequence[Path]) -> str:
    manifests = [read_manifest(folder) for folder in folders]
    counts = {manifest["counts"].get("steps") for manifest in manifests if manifest} - {None}
    if not counts:
        return "unknown"
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _code(folders: Iterable[Path]) -> tuple[str, str]:
    """Versions and commits of the cells, the most frequent first."""
    manifests = [manifest for folder in folders if (manifest := read_manifest(folder))]
    if not manifests:
        return "", ""
    commits = Counter(_commit(manifest) for manifest in manifests)
    versions: dict[str, Counter[str]] = {name: Counter() for name in SHOWN}
    for manifest in manifests:
        for name, version in manifest.get("packages", {}).items():
            if name in versions:
                versions[name][version] += 1
    parts = ", ".join(
        f"{name} {' or '.join(version for version, _ in counts.most_common())}"
        for name, counts in versions.items()
        if counts
    )
    of = ", ".join(
        f"{commit} ({count} cell{'' if count == 1 else 's'})"
        for commit, count in commits.most_common()
    )
    return parts, f"trained and scored by commit {of}"


def _commit(manifest: Mapping[str, Any]) -> str:
    code = manifest.get("code") or {}
    commit = f"{code['commit']:.12}" if code.get("commit") else "not recorded"
    return f"{commit} with changes" if code.get("dirty") else commit
