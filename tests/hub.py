"""A small Hugging Face hub over real HTTP on the loopback interface: what huggingface_hub 2.4.0
asks of the real one, to download and (with HF_HUB_DISABLE_XET=1) to upload.

with Hub() as hub:
    revision = hub.add("model", "owner/name", {"config.json": b"{}"})
    ... HF_ENDPOINT=hub.url ...
    hub.requests   # [("GET", "/api/models/owner/name/revision/..."), ...]
"""

import base64
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_aGoodTokenThatMustNotBeShown"  # the only one that the hub accepts
PAGE = 3  # files of a tree in one reply
Headers = dict[str, str]


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # oldest first
    # Gated: the files only with a token whose account may; private: all of it; refused: never.
    access: str = "open"
    sizes: dict[str, int] = field(default_factory=dict)  # what the tree claims instead of the truth


class Hub:
    def __init__(self, home: Path) -> None:
        self.home = home  # where its users keep what they have from it
        self.repos: dict[tuple[str, str], Repo] = {}
        self.plain: dict[str, bytes] = {}  # files at /plain/NAME, outside of any repository
        self.large: dict[str, bytes] = {}  # contents by their sha256
        self.requests: list[tuple[str, str]] = []
        self.authorized: list[str] = []  # paths that were asked for with a token
        self.stored: list[str] = []  # sha256 of large files that were sent, in their order
        self.refuses_writes = False  # the token's account may not write
        self.fails_commits: set[str] = set()  # repositories whose commits are answered with 500
        self.ranges: list[str] = []
        self.cut: dict[str, int] = {}  # file name: bytes after which its next transfer breaks off
        self.refuse_ranges = False
        self.hold: dict[
            str, threading.Event
        ] = {}  # file name: its transfers stop halfway until the event
        self.holding = threading.Event()
        self.damage: set[str] = set()  # files whose content arrives changed
        self.down: set[str] = set()  # first words of paths that are answered with 503 ...
        # ... once so many small files were asked for: a client gives up what it has not begun then.
        self.after = 0
        outer = self

        class Handler(_Handler):
            hub = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        for event in self.hold.values():
            event.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, kind: str, name: str, files: dict[str, bytes], access: str = "open") -> str:
        """A new commit of a repository, which becomes its newest. Returns its 40 hex."""
        repo = self.repos.setdefault((kind, name), Repo(access=access))
        text = repr((kind, name, len(repo.commits), sorted(files.items())))
        commit = hashlib.sha1(text.encode()).hexdigest()
        repo.commits[commit] = files
        self.large |= {
            hashlib.sha256(content).hexdigest(): content
            for n, content in files.items()
            if is_large(n)
        }
        return commit

    def files_asked(self) -> list[str]:
        """Paths of all requests for files, but not of those for lists of files."""
        return [path for _, path in self.requests if not path.startswith("/api/")]

    def small_asked(self) -> int:
        """How many small files of repositories were asked for, each but once."""
        files = {path for method, path in self.requests if method == "GET" and "/resolve/" in path}
        return sum(not is_large(path) for path in files)


def is_large(name: str) -> bool:
    """Whether the hub keeps a file by its sha256 (LFS), and sends it from elsewhere."""
    return name.endswith((".safetensors", ".parquet", ".pth", ".bin"))


def oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.hub.requests.append((self.command, self.path))
        token = self.headers.get("Authorization")
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if token:
            self.hub.authorized.append(self.path)
        if parts[0] in self.hub.down:
            while self.command == "GET" and self.hub.small_asked() < self.hub.after:
                time.sleep(0.01)
            return self._send(503)
        if token and token != f"Bearer {TOKEN}" and parts[0] not in ("elsewhere", "plain"):
            return self._send(
                401, {"X-Error-Message": "Invalid credentials in Authorization header"}
            )
        if parts[0] == "plain":
            content = self.hub.plain.get(parts[1])
            return self._send(404) if content is None else self._file(parts[1], content)
        if parts[0] == "elsewhere":
            return self._file(parts[2], self.hub.large[parts[1]])
        if parts[0] == "api" and parts[1] in ("models", "datasets") and len(parts) >= 4:
            return self._about(parts[1].rstrip("s"), "/".join(parts[2:4]), parts[4:], bool(token))
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[kind == "dataset" :]
        if len(parts) < 5 or parts[2] != "resolve":
            return self._send(404)
        return self._resolve(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]), bool(token))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.hub.requests.append((self.command, self.path))
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"X-Error-Message": "Invalid username or password."})
        if self.hub.refuses_writes:
            return self._send(403, {"X-Error-Message": "Forbidden: you must have write access."})
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if self.path == "/api/repos/create":
            return self._create(json.loads(content))
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if parts[-3:] == ["lfs", "objects", "batch"]:
            return self._batch(json.loads(content))
        kind, name, action = parts[1].rstrip("s"), "/".join(parts[2:4]), parts[4]
        if (kind, name) not in self.hub.repos:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        if action == "preupload":
            return self._preupload(kind, name, json.loads(content))
        return self._commit(kind, name, [json.loads(line) for line in content.splitlines()])

    def do_PUT(self) -> None:
        """A large file; its address is signed, and takes no token."""
        self.hub.requests.append((self.command, self.path))
        content = self.rfile.read(int(self.headers["Content-Length"]))
        digest = hashlib.sha256(content).hexdigest()
        assert self.path.split("/")[2].startswith(digest) and "Authorization" not in self.headers
        self.hub.large[digest] = content
        self.hub.stored.append(digest)
        self._send(200)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        kind = asked.get("type", "model")
        if (kind, name) in self.hub.repos:
            return self._json({"url": f"{self.hub.url}/{name}"}, status=409)
        is_private = asked.get("visibility") == "private"
        self.hub.add(kind, name, {".gitattributes": b""}, "private" if is_private else "open")
        prefix = "datasets/" if kind == "dataset" else ""
        self._json({"url": f"{self.hub.url}/{prefix}{name}", "id": name})

    def _preupload(self, kind: str, name: str, asked: dict[str, Any]) -> None:
        _, files = list(self.hub.repos[kind, name].commits.items())[-1]
        rows = []
        for row in asked["files"]:
            there = files.get(row["path"])
            rows.append(
                {
                    "path": row["path"],
                    "uploadMode": "lfs" if is_large(row["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": None if there is None else oid(there),
                }
            )
        self._json({"files": rows})

    def _batch(self, asked: dict[str, Any]) -> None:
        rows = []
        for row in asked["objects"]:
            address = f"{self.hub.url}/put/{row['oid']}?signed=x"
            there = row["oid"] in self.hub.large
            rows.append(row if there else row | {"actions": {"upload": {"href": address}}})
        self._json({"transfer": "basic", "objects": rows})

    def _commit(self, kind: str, name: str, lines: list[dict[str, Any]]) -> None:
        if name in self.hub.fails_commits:
            return self._send(500)
        _, files = list(self.hub.repos[kind, name].commits.items())[-1]
        files = dict(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert line["key"] == "header" and value["summary"]
        commit = self.hub.add(kind, name, files)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _repo(self, kind: str, name: str, token: bool) -> Repo | None:
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.access == "private" and not token):
            self._send(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def _files(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]] | None:
        newest = list(repo.commits)[-1]
        commit = newest if revision == "main" else revision
        if commit not in repo.commits:
            self._send(
                404,
                {
                    "X-Error-Code": "RevisionNotFound",
                    "X-Error-Message": f"Invalid rev id: {revision}",
                },
            )
            return None
        return commit, repo.commits[commit]

    def _about(self, kind: str, name: str, rest: list[str], token: bool) -> None:
        if (repo := self._repo(kind, name, token)) is None:
            return
        if (found := self._files(repo, rest[1] if rest else "main")) is None:
            return
        commit, files = found
        if not rest or rest[0] == "revision":
            return self._json(
                {"id": name, "sha": commit, "private": False, "tags": [], "siblings": []}
            )
        rows = [self._row(path, content, repo) for path, content in sorted(files.items())]
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        query = f"recursive=True&expand=False&cursor={start + PAGE}"
        following = {"Link": f'<{self.hub.url}{urlsplit(self.path).path}?{query}>; rel="next"'}
        self._json(rows[start : start + PAGE], following if start + PAGE < len(rows) else {})

    def _row(self, path: str, content: bytes, repo: Repo) -> dict[str, Any]:
        size = repo.sizes.get(path, len(content))
        row: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": oid(content)}
        if is_large(path):
            row["lfs"] = {
                "oid": hashlib.sha256(content).hexdigest(),
                "size": size,
                "pointerSize": 134,
            }
        return row

    def _resolve(self, kind: str, name: str, revision: str, path: str, token: bool) -> None:
        if (repo := self._repo(kind, name, token)) is None:
            return
        if repo.access == "refused" or (repo.access == "gated" and not token):
            return self._send(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        if (found := self._files(repo, revision)) is None:
            return
        commit, files = found
        if path not in files:
            return self._send(404, {"X-Error-Code": "EntryNotFound"})
        about = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(files[path]))}
        if is_large(path):
            digest = hashlib.sha256(files[path]).hexdigest()
            place = f"http://localhost:{urlsplit(self.hub.url).port}/elsewhere/{digest}/{path.split('/')[-1]}?signed=x"
            self._send(302, about | {"X-Linked-Etag": f'"{digest}"', "Location": place})
        else:
            self._file(path.split("/")[-1], files[path], about | {"ETag": f'"{oid(files[path])}"'})

    def _file(self, name: str, content: bytes, headers: Headers | None = None) -> None:
        status, start = 200, 0
        content = bytes(len(content)) if name in self.hub.damage else content
        if (wanted := self.headers.get("Range")) and not self.hub.refuse_ranges:
            self.hub.ranges.append(wanted)
            status, start = 206, int(wanted.removeprefix("bytes=").rstrip("-"))
        body = content[start:]
        extra = (
            {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        )
        self._start(status, {"Content-Length": str(len(body)), **extra, **(headers or {})})
        if self.command == "HEAD":
            return
        if (after := self.hub.cut.pop(name, None)) is not None:
            self.wfile.write(body[:after])
            self.close_connection = True
            return
        if name in self.hub.hold:
            self.wfile.write(body[: len(body) // 2])
            self.hub.holding.set()
            while not self.hub.hold[name].wait(
                0.2
            ):  # slowly, so that the reader notices a wish to end
                self.wfile.write(b"")
            body = body[len(body) // 2 :]
        self.wfile.write(body)

    def _json(self, value: Any, headers: Headers | None = None, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self._start(
            status,
            {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **(headers or {}),
            },
        )
        self.wfile.write(body)

    def _send(self, status: int, headers: Headers | None = None) -> None:
        self._start(status, {"Content-Length": "0", **(headers or {})})

    def _start(self, status: int, headers: Headers) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
