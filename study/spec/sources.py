"""Where a study's models and data lie: at a path, in Hugging Face's cache, or fetched from a URL.

A source is a mapping with `path`; or with `hub` and `revision` (40 hex) and perhaps `kind` (model,
dataset) and `file` (a file or folder in it); or with `url` and perhaps `sha256`. Nothing here needs
a network: `study.upkeep.fetch` does.
"""

import hashlib
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import urlsplit

from core.errors import Problem, UserError
from core.files import sha256
from core.paths import resolve
from study.spec.fingerprints import cache_folder, content_hash, fingerprint_once
from study.spec.schema import Model, Remote

Source = dict[str, Any]
# Files of a model that are fetched: weights as safetensors and what reads them, but no code.
MODEL_FILES = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "*.txt",
    "LICENSE*",
]
# The same weights in other formats, which are not fetched.
SECOND_COPIES = [
    "original/*",
    "metal/*",
    "onnx/*",
    "openvino/*",
    "coreml/*",
    "consolidated*",
    "*/consolidated*",
    "*.bin.index.json",
    "*.fp16.*",
    "*.bf16.*",
    "*.fp32.*",
]


def remote(data: Remote) -> Source:
    """The source of a file that the study file names on Hugging Face or at a URL."""
    if data.url:
        return {"url": data.url, "sha256": data.sha256}
    return {"hub": data.hub, "revision": data.revision, "kind": "dataset", "file": data.file}


def file_source(file: str | Remote) -> Source:
    """The source of a file that the study file names by its path, or as `remote`."""
    return {"path": file} if isinstance(file, str) else remote(file)


def model_folder(model: Model) -> Source:
    """The source of a model that the study file names by a path or on the hub."""
    if model.path:
        return {"path": model.path}
    return {"hub": model.hub, "revision": model.revision, "kind": "model"}


def identity(source: Source) -> Any:
    """What of a source belongs to a cell's identity: a path's content, or a hub's or URL's pin."""
    if path := source.get("path"):
        return fingerprint_once(path) if resolve(path).is_dir() else content_hash(path)
    keys = ("hub", "revision", "file") if source.get("hub") else ("url", "sha256")
    return {key: source.get(key) for key in keys}


def identities(files: dict[str, Source]) -> dict[str, Any]:
    """A cell's settings of the files that it reads (`core.cell.external_files`)."""
    return {"files": {key: identity(source) for key, source in files.items()}}


def paths(files: dict[str, Source]) -> dict[str, Any]:
    """A cell's resources of the files that it reads: where they lie."""
    return {"files": {key: str(locate(source)) for key, source in files.items()}}


def locate(source: Source) -> Path:
    """Where the file or folder is on this machine, or will be when it is fetched.

    `missing` tells whether it is there.
    """
    if path := source.get("path"):
        return resolve(path)
    if source.get("hub"):
        return snapshot(source) / (source.get("file") or "")
    # By its pin too: a study with a new pin must not find the old content.
    digest = hashlib.sha256(f"{source['url']} {source.get('sha256') or ''}".encode()).hexdigest()
    name = PurePosixPath(urlsplit(source["url"]).path).name.strip(".")
    return cache_folder() / digest[:16] / (name or "file")


def missing(sources: Iterable[Source], study_args: str) -> list[Problem]:
    """A problem for each source that isn't here, or only in part.

    It is judged by the files' sizes, to plan quickly. study_args: what names the study on the
    command line, for the command that fetches it.
    """
    problems = []
    for source in sources:
        if source.get("path"):
            if not locate(source).exists():
                fix = "paths are relative to the checkout unless absolute"
                problems.append(Problem("", f"no such file: {source['path']}", fix))
            continue
        lacking = missing_files(source)
        if lacking == []:
            continue
        count = f"{len(lacking)} files of " if lacking and source.get("hub") else ""
        fix = f"python -m study fetch {study_args} on a machine with network"
        problems.append(Problem("", f"not fetched: {count}{label(source)}", fix))
    return problems


def label(source: Source) -> str:
    """How output names a source."""
    if source.get("path") or source.get("url"):
        # A URL's query may be a signature.
        return str(source.get("path") or source["url"].split("?")[0])
    file = f"/{source['file']}" if source.get("file") else ""
    return f"{source['hub']}{file} at {str(source.get('revision'))[:8]}"


def missing_files(source: Source) -> list[str] | None:
    """Files of a hub's or a URL's source that aren't here or have another size.

    None if the hub's list of files isn't here either.
    """
    if not source.get("hub"):
        return [] if locate(source).is_file() else [locate(source).name]
    tree = listing(source)
    if tree is None:
        return None
    names = select_files(source, tree)
    if not names:
        return [source.get("file") or "*"]
    return [name for name in names if size(snapshot(source) / name) != tree[name]["size"]]


