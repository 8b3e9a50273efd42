"""Files that a cell reads from outside the runs folder: compared with the plan, and recorded.

`settings["files"]` says by key what each file or folder was when the study was planned, and
`resources["files"]` where it lies. The former is a part of the cell's identity:

- the sha256 of a file,
- the sha256 of each of a folder's files (`core.files.content_files`) by its name,
- the pin of what was fetched: `hub`, `revision` and `file`, or `url` and `sha256`.

A cell compares them when it starts (`check_planned`) and before its manifest is written
(`check_unchanged`). The manifest records the sha256 of every file.
"""

import os
from pathlib import Path
from typing import Any

from core.cell.hash_cache import remembered_sha256
from core.errors import Problem, UserError
from core.files import content_files, is_model_file, read_record

# Key -> {"path": where it lies, "sha256": {name in the folder, "" of a single file: sha256}}.
Record = dict[str, dict[str, Any]]
PINS = ({"hub", "revision", "file"}, {"url", "sha256"})  # their keys


def check_planned(folder: Path, config: dict[str, Any]) -> Record:
    """The sha256 of every file from outside, each compared with what was planned.

    Args:
        folder: The cell's folder.
        config: Its config.yaml.

    Raises:
        UserError: Names each file that is missing or changed since the study was planned.
    """
    base = folder.parents[1]
    record: Record = {}
    problems = []
    for key, planned in config["settings"].get("files", {}).items():
        path = Path(config["resources"]["files"][key])
        if not os.path.exists(path):
            fix = "fetch or restore it, or correct the path in the study file"
            problems.append(Problem(str(path), "no such file", fix))
            continue
        hashes = digests(path, base)
        record[key] = {"path": str(path), "sha256": hashes}
        names = _changed_names(planned, path, hashes, base)
        problems += [_changed(path / name, "the study was planned") for name in names]
    if problems:
        raise UserError.of(problems)
    return record


def check_unchanged(record: Record, base: Path, since: str) -> None:
    """Compare what was read from outside with its record.

    Args:
        record: What it was.
        base: The study's folder.
        since: The time of the record, for the message.

    Raises:
        UserError: Names each file that is gone, changed or was added.
    """
    problems = []
    for entry in record.values():
        path = Path(entry["path"])
        names = _differing(digests(path, base), entry["sha256"])
        problems += [_changed(path / name, since) for name in names]
    if problems:
        raise UserError.of(problems)


def digests(path: Path, base: Path) -> dict[str, str]:
    """The sha256 of a file under the name "", or of a folder's `content_files` by their names.

    Hashes of large files are remembered in the folder `base`. {} where nothing is there that this
    user may see: a recorded path may be in another's home.
    """
    if os.path.isdir(path):
        return {name: remembered_sha256(file, base) for name, file in content_files(path).items()}
    return {"": remembered_sha256(path, base)} if os.path.exists(path) else {}


def is_pin(planned: Any) -> bool:
    """Whether a planned identity is the pin of what was fetched from a hub or a URL."""
    return isinstance(planned, dict) and {*planned} in PINS


def _changed_names(planned: Any, path: Path, hashes: dict[str, str], base: Path) -> list[str]:
    """Names of the files that differ from the plan, "" of a single file."""
    if isinstance(planned, str):
        return _differing(hashes, {"": planned})
    if not is_pin(planned):
        return _differing(hashes, planned)
    wanted = _fetched(planned, base)
    if (path / "config.json").is_file():  # a licence is fetched too
        wanted = {name: digest for name, digest in wanted.items() if is_model_file(name)}
    return _differing({name: digest for name, digest in hashes.items() if name in wanted}, wanted)


def _fetched(pin: dict[str, Any], base: Path) -> dict[str, str]:
    """The sha256 of what a pin names, by the pin itself or the record of `fetch`; {} if unknown."""
    record = read_record(base / "fetched.json", sources=list) or {"sources": []}
    entries: list[dict[str, Any]] = record["sources"]
    if "url" in pin:
        recorded = [entry["sha256"] for entry in entries if entry.get("url") == pin["url"]]
        digest = pin["sha256"] or next(iter(recorded), None)
        return {"": digest} if digest else {}
    wanted: dict[str, str] = {}
    part = (pin["file"] or "").rstrip("/")
    for entry in entries:
        if (entry.get("hub"), entry.get("revision")) != (pin["hub"], pin["revision"]):
            continue
        for name, file in entry["files"].items():
            if not part or name == part or name.startswith(f"{part}/"):
                wanted[name.removeprefix(part).lstrip("/")] = file["sha256"]
    return wanted


def _differing(now: dict[str, str], before: dict[str, str]) -> list[str]:
    return sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))


def _changed(path: Path, since: str) -> Problem:
    what = f"{'changed' if os.path.exists(path) else 'is gone'} since {since}"
    fix = (
        "run the study again: other content makes other cells; where it makes the same, bring "
        "the file back or use another runs folder (--runs)"
    )
    return Problem(str(path), what, fix)
