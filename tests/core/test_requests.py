"""Requests and their file, with an engine that only counts."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.cell.context import StageContext
from core.cell.manifest import REQUESTS
from core.inference import requests
from core.inference.requests import Request, ResultFile, open_results, run_requests

ENGINE = {"device": "H100"}


class Engine:
    """Answers the last request first, one a step."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.asked: list[str] = []
        self.most = 0

    def add_request(self, request_id: str, prompt: dict[str, list[int]], parameters: str) -> None:
        self.waiting.append(request_id)
        self.asked.append(parameters)
        self.most = max(self.most, len(self.waiting))

    def step(self) -> list[Any]:
        unfinished = SimpleNamespace(request_id=self.waiting[0], finished=False)
        answer = SimpleNamespace(token_ids=[3, 4, 5])
        ended = SimpleNamespace(request_id=self.waiting.pop(), finished=True, outputs=[answer])
        return [unfinished, ended]

    def abort_request(self, request_ids: list[str]) -> None:
        self.waiting = [key for key in self.waiting if key not in request_ids]


@pytest.fixture
def engine() -> Engine:
    return Engine()


def read(request: Request, output: Any) -> dict[str, Any]:
    return {"sum": sum(request.prompt), "of": request.parameters}


ASKED = [Request([number, 7], f"seed {number}") for number in range(5)]  # type: ignore[arg-type]
EXPECTED = [{"sum": 7 + number, "of": f"seed {number}"} for number in range(5)]


def run(
    engine: Engine,
    results: dict[str, Any],
    report: Callable[[int], Any] = str,
    asked: list[Request] = ASKED,
) -> list[dict[str, Any]]:
    lm = SimpleNamespace(model=SimpleNamespace(llm_engine=engine))
    return run_requests(lm, asked, results, read, report)


def test_results_are_in_order_and_equal_requests_are_computed_once(engine: Engine) -> None:
    told: list[int] = []
    assert run(engine, {}, told.append, [*ASKED, ASKED[0]]) == [*EXPECTED, EXPECTED[0]]
    assert engine.asked == [request.parameters for request in ASKED]
    assert told == [1, 2, 3, 4, 5, 6]


def test_the_engine_gets_the_next_request_when_one_ends(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MAX_IN_ENGINE", 3)
    in_engine: list[int] = []
    run(engine, {}, lambda number: in_engine.append(len(engine.waiting)))
    assert engine.most == 3 and in_engine == [0, 2, 2, 2, 1, 0], "no barrier between batches"


def test_a_key_tells_requests_apart() -> None:
    keys = {
        Request(prompt, parameters, context).key  # type: ignore[arg-type]
        for prompt in ([1, 2], [12])
        for parameters in ("seed=1", "seed=2")
        for context in (0, 1)
    }
    assert len(keys) == 8


def test_what_was_answered_before_a_kill_is_not_asked_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "WRITE_SECONDS", 0)
    killed = ResultFile(tmp_path, "a checkpoint", ENGINE)

    def kill(number: int) -> None:
        if number == 2:
            raise SystemExit

    with pytest.raises(SystemExit):
        run(engine, killed, kill)
    with open(tmp_path / REQUESTS, "a") as file:  # no `with` block of its own has ended
        file.write('{"request": "damaged", "res\n{"request": "cut off", "result"')
    second = Engine()
    told: list[int] = []
    with ResultFile(tmp_path, "a checkpoint", ENGINE) as results:
        assert len(results) == 2 and run(second, results, told.append) == EXPECTED
    assert len(second.asked) == 3 and told == [2, 3, 4, 5]
    assert (results.work["read"], results.work["written"]) == (3 * 2, 3 * 3), "of this run alone"
    assert results.work["seconds"] > 0
    with ResultFile(tmp_path, "a checkpoint", ENGINE) as results:
        assert len(results) == 5 and results.engines == [ENGINE]
    assert "cut off" not in (tmp_path / REQUESTS).read_text(), "the next line stands alone"


def test_results_are_written_at_an_exception_and_the_engine_is_left_empty(
    engine: Engine, tmp_path: Path
) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        ResultFile(tmp_path, "a checkpoint", ENGINE) as results,
    ):
        run(engine, results, lambda number: 1 // (2 - number))
    assert not engine.waiting, "the next cell uses the same engine"
    assert len(ResultFile(tmp_path, "a checkpoint", ENGINE)) == 2


def test_results_are_not_written_one_by_one(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[bytes] = []
    monkeypatch.setattr(requests, "append", lambda file, lines: writes.append(lines))
    with ResultFile(tmp_path, "a checkpoint", ENGINE) as results:
        run(engine, results)
    assert [lines.count(b"\n") for lines in writes] == [1, 5]


def test_results_of_another_checkpoint_or_version_are_dropped(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "cell").mkdir()
    manifest = tmp_path / "checkpoint/manifest.json"
    manifest.write_text("{}")
    monkeypatch.setattr(requests.vllm_engine, "describe", lambda lm: {"device": lm})

    def opened(device: str) -> tuple[int, StageContext]:
        context = StageContext(
            tmp_path / "cell", "a", {}, {}, {"checkpoint": tmp_path / "checkpoint"}
        )
        with open_results(context, device) as results:
            number = len(results)
            run(Engine(), results)
        return number, context

    assert opened("H100")[0] == 0
    number, context = opened("H100")
    assert number == 5 and not context.warnings and set(context.facts) == {"engine", "work"}
    number, context = opened("A100")
    assert number == 5 and context.facts["engine"] == {"device": "A100"}
    assert context.facts["earlier_engines"] == [{"device": "H100"}]
    assert context.warnings == ["a part of the results was computed on H100, before a restart"]
    manifest.write_text('{"made": "anew"}')
    assert opened("A100")[0] == 0
    assert opened("A100")[0] == 5
    monkeypatch.setattr(requests, "installed", lambda package: "another version")
    assert opened("A100")[0] == 0
    lines = (tmp_path / "cell" / REQUESTS).read_text().splitlines()
    assert len(lines) == 6 and "made_from" in json.loads(lines[0])
