"""What is fetched from a hub is identical, located, recorded, and not fetched again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from study.spec import sources
from tests.eval import tiny_checkpoint
from tests.hub import Hub
from tests.study.fetching import (
    DATA,
    MEGABYTES,
    MODEL,
    ROOT,
    ROWS,
    WEIGHTS,
    data,
    found,
    hub,
    missing,
    model,
    record,
    run,
    start,
)

__all__ = ["hub"]  # a fixture


@pytest.mark.multiprocess
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
    assert [problem.what for problem in before[:2]] == [
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


@pytest.mark.multiprocess
def test_only_a_folder_of_a_data_set(hub: Hub) -> None:
    asked = data(hub, file="data")
    assert run(hub, [asked])[0][0]["files"].keys() == {"data/train.jsonl", "data/odd [1].jsonl"}
    assert found(sources.locate(asked)).keys() == {"train.jsonl", "odd [1].jsonl"}
    assert missing([asked]) == []
    assert len(missing([data(hub)])) == 1, "a part is not the whole"


@pytest.mark.multiprocess
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


@pytest.mark.multiprocess
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


@pytest.mark.multiprocess
def test_a_connection_cut_in_a_file_goes_on_from_there(hub: Hub) -> None:
    large = os.urandom(13 * MEGABYTES)
    asked = model(hub, files=MODEL | {"model-00001-of-00002.safetensors": large})
    hub.cut["model-00001-of-00002.safetensors"] = 12 * MEGABYTES
    _, lines = run(hub, [asked])
    assert hub.ranges == [f"bytes={10 * MEGABYTES}-"]  # it writes ten megabytes at a time
    assert not any("signed" in line for line in lines)
    assert found(sources.locate(asked))["model-00001-of-00002.safetensors"] == large


@pytest.mark.multiprocess
def test_interrupted_it_ends_at_once_and_later_fetches_the_rest(hub: Hub) -> None:
    slow = "model-00002-of-00002.safetensors"
    asked = model(hub, files=MODEL | {slow: os.urandom(32 * MEGABYTES)})
    hub.hold[slow] = threading.Event()
    process = start(hub, [asked])
    while not hub.holding.wait(0.05):
        assert process.poll() is None, process.communicate()
    while sum(path.is_file() for path in sources.snapshot(asked).rglob("*")) < len(MODEL) - 1:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    while not (hub.home / "heard").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    hub.hold[slow].set()
    assert process.communicate()[1].count("Traceback") == 0
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


@pytest.mark.multiprocess
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


@pytest.mark.multiprocess
def test_what_arrives_damaged_is_not_kept(hub: Hub) -> None:
    asked = model(hub)
    hub.damage = {"model-00002-of-00002.safetensors"}
    _, lines = run(hub, [asked])
    assert lines[-1].endswith(
        "model-00002-of-00002.safetensors isn't what the hub has, by its sha256; fetch it again"
    )
    assert len(missing([asked])) == 1 and not (hub.home / "runs").exists()


@pytest.mark.multiprocess
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


@pytest.mark.multiprocess
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


@pytest.mark.multiprocess
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
