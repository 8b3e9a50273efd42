"""Endpoints of a study file: the form of requests, presets, addresses, and doctor's calls."""

import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.cell.identity import Cell, create_cell_dir
from core.endpoints.batch_ledger import Batch, BatchRequest
from core.errors import UserError
from core.paths import ROOT
from study.cli import main
from study.commands.endpoint_calls import check_endpoints
from study.forecast.cell_cost import estimates
from study.spec import expand, schema
from study.spec.fingerprints import endpoint_address, endpoint_model
from study.spec.load import dump_study, load_study
from study.spec.presets import presets
from tests import batch_endpoint
from tests.endpoint import KEY, Hostile, Reply, serving

URL = "https://api.example.org/v1"


def study(tmp_path: Path, **judge: Any) -> schema.Study:
    """The tiny study with another judge."""
    raw = yaml.safe_load((ROOT / "studies/tiny.yaml").read_text())
    raw["endpoints"]["other"] = judge
    for bench in raw["benchmarks"].values():
        if "judge" in bench:
            bench["judge"] = "other"
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load_study(path)


def other(tmp_path: Path, **judge: Any) -> schema.Endpoint:
    given = {"base_url": URL, "model": "m", "key_env": "A_KEY"}
    return study(tmp_path, **(given | judge)).endpoints["other"]


def test_what_changes_answers_is_identity_and_what_does_not_is_not(tmp_path: Path) -> None:
    plain = other(tmp_path)
    assert endpoint_model(plain) == {"served_by": "url", "model": "m"}
    assert endpoint_address(plain) == {"base_url": URL, "key_env": "A_KEY"}
    form = {"max_tokens_key": "max_completion_tokens", "seed": False}
    written = other(tmp_path, request=form)
    assert endpoint_model(written) == endpoint_model(plain)
    assert endpoint_address(written)["request"] == form
    extra = {"reasoning_effort": "none"}
    changed = other(tmp_path, request={"temperature": None, "extra_body": extra})
    assert endpoint_model(changed)["request"] == {"temperature": None, "extra_body": extra}


def judge_cell(tmp_path: Path, **judge: Any) -> Cell:
    given = {"base_url": URL, "model": "m", "key_env": "A_KEY"}
    cells = expand.in_order(expand.analysis(study(tmp_path, **(given | judge))))
    return next(cell for cell in cells if cell.stage == "judge")


def test_batches_change_no_identity_and_halve_the_price_where_that_is_said(tmp_path: Path) -> None:
    prices = {"prompt_price": 3.0, "completion_price": 8.0, "requests_per_minute": 60}
    plain = judge_cell(tmp_path, **prices)
    batched = judge_cell(tmp_path, **prices, batch=True, batch_requests=700)
    half = judge_cell(tmp_path, **prices, batch=True, batch_discount=0.5)
    assert plain.identity == batched.identity == half.identity
    assert "batch" not in plain.resources["address"]
    assert batched.resources["address"]["batch"] == {"max_requests": 700}
    assert batched.resources["concurrency"] == 700
    limits = [cell.resources["limits"] for cell in (plain, batched, half)]
    assert [(row["prompt_price"], row["completion_price"]) for row in limits] == [
        (3.0, 8.0),
        (3.0, 8.0),
        (1.5, 4.0),
    ]
    assert [row["requests_per_minute"] for row in limits] == [60, None, None]
    forecasts = [estimates([cell], tmp_path, {})[cell.identity] for cell in (plain, half)]
    assert forecasts[1]["cost"] == pytest.approx(forecasts[0]["cost"] / 2) != 0
    assert forecasts[1]["hours"] < forecasts[0]["hours"], "no rate limit, and no waiting in a job"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": "yes"}, "batch"),
        ({"batch_discount": 50}, "batch_discount"),
        ({"batch_requests": 0}, "batch_requests"),
        ({"served_by": "dummy", "batch": True}, "is for a server with a batch interface"),
    ],
)
def test_settings_of_batches_that_can_not_be_right(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        other(tmp_path, **changes)


def test_plan_says_that_batches_take_hours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"base_url": URL, "model": "m", "key_env": "A_KEY", "batch": True}
    study(tmp_path, **given)
    assert main(["plan", str(tmp_path / "study.yaml"), "--runs", str(tmp_path / "runs")]) == 0
    assert re.search(r"\n\d+ cells send their requests as batches", capsys.readouterr().out)


