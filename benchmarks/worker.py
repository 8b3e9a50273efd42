"""A process that runs calls one after another. A call that fails or takes too long ends it alone.

Importing torch and vLLM and opening a GPU take some 20 s, which calls in one process pay once.
"""

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_SPAWN = multiprocessing.get_context("spawn")
_environment = threading.Lock()
END_SECONDS = 10  # for a process to end by itself


class CallFailed(Exception):
    """Why a call has no result, in a line."""


class Worker:
    """The process, started at the first call and after each that failed. To be used with `with`."""

    def __init__(self, log: Path, environment: dict[str, str] | None = None) -> None:
        """`log`: what the process prints is appended to it. `environment`: changes of ours."""
        self.log = log
        self.environment = environment or {}
        self.process: BaseProcess | None = None
        self.pipe: Connection | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, limit: float | None) -> Any:
        """The result of `function(*arguments)` there.

        limit: seconds after which the process is killed. Raises CallFailed.
        """
        if self.pipe is None:
            self._start()
        assert self.pipe and self.process
        began = time.monotonic()
        self.pipe.send((function, arguments))
        try:
            if not self.pipe.poll(limit):
                self.process.kill()
                self.close()
                raise CallFailed(f"not done in {limit:.0f} s")
            result, reason = self.pipe.recv()
        except EOFError:
            self.process.join(END_SECONDS)
            seconds = time.monotonic() - began
            reason = f"its process ended (exit {self.process.exitcode}) after {seconds:.0f} s"
        if reason:  # what it has done to the GPU must not reach the next call
            self.close()
            raise CallFailed(reason)
        return result

    def close(self) -> None:
        """End the process; the next call starts another."""
        if self.process and self.pipe:
            self.pipe.close()
            self.process.join(END_SECONDS)
            self.process.kill()
            self.process.join()
        self.process = self.pipe = None

    def last_lines(self, count: int = 40) -> list[str]:
        """What the process has printed last."""
        return self.log.read_text(errors="replace").splitlines()[-count:]

    def _start(self) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(theirs, str(self.log)))
        with _environment:  # of the process, before it imports anything
            before = {name: os.environ.get(name) for name in self.environment}
            os.environ |= self.environment
            self.process.start()
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection, log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        except Exception as error:  # of an import
            pipe.send((None, _described(error)))
            continue
        try:
            answer = (function(*arguments), "")
        except BaseException as error:  # a library may end the process
            answer = (None, _described(error))
        pipe.send(answer)


def _described(error: BaseException) -> str:
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
