"""Where a study's models and data lie: at a path, in Hugging Face's cache at a commit, or fetched from a URL.

A source is a mapping with `path`; or with `hub` and `revision` (40 hex) and perhaps `kind` (model, dataset) and `file`
(a file or folder in it); or with `url` and perhaps `sha256`. Nothing here needs a network: `study.upkeep.fetch` does.
"""

import hashlib
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from core.errors import UserError
from core.files import fingerprints, sha256
from core.paths import resolve
from study.spec.fingerprints import content_hash

Source = dict[str, Any]
# Of a model: weights as safetensors and what reads them. No code is among it, and no weights a second time.
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "LICENSE*"]
SECOND_COPIES = [
    *(
        "original/*",
        "metal/*",
        "onnx/*",
        "openvino/*",
        "coreml/*",
        "consolidated*",
        "*/consolidated*",
    ),
    *("*.bin.index.json", "*.fp16.*", "*.bf16.*", "*.fp32.*"),
]
_fingerprints_once = lru_cache(fingerprints)


def identity(source: Source) -> Any:
    """What of a source belongs to a cell's identity: a path's content, or the pin that fixes the content."""
    if path := source.get("path"):
        return _fingerprints_once(path) if resolve(path).is_dir() else content_hash(path)
    return {
        key: source.get(key)
        for key in (("hub", "revision", "file") if source.get("hub") else ("url", "sha256"))
    }


def locate(source: Source) -> Path:
    """Where the file or folder is on this machine, or will be when it is fetched. `missing` tells whether it is."""
    if path := source.get("path"):
        return resolve(path)
    if source.get("hub"):
        return snapshot(source) / (source.get("file") or "")
    # By its pin too: a study with a new pin must not find the old content.
    digest = hashlib.sha256(f"{source['url']} {source.get('sha256') or ''}".encode()).hexdigest()
    name = PurePosixPath(urlsplit(source["url"]).path).name.strip(".")
    return _home("HF_HOME") / "study" / digest[:16] / (name or "file")


def missing(sources: Iterable[Source]) -> list[str]:
    """A line for each source that isn't here, or only in part; judged by the files' sizes, to plan quickly."""
    lines = []
    for source in sources:
        if source.get("path"):
            if not locate(source).exists():
                lines.append(
                    f"no such file: {source['path']} (paths are relative to the checkout unless absolute)"
                )
        elif (lacking := absent(source)) is None or lacking:
            some = (
                f"{len(lacking)} files of {label(source)}"
                if lacking and source.get("hub")
                else label(source)
            )
            lines.append(
                f"not fetched: {some}; python -m study fetch STUDY on a machine with network"
            )
    return lines


def label(source: Source) -> str:
    """How output names a source."""
    if source.get("path") or source.get("url"):
        return str(
            source.get("path") or source["url"].split("?")[0]
        )  # behind it may be a signature
    file = f"/{source['file']}" if source.get("file") else ""
    return f"{source['hub']}{file} at {str(source.get('revision'))[:8]}"


def absent(source: Source) -> list[str] | None:
    """Files of a hub's or a URL's source that aren't here or have another size; None if the hub's list isn't either."""
    if not source.get("hub"):
        return [] if locate(source).is_file() else [locate(source).name]
    if (tree := listing(source)) is None:
        return None
    if not (names := wanted(source, tree)):
        return [source.get("file") or "*"]
    return [name for name in names if size(snapshot(source) / name) != tree[name]["size"]]


def listing(source: Source) -> dict[str, dict[str, Any]] | None:
    """{file: {"size": bytes, "lfs_sha256": only of large files}} of the repository at the commit, if it was fetched.

    huggingface_hub leaves it in its cache (`get_cached_repo_tree` reads it too, but takes a second to import).
    """
    path = snapshot(source).parents[1] / "trees" / f"{source['revision']}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return None


def recorded(known: Iterable[dict[str, Any]], source: Source) -> dict[str, Any]:
    """The entry of a record of `study.upkeep.fetch` for a source; {} if there is none, or only of another pin."""
    keys = (
        ("hub", "revision", "file")
        if source.get("hub")
        else ("url", *(("sha256",) if source.get("sha256") else ()))
    )
    return next(
        (entry for entry in known if all(entry.get(key) == source.get(key) for key in keys)), {}
    )


def faults(source: Source, entry: dict[str, Any], check: bool) -> list[str] | None:
    """Files to download: `absent` ones, and those with another size, or with `check` sha256, than the entry has."""
    if (found := absent(source)) is None:
        return None
    folder, files = locate(source).parent, {locate(source).name: entry} if entry else {}
    if source.get("hub"):
        folder, files = snapshot(source), entry.get("files", {})
    for name, was in files.items():
        path = folder / name
        if name not in found and (
            size(path) != was["bytes"] or (check and sha256(path) != was["sha256"])
        ):
            found.append(name)
    return found


def describe(source: Source, entry: dict[str, Any], fresh: Iterable[str]) -> dict[str, Any]:
    """The record's entry of a source that is here, without its date; reads files that `entry` lacks or `fresh` has.

    Raises UserError and removes the file where one has another sha256 than the hub, the pin or the record has.
    """
    if source.get("url"):
        path = locate(source)
        digest, before = sha256(path), source.get("sha256") or entry.get("sha256")
        if before not in (None, digest):
            path.unlink()
            raise UserError(
                f"{source['url']}: its sha256 is {digest}, not {before}; if that is meant, change the pin"
            )
        return {"url": source["url"], "sha256": digest, "bytes": size(path)}
    tree, files = listing(source) or {}, dict(entry.get("files", {}))
    for name in wanted(source, tree):
        path = snapshot(source) / name
        if name in fresh or name not in files:
            files[name] = {"sha256": sha256(path), "bytes": size(path)}
        if files[name]["sha256"] != tree[name].get("lfs_sha256", files[name]["sha256"]):
            discard(path)
            raise UserError(
                f"{label(source)}: {name} isn't what the hub has, by its sha256; fetch it again"
            )
    pins = {
        "hub": source["hub"],
        "kind": source.get("kind") or "model",
        "revision": source["revision"],
    }
    total = sum(file["bytes"] for file in files.values())
    return {**pins, "file": source.get("file"), "files": files, "bytes": total}


def discard(path: Path) -> None:
    """Remove a damaged file of the cache, the content that its link names included."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def patterns(source: Source) -> tuple[list[str] | None, list[str]]:
    """What of the repository is wanted, as `allow_patterns` (None: everything) and `ignore_patterns`."""
    if file := source.get("file"):
        return [escape(file.rstrip("/")), f"{escape(file.rstrip('/'))}/*"], []
    return (
        (None, [".gitattributes"])
        if source.get("kind") == "dataset"
        else (MODEL_FILES, SECOND_COPIES)
    )


def wanted(source: Source, names: Iterable[str]) -> list[str]:
    """Those of the repository's files that are wanted, sorted."""
    allowed, ignored = patterns(source)
    return sorted(
        name
        for name in names
        if (allowed is None or any(fnmatchcase(name, p) for p in allowed))
        and not any(fnmatchcase(name, p) for p in ignored)
    )


def snapshot(source: Source) -> Path:
    """Folder of the repository at the commit, in the standard cache."""
    folder = f"{source.get('kind') or 'model'}s--{source['hub'].replace('/', '--')}"
    return _home("HF_HUB_CACHE") / folder / "snapshots" / str(source.get("revision"))


def size(path: Path) -> int:
    """Bytes; -1 if there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _home(name: str) -> Path:
    from huggingface_hub import constants

    return Path(getattr(constants, name)).absolute()
