"""Download what a study names on Hugging Face or by URL, once and pinned.

It runs on a machine with network; compute nodes then read the files offline. They go into Hugging
Face's standard cache, so copies are shared with other tools. huggingface_hub handles the token
(HF_TOKEN, or its login file): nothing here writes it anywhere. Progress goes to stderr.
"""

import errno
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.errors import Problem, UserError
from core.files import read_record, write_atomically
from core.strict_yaml import did_you_mean
from study.spec import sources as local
from study.spec.sources import Source, label, locate, size, snapshot

ABANDONED = 3600  # seconds without a byte after which a part of a file is nobody's
NO_NETWORK = "run this where there is network, such as a login node"
GB = 1e9


@dataclass
class _Todo:
    """A source, what of it has to be downloaded, and how much that is."""

    source: Source
    files: list[str] | None  # None: all of them, as the list of its files isn't here
    size: int = 0  # bytes to come

    @property
    def is_complete(self) -> bool:
        return self.files == []


def fetch(sources: list[Source], record: Path, check: bool = False) -> list[dict[str, Any]]:
    """Download what isn't here yet.

    Returns an entry per hub's or URL's source and writes them to `record` (JSON). Entries: {"hub",
    "kind", "revision", "file", "files": {name: {"sha256", "bytes"}}} or {"url", "sha256"}, each
    with "bytes" and "fetched" (UTC). What is here already is compared with the hub's sizes and the
    record's, with `check` by sha256 too; what differs is downloaded again.

    Raises UserError with every problem, of all sources before the first byte where the hub can
    tell. After an interruption, run again to continue, file by file.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its warnings show the signed addresses of files
    recorded: list[dict[str, Any]] = []
    if content := read_record(record, sources=list):
        recorded = content["sources"]
    paths = [source for source in sources if source.get("path")]
    problems = local.missing(paths, study_args="")
    todo = []
    for n, source in enumerate(sources):
        if source.get("path") or source in sources[:n]:
            continue
        item = _Todo(source, local.stale_files(source, local.find_record(recorded, source), check))
        todo.append(item)
        if not item.is_complete:
            with collect_problems(problems, source):
                item.size = _ask(source, item.files)
    _raise(problems)
    _check_space(sum(item.size for item in todo), Path(constants.HF_HUB_CACHE))
    entries = []
    for item in todo:
        before = local.find_record(recorded, item.source)
        if item.is_complete and before:
            entries.append(before)
            continue
        with collect_problems(problems, item.source):
            entries.append(_download(item, before))
            recorded = [entry for entry in recorded if entry != before] + entries[-1:]
            record.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(record, json.dumps({"sources": recorded}, indent=1) + "\n")
    _raise(problems)
    return entries


def _raise(problems: list[Problem]) -> None:
    """Raise UserError with the problems, each once; nothing where there is none."""
    if problems:
        raise UserError.of(dict.fromkeys(problems))


def _ask(source: Source, stale: list[str] | None) -> int:
    """Bytes to come, as the hub says.

    Raises UserError, or the library's errors, for what would fail later.
    """
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.hf_api import RepoFile

    if constants.is_offline_mode():
        raise UserError(
            where=label(source),
            what="not fetched, and HF_HUB_OFFLINE is set",
            fix=f"unset it and {NO_NETWORK}",
        )
    if source.get("url"):
        return _ask_url(source["url"])
    api = HfApi()
    repo = source["hub"]
    kind = source.get("kind") or "model"
    revision = source.get("revision")
    _check_commit(api, repo, kind, revision)
    tree = api.list_repo_tree(repo, repo_type=kind, revision=revision, recursive=True)
    sizes = {file.path: file.size for file in tree if isinstance(file, RepoFile)}
    names = local.select_files(source, sizes)
    if not names:
        hint = did_you_mean(source.get("file") or "", list(sizes))
        raise UserError(
            where=label(source),
            what=f"there is no such file{hint}",
            fix=f"it has {', '.join(sorted(sizes)[:10])}",
        )
    is_model = kind == "model" and not source.get("file")
    if is_model and not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            where=label(source),
            what="has no weights as safetensors",
            fix="take a revision or a copy that has them",
        )
    # A gated repository may show its README.
    largest = max(names, key=lambda name: sizes[name])
    url = hf_hub_url(repo, largest, repo_type=kind, revision=revision)
    get_hf_file_metadata(url, timeout=10)
    folder = snapshot(source)
    return sum(
        sizes[name] for name in names if name in (stale or []) or size(folder / name) != sizes[name]
    )


def _ask_url(url: str) -> int:
    from huggingface_hub.utils import get_session, hf_raise_for_status

    reply = get_session().head(url, timeout=10)
    # Signed addresses and some servers know only GET.
    if reply.status_code not in (403, 405, 501):
        hf_raise_for_status(reply)
    return int(reply.headers.get("Content-Length", 0)) if reply.is_success else 0


def _check_commit(api: Any, repo: str, kind: str, revision: str | None) -> None:
    """Raise UserError where the repository has no such commit, or the revision is a branch."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        commit = api.repo_info(repo, repo_type=kind, revision=revision, timeout=10).sha
    except RevisionNotFoundError:
        newest = api.repo_info(repo, repo_type=kind, timeout=10).sha
        raise UserError(
            where=repo,
            what=f"has no revision {revision}",
            fix=f"the newest commit is revision: {newest}",
        ) from None
    if commit != revision:
        raise UserError(
            where=repo,
            what=f"{revision} is not a commit, which alone never changes",
            fix=f"it is now revision: {commit}",
        )


