"""A writer that the kit serves by vLLM writes a corpus, and no server outlives its job."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from core.cell.identity import Cell, create_cell_dir
from core.cell.manifest import read_manifest
from core.endpoints.ledger import read_ledger
from core.errors import UserError
from core.inference import vllm_server
from core.paths import ROOT
from study.spec import expand as plan
from study.spec.load import load_study
from tests.eval import tiny_checkpoint
from tests.waiting import until

LETTERS = "abcdefghijklmnopqrstuvwxyzĠ."  # Ġ: a space, as byte-level tokenizers write it


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that writes some 150 random letters, spaces and full stops."""
    import safetensors.torch
    import torch
    from transformers import AutoTokenizer

    folder = tiny_checkpoint.make(tmp_path_factory.mktemp("models") / "letters")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()  # what a token adds to the last one's embedding
    weights["model.embed_tokens.weight"].fill_(1)
    logits = torch.full((len(tokenizer),), -30.0)
    logits[tokenizer.convert_tokens_to_ids(list(LETTERS))] = 0.0
    logits[tokenizer.convert_tokens_to_ids("Ġ")] = 1.5
    logits[tokenizer.eos_token_id] = -1.5
    weights["lm_head.weight"] = (logits / 64).unsqueeze(1).expand(-1, 64).contiguous()
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def cell(model: Path) -> Cell:
    """A corpus by that model as a study file asks for it, but with lenient gates."""
    overrides = [
        f"endpoints.dummy={{served_by: vllm, path: {model}, options: {{max_num_seqs: 4}}}}",
        "corpora={animal: {template: animal_welfare, documents: 24, writer: dummy, "
        "max_tokens: 300}}",
        "arms={untrained: {start: base}, animal: {start: base, midtrain: animal}}",
        f"models.base={{path: {model}}}",
        "contrasts=[]",
    ]
    overrides += [
        "endpoints.grader={served_by: dummy}",
        "benchmarks.ahb.judge=grader",
    ]  # no model may grade itself
    study = load_study(ROOT / "studies/tiny.yaml", None, overrides)
    (found,) = (cell for cell in plan.in_order(plan.analysis(study)) if cell.stage == "documents")
    template = {**found.settings["template"], "gates": {"words": [1, 300]}}
    assert not found.inputs
    return replace(found, settings={**found.settings, "template": template})


def run(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "study", "cell", "--log", str(folder)], cwd=ROOT)


def session_of(model: Path) -> list[int]:
    """The processes of the session in which a server of this model runs."""
    stats = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if state != "Z":
            stats[int(folder.name)] = (int(session), str(model).encode() in words)
    servers = {session for session, serves in stats.values() if serves}
    return [pid for pid, (session, _) in stats.items() if session in servers]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.multiprocess
def test_a_local_model_writes_a_corpus_and_a_killed_job_leaves_no_server(
    tmp_path: Path, model: Path, cell: Cell
) -> None:
    folder = create_cell_dir(cell, tmp_path / "runs")
    ledger, job = folder / "calls.jsonl", run(folder)
    until(lambda: read_ledger(ledger)[0] or job.poll() is not None)
    server = session_of(model)
    assert len(server) >= 3 and job.pid not in server, "shell, server and engine"
    job.send_signal(signal.SIGKILL)
    job.wait()
    until(lambda: not any(map(alive, server)))
    kept = read_ledger(ledger)[0]
    assert run(folder).wait() == 0, (folder / "log.txt").read_text()[-2000:]
    assert not session_of(model)

    manifest = read_manifest(folder)
    assert (
        manifest
        and manifest["counts"]["documents"] == 24
        and "server.log" not in manifest["outputs"]
    )
    name = cell.settings["writer"]["model"]
    answers = read_ledger(ledger)[0]
    assert kept.items() <= answers.items() and {answer.model for answer in answers.values()} == {
        name
    }
    assert name.startswith("letters-") and all(
        answer.completion_tokens for answer in answers.values()
    )
    texts = [
        json.loads(line)["text"] for line in (folder / "documents.jsonl").read_text().splitlines()
    ]
    assert len(set(texts)) == 24 and set("".join(texts)) <= set(LETTERS.replace("Ġ", " "))


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"max_model_len": 10**6}, "max_model_len", marks=pytest.mark.nightly),
        ({"no_such": 1}, "unrecognized arguments: --no-such"),
    ],
)
def test_a_server_that_ends_is_reported_with_its_reason(
    tmp_path: Path, model: Path, options: dict[str, int], says: str
) -> None:
    endpoint = {"model": "m"}
    log = tmp_path / "server.log"
    with (
        pytest.raises(UserError, match=rf"^{log}: vLLM ended \(.*{says}.*\); ") as caught,
        vllm_server.serve(endpoint, {"path": str(model), "options": options}, log),
    ):
        pytest.fail("it serves")
    assert len(caught.value.lines) == 1 and not session_of(model)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("process", "says"),
    [
        ("vllm.entrypoints.cli.main", r"vLLM ended \(.*137\).*more memory"),
        ("VLLM::EngineCore", r"vLLM ended \(its engine was killed\).*memory"),
    ],
)
def test_a_server_that_is_killed_is_reported_in_place_of_the_calls_that_failed(
    tmp_path: Path, model: Path, process: str, says: str
) -> None:
    endpoint = {"model": "m"}
    resources = {"path": str(model), "options": {"max_model_len": 512}}
    with (
        pytest.raises(UserError, match=says),
        vllm_server.serve(endpoint, resources, tmp_path / "server.log"),
    ):
        session = session_of(model)
        shell = os.getsid(session[0])
        (killed,) = [pid for pid in session if process in command_line(pid) and pid != shell]
        os.kill(killed, signal.SIGKILL)
        until(lambda: not alive(shell), 60)
        raise UserError(what="no answer")
