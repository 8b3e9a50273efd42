"""Download what a study names on Hugging Face or by URL, once and pinned, where compute nodes then read it offline.

For a machine with network. It goes into Hugging Face's standard cache, so copies are shared with other tools. The token
is huggingface_hub's affair (HF_TOKEN, or its login file): nothing here writes it anywhere. Progress goes to stderr.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import write_atomically
from core.strict_yaml import did_you_mean
from study.spec import sources as here
from study.spec.sources import Source, label, locate, size, snapshot

ABANDONED = 3600  # seconds without a byte after which a part of a file is nobody's
NO_NETWORK = "run this where there is network, such as a login node"


def fetch(sources: list[Source], record: Path, check: bool = False) -> list[dict[str, Any]]:
    """Download what isn't here yet; returns an entry per hub's or URL's source and writes them to `record` (JSON).

    Entries: {"hub", "kind", "revision", "file", "files": {name: {"sha256", "bytes"}}} or {"url", "sha256"}, each with
    "bytes" and "fetched" (UTC). What is here already is compared with the hub's sizes and the record's, with `check` by
    sha256 too; what differs is downloaded again. Raises UserError with a line per mistake, of all sources before the
    first byte where the hub can tell. Interrupted, it goes on when run again, file by file.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its warnings show the signed addresses of files
    known = json.loads(record.read_text(encoding="utf-8"))["sources"] if record.exists() else []
    mistakes = here.missing(source for source in sources if source.get("path"))
    todo: list[tuple[Source, list[str] | None, int]] = []
    for source in (s for n, s in enumerate(sources) if not s.get("path") and s not in sources[:n]):
        faults, coming = here.faults(source, here.recorded(known, source), check), 0
        if faults != []:
            with _noting(mistakes, source):
                coming = _ask(source, faults)
        todo.append((source, faults, coming))
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))
    _must_fit(sum(coming for *_, coming in todo), Path(constants.HF_HUB_CACHE))
    entries = []
    for source, faults, coming in todo:
        old = here.recorded(known, source)
        if faults == [] and old:
            entries.append(old)
            continue
        with _noting(mistakes, source):
            entries.append(_bring(source, faults, coming, old))
            known = [other for other in known if other != old] + entries[-1:]
            record.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(record, json.dumps({"sources": known}, indent=1) + "\n")
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))
    return entries


def _ask(source: Source, faults: list[str] | None) -> int:
    """Bytes to come, as the hub says. Raises UserError, or the library's errors, for what would fail later."""
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import get_session, hf_raise_for_status

    if constants.is_offline_mode():
        raise UserError(
            f"{label(source)}: not fetched, and HF_HUB_OFFLINE is set; unset it and {NO_NETWORK}"
        )
    if source.get("url"):
        reply = get_session().head(source["url"], timeout=10)
        if reply.status_code not in (
            403,
            405,
            501,
        ):  # signed addresses and some servers know only GET
            hf_raise_for_status(reply)
        return int(reply.headers.get("Content-Length", 0)) if reply.is_success else 0
    api, repo, kind, revision = (
        HfApi(),
        source["hub"],
        source.get("kind") or "model",
        source.get("revision"),
    )
    try:
        commit = api.repo_info(repo, repo_type=kind, revision=revision, timeout=10).sha
    except RevisionNotFoundError:
        newest = api.repo_info(repo, repo_type=kind, timeout=10).sha
        raise UserError(
            f"{repo}: has no revision {revision}; the newest commit is revision: {newest}"
        ) from None
    if commit != revision:
        raise UserError(
            f"{repo}: {revision} is not a commit, which alone never changes; it is now revision: {commit}"
        )
    tree = api.list_repo_tree(repo, repo_type=kind, revision=revision, recursive=True)
    sizes = {file.path: file.size for file in tree if isinstance(file, RepoFile)}
    names = here.wanted(source, sizes)
    if not names:
        near = did_you_mean(source.get("file") or "", list(sizes))
        raise UserError(
            f"{label(source)}: there is no such file{near}; it has {', '.join(sorted(sizes)[:10])}"
        )
    if (
        kind == "model"
        and not source.get("file")
        and not any(name.endswith(".safetensors") for name in names)
    ):
        raise UserError(
            f"{label(source)}: has no weights as safetensors; take a revision or a copy that has them"
        )
    largest = max(names, key=lambda name: sizes[name])  # a gated repository may show its README
    get_hf_file_metadata(hf_hub_url(repo, largest, repo_type=kind, revision=revision), timeout=10)
    return sum(
        sizes[n] for n in names if n in (faults or []) or size(snapshot(source) / n) != sizes[n]
    )


def _must_fit(coming: int, place: Path) -> None:
    while not place.exists():
        place = place.parent
    if coming > (free := shutil.disk_usage(place).free):
        text = f"{coming / 1e9:.2f} GB are to come, {free / 1e9:.2f} GB are free in {place}"
        raise UserError(f"{text}; make room, or set HF_HOME to a folder on a larger disk")


def _bring(
    source: Source, faults: list[str] | None, coming: int, old: dict[str, Any]
) -> dict[str, Any]:
    """Download what is faulty and read what the old entry doesn't know. Returns the new entry."""
    if faults != []:
        with _bar(f"{label(source)}, {coming / 1e9:.2f} GB", coming) as bar:
            (_from_hub if source.get("hub") else _from_url)(source, faults or [], bar)
    print(f"{label(source)}: reading it for its sha256", file=sys.stderr, flush=True)
    new = here.describe(source, old, faults or [])
    same = new == {key: value for key, value in old.items() if key != "fetched"}
    return old if same else new | {"fetched": datetime.now(UTC).isoformat(timespec="seconds")}