def _check_space(coming: int, cache: Path) -> None:
    """Raise UserError where the bytes to come do not fit on the cache's disk."""
    folder = cache
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if coming > free:
        raise UserError(
            what=f"{coming / GB:.2f} GB are to come, {free / GB:.2f} GB are free in {folder}",
            fix="make room, or set HF_HOME to a folder on a larger disk",
        )


def _download(item: _Todo, before: dict[str, Any]) -> dict[str, Any]:
    """Download what is missing or differs, and read what the entry `before` doesn't have.

    Returns the new entry.
    """
    source = item.source
    stale = item.files or []
    if not item.is_complete:
        with _progress_bar(f"{label(source)}, {item.size / GB:.2f} GB", item.size) as bar:
            if source.get("hub"):
                _from_hub(source, stale, bar)
            else:
                _from_url(source, bar)
    print(f"{label(source)}: reading it for its sha256", file=sys.stderr, flush=True)
    entry = local.describe(source, before, stale)
    if entry == {key: value for key, value in before.items() if key != "fetched"}:
        return before
    return entry | {"fetched": datetime.now(UTC).isoformat(timespec="seconds")}


def _from_hub(source: Source, stale: list[str], bar: type) -> None:
    from huggingface_hub import snapshot_download

    for name in stale:
        local.discard(snapshot(source) / name)  # else a damaged file would count as present
    # What a killed download leaves is never used again: huggingface_hub 2 begins every file anew.
    for part in (snapshot(source).parents[1] / "blobs").glob("*.incomplete"):
        if time.time() - part.stat().st_mtime > ABANDONED:
            part.unlink()
    allowed, ignored = local.patterns(source)
    snapshot_download(
        source["hub"],
        repo_type=source.get("kind") or "model",
        revision=source["revision"],
        allow_patterns=allowed,
        ignore_patterns=ignored,
        tqdm_class=bar,
    )
    lacking = local.missing_files(source)
    repo = snapshot(source).parents[1]
    if lacking is None and not os.access(repo, os.W_OK):
        raise PermissionError(errno.EACCES, "the list of its files can't be kept", str(repo))
    if lacking != []:  # without network it returns what is here as if that were all
        raise ConnectionError("not all files came")


def _from_url(source: Source, bar: type) -> None:
    from huggingface_hub.file_download import http_get

    path = locate(source)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            http_get(source["url"], file, tqdm_class=bar)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def collect_problems(problems: list[Problem], source: Source) -> Iterator[None]:
    """Add what goes wrong with a source to `problems`, so that the next source is tried too.

    Raises UserError at once where there is no network or no disk space.
    """
    try:
        yield
    except UserError as error:
        problems += error.problems
    except Exception as error:  # the library raises what its many layers raise
        problem, is_fatal = explain(error, source)
        problems.append(problem)
        if is_fatal:
            raise UserError.of(dict.fromkeys(problems)) from None


