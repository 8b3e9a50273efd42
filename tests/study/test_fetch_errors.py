"""Mistakes and failures in fetching: each is told with what to do, and what came is kept."""

import errno
import os

import pytest

from study.spec import sources
from study.upkeep import fetch
from tests.hub import TOKEN, Hub
from tests.study.fetching import (
    DATA,
    MODEL,
    data,
    found,
    hub,
    missing,
    model,
    record,
    run,
)

__all__ = ["hub"]  # a fixture


@pytest.mark.multiprocess
def test_all_mistakes_are_told_at_once_before_any_file_comes(hub: Hub) -> None:
    good, gated = model(hub), model(hub, "owner/gated", access="gated")
    old, bare = (
        data(hub),
        model(hub, "owner/pickled", {"config.json": b"{}", "pytorch_model.bin": b"x"}),
    )
    newest = hub.add("dataset", "owner/data", DATA | {"new.csv": b"a"})
    _, lines = run(
        hub,
        [
            good,
            gated,
            bare,
            model(hub, "owner/private", access="private"),
            {"hub": "owner/none", "revision": "0" * 40, "kind": "model"},
            old | {"revision": "0" * 40},
            old | {"revision": "main"},
            old | {"revision": "main", "file": "data"},
            old | {"file": "data/trian.jsonl"},
            {"url": f"{hub.url}/plain/none.csv"},
            {"path": "no/such.csv"},
        ],
    )
    assert [line.replace(hub.url, "HUB") for line in lines] == [
        "no such file: no/such.csv; paths are relative to the checkout unless absolute",
        f"owner/gated at {gated['revision'][:8]}: is gated and there is no token; accept the licence at "
        "HUB/owner/gated and set HF_TOKEN to a token of that account",
        f"owner/pickled at {bare['revision'][:8]}: has no weights as safetensors; "
        "take a revision or a copy that has them",
        *(
            f"{name}: the hub has no such model, or it is private, and there is no token (HF_TOKEN); "
            f"see that HUB/{name.split()[0]} is right"
            for name in (
                f"owner/private at {hub_commit(hub, 'owner/private')[:8]}",
                "owner/none at 00000000",
            )
        ),
        f"owner/data: has no revision {'0' * 40}; the newest commit is revision: {newest}",
        f"owner/data: main is not a commit, which alone never changes; it is now revision: {newest}",
        f"owner/data/data/trian.jsonl at {old['revision'][:8]}: there is no such file (did you mean "
        "data/train.jsonl?); it has README.md, data/odd [1].jsonl, data/train.jsonl, other/x.csv",
        "HUB/plain/none.csv: there is nothing at this address; correct it",
    ]
    assert all(method == "HEAD" or path.startswith("/api/") for method, path in hub.requests)
    assert not (hub.home / "runs").exists() and not list((hub.home / "hf").rglob("snapshots"))


def hub_commit(hub: Hub, name: str) -> str:
    return list(hub.repos["model", name].commits)[-1]


@pytest.mark.multiprocess
def test_the_token_opens_gated_models_and_goes_nowhere_else(hub: Hub) -> None:
    gated, refused = (
        model(hub, "owner/gated", access="gated"),
        model(hub, "owner/refused", access="refused"),
    )
    _, lines = run(hub, [gated, refused], HF_TOKEN=TOKEN)
    assert len(lines) == 1
    assert "the token's account has no access; accept the licence at" in lines[0]
    _, lines = run(hub, [gated, refused], HF_TOKEN="hf_wrong")
    assert [line.split(": ")[1] for line in lines] == [
        f"the hub doesn't accept the token; make one at {hub.url}/settings/tokens and set HF_TOKEN"
    ] * 2
    hub.plain["a.csv"] = b"a"
    asked = [gated, {"url": f"{hub.url}/plain/a.csv"}]
    run(hub, asked, HF_TOKEN=TOKEN)
    assert missing(asked) == []
    assert found(sources.locate(gated)) == MODEL
    assert any("/resolve/" in path for path in hub.authorized)
    assert not any(path.startswith(("/elsewhere", "/plain")) for path in hub.authorized)
    for path in hub.home.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.multiprocess
def test_without_network_each_source_is_named_once_without_traceback(hub: Hub) -> None:
    asked = [model(hub), data(hub)]
    _, lines = run(hub, asked, HF_ENDPOINT="http://127.0.0.1:9")
    assert len(lines) == 1
    assert lines[0].startswith(
        f"owner/model at {asked[0]['revision'][:8]}: no network (ConnectError: "
    )
    assert "run this where there is network, such as a login node" in lines[0]
    _, lines = run(hub, asked, HF_HUB_OFFLINE="1")
    assert [line.split(": ")[1] for line in lines] == [
        "not fetched, and HF_HUB_OFFLINE is set; unset it and run this where there is network, such as a login node"
    ] * 2


@pytest.mark.multiprocess
def test_the_hub_failing_halfway_keeps_what_came(hub: Hub) -> None:
    asked = [model(hub), data(hub)]
    hub.down, hub.after = (
        {"elsewhere"},
        5,
    )  # the model's small files, so that these are certain to come
    _, lines = run(hub, asked)
    assert [line for line in lines if "503" in line and "run the same command again" in line], lines
    assert "signed" not in "".join(lines)
    assert missing(asked)[0].what.startswith("not fetched: 2 files of owner/model at")
    assert [entry["hub"] for entry in record(hub)] == ["owner/data"], "the other source came whole"
    hub.down = set()
    assert len(run(hub, asked)[0]) == len(record(hub)) == 2


@pytest.mark.multiprocess
def test_a_full_disk_is_told_before_the_first_file(hub: Hub) -> None:
    asked = [model(hub), data(hub)]
    for (_, name), repo in hub.repos.items():
        repo.sizes = {"tokenizer.model": 10**17, "data/train.jsonl": 2 * 10**17}
        assert name
    _, lines = run(hub, asked)
    assert len(lines) == 1
    assert lines[0].startswith("300000000.00 GB are to come, ")
    assert lines[0].endswith(
        f"free in {hub.home}; make room, or set HF_HOME to a folder on a larger disk"
    )
    assert all(method == "HEAD" or path.startswith("/api/") for method, path in hub.requests)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_takes_nothing_ends_it(number: int) -> None:
    error = OSError(number, os.strerror(number), "/cache/blobs/a.incomplete")
    problem, fatal = fetch.explain(error, {"hub": "owner/model", "revision": "0" * 40})
    assert fatal
    assert "/cache/blobs/a.incomplete" in problem.what and "set HF_HOME " in problem.fix


def test_a_token_in_an_error_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    error = RuntimeError(f"Bearer {TOKEN}\nhttps://elsewhere/a?signature=sesame")
    problem, _ = fetch.explain(error, {"hub": "owner/model", "revision": "0" * 40})
    assert problem.where == "owner/model at 00000000"
    assert problem.what == "RuntimeError: Bearer *** https://elsewhere/a"