def test_doctor_asks_for_the_batch_interface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", batch_endpoint.KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    provider = batch_endpoint.Provider()
    with batch_endpoint.serving(provider) as endpoint:
        judge = {"base_url": endpoint.base_url, "model": "dummy", "key_env": "A_KEY"}
        read = study(tmp_path, **judge, batch=True)
        check = check_endpoints(read)[1]
        assert (check.name, check.state) == ("batches of other", "ok")
        provider.refuse = lambda step, number: (404, {}) if step == "list" else None
        check = check_endpoints(read)[1]
    assert check.state == "failed" and "lists no batches (HTTP 404)" in check.finding


def test_cancel_says_which_batches_are_out_and_cancels_them_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("A_KEY", batch_endpoint.KEY)
    provider = batch_endpoint.Provider(looks=10**9)
    with batch_endpoint.serving(provider) as endpoint:
        judge = {"base_url": endpoint.base_url, "model": "dummy", "key_env": "A_KEY"}
        cell = judge_cell(tmp_path, **judge, batch=True)
        folder = create_cell_dir(cell, tmp_path / "runs/tiny")
        file = provider.upload(b'{"custom_id": "a", "body": {}}\n')["id"]
        name = provider.create(
            {"input_file_id": file, "endpoint": "x", "completion_window": "24h"}
        )["id"]
        batch = Batch("k", {"a": BatchRequest("a", "0/1", 0, "grade", 9)}, 0.0)
        lines = [*batch.request_lines(), batch.event_line("created", batch_id=name)]
        (folder / "calls.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = ["cancel", str(tmp_path / "study.yaml"), "--runs", str(tmp_path / "runs")]
        assert main(command) == 0
        said = capsys.readouterr().out
        row = f"{cell.relpath}: batch {name} of 1 requests at {endpoint.base_url}, sent 1970"
        assert f"goes on, and is paid: {row}" in said
        assert f"python -m study {' '.join(command)} --batches" in said
        assert provider.batches[name]["status"] == "validating"
        assert main([*command, "--batches"]) == 0
        assert f"cancelled: {row}" in capsys.readouterr().out
        assert provider.batches[name]["status"] == "cancelled"


def test_a_preset_fills_in_what_the_study_file_leaves_out(tmp_path: Path) -> None:
    judge = {"preset": "openai-reasoning", "model": "m", "request": {"seed": False}}
    read = study(tmp_path, **judge)
    endpoint = read.endpoints["other"]
    assert (endpoint.base_url, endpoint.key_env) == ("https://api.openai.com/v1", "OPENAI_API_KEY")
    assert endpoint.request == schema.Request("max_completion_tokens", False, None, {})
    own = study(tmp_path, **judge, base_url=URL, key_env="MINE").endpoints["other"]
    assert (own.base_url, own.key_env) == (URL, "MINE")
    local = study(tmp_path, preset="ollama", model="m").endpoints["other"]
    assert local.key_env is None and local.base_url == "http://localhost:11434/v1"
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_study(read))
    assert load_study(path) == read
    with pytest.raises(UserError, match="preset"):
        study(tmp_path, preset="opnai", model="m")


