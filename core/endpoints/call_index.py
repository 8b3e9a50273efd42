"""Where the answered calls of a runs folder are, and which call is being made by whom.

The file `calls.index` in the runs folder has a record for each line of each ledger. It is a cache:
what it lacks is read from the ledgers, and every answer is checked where it is read. The same file
carries the claims: a lock on the byte that a request's hash names, which the kernel drops when its
holder dies.
"""

import fcntl
import hashlib
import os
import random
import struct
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.endpoints.batch_ledger import parse_batch_request
from core.endpoints.ledger import LEDGER, LedgerEntry, parse_entry
from core.stages import CALLING_STAGES

FILE = "calls.index"
# key: `_key` of the answered request, `_batch_key` of a request in a batch; 0 for any other line.
# ledger: `_number` of the ledger. start and end: of the line, in bytes.
RECORD = np.dtype([("key", "<u8"), ("ledger", "<u8"), ("start", "<u8"), ("end", "<u8")])
CLAIM_BYTES = 2**62  # a claim locks one of these bytes of the file, an append the one behind them
SORTED_FROM = 10_000  # as many new records or more are sorted in, fewer are kept in a dict
APPEND_TRIES = 100  # of 0.05 s on average
Records = npt.NDArray[Any]


class CallIndex:
    """The answered calls in the ledgers of all studies of a runs folder.

    For use by one process, in any of its threads, between `open` and `close`. A disk that refuses
    the file or its locks costs the claims, not the calls.

    Args:
        runs: The runs folder; its ledgers are STUDY/STAGE/CELL/calls.jsonl.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._mutex = threading.Lock()
        self._file: int | None = None

    def open(self) -> None:
        """Read the index, and what the ledgers hold beyond it."""
        with suppress(OSError):
            self._file = os.open(self._runs / FILE, os.O_RDWR | os.O_CREAT, 0o666)
        self._position = 0  # how far the file has been read
        self._claimed: set[int] = set()
        self._sorted = np.empty(0, RECORD)  # by key
        self._keys = np.empty(0, "<u8")  # of these, as searchsorted needs them
        self._unwritten = np.empty(0, RECORD)  # what could not be appended to the file yet
        self._recent: dict[int, list[tuple[int, int]]] = {}  # key -> (ledger, start)
        self._indexed: dict[int, int] = {}  # ledger -> bytes that are in the index
        self._paths: dict[int, Path] = {}
        self._numbers: dict[Path, int] = {}
        self._unknown: set[int] = set()  # ledgers that are not there any more
        with self._mutex:
            self._refresh()
            self._find_ledgers()
            self._keep([self._unindexed(path) for path in self._paths.values()])

    def close(self) -> None:
        """Give up all claims."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def extend(self, ledger: Path) -> None:
        """Add the lines that were appended to a ledger."""
        with self._mutex:
            self._keep([self._unindexed(ledger)])

    def find(self, request_sha256: str) -> LedgerEntry | None:
        """The answer to a request in a ledger of the runs folder, and where it was first paid."""
        key = _key(request_sha256)
        with self._mutex:
            for number, start in self._places(key):
                path = self._path(number)
                entry = _read_entry(path, start) if path else None
                if path and entry and entry.request_sha256 == request_sha256:
                    origin = path.relative_to(self._runs).as_posix()
                    return replace(entry, copied_from=entry.copied_from or origin)
        return None

    def find_batched(self, request_sha256: str) -> list[Path]:
        """The ledgers that have put a request into a batch, whatever came of it."""
        with self._mutex:
            numbers = dict.fromkeys(n for n, _ in self._places(_batch_key(request_sha256)))
            return [path for path in map(self._path, numbers) if path]

    def claim(self, request_sha256: str) -> bool:
        """Claim a request, so that no other process makes it before `release`.

        Answers that others have added to the index until then are known afterwards.

        Returns:
            Whether it is claimed: False while another caller, of this process too, has the claim.
        """
        key = _key(request_sha256)
        with self._mutex:
            if key in self._claimed or not self._lock(key % CLAIM_BYTES):
                return False
            self._claimed.add(key)
            self._refresh()
            return True

    def release(self, request_sha256: str) -> None:
        """Give up a claim."""
        key = _key(request_sha256)
        with self._mutex:
            self._claimed.discard(key)
            self._unlock(key % CLAIM_BYTES)

    def _places(self, key: int) -> list[tuple[int, int]]:
        """(ledger, start) of the lines that may answer a request."""
        first, last = (np.searchsorted(self._keys, np.uint64(key), s) for s in ("left", "right"))
        places = [(number, start) for _, number, start, _ in self._sorted[first:last].tolist()]
        return places + self._recent.get(key, [])

    def _path(self, number: int) -> Path | None:
        if number not in self._paths and number not in self._unknown:
            self._find_ledgers()  # another job has begun one since
            if number not in self._paths:
                self._unknown.add(number)
        return self._paths.get(number)

    def _find_ledgers(self) -> None:
        for stage in CALLING_STAGES:
            for path in self._runs.glob(f"*/{stage}/*/{LEDGER}"):
                self._number(path)

    def _number(self, path: Path) -> int | None:
        """A ledger's number, by its path and its first line: a ledger begun anew is another."""
        if path not in self._numbers:
            try:
                with open(path, "rb") as file:
                    line = file.readline()
            except OSError:
                return None
            if not line.endswith(b"\n"):
                return None
            name = path.relative_to(self._runs).as_posix().encode()
            number = int.from_bytes(hashlib.sha256(name + b"\n" + line).digest()[:8])
            self._numbers[path] = number
            self._paths[number] = path
        return self._numbers[path]

    def _unindexed(self, path: Path) -> Records:
        """A record for each line of a ledger that the index lacks."""
        number = self._number(path)
        rows = []
        with suppress(OSError):
            start = self._indexed.get(number or 0, 0)
            if number is None or path.stat().st_size <= start:
                return np.empty(0, RECORD)
            with open(path, "rb") as file:
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # it is being written, or a kill left it
                    rows.append((_line_key(line), number, start, start + len(line)))
                    start += len(line)
        return np.array(rows, RECORD)

    def _keep(self, parts: list[Records]) -> None:
        """Append records to the file, and know them."""
        records = np.concatenate(parts) if parts else np.empty(0, RECORD)
        if not len(records):
            return
        # A ledger's records are written in its order: those behind a gap would hide it.
        self._unwritten = np.concatenate([self._unwritten, records])
        if self._append(self._unwritten.tobytes()):
            self._unwritten = self._unwritten[:0]
            self._refresh()
        else:
            self._add(records)

    def _append(self, content: bytes) -> bool:
        if self._file is None:
            return False
        for _ in range(APPEND_TRIES):
            if self._lock(CLAIM_BYTES):
                break
            time.sleep(random.uniform(0, 0.1))
        else:
            return False  # its holder was stopped; the next append has these records too
        try:
            size = os.fstat(self._file).st_size
            length = size - size % RECORD.itemsize  # a kill may have left a part of a record
            written = os.pwrite(self._file, content, length)
        except OSError:
            return False
        finally:
            self._unlock(CLAIM_BYTES)
        return written == len(content)

    def _refresh(self) -> None:
        """Read the records that were added to the file."""
        if self._file is None:
            return
        parts = []
        with suppress(OSError):
            while content := os.pread(self._file, 2**26, self._position):
                length = len(content) - len(content) % RECORD.itemsize
                if not length:
                    break
                parts.append(np.frombuffer(content[:length], RECORD))
                self._position += length
        if parts:
            self._add(np.concatenate(parts))

    def _add(self, records: Records) -> None:
        numbers, groups = np.unique(records["ledger"], return_inverse=True)
        ends = np.zeros(len(numbers), "<u8")
        np.maximum.at(ends, groups, records["end"])
        for number, end in zip(numbers.tolist(), ends.tolist(), strict=True):
            self._indexed[number] = max(end, self._indexed.get(number, 0))
        answers = records[records["key"] != 0]
        if len(answers) >= SORTED_FROM:
            both = np.concatenate([self._sorted, answers])
            self._sorted = both[np.argsort(both["key"], kind="stable")]
            self._keys = np.ascontiguousarray(self._sorted["key"])
            return
        for key, number, start, _ in answers.tolist():
            self._recent.setdefault(key, []).append((number, start))

    def _lock(self, byte: int) -> bool:
        """Lock a byte of the file. True also where the disk has no such locks."""
        if self._file is None:
            return True
        try:
            self._fcntl(fcntl.F_WRLCK, byte)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: another has it
            return False
        except OSError:
            return True
        return True

    def _unlock(self, byte: int) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._fcntl(fcntl.F_UNLCK, byte)

    def _fcntl(self, kind: int, byte: int) -> None:
        assert self._file is not None
        # struct flock of 64-bit Linux: type, whence, start, length, pid (0 for these locks, which
        # belong to the open file and not to the process)
        lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, lock)


def _key(request_sha256: str) -> int:
    return int.from_bytes(hashlib.sha256(request_sha256.encode()).digest()[:8])


def _batch_key(request_sha256: str) -> int:
    return _key(f"batch {request_sha256}")


def _line_key(line: bytes) -> int:
    """The key of a line with an answer, or with a request of a batch; 0 of any other line."""
    if entry := parse_entry(line):
        return _key(entry.request_sha256)
    batched = parse_batch_request(line)
    return _batch_key(batched) if batched else 0


def _read_entry(path: Path, start: int) -> LedgerEntry | None:
    with suppress(OSError), open(path, "rb") as file:
        file.seek(start)
        return parse_entry(file.readline())
    return None
