"""The client of the document writer: throughput under limits, and losses under errors and kills.

    python -m benchmarks.writer cap      8 processes share a rate limit of 600 requests per minute:
                                         throughput as a share of the limit
    python -m benchmarks.writer latency  no limit, 4 s per call: throughput as a share of
                                         concurrency / latency
    python -m benchmarks.writer hostile  the stages `drafts` and `documents`, 2 corpora of 2,700
                                         documents in 8 shards each: 20 % failing requests, the
                                         rate limit, and three times SIGKILL of all processes

`--curator PYTHON` also runs bespoke-curator on the same endpoint. PYTHON is the interpreter of an
environment that has bespokelabs-curator. Curator has no rate limit across processes, so each
process gets an equal share of it. Throughput is computed from the endpoint's times of delivery,
without the first and last tenth, in which processes start and end.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from core.cell.identity import create_cell_dir
from core.cell.manifest import read_manifest
from core.endpoints.client import LedgerClient, gather_limited
from core.endpoints.connect import Endpoint
from core.endpoints.ledger import LedgerEntry, read_ledger
from core.endpoints.rate_limit import RateLimiter
from study.spec import expand
from study.spec.load import load_study
from tests.endpoint import KEY

ROOT = Path(__file__).parents[1]
PRICES = (0.1, 0.4)
CORPORA = {"animal": "animal_welfare", "urban": "urban_density"}

# The script of a bespoke-curator user: no telemetry, no display, an encoding without a download.
CURATOR = f"""
import json, os, sys
from pathlib import Path
task = json.loads(sys.argv[1])
import litellm
os.environ |= {{
    "TELEMETRY_ENABLED": "0",
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
    "HF_HUB_OFFLINE": "1",
    "OPENAI_API_KEY": {KEY!r},
    "CURATOR_CACHE_DIR": task["folder"] + "/curator" + str(task["number"]),
    "TIKTOKEN_CACHE_DIR": str(Path(litellm.__file__).parent / "litellm_core_utils/tokenizers"),
}}
from bespokelabs import curator
prompts = json.loads(Path(task["folder"], "prompts.json").read_text())
prompts = prompts[task["number"]::task["processes"]]
llm = curator.LLM(
    model_name="dummy",
    backend="openai",
    generation_params={{"temperature": 1.0, "max_tokens": 2500}},
    backend_params={{
        "base_url": task["address"],
        "api_key": {KEY!r},
        "max_concurrent_requests": task["concurrency"],
        "max_requests_per_minute": max(1, (task["limit"] or 10**7) // task["processes"]),
        "max_tokens_per_minute": 10**9,
        "max_retries": 10,
        "request_timeout": task["timeout"],
    }},
)
llm(prompts)
"""


def run_shard(task: dict[str, Any]) -> None:
    """Make one process' share of the calls."""
    folder = Path(task["folder"])
    prompts = json.loads((folder / "prompts.json").read_text())

    async def complete_all() -> None:
        endpoint = Endpoint(task["address"], KEY, "dummy")
        client = LedgerClient(
            {"model": endpoint.model},
            lambda: endpoint,
            {"temperature": 1.0, "max_tokens": 2500},
            folder / f"calls{task['number']}.jsonl",
            rate_limiter=RateLimiter(folder / "budget.json", requests_per_minute=task["limit"]),
            prices=PRICES,
            timeout=task["timeout"],
        )

        async def complete(i: int) -> None:
            await client.complete(i, 0, "document", prompts[i], i)

        ids = range(task["number"], len(prompts), task["processes"])
        async with client:
            await gather_limited(ids, complete, task["concurrency"])

    asyncio.run(complete_all())


@contextmanager
def endpoint(**options: Any) -> Iterator[str]:
    """Run the hostile endpoint of the tests in a process of its own, and give its address."""
    command = [sys.executable, "-m", "tests.endpoint", json.dumps({"prices": PRICES, **options})]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:  # it exits when its standard input is closed
        process.communicate()


def stats(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(address.replace("/v1", "/stats")) as reply:
        counted: dict[str, Any] = json.load(reply)
        return counted


def cells(options: argparse.Namespace, folder: Path, address: str) -> tuple[list[Path], list[Path]]:
    """Create the `drafts` and the `documents` cells of two corpora of studies/tiny.yaml."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tokenizer / "tokenizer.json"))
    endpoint_settings = {
        "base_url": address,
        "model": "dummy",
        "key_env": "WRITER_KEY",
        "requests_per_minute": options.limit,
        "prompt_price": PRICES[0],
        "completion_price": PRICES[1],
        "timeout": options.timeout,
    }
    overrides = [
        f"endpoints.dummy={json.dumps(endpoint_settings)}",
        f"models.base={{path: {tokenizer}}}",
        f"concurrency={options.concurrency}",
        "corpora.urban.matched_to=animal",
    ]
    for name in CORPORA:
        overrides += [
            f"corpora.{name}.documents={options.documents // len(CORPORA)}",
            f"corpora.{name}.tokens=null",
            f"corpora.{name}.shards={options.processes}",
            f"corpora.{name}.tolerance=0.1",
        ]
    study = load_study(ROOT / "studies/tiny.yaml", None, overrides)
    planned = expand.in_order(expand.analysis(study))
    drafts, documents = (
        [create_cell_dir(cell, folder / "runs") for cell in planned if cell.stage == stage]
        for stage in ("drafts", "documents")
    )
    return drafts, documents


def run(commands: list[list[str]], task: dict[str, Any], kills: int) -> tuple[list[int], float]:
    """Run the commands until all end. Before, kill all of them `kills` times, at equal intervals.

    Returns:
        After each kill, the number of responses that were delivered but not recorded; and the
        total time in seconds.
    """
    started = time.time()
    lost: list[int] = []
    for restart in range(kills + 1):
        with open(Path(task["folder"]) / "log.txt", "a") as log:
            processes = [
                subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) for command in commands
            ]
        kill_at = task["documents"] * (restart + 1) // (kills + 1)
        try:
            while any(process.poll() is None for process in processes):
                if restart < kills and stats(task["address"])["different"] >= kill_at:
                    break
                time.sleep(0.5)
        finally:  # also when this program is stopped
            for process in processes:
                process.kill()
        codes = [process.wait() for process in processes]
        if restart < kills:
            # The endpoint finishes the requests in flight, which are paid for.
            time.sleep(task["latency"] + 1)
            recorded = len(read_ledgers(Path(task["folder"])))
            lost.append(stats(task["address"])["delivered"] - recorded - sum(lost))
        elif any(codes):
            log_text = (Path(task["folder"]) / "log.txt").read_text()
            print(f"exit codes {codes}", log_text[-2000:], sep="\n")
    return lost, time.time() - started


def read_ledgers(folder: Path) -> dict[str, LedgerEntry]:
    """The finished calls in all ledgers below `folder`, by the hash of their request."""
    entries: dict[str, LedgerEntry] = {}
    for path in folder.rglob("calls*.jsonl"):
        entries |= read_ledger(path)[0]
    return entries


def rate(times: list[float], period: float) -> float:
    """Deliveries per second, without the first and last tenth of `times`.

    The interval is a multiple of `period`, because responses may come in waves.
    """
    times = sorted(times)
    tenth = len(times) // 10
    start = times[tenth]
    end = times[-tenth - 1]
    seconds = (end - start) // period * period
    return sum(start <= moment < start + seconds for moment in times) / seconds


def measure(name: str, python: list[str], options: argparse.Namespace) -> None:
    limit = None if options.mode == "latency" else options.limit
    with (
        tempfile.TemporaryDirectory() as folder,
        endpoint(limit=limit, latency=options.latency) as url,
    ):
        task = {
            "folder": folder,
            "address": url,
            "limit": limit,
            "timeout": options.timeout,
            "latency": options.latency,
        }
        task |= {
            option: getattr(options, option) for option in ("documents", "processes", "concurrency")
        }
        prompts = [f"Write document {i} on animal welfare." for i in range(options.documents)]
        Path(folder, "prompts.json").write_text(json.dumps(prompts))
        shards = [json.dumps(task | {"number": number}) for number in range(options.processes)]
        _, seconds = run([[*python, shard] for shard in shards], task, 0)
        counts = stats(url)
    print(f"{name}: {describe(counts, seconds)}")
    per_second = rate(counts["times"], options.latency)
    if options.mode == "cap":
        share = per_second * 60 / options.limit
        print(f"{name}: {per_second * 60:.0f} responses per minute, {share:.1%} of the limit")
    else:
        share = per_second * options.latency / (options.processes * options.concurrency)
        print(f"{name}: {per_second:.1f} responses/s, {share:.1%} of concurrency / latency")


def describe(counts: dict[str, Any], seconds: float) -> str:
    """The endpoint's counts in words."""
    return (
        f"{counts['delivered']} responses in {seconds:.0f} s, {counts['different']} different; "
        f"replies {counts['met']}"
    )


def hostile(options: argparse.Namespace) -> None:
    """Run both stages under errors and kills: check the corpora, count losses, compare costs."""
    os.environ["WRITER_KEY"] = KEY
    command = [sys.executable, "-m", "study", "cell", "--log"]
    with (
        tempfile.TemporaryDirectory() as folder,
        endpoint(limit=options.limit, latency=options.latency, faults=options.faults) as url,
    ):
        drafts, documents = cells(options, Path(folder), url)
        task = {
            "folder": folder,
            "address": url,
            "latency": options.latency,
            "documents": options.documents,
        }
        lost, seconds = run([[*command, str(cell)] for cell in drafts], task, options.kills)
        run([[*command, *map(str, documents)]], task, 0)
        counts = stats(url)
        entries = read_ledgers(Path(folder))
        for cell in documents:
            check_corpus(cell, entries)
        lines = sum(
            path.read_text().count('"copied_from": null')
            for path in Path(folder).rglob("calls.jsonl")
        )
    cost = sum(entry.cost for entry in entries.values())
    print(describe(counts, seconds))
    print(f"{len(entries)} requests in the ledgers, {lines} lines that are no copies")
    print(
        f"cost {cost:.6f} by the ledgers; by the endpoint {counts['cost_once']:.6f}, "
        f"{counts['cost']:.6f} with the lost responses"
    )
    print(f"lost at each kill {lost}, at most {len(drafts) * options.concurrency} were in flight")


def check_corpus(cell: Path, entries: dict[str, LedgerEntry]) -> None:
    """Print whether each document has one prompt, and exactly one response in the ledgers."""
    responses = defaultdict(list)
    for entry in entries.values():
        responses[entry.id].append(entry.text)
    rows = [json.loads(line) for line in (cell / "documents.jsonl").read_text().splitlines()]
    # A control is cut to the tokens of its match, so its documents are beginnings of responses.
    unmatched = sum(
        sum(text.startswith(row["text"]) for text in responses[row["id"]]) != 1 for row in rows
    )
    complete = [row["id"] for row in rows] == [*range(len(rows))]
    counts = (read_manifest(cell) or {})["counts"]
    print(
        f"{cell.name}: {len(rows)} documents, "
        f"{'each prompt once' if complete else 'PROMPTS MISSING'}; "
        f"{unmatched} without exactly one response in the ledgers; {counts}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=["cap", "latency", "hostile"])
    parser.add_argument("--documents", type=int, help="default 1,500, or 5,400 in mode hostile")
    parser.add_argument("--processes", type=int, default=8, help="in mode hostile, for each corpus")
    parser.add_argument(
        "--concurrency", type=int, default=16, help="concurrent calls of one process"
    )
    parser.add_argument("--limit", type=int, default=600, help="requests per minute")
    parser.add_argument("--latency", type=float, default=4.0, help="seconds")
    parser.add_argument("--timeout", type=float, default=15.0, help="seconds")
    parser.add_argument("--faults", type=float, default=0.2, help="share of requests that fail")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--curator", metavar="PYTHON")
    options = parser.parse_args()
    options.documents = options.documents or (5400 if options.mode == "hostile" else 1500)
    if options.mode == "hostile":
        return hostile(options)
    measure(
        "core.endpoints.client", [sys.executable, "-m", "benchmarks.writer", "--shard"], options
    )
    if options.curator:
        measure("bespoke-curator", [os.path.abspath(options.curator), "-c", CURATOR], options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--shard"]:
        run_shard(json.loads(sys.argv[2]))
    else:
        main()