def _from_hub(source: Source, faults: list[str], bar: type) -> None:
    from huggingface_hub import snapshot_download

    for name in faults:
        here.discard(snapshot(source) / name)  # else what is damaged would count as being there
    # What a killed download leaves is never used again: huggingface_hub 2 begins every file anew.
    for part in (snapshot(source).parents[1] / "blobs").glob("*.incomplete"):
        if time.time() - part.stat().st_mtime > ABANDONED:
            part.unlink()
    allowed, ignored = here.patterns(source)
    snapshot_download(
        source["hub"],
        repo_type=source.get("kind") or "model",
        revision=source["revision"],
        allow_patterns=allowed,
        ignore_patterns=ignored,
        tqdm_class=bar,
    )
    if (left := here.absent(source)) is None and not os.access(
        repo := snapshot(source).parents[1], os.W_OK
    ):
        raise PermissionError(errno.EACCES, "the list of its files can't be kept", str(repo))
    if left != []:  # without network it returns what is here as if that were all
        raise ConnectionError("not all files came")


def _from_url(source: Source, faults: list[str], bar: type) -> None:
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
def _noting(mistakes: list[str], source: Source) -> Iterator[None]:
    """Turn what goes wrong with a source into a line, and go on with the next; without network or disk, end there."""
    try:
        yield
    except UserError as error:
        mistakes += error.lines
    except Exception as error:  # the library raises what its many layers raise
        line, fatal = explain(error, source)
        mistakes.append(line)
        if fatal:
            raise UserError(*dict.fromkeys(mistakes)) from None


def explain(error: Exception, source: Source) -> tuple[str, bool]:
    """One line on what went wrong and what to do, and whether it stops all other sources too."""
    import httpx2
    from huggingface_hub import constants, errors, get_token

    token, fatal = get_token(), False
    page = f"{constants.ENDPOINT}/{'datasets/' if source.get('kind') == 'dataset' else ''}{source.get('hub')}"
    while isinstance(error, errors.LocalEntryNotFoundError) and isinstance(
        error.__cause__, Exception
    ):
        error = error.__cause__
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    number = error.errno if isinstance(error, OSError) else None
    said = re.sub(r"\?[^\s']+", "", " ".join(f"{type(error).__name__}: {error}".split()))[:300]
    if isinstance(error, errors.GatedRepoError):
        who = "the token's account has no access" if token else "there is no token"
        text = f"is gated and {who}; accept the licence at {page} and set HF_TOKEN to a token of that account"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = (
            "or the token's account may not see it"
            if token
            else "or it is private, and there is no token (HF_TOKEN)"
        )
        text = (
            f"the hub has no such {source.get('kind') or 'model'}, {why}; see that {page} is right"
        )
    elif status == 401 and source.get("hub"):
        text = f"the hub doesn't accept the token; make one at {constants.ENDPOINT}/settings/tokens and set HF_TOKEN"
    elif status == 404:
        text = "there is nothing at this address; correct it"
    elif number in (errno.ENOSPC, errno.EDQUOT):
        text, fatal = (
            f"the disk is full ({error}); make room, or set HF_HOME to a folder on a larger disk",
            True,
        )
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        text, fatal = (
            f"can't be written ({error}); set HF_HOME or --runs to a folder of yours",
            True,
        )
    elif status is None and isinstance(error, (httpx2.TransportError, ConnectionError)):
        text, fatal = (
            f"no network ({said}); {NO_NETWORK}; what is here stays, and the same command goes on",
            True,
        )
    else:
        text = f"{said}; run the same command again, it goes on (HF_HUB_DISABLE_XET=1 helps where only HTTP works)"
    line = f"{label(source)}: {text}"
    return (line.replace(token, "***") if token else line), fatal


@contextmanager
def _bar(text: str, total: int) -> Iterator[type]:
    """A bar on a terminal, a line a minute elsewhere; yields what to give to huggingface_hub as tqdm's class.

    A signal to end ends the threads that download, too: left alone they would finish their files, of gigabytes, first.
    """
    from huggingface_hub.utils import tqdm
    from huggingface_hub.utils._xet import abort_xet_session
    from tqdm import tqdm as plain

    stop = threading.Event()

    class Counted(tqdm):
        """Shows nothing itself; counts bytes that are written, not those that came compressed over the network."""

        def __init__(self, *args: Any, **options: Any):
            self.counts = options.get("unit") == "B" and not str(options.get("name")).endswith(
                ".transfer"
            )
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

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    style: dict[str, Any] = {}
    if not sys.stderr.isatty():
        style = {
            "file": _Lines(),
            "mininterval": 60,
            "bar_format": "{desc}: {percentage:.0f}%, {rate_fmt}",
        }
    with plain(desc=text, total=total, unit="B", unit_scale=True, **style) as shown:
        for n in before:
            if before[n] is not signal.SIG_IGN:  # as nohup has it
                signal.signal(n, end)
        try:
            yield Counted
        finally:
            for n, handler in before.items():
                signal.signal(n, handler)


class _Lines:
    """A file that gets lines where tqdm draws over its own."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass
