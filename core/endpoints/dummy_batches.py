"""The batch interface of the dummy endpoint: `/files` and `/batches` of OpenAI's API.

Files and batches are in memory. A batch is answered by the dummy's rules after some looks at it.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

Body = dict[str, Any]


@dataclass
class DummyBatches:
    """The files and batches of one server.

    Attributes:
        answer: Gives the chat completion of a request's body.
        looks: At a batch until it is done.
        files: id -> content.
        batches: id -> what the server says of a batch.
    """

    answer: Callable[[Body], Body]
    looks: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, Body] = field(default_factory=dict)
    _looked: dict[str, int] = field(default_factory=dict)

    def upload(self, content: bytes) -> Body:
        """Keep a file."""
        file = f"file-{len(self.files) + 1}"
        self.files[file] = content
        return {"id": file, "object": "file", "purpose": "batch", "bytes": len(content)}

    def create(self, body: Body) -> Body:
        """Make a batch of a file."""
        batch = f"batch_{len(self.batches) + 1}"
        self._looked[batch] = 0
        self.batches[batch] = {
            "id": batch,
            "object": "batch",
            "endpoint": body["endpoint"],
            "completion_window": body["completion_window"],
            "input_file_id": body["input_file_id"],
            "metadata": body.get("metadata"),
            "status": "validating",
            "created_at": int(time.time()),
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
            "request_counts": {"total": len(self.requests(batch, body)), "completed": 0},
        }
        return self.batches[batch]

    def requests(self, batch: str, body: Body | None = None) -> list[Body]:
        """The lines of a batch's input file."""
        content = self.files[(body or self.batches[batch])["input_file_id"]]
        return [json.loads(line) for line in content.splitlines()]

    def retrieve(self, batch: str) -> Body:
        """What the server says of a batch, which may be done by now."""
        facts = self.batches[batch]
        if facts["status"] in ("validating", "in_progress"):
            if self._looked[batch] >= self.looks:
                self.finish(batch)
            else:
                self._looked[batch] += 1
                facts["status"] = "in_progress"
        return facts

    def finish(self, batch: str) -> None:
        """Answer the requests of a batch."""
        self.end(batch, "completed", [self.result(line) for line in self.requests(batch)])

    def result(self, line: Body, status: int = 200, body: Body | None = None) -> Body:
        """The result of one request."""
        response = {
            "status_code": status,
            "request_id": f"req-{line['custom_id']}",
            "body": body or self.answer(line["body"]),
        }
        return {
            "id": f"result-{line['custom_id']}",
            "custom_id": line["custom_id"],
            "response": response,
            "error": None,
        }

    def end(
        self, batch: str, status: str, results: list[Body], errors: list[Body] | None = None
    ) -> None:
        """End a batch. `results` and `errors`: the lines of its two files."""
        facts = self.batches[batch]
        facts |= {"status": status, "completed_at": int(time.time())}
        for key, lines in (("output_file_id", results), ("error_file_id", errors)):
            if lines:
                content = "".join(json.dumps(line) + "\n" for line in lines)
                facts[key] = self.upload(content.encode())["id"]
        facts["request_counts"] = {**facts["request_counts"], "completed": len(results)}

    def cancel(self, batch: str) -> Body:
        """End a batch that is not done, without answers."""
        if self.batches[batch]["status"] in ("validating", "in_progress"):
            self.end(batch, "cancelled", [])
        return self.batches[batch]

    def page(self, limit: int, after: str | None) -> Body:
        """A page of the batches, the latest first."""
        names = [*self.batches][::-1]
        start = names.index(after) + 1 if after else 0
        shown = names[start : start + limit]
        more = start + limit < len(names)
        return {"object": "list", "data": [self.batches[n] for n in shown], "has_more": more}

    def routes(self) -> "list[Route]":
        """The routes of the interface."""
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route

        def unknown(kind: str, name: str) -> "Response":
            return JSONResponse({"error": {"message": f"no such {kind}: {name}"}}, 404)

        async def upload(request: "Request") -> "Response":
            async with request.form() as form:
                content = await form["file"].read()  # type: ignore[union-attr]
            return JSONResponse(self.upload(content))

        async def content(request: "Request") -> "Response":
            file = request.path_params["file"]
            if file not in self.files:
                return unknown("file", file)
            return Response(self.files[file], media_type="application/jsonl")

        async def create(request: "Request") -> "Response":
            body = await request.json()
            if body["input_file_id"] not in self.files:
                return unknown("file", body["input_file_id"])
            return JSONResponse(self.create(body))

        async def batches(request: "Request") -> "Response":
            query = request.query_params
            return JSONResponse(self.page(int(query.get("limit", 20)), query.get("after")))

        async def batch(request: "Request") -> "Response":
            name = request.path_params["batch"]
            if name not in self.batches:
                return unknown("batch", name)
            return JSONResponse(self.retrieve(name))

        async def cancel(request: "Request") -> "Response":
            name = request.path_params["batch"]
            return (
                JSONResponse(self.cancel(name)) if name in self.batches else unknown("batch", name)
            )

        return [
            Route("/v1/files", upload, methods=["POST"]),
            Route("/v1/files/{file}/content", content, methods=["GET"]),
            Route("/v1/batches", create, methods=["POST"]),
            Route("/v1/batches", batches, methods=["GET"]),
            Route("/v1/batches/{batch}", batch, methods=["GET"]),
            Route("/v1/batches/{batch}/cancel", cancel, methods=["POST"]),
        ]