def test_the_schema_names_the_presets_and_each_fact_has_a_source() -> None:
    hint = typing.get_type_hints(schema.Endpoint)["preset"]
    assert typing.get_args(typing.get_args(hint)[0]) == tuple(presets())
    for preset in presets().values():
        schema.Request(**preset["request"])
        for fact, source in preset["facts"]:
            assert source or "not be confirmed" in fact


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_url": "ftp://example.org/v1"}, "should start with https:// or http://"),
        ({"base_url": "api.example.org/v1"}, "should start with https:// or http://"),
        ({"base_url": "https://me:secret@example.org/v1"}, "has a user or a password in it"),
        ({"base_url": "https://[::1/v1"}, "is no address"),
        ({"key_env": "sk-abcdefghijk"}, "looks like a key"),
        ({"key_env": "gsk_abcdefghijk"}, "looks like a key"),
        ({"key_env": "AIzaSyAbcdefghijk"}, "looks like a key"),
        ({"key_env": "0123456789abcdef0123456789abcdef"}, "looks like a key"),
        ({"key_env": "abcdef0123456789abcdef0123456789"}, "looks like a key"),
        ({"key_env": "aB3" * 9}, "looks like a key"),
        ({"request": {"extra_body": {"stream": True}}}, "the kit sets it"),
        ({"request": {"seeds": False}}, "unknown key"),
        ({"request": {"temperature": 0.5}}, "temperature"),
    ],
)
def test_an_endpoint_that_can_not_be_right_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as error:
        other(tmp_path, **changes)
    secret = str(changes.get("key_env") or "secret")
    assert secret not in str(error.value), "a key is shown nowhere"


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "my_key", "_k", "Azure2026KEY"])
def test_names_of_variables_are_taken(tmp_path: Path, name: str) -> None:
    assert other(tmp_path, key_env=name).key_env == name


def reply(content: Any, model: str = "m", **others: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"choices": [choice], "model": model, "usage": usage} | others


SEED_REFUSED = [
    {"error": {"code": 400, "message": 'Invalid JSON payload received. Unknown name "seed": Cannot '
               "find field.", "status": "INVALID_ARGUMENT"}}
]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "state", "says"),
    [
        ((200, {}, reply("GRADE: C")), "ok", "'GRADE: C'.*110|100 [+] 10 tokens, price 0.000120"),
        ((200, {}, reply("GRADE: C", "m-2026")), "warning", "answered by 'm-2026'"),
        ((200, {}, reply("**GRADE**: C")), "warning", "GRADE"),
        ((200, {}, reply("GRADE: C", usage=None)), "ok", "no token counts"),
        ((200, {}, reply(None)), "failed", "no answer: no content"),
        ((400, {}, SEED_REFUSED), "failed", "refuses the parameter seed"),
        ((401, {}, {}), "failed", "key was refused"),
        ((500, {}, {"error": {"message": "busy"}}), "failed", "busy"),
    ],
)
def test_doctor_makes_one_call_and_shows_what_came_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Reply, state: str, says: str
) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Hostile(scripted=lambda body, n: answer)) as (endpoint, hostile):
        judge = {"base_url": endpoint.base_url, "model": "m", "key_env": "A_KEY"}
        prices = {"prompt_price": 1.0, "completion_price": 2.0}
        [check] = check_endpoints(study(tmp_path, **judge, **prices))
    assert check.state == state and check.name == "call of other as judge"
    assert re.search(says, check.finding), check
    assert hostile.requests == (2 if answer[0] == 500 else 1)
    assert hostile.last["max_tokens"] == 256 and hostile.last["temperature"] == 0.0


REPLIES = yaml.safe_load((ROOT / "tests/data/provider_replies.yaml").read_text())


@pytest.mark.parametrize(
    ("preset", "case"),
    [(preset, case) for preset, cases in REPLIES.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) else str(value["status"]),
)
def test_doctor_reads_the_replies_of_each_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, case: dict[str, Any]
) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    reply = (case["status"], {}, case["body"])
    with serving(Hostile(scripted=lambda body, n: reply)) as (endpoint, hostile):
        judge = {"preset": preset, "base_url": endpoint.base_url, "model": "m", "key_env": "A_KEY"}
        [check] = check_endpoints(study(tmp_path, **judge, request=case.get("request", {})))
    assert check.state == case["state"] and re.search(case["says"], check.finding), check
    assert hostile.requests == 1
    form = presets()[preset]["request"] | case.get("request", {})
    assert (form.get("max_tokens_key", "max_tokens") in hostile.last) and (
        ("seed" in hostile.last) == form.get("seed", True)
    )
    assert ("temperature" in hostile.last) == (form.get("temperature", "send") is not None)


def test_each_preset_has_a_reply() -> None:
    assert list(REPLIES) == list(presets())
