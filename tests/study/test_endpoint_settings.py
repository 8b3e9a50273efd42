"""Endpoints of a study file: the form of requests, presets, addresses, and doctor's calls."""

import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import UserError
from core.paths import ROOT
from study.commands.endpoint_calls import check_endpoints
from study.spec import schema
from study.spec.fingerprints import endpoint_address, endpoint_model
from study.spec.load import dump_study, load_study
from study.spec.presets import presets
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