def listing(source: Source) -> dict[str, dict[str, Any]] | None:
    """The files of the repository at the commit, if it was fetched.

    {file: {"size": bytes, "lfs_sha256": only of large files}}. huggingface_hub leaves it in its
    cache (`get_cached_repo_tree` reads it too, but takes a second to import).
    """
    path = snapshot(source).parents[1] / "trees" / f"{source['revision']}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return cast(dict[str, dict[str, Any]], content["files"])
    except (OSError, ValueError, KeyError):
        return None


def find_record(entries: Iterable[dict[str, Any]], source: Source) -> dict[str, Any]:
    """The entry for a source in a record of `study.upkeep.fetch`.

    {} if there is none, or only of another pin.
    """
    keys = ["hub", "revision", "file"] if source.get("hub") else ["url"]
    if not source.get("hub") and source.get("sha256"):
        keys.append("sha256")
    for entry in entries:
        if all(entry.get(key) == source.get(key) for key in keys):
            return entry
    return {}


def stale_files(source: Source, entry: dict[str, Any], check: bool) -> list[str] | None:
    """Files to download: `missing_files`, and those that differ from the record's entry.

    They are compared by size, with `check` by sha256 too. None as of `missing_files`.
    """
    names = missing_files(source)
    if names is None:
        return None
    if source.get("hub"):
        folder = snapshot(source)
        files = entry.get("files", {})
    else:
        folder = locate(source).parent
        files = {locate(source).name: entry} if entry else {}
    for name, recorded in files.items():
        if name in names:
            continue
        path = folder / name
        if size(path) != recorded["bytes"] or (check and sha256(path) != recorded["sha256"]):
            names.append(name)
    return names


def describe(source: Source, entry: dict[str, Any], fresh: Iterable[str]) -> dict[str, Any]:
    """The record's entry of a source that is here, without its date.

    Reads the files that `entry` lacks or `fresh` names. Raises UserError and removes the file where
    one has another sha256 than the hub, the pin or the record has.
    """
    if source.get("url"):
        path = locate(source)
        digest = sha256(path)
        expected = source.get("sha256") or entry.get("sha256")
        if expected not in (None, digest):
            path.unlink()
            raise UserError(
                where=source["url"],
                what=f"its sha256 is {digest}, not {expected}",
                fix="if that is meant, change the pin",
            )
        return {"url": source["url"], "sha256": digest, "bytes": size(path)}
    tree = listing(source) or {}
    files = dict(entry.get("files", {}))
    for name in select_files(source, tree):
        path = snapshot(source) / name
        if name in fresh or name not in files:
            files[name] = {"sha256": sha256(path), "bytes": size(path)}
        if files[name]["sha256"] != tree[name].get("lfs_sha256", files[name]["sha256"]):
            discard(path)
            raise UserError(
                where=label(source),
                what=f"{name} isn't what the hub has, by its sha256",
                fix="fetch it again",
            )
    return {
        "hub": source["hub"],
        "kind": source.get("kind") or "model",
        "revision": source["revision"],
        "file": source.get("file"),
        "files": files,
        "bytes": sum(file["bytes"] for file in files.values()),
    }


def discard(path: Path) -> None:
    """Remove a damaged file of the cache, the content that its link names included."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def patterns(source: Source) -> tuple[list[str] | None, list[str]]:
    """`allow_patterns` (None: everything) and `ignore_patterns` of the files to fetch."""
    if file := source.get("file"):
        return [escape(file.rstrip("/")), f"{escape(file.rstrip('/'))}/*"], []
    if source.get("kind") == "dataset":
        return None, [".gitattributes"]
    return MODEL_FILES, SECOND_COPIES


def select_files(source: Source, names: Iterable[str]) -> list[str]:
    """Those of the repository's files that are to be fetched, sorted."""
    allowed, ignored = patterns(source)
    return sorted(
        name
        for name in names
        if (allowed is None or any(fnmatchcase(name, pattern) for pattern in allowed))
        and not any(fnmatchcase(name, pattern) for pattern in ignored)
    )


def snapshot(source: Source) -> Path:
    """Folder of the repository at the commit, in the standard cache."""
    folder = f"{source.get('kind') or 'model'}s--{source['hub'].replace('/', '--')}"
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).absolute()
    return cache / folder / "snapshots" / str(source.get("revision"))


def size(path: Path) -> int:
    """Bytes; -1 if there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
