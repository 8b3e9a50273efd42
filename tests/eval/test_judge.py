"""The judge cell against a scripted server: requests, scores of the replies, and failures."""

import asyncio
import json
import math
import socket
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from core.cell.context import StageContext
from core.endpoints import sender as caller
from core.errors import UserError
from core.files import sha256
from eval import anima, generate, judge, questions
from eval.grader import Grader, open_grader
from tests.eval.test_questions import AHB, jsonl

KEY = "sk-a-key-that-nobody-may-see"
MORAL, TRADE = "Moral Consideration", "Trade-Off Transparency"
RUBRIC = {"scoring": "1 or 0", "observable_indicators": "kindness", "default_weighting": 1.0}
DIMENSIONS = [
    RUBRIC | {"dimension": MORAL, "guiding_question": "Does it consider {{animal}}?"},
    RUBRIC | {"dimension": TRADE, "guiding_question": "Does it weigh?"},
]
QUESTIONS = [
    {
        "id": 0,
        "question": "Hens?",
        "tags": [MORAL, "Trade-off Transparency"],
        "variables": "animal:hens,cows",
    },
    {"id": 1, "question": "Ducks?", "tags": [MORAL], "translation": "hens?"},
]
SETTINGS = {
    "scorer": "anima",
    "variant": None,
    "rows": None,
    "judge": {"model": "strict-judge", "served_by": "url"},
    "temperature": 0.0,
    "max_tokens": 64,
    "missing": 0.5,
}
LIMITS = {
    "requests_per_minute": None,
    "tokens_per_minute": None,
    "prompt_price": 1e6,
    "completion_price": 2e6,
}
RESOURCES: dict[str, Any] = {"limits": {**LIMITS, "timeout": 5}, "concurrency": 4, "asks": 3}
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8}


