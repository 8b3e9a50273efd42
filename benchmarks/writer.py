"""The writer against an endpoint that limits, delays and fails: throughput, and that nothing is lost or paid twice.

    python -m benchmarks.writer cap                  8 processes, one budget, 600 requests per minute: share of the cap
    python -m benchmarks.writer latency              no cap, 4 s per call: share of concurrency / latency
    python -m benchmarks.writer hostile              the whole stage, 2 corpora x 2,700 documents in 2 x 8 drafts
                                                     cells, then documents: 20 % faults, the cap, 3 x SIGKILL of all

`--curator PYTHON` runs bespoke-curator beside it on the same endpoint: the Python of an environment of its own that has
bespokelabs-curator. It has no budget across processes, so each gets its share of the cap. The endpoint's own times of
delivery are what is measured, without the first and last tenth, in which processes start and end.
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
from study.spec import expand as plan
from study.spec.load import load_study
from tests.endpoint import KEY

ROOT = Path(__file__).parents[1]
PRICES = (0.1, 0.4)
CORPORA = {"animal": "animal_welfare", "urban": "urban_density"}

# What a user of bespoke-curator would write; no telemetry, no display, and an encoding that needs no download.
CURATOR = f"""
import json, os, sys
from pathlib import Path
task = json.loads(sys.argv[1])
import litellm
os.environ |= {{
    "TELEMETRY_ENABLED": "0", "CURATOR_DISABLE_RICH_DISPLAY": "1", "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": {KEY!r},
    "CURATOR_CACHE_DIR": task["folder"] + "/curator" + str(task["number"]),
    "TIKTOKEN_CACHE_DIR": str(Path(litellm.__file__).parent / "litellm_core_utils/tokenizers"),
}}
from bespokelabs import curator
prompts = json.loads(Path(task["folder"], "prompts.json").read_text())[task["number"]::task["processes"]]
llm = curator.LLM(
    model_name="stand-in", backend="openai", generation_params={{"temperature": 1.0, "max_tokens": 2500}},
    backend_params={{
        "base_url": task["address"], "api_key": {KEY!r}, "max_concurrent_requests": task["concurrency"],
        "max_requests_per_minute": max(1, (task["limit"] or 10**7) // task["processes"]),
        "max_tokens_per_minute": 10**9, "max_retries": 10, "request_timeout": task["timeout"],
    }},
)
llm(prompts)
"""


def work(task: dict[str, Any]) -> None:
    """One process's share of the documents."""
    folder = Path(task["folder"])
    prompts = json.loads((folder / "prompts.json").read_text())

    async def share() -> None:
        endpoint = Endpoint(task["address"], KEY, "stand-in")
        writer = LedgerClient(
            endpoint.model,
            lambda: endpoint,
            {"temperature": 1.0, "max_tokens": 2500},
            folder / f"calls{task['number']}.jsonl",
            rate_limiter=RateLimiter(folder / "budget.json", requests_per_minute=task["limit"]),
            prices=PRICES,
            timeout=task["timeout"],
        )

        async def one(i: int) -> None:
            await writer.complete(i, 0, "document", prompts[i], i)

        async with writer:
            await gather_limited(range(task["number"], len(prompts), task["processes"]), one, task["concurrency"])

    asyncio.run(share())


@contextmanager
def endpoint(**options: Any) -> Iterator[str]:
    """The hostile endpoint in a process of its own."""
    command = [sys.executable, "-m", "tests.endpoint", json.dumps({"prices": PRICES, **options})]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:  # it ends when its standard input does
        process.communicate()


def stats(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(address.replace("/v1", "/stats")) as reply:
        return json.load(reply)


def cells(options: argparse.Namespace, folder: Path, address: str) -> tuple[list[Path], list[Path]]:
    """The drafts cells and the documents cells of two corpora, as a study file asks for them, ready to be run."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tokenizer / "tokenizer.json"))
    rates = f"requests_per_minute: {options.limit}, prompt_price: {PRICES[0]}, completion_price: {PRICES[1]}"
    overrides = [
        f"endpoints.stand_in={{base_url: '{address}', model: stand-in, key_env: WRITER_KEY, {rates}, "
        f"timeout: {options.timeout}}}",
        f"models.base={{path: {tokenizer}}}",
        f"concurrency={options.concurrency}",
        "corpora.urban.matched_to=animal",
    ]
    for name in CORPORA:
        overrides += [f"corpora.{name}.documents={options.documents // len(CORPORA)}", f"corpora.{name}.tokens=null"]
        overrides += [f"corpora.{name}.shards={options.processes}", f"corpora.{name}.tolerance=0.1"]
    study = load_study(ROOT / "studies/tiny.yaml", None, overrides)
    found = plan.in_order(plan.analysis(study))
    drafts, documents = (
        [create_cell_dir(cell, folder / "runs") for cell in found if cell.stage == stage]
        for stage in ("drafts", "documents")
    )
    return drafts, documents


def run(commands: list[list[str]], task: dict[str, Any], kills: int) -> tuple[list[int], float]:
    """All processes to their end; before, all of them are killed `kills` times, at equal parts of the documents.

    Returns the answers that were delivered but not kept after each kill, and the seconds in all.
    """
    started, lost = time.time(), []
    for life in range(kills + 1):
        with open(Path(task["folder"]) / "log.txt", "a") as log:
            processes = [subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) for command in commands]
        wanted = task["documents"] * (life + 1) // (kills + 1)
        try:
            while any(process.poll() is None for process in processes):
                if life < kills and stats(task["address"])["different"] >= wanted:
                    break
                time.sleep(0.5)
        finally:  # also when this program is stopped
            for process in processes:
                process.kill()
        codes = [process.wait() for process in processes]
        if life < kills:
            time.sleep(task["latency"] + 1)  # the endpoint finishes, and is paid for, what was under way
            lost.append(stats(task["address"])["delivered"] - len(ledger(Path(task["folder"]))) - sum(lost))
        elif any(codes):
            print(f"exit codes {codes}", (Path(task["folder"]) / "log.txt").read_text()[-2000:], sep="\n")
    return lost, time.time() - started


def ledger(folder: Path) -> dict[str, LedgerEntry]:
    return {digest: answer for path in folder.rglob("calls*.jsonl") for digest, answer in read_ledger(path)[0].items()}


def rate(times: list[float], period: float) -> float:
    """Deliveries per second, without the first and last tenth; over whole periods, since answers may come in waves."""
    times = sorted(times)
    start, end = times[len(times) // 10], times[-(len(times) // 10) - 1]
    seconds = (end - start) // period * period
    return sum(start <= moment < start + seconds for moment in times) / seconds


def measure(name: str, python: list[str], options: argparse.Namespace) -> None:
    limit = None if options.mode == "latency" else options.limit
    with tempfile.TemporaryDirectory() as folder, endpoint(limit=limit, latency=options.latency) as url:
        task = {
            "folder": folder,
            "address": url,
            "limit": limit,
            "timeout": options.timeout,
            "latency": options.latency,
        }
        task |= {name: getattr(options, name) for name in ("documents", "processes", "concurrency")}
        prompts = [f"Write document {i} on animal welfare." for i in range(options.documents)]
        Path(folder, "prompts.json").write_text(json.dumps(prompts))
        shares = [json.dumps(task | {"number": number}) for number in range(options.processes)]
        _, seconds = run([[*python, share] for share in shares], task, 0)
        found = stats(url)
    print(
        f"{name}: {found['delivered']} answers in {seconds:.0f} s, {found['different']} different; met {found['met']}"
    )
    per_second = rate(found["times"], options.latency)
    if options.mode == "cap":
        print(f"{name}: {per_second * 60:.0f} answers a minute, {per_second * 60 / options.limit:.1%} of the cap")
    else:
        most = options.processes * options.concurrency / options.latency
        print(f"{name}: {per_second:.1f} answers a second, {per_second / most:.1%} of concurrency / latency")


def hostile(options: argparse.Namespace) -> None:
    """The whole stage against faults and kills: what is in the corpora, what was lost, and what it cost by both."""
    os.environ["WRITER_KEY"] = KEY
    command = [sys.executable, "-m", "study", "cell", "--log"]
    with (
        tempfile.TemporaryDirectory() as folder,
        endpoint(limit=options.limit, latency=options.latency, faults=options.faults) as url,
    ):
        drafts, documents = cells(options, Path(folder), url)
        task = {"folder": folder, "address": url, "latency": options.latency, "documents": options.documents}
        lost, seconds = run([[*command, str(cell)] for cell in drafts], task, options.kills)
        run([[*command, *map(str, documents)]], task, 0)
        found, kept = stats(url), ledger(Path(folder))
        answers = defaultdict(list)
        for answer in kept.values():
            answers[answer.id].append(answer.text)
        for cell in documents:
            rows = [json.loads(line) for line in (cell / "documents.jsonl").read_text().splitlines()]
            counts = (read_manifest(cell) or {})["counts"]
            # A control is cut to its match's tokens by whole paragraphs, so a document begins its answer.
            bad = sum(sum(text.startswith(row["text"]) for text in answers[row["id"]]) != 1 for row in rows)
            ids = "each prompt once" if [row["id"] for row in rows] == [*range(len(rows))] else "PROMPTS AMISS"
            print(f"{cell.name}: {len(rows)} documents, {ids}; {bad} without just one answer in the ledgers; {counts}")
        written = sum(path.read_text().count('"text": ') for path in Path(folder).rglob("calls.jsonl"))
    cost = sum(answer.cost for answer in kept.values())
    print(f"{found['delivered']} answers in {seconds:.0f} s, {found['different']} different; met {found['met']}")
    print(f"{len(kept)} requests in the ledgers on {written} lines")
    print(
        f"cost {cost:.6f} by the ledgers; by the endpoint {found['cost_once']:.6f}, {found['cost']:.6f} with the lost"
    )
    print(f"lost at each kill {lost}, under way at most {len(drafts) * options.concurrency}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["cap", "latency", "hostile"])
    parser.add_argument("--documents", type=int, help="default: 1,500, hostile 5,400")
    parser.add_argument("--processes", type=int, default=8, help="of hostile: for each corpus")
    parser.add_argument("--concurrency", type=int, default=16, help="calls at a time of one process")
    parser.add_argument("--limit", type=int, default=600, help="requests per minute")
    parser.add_argument("--latency", type=float, default=4.0, help="seconds")
    parser.add_argument("--timeout", type=float, default=15.0, help="seconds")
    parser.add_argument("--faults", type=float, default=0.2, help="share of requests")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--curator", metavar="PYTHON")
    options = parser.parse_args()
    options.documents = options.documents or (5400 if options.mode == "hostile" else 1500)
    if options.mode == "hostile":
        return hostile(options)
    measure("core.endpoints.client", [sys.executable, "-m", "benchmarks.writer", "--work"], options)
    if options.curator:
        measure("bespoke-curator", [os.path.abspath(options.curator), "-c", CURATOR], options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(json.loads(sys.argv[2]))
    else:
        main()
