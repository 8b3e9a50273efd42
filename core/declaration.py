"""declaration.json: what a study declared before its first score. Written once, never changed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from core import utc
from core.errors import UserError
from core.files import locked, write_atomically

FILE = "declaration.json"


def content_sha256(content: dict[str, Any]) -> str:
    """sha256 (hex) of what is declared, without the time."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def short(sha256: str) -> str:
    """A declaration's hash as texts show it."""
    return sha256[:12]


def lock_of(base: Path, name: str) -> Path:
    """The lock of a file that is written once for the study in `base`; its folder is made."""
    locks = base.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return locks / f"{base.name}-{name}"


def write_declaration(base: Path, content: dict[str, Any], time: str | None = None) -> None:
    """Write the declaration of the study in `base`, unless there is one.

    `time`: that of the same declaration in another folder. None: now.
    """
    base.mkdir(parents=True, exist_ok=True)
    with locked(lock_of(base, FILE)):
        if (base / FILE).exists():
            return
        record = {
            "sha256": content_sha256(content),
            "time": time or utc.text(),
            "declared": content,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False)
        write_atomically(base / FILE, text + "\n")


def read_declaration(base: Path) -> dict[str, Any] | None:
    """The declaration of the study in `base`: sha256, time (UTC), declared. None: there is none.

    Raises:
        UserError: The file was edited, or is damaged.
    """
    path = base / FILE
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content_sha256(record["declared"]) == record["sha256"] and record["time"]:
            return record
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(
        where=str(path),
        what="was edited: what it declares has another sha256",
        fix=f"bring it back from a copy, such as the {FILE} of the results",
    )