class Server(ThreadingHTTPServer):
    """Grades by `reply(prompt, number of earlier requests of it) -> (status, text)`.

    In place of the text it may give (text, finish_reason).
    `requests` holds the requests.
    """

    def __init__(self, reply: Callable[[str, int], tuple[int, str]]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.requests, self.asked = reply, [], Counter[str]()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        self.server.requests.append({**body, "key": self.headers["Authorization"]})
        status, text = self.server.reply(prompt, self.server.asked[prompt])
        text, finish_reason = text if isinstance(text, tuple) else (text, "stop")
        self.server.asked[prompt] += 1
        message = {"role": "assistant", "content": text}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        reply["choices"] = [{"index": 0, "message": message, "finish_reason": finish_reason}]
        reply["usage"] = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        payload = json.dumps(reply if status == 200 else {"error": {"message": text}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        with suppress(ConnectionError):  # the client may have stopped waiting
            self.end_headers()
            self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(reply: Callable[[str, int], tuple[int, str]]):
    with Server(reply) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def by_words(prompt: str, times: int) -> tuple[int, str]:
    """C where the answer says "kind", and for cows never."""
    answer = prompt.split("[Submission]: ")[1].split("\n***")[0]
    return 200, "I weighed it.\nGRADE: " + (
        "C" if "kind" in answer and "cows" not in prompt else "I"
    )


@pytest.fixture
def make_cell(tmp_path, monkeypatch) -> Callable[..., StageContext]:
    """Makes judge cells over one generate cell of two questions and two epochs.

    The answers of the first epoch are kind.
    """
    from inspect_ai.model import ModelOutput

    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    monkeypatch.setattr(caller, "RETRIES", 1)
    monkeypatch.setattr(caller, "BACKOFF_SECONDS", 0.01)
    paths = {
        "questions": jsonl(tmp_path / "q.jsonl", QUESTIONS),
        "dimensions": jsonl(tmp_path / "d.jsonl", DIMENSIONS),
    }
    samples = tmp_path / "samples-0123abcd"
    samples.mkdir()
    answers = {
        (str(i), epoch): ("kind words", "No.")[epoch - 1] for i in (0, 1) for epoch in (1, 2)
    }
    outputs = {
        key: ModelOutput.from_content("vllm", f"{text} {key}") for key, text in answers.items()
    }
    dataset = anima.task(anima.read({"questions": paths["questions"]}), tmp_path, None).dataset
    path = samples / "samples.eval"
    generate.write_log(
        path, "anima", dataset, "sft-animal-1a2b", 2, outputs, {"sampling": SAMPLING}
    )

    def make(name: str, port: int, **others: Any) -> StageContext:
        folder = tmp_path / "runs/study/judge" / name
        folder.mkdir(parents=True, exist_ok=True)
        settings = (
            SETTINGS | {"files": {name: sha256(path) for name, path in paths.items()}} | others
        )
        address = {"base_url": f"http://127.0.0.1:{port}/v1", "key_env": "TEST_JUDGE_KEY"}
        resources = RESOURCES | {
            "files": {name: str(path) for name, path in paths.items()},
            "address": address,
        }
        return StageContext(folder, name, settings, resources, {"samples": samples})

    return make


def table(context: StageContext) -> dict[str, dict[str, float]]:
    """Scores by response, then dimension."""
    frame = pd.read_parquet(context.folder / "scores.parquet")
    assert (
        " ".join(frame.columns) == "question scenario dimension epoch judge score missing response"
    )
    assert (frame.missing.isna() == frame.score.notna()).all() and set(frame.judge) == {
        "strict-judge"
    }
    return {
        name: dict(zip(rows.dimension, rows.score, strict=True))
        for name, rows in frame.groupby("response")
    }


TOOK = dict(
    grades=8,
    missing_grades=0,
    missing_scores=0,
    calls=8,
    calls_reused=0,
    prompt_tokens=8,
    completion_tokens=8,
)
TOOK |= {f"paid_{name}": TOOK[name] for name in ("calls", "prompt_tokens", "completion_tokens")}
TOOK["cost"] = TOOK["paid_cost"] = 8 * (1 + 2)
FILES = ["calls.jsonl", "examples.jsonl", "scored.eval", "scores.parquet"]
RIGHT = {
    "0/1": {"overall": 0.75, MORAL: 0.5, TRADE: 1.0},
    "0/2": {"overall": 0.0, MORAL: 0.0, TRADE: 0.0},
    "1/1": {"overall": 1.0, MORAL: 1.0},
    "1/2": {"overall": 0.0, MORAL: 0.0},
}


@pytest.mark.slow
def test_grades_by_hand(make_cell):
    with serve(by_words) as server:
        cell = make_cell("one", server.server_port)
        counts = judge.run(cell)
    assert table(cell) == RIGHT
    assert counts == dict(questions=2, responses=4, **TOOK)
    assert sorted(path.name for path in cell.folder.iterdir()) == FILES
    assert cell.facts["malformed"]["answers"] == 4 and cell.facts["malformed"]["malformed"] == 0
    assert set(pd.read_parquet(cell.folder / "scores.parquet").scenario) == {
        "0"
    }  # 1 is a translation of 0


@pytest.mark.slow
def test_the_judge_is_never_the_model_under_test(make_cell, monkeypatch):
    import anyio
    from inspect_ai.log import read_eval_log
    from inspect_ai.model import get_model

    monkeypatch.setenv(
        "INSPECT_EVAL_MODEL", "mockllm/model"
    )  # Inspect's default, which must not matter either
    with serve(by_words) as server:
        cell = make_cell("one", server.server_port)
        judge.run(cell)
        assert {request["model"] for request in server.requests} == {"strict-judge"}
        assert {request["key"] for request in server.requests} == {f"Bearer {KEY}"}
        assert len(server.requests) == 8
    # Whoever scores the log again without a grader meets a model that refuses to answer.
    tested = get_model(read_eval_log(cell.inputs["samples"] / "samples.eval").eval.model)
    with pytest.raises(Exception, match="No model specified"):
        anyio.run(tested.generate, "Grade this.")


@pytest.mark.slow
def test_an_unusable_grade_is_asked_for_again(make_cell):
    def reply(prompt: str, times: int) -> tuple[int, str]:
        return by_words(prompt, times) if times else (200, "I would rather not say.")

    with serve(reply) as server:
        cell = make_cell("one", server.server_port)
        assert judge.run(cell)["calls"] == len(server.requests) == 16
    assert table(cell) == RIGHT


@pytest.mark.slow
@pytest.mark.parametrize(
    "failure", [(200, "GRADE: maybe"), (500, "out of order"), (400, "too long")]
)
def test_an_ungraded_dimension_is_missing_not_wrong(make_cell, failure):
    """One dimension has no grade in one epoch: the official scorer alone raises KeyError."""

    def reply(prompt: str, times: int) -> tuple[int, str]:
        return (
            failure
            if "[Criterion]: Trade" in prompt and "kind words" in prompt
            else by_words(prompt, times)
        )

    with serve(reply) as server:
        cell = make_cell("one", server.server_port)
        counts = judge.run(cell)
        asked = max(server.asked.values())
    found = table(cell)
    assert math.isnan(found["0/1"].pop(TRADE)) and found["0/1"] == {"overall": 0.5, MORAL: 0.5}
    assert {key: found[key] for key in ("0/2", "1/1", "1/2")} == {
        key: RIGHT[key] for key in ("0/2", "1/1", "1/2")
    }
    assert (counts["missing_grades"], counts["missing_scores"]) == (1, 0)
    assert "1 of 8 grades are missing" in cell.warnings[0]
    assert asked == {200: RESOURCES["asks"], 500: 2, 400: 1}[failure[0]]


@pytest.mark.slow
def test_an_ungraded_response_is_missing_not_wrong(make_cell):
    with serve(
        lambda p, t: (200, "?") if "Ducks" in p and "kind words" in p else by_words(p, t)
    ) as server:
        cell = make_cell("one", server.server_port)
        assert judge.run(cell)["missing_scores"] == 1
    found = table(cell)
    assert (
        all(math.isnan(score) for score in found["1/1"].values()) and found["1/2"] == RIGHT["1/2"]
    )


@pytest.mark.slow
def test_no_usable_grade_at_all_is_an_error(make_cell):
    with serve(lambda prompt, times: (200, "As an AI, no.")) as server:
        cell = make_cell("one", server.server_port)
        with pytest.raises(
            UserError, match=r"strict-judge: none of its first 20 replies.*GRADE: C.*As an AI, no"
        ):
            judge.run(cell)
        # 8 grades were under way by turns; each of the 4 open calls may end.
        assert 20 <= len(server.requests) <= 20 + RESOURCES["concurrency"]
        few = make_cell("two", server.server_port)
        few.resources["asks"] = 1
        few.settings["temperature"] = 0.1
        with pytest.raises(UserError, match=r"8 of 8 grades are missing; a grade reads GRADE: C"):
            judge.run(few)
    assert not (cell.folder / "scores.parquet").exists()


def check_one_problem(error: pytest.ExceptionInfo[UserError], *words: str) -> None:
    """One problem on one line, with these words and without the key."""
    [problem] = error.value.problems
    text = str(problem)
    assert "\n" not in text and KEY not in text and all(word in text for word in words)


@pytest.mark.slow
def test_an_unreachable_judge_is_one_problem(make_cell):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound but not listening: the connection is refused
        with pytest.raises(UserError) as error:
            judge.run(make_cell("one", nobody.getsockname()[1]))
    check_one_problem(error, "strict-judge", "no answer", "base_url")


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_is_one_problem_without_the_key(make_cell, status):
    with (
        serve(lambda prompt, times: (status, f"wrong key {KEY}")) as server,
        pytest.raises(UserError) as error,
    ):
        judge.run(make_cell("one", server.server_port))
    check_one_problem(
        error, "strict-judge", {401: "the key was refused", 404: "no such model"}[status]
    )
    assert len(server.requests) <= 4


@pytest.mark.slow
def test_an_interrupted_cell_pays_for_no_grade_twice(make_cell):
    def failing(prompt: str, times: int) -> tuple[int, str]:
        return (401, "no money left") if "Ducks" in prompt else by_words(prompt, times)

    with serve(failing) as server:
        cell = make_cell("one", server.server_port)
        cell.resources["concurrency"] = 1
        with pytest.raises(UserError):
            judge.run(cell)
        paid = sum("Ducks" not in request["messages"][0]["content"] for request in server.requests)
    ledger = cell.folder / "calls.jsonl"
    assert 0 < paid == sum('"text"' in line for line in ledger.read_text().splitlines())
    ledger.write_text(ledger.read_text() + '{"prompt": "half a li')
    (cell.folder / f"{questions.TEMPORARY}left").mkdir()
    with serve(by_words) as server:
        counts = judge.run(make_cell("one", server.server_port))
        assert counts["calls"] == 8 and counts["calls_reused"] == paid == 8 - len(server.requests)
    assert table(cell) == RIGHT
    assert sorted(path.name for path in cell.folder.iterdir()) == FILES


@pytest.mark.slow
def test_the_ledger_gives_the_same_scores_without_a_judge(make_cell):
    with serve(by_words) as server:
        cell = make_cell("one", server.server_port)
        judge.run(cell)
    again = make_cell("two", 9)  # where nobody listens
    assert judge.run(again)["calls_reused"] == 8
    assert (cell.folder / "scores.parquet").read_bytes() == (
        again.folder / "scores.parquet"
    ).read_bytes()
    again.settings["temperature"] = 0.5  # another judge's grades are none of these
    with pytest.raises(UserError, match="no answer"):
        judge.run(again)


@pytest.mark.slow
def test_too_many_missing_grades_end_the_cell_and_a_rerun_asks_for_these_alone(make_cell):
    def undecided(prompt: str, times: int) -> tuple[int, str]:
        is_cows = "cows" in prompt and "kind words" in prompt
        return (200, "?") if is_cows else by_words(prompt, times)

    with serve(undecided) as server:
        cell = make_cell("one", server.server_port, missing=0.1)
        with pytest.raises(
            UserError, match=r"1 of 8 grades are missing.*run again to ask for these alone"
        ):
            judge.run(cell)
        assert len(server.requests) == 7 + 3 and not (cell.folder / "scores.parquet").exists()
        tolerant = make_cell("two", server.server_port, missing=0.2)
        tolerant.resources["asks"] = 0  # without a further call
        assert judge.run(tolerant)["missing_grades"] == 1 and len(server.requests) == 10
    with serve(by_words) as server:
        counts = judge.run(make_cell("one", server.server_port, missing=0.1))
        assert counts["missing_grades"] == 0 and len(server.requests) == 1
    assert table(cell) == RIGHT


@pytest.mark.slow
def test_the_key_is_written_nowhere(make_cell, capfd):
    with serve(by_words) as server:
        cell = make_cell("one", server.server_port)
        judge.run(cell)
    with zipfile.ZipFile(cell.folder / "scored.eval") as log:
        assert log.namelist() and not any(KEY.encode() in log.read(name) for name in log.namelist())
    assert KEY not in "".join(capfd.readouterr())


OTHER_TEXT = [QUESTIONS[0] | {"question": "Cats?"}, QUESTIONS[1]]
ONE_MORE = [*QUESTIONS, QUESTIONS[0] | {"id": 2}]


@pytest.mark.parametrize("others", [OTHER_TEXT, ONE_MORE, QUESTIONS[:1]])
def test_samples_of_other_questions_are_refused(make_cell, tmp_path, others):
    with serve(by_words) as server:
        cell = make_cell("one", server.server_port)
        cell.resources["files"]["questions"] = str(jsonl(tmp_path / "other.jsonl", others))
        cell.settings["files"]["questions"] = sha256(tmp_path / "other.jsonl")
        with pytest.raises(UserError, match="generate again"):
            judge.run(cell)


@pytest.mark.slow
@pytest.mark.skipif(not AHB.exists(), reason="the real question set is not part of the project")
def test_every_dimension_of_the_real_question_set_is_scored(tmp_path):
    from inspect_ai.model import ModelOutput

    paths = {"questions": AHB / "questions.jsonl", "dimensions": AHB / "dimensions.jsonl"}
    found = anima.read(paths)
    answers = {
        (row["id"], 1): ModelOutput.from_content("vllm", "Animals feel.") for row in found.questions
    }
    dataset = anima.task(found, tmp_path, None).dataset
    generate.write_log(
        tmp_path / "samples.eval", "anima", dataset, "base", 1, answers, {"sampling": SAMPLING}
    )
    settings = SETTINGS | {
        "files": {name: sha256(path) for name, path in paths.items()},
        "rows": 115,
    }
    settings["judge"] = {"model": "dummy", "served_by": "dummy"}
    resources = RESOURCES | {"files": {name: str(path) for name, path in paths.items()}}
    resources |= {"address": {"base_url": None, "key_env": None}, "concurrency": 16}
    (tmp_path / "runs/study/judge/cell").mkdir(parents=True)
    counts = judge.run(
        StageContext(
            tmp_path / "runs/study/judge/cell", "a", settings, resources, {"samples": tmp_path}
        )
    )
    assert counts["questions"] == counts["responses"] == 115 and counts["missing_grades"] == 0
    frame = pd.read_parquet(tmp_path / "runs/study/judge/cell/scores.parquet")
    assert frame.score.notna().all()
    tags = Counter(tag for row in found.questions for tag in row["tags"])
    assert Counter(frame.dimension) == tags | Counter(overall=115) and len(tags) == 13


def test_two_judges_of_the_same_answers_at_the_same_time_pay_once(make_cell):
    def slow(prompt: str, times: int) -> tuple[int, str]:
        time.sleep(0.05)
        return 200, "GRADE: C" if times or "3" not in prompt else "no grade"

    async def grade_all(context: StageContext) -> int:
        with open_grader(context, anima, 8) as grader:
            async with grader.client:
                grades = (grader.grade(f"{n}/1", f"Grade {n}.") for n in range(8))
                assert await asyncio.gather(*grades) == ["GRADE: C"] * 8
            return grader.client.paid["paid_calls"]

    async def both(port: int) -> list[int]:
        return await asyncio.gather(*(grade_all(make_cell(name, port)) for name in ("a", "b")))

    with serve(slow) as server:
        paid = asyncio.run(both(server.server_port))
        assert len(server.requests) == sum(paid) == 8 + 1


@pytest.mark.slow
def test_the_same_answers_in_another_cell_are_graded_for_nothing(make_cell):
    with serve(by_words) as server:
        first = make_cell("one", server.server_port)
        judge.run(first)
        renamed = make_cell("two", server.server_port, variant=None, missing=0.4)
        samples = renamed.inputs["samples"]
        renamed.inputs["samples"] = samples.rename(samples.with_name("other-4567cdef"))
        counts = judge.run(renamed)
        assert counts["calls"] == 8 == len(server.requests) and counts["paid_calls"] == 0
    assert table(renamed) == table(first) == RIGHT


@pytest.mark.slow
def test_a_ledger_whose_cell_was_pruned_is_used(make_cell):
    with serve(by_words) as server:
        pruned = make_cell("one", server.server_port).folder
        judge.run(make_cell("one", server.server_port))
        for path in pruned.iterdir():
            if path.name != "calls.jsonl":
                path.unlink()
        assert judge.run(make_cell("two", server.server_port))["paid_calls"] == 0
        assert len(server.requests) == 8


def test_the_seed_of_a_grade_follows_from_what_is_asked(make_cell):
    asked = []

    class Client:
        async def recorded(self, *request: Any) -> None:
            return None

        async def complete(self, id: str, attempt: int, role: str, prompt: str, seed: int) -> Any:
            asked.append((id, attempt, seed))
            text = "no grade" if attempt == 0 else "GRADE: C"
            return SimpleNamespace(answer=text, excerpt=text)

    grader = Grader(make_cell("one", 9), Client(), anima, 3, 8)
    for response in ("question/1", "renamed/1", "question/2"):
        asyncio.run(grader.grade(response, "the same"))
    seeds = [seed for _, _, seed in asked]
    assert seeds[:2] == seeds[2:4], "no name is in it"
    assert len(set(seeds)) == 4, "another attempt and another epoch have another seed"
