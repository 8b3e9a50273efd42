"""Fetching from a hub over real HTTP, each run in its own process, as huggingface_hub reads its
settings at import."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import Problem
from study.spec import sources
from study.upkeep import fetch
from tests.eval import tiny_checkpoint
from tests.hub import TOKEN, Hub

ROOT = Path(__file__).parents[2]
CODE = """
import json, signal, sys
from pathlib import Path
from core.errors import UserError
from study.upkeep.fetch import fetch
plain = signal.signal
def telling(number, handler):  # what hears a signal leaves a file when it has
    def hear(*of):
        try:
            handler(*of)
        finally:
            (Path(sys.argv[2]).parents[1] / "heard").touch()
    return plain(number, hear if callable(handler) else handler)
signal.signal = telling
try:
    print(json.dumps(fetch(json.loads(sys.argv[1]), Path(sys.argv[2]), check=len(sys.argv) > 3)))
except UserError as error:
    sys.exit("\\n".join(error.lines))
except KeyboardInterrupt:
    sys.exit(130)
"""
MEGABYTES = 2**20
WEIGHTS = bytes(range(256)) * 100
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer.model": b"pieces",
    "chat_template.jinja": b"{{ messages }}",
}
NOT_WANTED = {
    "original/consolidated.00.pth": b"again",
    "original/params.json": b"{}",
    "consolidated.safetensors": b"again",
    "pytorch_model.bin": b"again",
    "pytorch_model.bin.index.json": b"{}",
    "modeling.py": b"import os",
    "README.md": b"read me",
}
ROWS = b'{"text": "one"}\n{"text": "two"}\n'
DATA = {
    "README.md": b"# data",
    "data/train.jsonl": ROWS,
    "data/odd [1].jsonl": b'{"text": "three"}\n',
    "other/x.csv": b"a\n",
}


def missing(asked: list[sources.Source]) -> list[Problem]:
    return sources.missing(asked, "studies/x.yaml")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and a cache in `tmp_path` in which this process and those of `run` look."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    with Hub(tmp_path) as running:
        yield running


def start(hub: Hub, asked: list[dict], *more: str, **environment: str) -> subprocess.Popen:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(hub.home / "hf"),
        "NO_PROXY": "*",
        **environment,
    }
    words = [
        sys.executable,
        "-c",
        CODE,
        json.dumps(asked),
        str(hub.home / "runs/fetched.json"),
        *more,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=ROOT, env=inherited | settings, **pipes)


def run(
    hub: Hub, asked: list[dict], *more: str, **environment: str
) -> tuple[list[dict], list[str]]:
    """What fetch returned, and the lines on stderr, where each mistake is one."""
    hub.requests.clear()
    process = start(hub, asked, *more, **environment)
    out, err = process.communicate(timeout=60)
    lines = err.splitlines()
    assert "Traceback" not in err, err
    assert all(secret not in out + err for secret in (TOKEN, "hf_wrong")), "a token was shown"
    return json.loads(out) if process.returncode == 0 else [], lines


def model(
    hub: Hub, name: str = "owner/model", files: dict = MODEL | NOT_WANTED, **options: str
) -> dict:
    return {"hub": name, "revision": hub.add("model", name, files, **options), "kind": "model"}


def data(hub: Hub, **more: str) -> dict:
    return {
        "hub": "owner/data",
        "revision": hub.add("dataset", "owner/data", DATA),
        "kind": "dataset",
        **more,
    }


def record(hub: Hub) -> list[dict]:
    return json.loads((hub.home / "runs/fetched.json").read_text())["sources"]


def found(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_files_are_identical_are_located_and_are_recorded(hub: Hub) -> None:
    hub.plain["questions.csv"] = b"a,b\n1,2\n"
    digest = hashlib.sha256(hub.plain["questions.csv"]).hexdigest()
    page = {"url": f"{hub.url}/plain/questions.csv?signature=sesame", "sha256": digest}
    asked = [
        model(hub),
        data(hub),
        data(hub, file="data/odd [1].jsonl"),
        page,
        page,
        {"path": "README.md"},
    ]
    before = missing(asked)
    assert [line.split(";")[0] for line in before[:2]] == [
        f"not fetched: owner/model at {asked[0]['revision'][:8]}",
        f"not fetched: owner/data at {asked[1]['revision'][:8]}",
    ]
    assert len(before) == 5
    entries, lines = run(hub, asked)
    assert missing(asked) == []
    assert found(sources.locate(asked[0])) == MODEL
    assert found(sources.locate(asked[1])) == DATA
    assert sources.locate(asked[2]).read_bytes() == DATA["data/odd [1].jsonl"]
    assert sources.locate(page).read_bytes() == hub.plain["questions.csv"]
    assert sources.locate(page).suffix == ".csv"
    assert sources.locate(asked[5]) == ROOT / "README.md"

    assert entries == record(hub)
    assert [entry.get("hub") for entry in entries] == [
        "owner/model",
        "owner/data",
        "owner/data",
        None,
    ]
    assert entries[0]["files"] == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in MODEL.items()
    }
    assert entries[0]["bytes"] == sum(map(len, MODEL.values()))
    assert entries[3]["sha256"] == digest
    assert all(entry["fetched"].endswith("+00:00") for entry in entries)
    assert not any("sesame" in line for line in lines)
    assert any(line.startswith("owner/model at") and "100%" in line for line in lines), "progress"
    assert not any("█" in line for line in lines), "bars are for terminals"


def test_only_a_folder_of_a_data_set(hub: Hub) -> None:
    asked = data(hub, file="data")
    assert run(hub, [asked])[0][0]["files"].keys() == {"data/train.jsonl", "data/odd [1].jsonl"}
    assert found(sources.locate(asked)).keys() == {"train.jsonl", "odd [1].jsonl"}
    assert missing([asked]) == []
    assert len(missing([data(hub)])) == 1, "a part is not the whole"


def test_a_second_fetch_asks_for_nothing(hub: Hub) -> None:
    hub.plain["a.csv"] = b"a"
    asked = [model(hub), data(hub), {"url": f"{hub.url}/plain/a.csv"}]
    first, _ = run(hub, asked)
    assert len(hub.files_asked()) > 10
    assert run(hub, asked) == (first, [])
    assert hub.requests == []
    assert run(hub, asked, "check", HF_HUB_OFFLINE="1") == (first, [])
    # What was fetched without a record, as for another study, is recorded, not fetched again.
    (hub.home / "runs/fetched.json").unlink()
    again, _ = run(hub, asked)
    assert [entry | {"fetched": ""} for entry in again] == [
        entry | {"fetched": ""} for entry in first
    ]
    assert hub.requests == []
    # So is what other tools put into the cache; only its list of files is missing.
    for path in hub.home.rglob("trees/*.json"):
        path.unlink()
    assert len(missing(asked)) == 2
    assert run(hub, asked)[0] == again
    assert all(method == "HEAD" or path.startswith("/api/") for method, path in hub.requests)
    assert missing(asked) == []


def test_a_located_data_set_loads_offline(hub: Hub) -> None:
    readme = b"---\nconfigs:\n- config_name: default\n  data_files: rows/*.jsonl\n---\n"
    files = {
        "README.md": readme,
        "rows/0.jsonl": ROWS,
        "rows/1.jsonl": b'{"text": "three"}\n',
        "other.jsonl": b"{}",
    }
    pin = {
        "hub": "owner/rows",
        "revision": hub.add("dataset", "owner/rows", files),
        "kind": "dataset",
    }
    asked = [pin, pin | {"file": "rows"}, pin | {"file": "rows/0.jsonl"}]
    run(hub, asked)
    code = (
        "import datasets, json, sys; load = datasets.load_dataset; whole, folder, file = sys.argv[1:];"
        "found = [load(whole), load(folder), load('json', data_files=file)];"
        "print(json.dumps([sorted(each['train']['text']) for each in found]))"
    )
    offline = {
        name: "1" for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    settings = (
        os.environ
        | offline
        | {"HF_HOME": str(hub.home / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    words = [sys.executable, "-c", code, *(str(sources.locate(source)) for source in asked)]
    out = subprocess.run(words, env=settings, capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == [["one", "three", "two"], ["one", "three", "two"], ["one", "two"]]


def test_a_connection_cut_in_a_file_goes_on_from_there(hub: Hub) -> None:
    large = os.urandom(13 * MEGABYTES)
    asked = model(hub, files=MODEL | {"model-00001-of-00002.safetensors": large})
    hub.cut["model-00001-of-00002.safetensors"] = 12 * MEGABYTES
    _, lines = run(hub, [asked])
    assert hub.ranges == [f"bytes={10 * MEGABYTES}-"]  # it writes ten megabytes at a time
    assert not any("signed" in line for line in lines)
    assert found(sources.locate(asked))["model-00001-of-00002.safetensors"] == large


def test_interrupted_it_ends_at_once_and_later_fetches_the_rest(hub: Hub) -> None:
    slow = "model-00002-of-00002.safetensors"
    asked = model(hub, files=MODEL | {slow: os.urandom(32 * MEGABYTES)})
    hub.hold[slow] = threading.Event()
    process = start(hub, [asked])
    assert hub.holding.wait(120)
    while sum(path.is_file() for path in sources.snapshot(asked).rglob("*")) < len(MODEL) - 1:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    end = time.monotonic() + 120
    while not (hub.home / "heard").exists():  # a busy machine needs its time to hear a signal
        assert time.monotonic() < end
        time.sleep(0.05)
    hub.hold[slow].set()
    assert process.communicate(timeout=20)[1].count("Traceback") == 0
    assert process.returncode == 130
    assert slow not in found(sources.locate(asked)), "it went on to the end of the file"
    assert not list((hub.home / "hf").rglob("*.incomplete"))
    assert missing([asked])[0].what.startswith("not fetched: 1 files of owner/model at")
    old, new = (
        sources.snapshot(asked).parents[1] / f"blobs/{age}.incomplete" for age in ("old", "new")
    )
    old.write_bytes(b"left by a killed one")
    new.write_bytes(b"of another process")
    os.utime(old, (1, 1))
    run(hub, [asked])
    names = [path.split("?")[0].split("/")[-1] for path in hub.files_asked()]
    assert set(names) == {slow}
    assert missing([asked]) == []
    assert not old.exists() and new.exists()


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
        "no such file: no/such.csv (paths are relative to the checkout unless absolute)",
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


def test_what_is_damaged_is_fetched_again(hub: Hub) -> None:
    asked = model(hub)
    run(hub, [asked])
    weights = sources.locate(asked) / "model-00001-of-00002.safetensors"
    weights.write_bytes(WEIGHTS[:-1])
    assert missing([asked])[0].what.startswith("not fetched: 1 files of owner/model at")
    run(hub, [asked])
    assert weights.read_bytes() == WEIGHTS

    for name in ("model-00001-of-00002.safetensors", "config.json"):
        (sources.locate(asked) / name).write_bytes(bytes(len(MODEL[name])))
    assert run(hub, [asked])[1] == [], "sizes are right"
    assert "not fetched, and HF_HUB_OFFLINE" in run(hub, [asked], "check", HF_HUB_OFFLINE="1")[1][0]
    run(hub, [asked], "check")
    assert found(sources.locate(asked)) == MODEL


def test_what_arrives_damaged_is_not_kept(hub: Hub) -> None:
    asked = model(hub)
    hub.damage = {"model-00002-of-00002.safetensors"}
    _, lines = run(hub, [asked])
    assert lines[-1].endswith(
        "model-00002-of-00002.safetensors isn't what the hub has, by its sha256; fetch it again"
    )
    assert len(missing([asked])) == 1 and not (hub.home / "runs").exists()


def test_a_url_must_have_its_sha256(hub: Hub) -> None:
    hub.plain["a.csv"] = b"first"
    first, second = (hashlib.sha256(text).hexdigest() for text in (b"first", b"other"))
    free = {"url": f"{hub.url}/plain/a.csv"}
    pinned = free | {"sha256": first}
    _, lines = run(hub, [free | {"sha256": second}])
    assert lines[-1].endswith(
        f"a.csv: its sha256 is {first}, not {second}; if that is meant, change the pin"
    )
    assert not [path for path in (hub.home / "hf/study").rglob("*") if path.is_file()]
    run(hub, [free, pinned])
    assert missing([free, pinned]) == []
    # The address has new content: who pinned the old one, or has it on record, is told; a new pin
    # gets the new.
    hub.plain["a.csv"] = b"other"
    for path in (sources.locate(free), sources.locate(pinned)):
        path.write_bytes(b"cut")
    for source in (free, pinned):
        assert f"its sha256 is {second}, not {first}" in run(hub, [source])[1][-1]
    assert run(hub, [free | {"sha256": second}])[0][0]["sha256"] == second


def test_identities_are_contents_or_pins(tmp_path: Path) -> None:
    pin = {"hub": "owner/data", "revision": "0" * 40}
    assert sources.identity(pin | {"kind": "dataset"}) == pin | {"file": None}
    assert sources.identity(pin | {"file": "a"}) != sources.identity(pin)
    assert sources.identity({"url": "https://a/b"}) == {"url": "https://a/b", "sha256": None}
    assert sources.locate({"url": "https://a/b"}) != sources.locate(
        {"url": "https://a/b", "sha256": "0" * 64}
    )
    (tmp_path / "a").write_text("text")
    assert sources.identity({"path": str(tmp_path / "a")}) == hashlib.sha256(b"text").hexdigest()
    assert sources.identity({"path": str(tmp_path)}).keys() == {"a"}


def test_looking_for_sources_imports_little(hub: Hub) -> None:
    asked = model(hub)
    run(hub, [asked])
    code = (
        "import json, sys; from study.spec import sources; asked = json.loads(sys.argv[1]);"
        "print([str(p) for p in sources.missing([asked], 'x.yaml')], sources.identity(asked), sources.locate(asked));"
        "print(sorted({'httpx2', 'huggingface_hub.hf_api', 'torch', 'datasets'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", code, json.dumps(asked)]
    settings = os.environ | {"HF_HOME": str(hub.home / "hf")}
    out = subprocess.run(
        words, cwd=ROOT, env=settings, capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines() == [f"[] {sources.identity(asked)} {sources.locate(asked)}", "[]"]


STUDY = """
study: fetched
seeds: [0]
models: {{base: {{hub: owner/llama, revision: {model}}}}}
corpora: {{found: {{hub: owner/data, revision: {data}, documents: 3, dedup_threshold: 0}}}}
arms: {{base: {{start: base}}, trained: {{start: base, midtrain: found}}}}
midtrain: {{recipe: recipes/tiny_midtrain.yaml}}
benchmarks: {{concern: {{task: concern_for_animals}}}}
engine: {{dtype: float32, max_model_len: 512}}
"""


def test_a_study_on_the_hub_is_planned_fetched_and_run_offline(hub: Hub) -> None:
    tiny_checkpoint.make(hub.home / "llama")
    files = {file.name: file.read_bytes() for file in (hub.home / "llama").iterdir()}
    pins = {"model": hub.add("model", "owner/llama", files), "data": data(hub)["revision"]}
    study = hub.home / "fetched.yaml"
    study.write_text(STUDY.format(**pins))

    def kit(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "study", *words, "--runs", str(hub.home / "runs")]
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(hub.home / "hf"),
            "NO_PROXY": "*",
            **environment,
        }
        return subprocess.run(
            command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True
        )

    before = kit("run", str(study))
    assert (
        before.returncode == 2
        and before.stderr.count("not fetched: owner/") == 2
        and not hub.requests
    )
    told = kit("fetch", str(study))
    assert told.returncode == 0 and "owner/llama" in told.stdout, told.stderr
    hub.requests.clear()
    study.write_text(study.read_text().replace(", trained: {start: base, midtrain: found}", ""))
    after = kit("run", str(study), HF_HUB_OFFLINE="1")
    assert after.returncode == 0 and not hub.requests, after.stderr
    (checkpoint,) = (hub.home / "runs/fetched/model").glob("base-*/model")
    assert found(checkpoint) == files