def explain(error: Exception, source: Source) -> tuple[Problem, bool]:
    """What went wrong and what to do, and whether it stops all other sources too."""
    from huggingface_hub import constants, errors, get_token

    while isinstance(error, errors.LocalEntryNotFoundError) and isinstance(
        error.__cause__, Exception
    ):
        error = error.__cause__
    token = get_token()
    what, fix, is_fatal = _cause(error, source, constants.ENDPOINT, bool(token))
    name = label(source)
    if token:
        name, what, fix = (text.replace(token, "***") for text in (name, what, fix))
    return Problem(name, what, fix), is_fatal


def _cause(
    error: Exception, source: Source, endpoint: str, has_token: bool
) -> tuple[str, str, bool]:
    """What went wrong, what to do, and whether it stops all other sources too."""
    import httpx2
    from huggingface_hub import errors

    kind = source.get("kind") or "model"
    page = f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{source.get('hub')}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    number = error.errno if isinstance(error, OSError) else None
    # Without the signatures of addresses.
    message = " ".join(f"{type(error).__name__}: {error}".split())
    message = re.sub(r"\?[^\s']+", "", message)[:300]
    if isinstance(error, errors.GatedRepoError):
        reason = "the token's account has no access" if has_token else "there is no token"
        fix = f"accept the licence at {page} and set HF_TOKEN to a token of that account"
        return f"is gated and {reason}", fix, False
    if isinstance(error, errors.RepositoryNotFoundError):
        reason = "it is private, and there is no token (HF_TOKEN)"
        if has_token:
            reason = "the token's account may not see it"
        return f"the hub has no such {kind}, or {reason}", f"see that {page} is right", False
    if status == 401 and source.get("hub"):
        fix = f"make one at {endpoint}/settings/tokens and set HF_TOKEN"
        return "the hub doesn't accept the token", fix, False
    if status == 404:
        return "there is nothing at this address", "correct it", False
    if number in (errno.ENOSPC, errno.EDQUOT):
        fix = "make room, or set HF_HOME to a folder on a larger disk"
        return f"the disk is full ({error})", fix, True
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"can't be written ({error})", "set HF_HOME or --runs to a folder of yours", True
    if status is None and isinstance(error, (httpx2.TransportError, ConnectionError)):
        fix = f"{NO_NETWORK}; finished files are kept, and the same command continues"
        return f"no network ({message})", fix, True
    fix = (
        "run the same command again to continue (HF_HUB_DISABLE_XET=1 helps where only HTTP works)"
    )
    return message, fix, False


@contextmanager
def _progress_bar(text: str, total: int) -> Iterator[type]:
    """A bar on a terminal, a line a minute elsewhere; yields tqdm's class for huggingface_hub.

    A signal to stop also stops the threads that download: otherwise they would finish their files,
    of gigabytes, first.
    """
    from huggingface_hub.utils import tqdm
    from huggingface_hub.utils._xet import abort_xet_session
    from tqdm import tqdm as plain

    stop = threading.Event()

    class Counted(tqdm):
        """Shows nothing itself.

        It counts bytes that are written, not those that came compressed over the network.
        """

        def __init__(self, *args: Any, **options: Any):
            is_transfer = str(options.get("name")).endswith(".transfer")
            self.counts = options.get("unit") == "B" and not is_transfer
            super().__init__(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            if self.counts:
                shown.update(n)

    def end(number: int, frame: Any) -> None:
        stop.set()
        abort_xet_session()
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in signals}
    style: dict[str, Any] = {}
    if not sys.stderr.isatty():
        line = "{desc}: {percentage:.0f}%, {rate_fmt}"
        style = {"file": _Lines(), "mininterval": 60, "bar_format": line}
    with plain(desc=text, total=total, unit="B", unit_scale=True, **style) as shown:
        for number, handler in handlers.items():
            if handler is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, end)
        try:
            yield Counted
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


class _Lines:
    """A file that gets lines where tqdm draws over its own."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass
