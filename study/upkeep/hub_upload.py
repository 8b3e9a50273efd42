"""Upload cards, weights and corpora to the Hugging Face Hub by huggingface_hub.

What is there already with the same content is not sent again, and nothing is deleted there. The
token is HF_TOKEN of the environment alone; no output shows it.
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.cell.hash_cache import remembered_sha256
from core.errors import Problem, UserError
from study.upkeep.card_cells import FinishedCell
from study.upkeep.card_facts import HUB
from study.upkeep.dataset_card import FOLDER

TOKEN = "HF_TOKEN"
MODEL = "model"  # of a checkpoint: its Hugging Face folder


@dataclass(frozen=True)
class Repository:
    """What goes into one repository."""

    name: str
    kind: str  # model or dataset
    cell: FinishedCell
    files: dict[str, Path]
    """Path there -> file here: the card's files, and the cell's."""


def repository(cell: FinishedCell, name: str, card: Path) -> Repository:
    """The repository of a cell. `card`: the folder of its card."""
    is_corpus = cell.stage == "documents"
    folder = cell.folder / (FOLDER if is_corpus else MODEL)
    parent = cell.folder if is_corpus else folder
    payload = {
        str(file.relative_to(parent)): file for file in sorted(folder.rglob("*")) if file.is_file()
    }
    written = {
        str(file.relative_to(card)): file for file in sorted(card.rglob("*")) if file.is_file()
    }
    return Repository(name, "dataset" if is_corpus else "model", cell, payload | written)


def problems(repositories: Iterable[Repository]) -> list[Problem]:
    """Names that the Hub refuses, and files that are gone or differ from their cell's manifest."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    mistakes = []
    for row in repositories:
        label = f"{row.cell.stage} {row.cell.name}"
        try:
            validate_repo_id(row.name)
        except HFValidationError:
            fix = "names have at most 96 letters, digits, - _ and .; choose another --namespace"
            mistakes.append(Problem(label, f"the Hub takes no repository {row.name!r}", fix))
        folder = FOLDER if row.kind == "dataset" else MODEL
        outputs = _outputs(row.cell, folder)
        if not outputs:
            what, fix = "has no files to upload", "run the study again"
            mistakes.append(Problem(label, what, fix))
        for name, digest in outputs.items():
            file = row.cell.folder / name
            if not file.is_file():
                fix = "python -m study run with --yes makes pruned weights again, or --only"
                mistakes.append(Problem(str(file), "is gone", fix))
            elif remembered_sha256(file, row.cell.base) != digest:
                what = "has another content than when its cell finished"
                mistakes.append(Problem(str(file), what, "python -m study verify names the fix"))
    return mistakes


def _outputs(cell: FinishedCell, folder: str) -> dict[str, str]:
    """Name -> sha256 of a cell's files below a folder; of a dose of a longer run, that run's."""
    run = cell.inputs.get("run")
    inside = f"doses/{cell.settings['dose']}/{folder}/" if run else f"{folder}/"
    outputs = (run or cell).manifest["outputs"].items()
    return {
        f"{folder}/{name.removeprefix(inside)}": output["sha256"]
        for name, output in outputs
        if name.startswith(inside)
    }


def listing(repositories: Iterable[Repository], is_public: bool) -> list[dict[str, Any]]:
    """A row for each file: repository, kind, visibility, file, bytes."""
    return [
        {
            "repository": row.name,
            "kind": row.kind,
            "visibility": "public" if is_public else "private",
            "file": name,
            "bytes": file.stat().st_size,
        }
        for row in repositories
        for name, file in sorted(row.files.items())
    ]


def token_of_environment() -> str:
    """HF_TOKEN. Raises UserError where it is not set."""
    if token := os.environ.get(TOKEN, "").strip():
        return token
    what = "is not set; the upload takes the token from it alone"
    fix = f"export {TOKEN}=... (one that may write, of {HUB}/settings/tokens)"
    raise UserError(where=TOKEN, what=what, fix=fix)


def upload(repositories: Iterable[Repository], token: str, is_public: bool) -> list[dict[str, Any]]:
    """Make the repositories and send what they lack, each in one commit.

    A repository that is there keeps its visibility.

    Returns:
        The rows of `listing`, each with `state`: sent, or there already.

    Raises:
        UserError: A problem for each repository that failed; the others were uploaded.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()  # its warnings show the signed addresses of files
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(token=token)
    rows: list[dict[str, Any]] = []
    mistakes: list[Problem] = []
    for row in repositories:
        try:
            sent = _send(api, row, is_public)
        except Exception as error:  # the library raises what its many layers raise
            mistakes.append(_explain(error, row, token))
            continue
        print(f"{row.name}: {len(sent)} of {len(row.files)} files sent", file=sys.stderr)
        rows += [
            entry | {"state": "sent" if entry["file"] in sent else "there already"}
            for entry in listing([row], is_public)
        ]
    if mistakes:
        raise UserError.of(mistakes)
    return rows


def _send(api: Any, row: Repository, is_public: bool) -> set[str]:
    """Send the files of a repository that it lacks; returns their names there."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        tree = list(api.list_repo_tree(row.name, repo_type=row.kind, recursive=True))
    except RepositoryNotFoundError:
        tree = []
        api.create_repo(row.name, repo_type=row.kind, private=not is_public, exist_ok=True)
    there = {file.path: file for file in tree if isinstance(file, RepoFile)}
    lacking = {
        name: file
        for name, file in row.files.items()
        if name not in there or not _is_equal(file, there[name], row.cell.base)
    }
    if lacking:
        api.create_commit(
            row.name,
            [CommitOperationAdd(name, file) for name, file in lacking.items()],
            repo_type=row.kind,
            commit_message=f"{row.cell.study}: {row.cell.name} ({row.cell.identity[:16]})",
        )
    return {*lacking}


def _is_equal(file: Path, there: Any, base: Path) -> bool:
    """Whether a file there has the content of the one here: by sha256 (LFS), else git's hash."""
    if file.stat().st_size != there.size:
        return False
    if there.lfs:
        return bool(remembered_sha256(file, base) == there.lfs.sha256)
    content = file.read_bytes()
    return bool(hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.blob_id)


def _explain(error: Exception, row: Repository, token: str) -> Problem:
    """What went wrong with a repository, without the token and the signatures of addresses."""
    import httpx2
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    cause: BaseException | None = error
    while cause and not isinstance(cause, (httpx2.TransportError, ConnectionError)):
        cause = cause.__cause__ or cause.__context__
    if status == 401:
        fix = f"make one at {constants.ENDPOINT}/settings/tokens that may write, and set {TOKEN}"
        return Problem(row.name, "the Hub doesn't accept the token", fix)
    if status == 403:
        fix = "give the token the right to write there, or choose another --namespace"
        return Problem(row.name, "the token's account may not write there", fix)
    if cause and status is None:
        fix = "run this where there is network; the same command sends what is lacking"
        return Problem(row.name, "no network", fix)
    message = " ".join(f"{type(error).__name__}: {error}".split())
    message = re.sub(r"\?[^\s']+", "", message).replace(token, "***")[:300]
    return Problem(row.name, message, "the same command sends what is lacking")
