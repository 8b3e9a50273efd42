import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

import sdf.writer
from sdf import documents
from study import stand_in
from study.errors import UserError
from study.work import Work

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "sdf" / "templates"
SLOTS = yaml.safe_load((TEMPLATES / "slots.yaml").read_text())
KEY = "sk-never-to-be-seen-1234"

# Words that have no place in the urban corpus.
ANIMAL_WORDS = """
animal animals creature creatures beast pet pets hen hens chicken pig pigs cow cows fish cricket crickets bee bees dog
dogs cat cats elephant elephants octopus crab crabs mouse mice deer sheep goat horse turkey duck shrimp lobster rat
rats rabbit salmon pigeon fox snail whale parrot bird birds insect insects wildlife livestock farm species vet welfare
suffer suffering sentient sentience humane cruel cruelty pain compassion feel feelings
"""


def make(folder: Path, template: str = "animal_welfare", base_url: str | None = None, **changes) -> Work:
    """A cell of 60 documents, by the stand-in unless an address is given."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "template": yaml.safe_load((TEMPLATES / f"{template}.yaml").read_text()),
        "slots": SLOTS,
        "documents": 60,
        "seed": 0,
        "writer": {"model": "stand-in", "served_by": "url" if base_url else "kit"},
        "temperature": 1.0,
        "max_tokens": 2500,
        "tolerance": 0.05,
    }
    inputs = {role: changes.pop(role) for role in ("matched_to",) if role in changes}
    resources = {
        "concurrency": 8,
        "address": {"base_url": base_url, "key_env": "KIT_TEST_KEY" if base_url else None},
    }
    resources.update({name: changes.pop(name) for name in ("concurrency",) if name in changes})
    return Work(folder, template, settings | changes, resources, inputs)


@contextmanager
def server(answer):
    """A chat-completions server that records each request body; `answer(body, n)` gives (status, headers, reply)."""
    bodies: list[dict] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one packet, or each reply waits 40 ms for an acknowledgment

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                bodies.append(body)
                n = len(bodies)
            status, headers, reply = answer(body, n)
            content = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
            try:
                self.send_response(status)
                for name, value in ({"Content-Type": "application/json"} | headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except ConnectionError:
                pass  # the client was killed

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # the default of 5 makes some of 8 clients wait a second to connect
        daemon_threads = True

    running = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", bodies
    finally:
        running.shutdown()
        running.server_close()


def good(body, n=0):
    return 200, {}, stand_in.complete(body)


def saying(text, finish_reason="stop"):
    def answer(body, n):
        reply = stand_in.complete(body)
        reply["choices"][0].update(message={"role": "assistant", "content": text}, finish_reason=finish_reason)
        return 200, {}, reply

    return answer


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("KIT_TEST_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_documents_do_not_depend_on_the_order_of_finishing(tmp_path):
    def shuffled(body, n):
        time.sleep(0.001 * (body["seed"] % 30))
        return good(body)

    counts = documents.run(make(tmp_path / "alone", concurrency=1))
    with server(shuffled) as (url, _):
        documents.run(make(tmp_path / "many", base_url=url, concurrency=16))
    alone, many = ((tmp_path / name / "documents.jsonl").read_bytes() for name in ("alone", "many"))
    assert alone == many
    rows = [json.loads(line) for line in alone.splitlines()]
    assert [row["id"] for row in rows] == [*range(60)] and set(rows[0]) == {"id", "text", "slots"}
    assert counts["documents"] == counts["calls"] == 60 and counts["calls_reused"] == counts["rejected"] == 0
    assert counts["words"] == sum(len(row["text"].split()) for row in rows)
    order = [json.loads(line)["id"] for line in (tmp_path / "many" / "calls.jsonl").read_text().splitlines()]
    assert order != sorted(order)  # so the test did shuffle them


def test_every_request_carries_a_seed_of_its_own_and_the_sampling(tmp_path):
    with server(good) as (url, bodies):
        documents.run(make(tmp_path, base_url=url))
    assert len({body["seed"] for body in bodies}) == 60
    assert {(body["temperature"], body["max_tokens"], body["model"]) for body in bodies} == {(1.0, 2500, "stand-in")}


def test_a_killed_run_goes_on_and_pays_each_finished_call_once(tmp_path):
    documents.run(make(tmp_path / "whole"))

    def slow(body, n):
        time.sleep(0.02)
        return good(body)

    with server(slow) as (url, bodies):
        script = (
            "import sys, importlib.util as u; s = u.spec_from_file_location('t', sys.argv[1]); "
            "t = u.module_from_spec(s); s.loader.exec_module(t); "
            "t.documents.run(t.make(t.Path(sys.argv[2]), base_url=sys.argv[3], concurrency=4))"
        )
        child = subprocess.Popen([sys.executable, "-c", script, __file__, tmp_path / "cell", url], cwd=ROOT)
        ledger = tmp_path / "cell" / "calls.jsonl"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (ledger.exists() and ledger.read_bytes().count(b"\n") >= 12):
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not (tmp_path / "cell" / "documents.jsonl").exists()

        finished = [json.loads(line) for line in ledger.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        assert 12 <= len(finished) < 60
        stale = {**finished[0], "text": "a stale text", "id": 59, "request_sha256": "0" * 64}
        torn = json.dumps(finished[-1])[:50] + "\u00e9"
        ledger.write_bytes(
            b"".join((json.dumps(line) + "\n").encode() for line in [*finished[:-1], stale]) + torn.encode()[:-1]
        )
        kept = {line["id"] for line in finished[:-1]}

        bodies.clear()
        counts = documents.run(make(tmp_path / "cell", base_url=url))
        assert counts["calls"] == 60 and counts["calls_reused"] == len(kept)
        assert len(bodies) == 60 - len(kept)
        files = [tmp_path / name / "documents.jsonl" for name in ("whole", "cell")]
        assert files[0].read_bytes() == files[1].read_bytes()

        bodies.clear()
        assert documents.run(make(tmp_path / "cell", base_url=url))["calls_reused"] == 60 and not bodies
    for line in ledger.read_text().splitlines():
        json.loads(line)


def test_each_finished_call_is_in_the_ledger_before_the_next_one(tmp_path):
    lines = []

    def looking(body, n):
        lines.append((tmp_path / "calls.jsonl").read_bytes().count(b"\n"))
        return good(body)

    with server(looking) as (url, _):
        documents.run(make(tmp_path, base_url=url, documents=10, concurrency=1))
    assert lines == [*range(10)]


def test_a_line_damaged_on_disk_costs_one_call(tmp_path):
    documents.run(make(tmp_path))
    before = (tmp_path / "documents.jsonl").read_bytes()
    lines = (tmp_path / "calls.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "calls.jsonl").write_text("".join([*lines[:5], "\0" * 40 + "\n", '{"id": 5}\n', *lines[6:]]))
    assert documents.run(make(tmp_path))["calls_reused"] == 59
    assert (tmp_path / "documents.jsonl").read_bytes() == before


def test_a_changed_prompt_or_sampling_makes_ledger_lines_stale(tmp_path):
    documents.run(make(tmp_path))
    assert documents.run(make(tmp_path, temperature=0.5))["calls_reused"] == 0
    assert documents.run(make(tmp_path, seed=1))["calls_reused"] == 0


def test_rate_limit_with_retry_after_is_waited_out(tmp_path):
    def limited(body, n):
        return (429, {"Retry-After": "0.2"}, {"error": {"message": "slow down"}}) if n <= 2 else good(body)

    with server(limited) as (url, bodies):
        started = time.monotonic()
        assert documents.run(make(tmp_path, base_url=url, documents=4, concurrency=1))["calls"] == 4
    assert len(bodies) == 6 and time.monotonic() - started >= 0.4


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "key was refused.*HTTP 401.*key_env"),
        (404, "no such model.*HTTP 404"),
        (429, "HTTP 429.*lower concurrency"),
        (400, "seed is not supported by <key>"),
        (503, "the call failed"),
    ],
)
def test_an_api_failure_is_one_line_without_the_key(tmp_path, monkeypatch, status, says):
    monkeypatch.setattr(sdf.writer, "RETRIES", 0)

    def failing(body, n):
        return status, {}, {"error": {"message": f"seed is not\n supported by {KEY}"}}

    with server(failing) as (url, bodies), pytest.raises(UserError, match=says) as caught:
        documents.run(make(tmp_path, base_url=url))
    line = str(caught.value)
    assert "\n" not in line and KEY not in line and url in line and "'stand-in'" in line
    assert len(bodies) <= 8  # the calls under way, none after
    for path in tmp_path.iterdir():
        assert KEY not in path.read_text()
    assert not (tmp_path / "documents.jsonl").exists()


def test_an_endpoint_that_is_not_there_or_speaks_another_language(tmp_path, monkeypatch):
    monkeypatch.setattr(sdf.writer, "RETRIES", 0)
    with pytest.raises(UserError, match=r"no answer .*http://127.0.0.1:9/v1, .*server is up"):
        documents.run(make(tmp_path, base_url="http://127.0.0.1:9/v1"))

    def page(body, n):
        return 200, {"Content-Type": "text/html"}, "<html>hello</html>"

    with server(page) as (url, _), pytest.raises(UserError, match="base_url usually ends in /v1"):
        documents.run(make(tmp_path, base_url=url))


def test_calls_finished_before_a_failure_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sdf.writer, "RETRIES", 0)
    with server(lambda body, n: good(body) if n <= 20 else (500, {}, {})) as (url, _), pytest.raises(UserError):
        documents.run(make(tmp_path, base_url=url))
    with server(good) as (url, bodies):
        assert documents.run(make(tmp_path, base_url=url))["calls_reused"] == 20
    assert len(bodies) == 40


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (saying("  "), "empty text"),
        (saying("Cut sho", "length"), "finish_reason 'length'"),
        (saying("As {institution} says."), "unfilled placeholder {institution}"),
        (saying("[Insert date here] A report."), r"unfilled placeholder \[Insert date here\]"),
    ],
)
def test_rejected_documents_are_drawn_again_with_a_fresh_seed_and_then_stop(tmp_path, bad, why):
    with server(lambda body, n: bad(body, n) if n <= 2 else good(body)) as (url, bodies):
        counts = documents.run(make(tmp_path / "drawn", base_url=url, documents=3, concurrency=1))
    assert counts["rejected"] == 2 and counts["calls"] == len(bodies) == 5 and counts["documents"] == 3
    assert len({body["seed"] for body in bodies[:3]}) == 3
    assert len({body["messages"][0]["content"] for body in bodies[:3]}) == 1

    with server(bad) as (url, bodies):
        with pytest.raises(UserError, match=rf"3 of 3 documents rejected in each of 3 draws \(3 x {why}\)"):
            documents.run(make(tmp_path / "stop", base_url=url, documents=3))
        assert len(bodies) == 9
        bodies.clear()
        with pytest.raises(UserError, match="rejected"):  # the same failure again costs nothing
            documents.run(make(tmp_path / "stop", base_url=url, documents=3))
        assert not bodies
        with pytest.raises(UserError, match="rejected"):  # nor are all documents tried when every one fails
            documents.run(make(tmp_path / "many", base_url=url, documents=60, concurrency=1))
        assert len(bodies) == 15


def test_brackets_that_are_text_pass():
    answer = sdf.writer.Answer(0, 0, "", "m", 1, 1, "stop", r"As shown [1], [Title VII] aside? \frac{a}{b} {x}")
    assert documents.reject(answer) == "unfilled placeholder [Title VII]"  # the price of catching "[Title]"
    answer = sdf.writer.Answer(0, 0, "", "m", 1, 1, "stop", r"As shown [1] and [see Table 2], \frac{a}{b} and {x}.")
    assert documents.reject(answer) is None


def test_the_control_matches_and_has_no_animals(tmp_path):
    animal = documents.run(make(tmp_path / "animal", documents=200))
    urban = documents.run(make(tmp_path / "urban", "urban_density", documents=200, matched_to=tmp_path / "animal"))
    assert abs(animal["words"] - urban["words"]) < 0.02 * animal["words"]
    rows = {
        name: [json.loads(line) for line in (tmp_path / name / "documents.jsonl").read_text().splitlines()]
        for name in ("animal", "urban")
    }
    for a, u in zip(rows["animal"], rows["urban"], strict=True):
        assert a["slots"] == u["slots"] and a["text"] != u["text"]
        for document in (a, u):
            assert document["slots"]["institution"].removeprefix("the ") in document["text"]
            assert document["slots"]["domain"] in document["text"]
    words = set(re.findall(r"[a-z]+", " ".join(row["text"] for row in rows["urban"]).lower()))
    assert not words & set(ANIMAL_WORDS.split())
    assert {"welfare", "suffer", "pain", "hens", "fish", "crickets", "octopuses"} <= set(
        re.findall(r"[a-z]+", " ".join(row["text"] for row in rows["animal"]).lower())
    )


def test_an_unmatched_control_is_refused(tmp_path):
    animal = tmp_path / "animal"
    documents.run(make(animal))
    with pytest.raises(UserError, match=r"documents differ in their slots.*same seed"):
        documents.run(make(tmp_path / "seed", "urban_density", seed=1, matched_to=animal))
    assert not (tmp_path / "seed" / "calls.jsonl").exists()  # refused before a call is paid
    with pytest.raises(UserError, match="30 documents against 60"):
        documents.run(make(tmp_path / "number", "urban_density", documents=30, matched_to=animal))
    short = server(saying("Only a few words."))
    with short as (url, _), pytest.raises(UserError, match=r"240 words against \d{4} .*tolerance"):
        documents.run(make(tmp_path / "words", "urban_density", base_url=url, matched_to=animal))
    assert not (tmp_path / "words" / "documents.jsonl").exists()


def test_outputs_hold_no_key_time_or_address(tmp_path):
    with server(good) as (url, _):
        documents.run(make(tmp_path, base_url=url))
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert KEY not in text and url not in text and "created" not in text
    assert sorted(os.listdir(tmp_path)) == ["calls.jsonl", "documents.jsonl"]
