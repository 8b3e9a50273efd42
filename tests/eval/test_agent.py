"""Agents: the official task and scorer, vLLM's server, the study's date, restarts."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import pytest

from core.errors import UserError
from core.model_folder.chat import Chat
from core.model_folder.tokenizer import open_tokenizer
from eval import agent
from tests.eval import tiny_checkpoint
from tests.place import ROOT
from tests.waiting import until

TICKETS = ROOT / "eval/data/tickets.jsonl"
SCENARIOS = [json.loads(line) for line in TICKETS.read_text().splitlines()]
TEMPLATE = (ROOT / "recipes/data/tools_chat.jinja").read_text()
DATED = "{%- if tools %}{{ tools[0].function.name }}{%- endif %}{{ strftime_now('%d %b %Y') }}"
SETTINGS = {
    "task": "tac",
    "inspect": "inspect_evals/tac",
    "argument": "local_scenarios",
    "metric": "welfare",
    "completion": "completed",
    "tool_parser": "hermes",  # for a tokenizer without Llama's <|python_tag|>
    "rows": None,
    "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 16, "epochs": 1},
    "engine": {"dtype": "float32"},
}


def played(tmp_path: Path, calls: dict[str, str]) -> pd.DataFrame:
    """Scores where each scenario's variants buy what `calls` says, by Inspect's own mock model."""
    from inspect_ai import eval as evaluate
    from inspect_ai.model import ChatMessageUser, ModelOutput, ModelUsage, get_model

    items = tmp_path / "items.json"
    items.write_text(json.dumps({"scenarios": SCENARIOS}))
    users = {scenario["input"]: scenario["id"] for scenario in SCENARIOS}

    def reply(messages: Any, *_: Any) -> ModelOutput:
        request = next(m.text for m in messages if isinstance(m, ChatMessageUser))
        bought = calls.get(users[request])
        output = ModelOutput.from_content("mockllm", "Done.")
        if bought is not None and messages[-1].role != "tool":
            purchase = {"experience_id": bought, "num_tickets": 1}
            output = ModelOutput.for_tool_call("mockllm", "purchase_tickets", purchase)
        output.usage = ModelUsage()  # otherwise Inspect fetches a tokenizer to count
        return output

    [log] = evaluate(
        agent.official_task(SETTINGS, items),
        model=get_model("mockllm/model", custom_outputs=reply, memoize=False),
        log_dir=str(tmp_path / "logs"),
        display="none",
        epochs=1,
    )
    assert log.status == "success", log.error
    return agent.scores_table(log, "welfare", [row["id"] for row in SCENARIOS])


@pytest.mark.slow
def test_what_is_bought_decides_by_the_official_scorer(tmp_path: Path) -> None:
    table = played(
        tmp_path,
        {
            "dock_sunday": "tank_show",  # harmful
            "hill_morning": "cable_car",  # safe
            "old_town_night": "opera",  # there is none
        },
    )
    scores = table.pivot_table(index="scenario", columns="dimension", values="score")
    welfare, completed = scores["overall"], scores["completed"]
    assert welfare.to_dict() == {
        "dock_sunday": 0,
        "hill_morning": 1,
        "old_town_night": 0,
        "desert_day": 1,  # nothing was bought
        "rainy_city": 1,
        "lake_anglers": 1,
    }
    assert completed.sum() == 3
    assert scores.loc["dock_sunday", "captive marine mammals"] == 0
    assert len(table) == 6 * 4 * 3 and set(table["judge"]) == {"program"}
    assert table.groupby("scenario")["question"].nunique().eq(4).all()


def test_samples_belong_to_the_longest_scenario_that_begins_their_id() -> None:
    scenarios = ["lake", "lake_trip"]
    assert agent.scenario_of("lake_trip_base", scenarios) == "lake_trip"
    assert agent.scenario_of("lake_base", scenarios) == "lake"
    assert agent.scenario_of("lakes", scenarios) == "lakes"


@pytest.mark.slow
def test_a_served_template_has_the_study_s_date_whatever_the_server_s_clock_says(
    tmp_path: Path,
) -> None:
    header = "{%- for m in messages %}[{{ m.role }}]{{ m.content }}{%- endfor %}"
    header += "{%- if add_generation_prompt %}[assistant]{%- endif %}"
    tokenizer = open_tokenizer(tiny_checkpoint.make(tmp_path / "model", chat=DATED + header))
    served = agent.served_template(Chat(tokenizer, "2024-02-03"))
    options = {"messages": [{"role": "user", "content": "Hi"}], "tools": [agent.TOOL]}
    text = jinja2.Template(served).render(strftime_now=lambda _: "another day", **options)
    assert text == "measure_rain03 Feb 2024[user]Hi"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "what"),
    [
        (tiny_checkpoint.CHAT, "leaves tools out"),
        (TEMPLATE + "{%- set form = '%Y' %}{{- strftime_now(form) }}", "the form of its date"),
    ],
)
def test_a_template_that_can_t_serve_an_agent_is_refused(
    tmp_path: Path, template: str, what: str
) -> None:
    tokenizer = open_tokenizer(tiny_checkpoint.make(tmp_path / "model", chat=template))
    with pytest.raises(UserError, match=what):
        agent.served_template(Chat(tokenizer))


def test_the_parser_of_tool_calls_follows_from_the_model_s_type(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    for kind, parser in (("llama", "llama3_json"), ("qwen3", "hermes"), ("olmo3", "olmo3")):
        config.write_text(json.dumps({"model_type": kind}))
        assert agent.parser_of(tmp_path) == parser
    config.write_text(json.dumps({"model_type": "falcon"}))
    with pytest.raises(UserError, match=r"benchmarks\.NAME\.tool_parser"):
        agent.parser_of(tmp_path)


@pytest.mark.vllm
def test_vllm_has_each_parser_and_reads_a_call_by_it() -> None:
    from vllm.tool_parsers import ToolParserManager

    assert all(ToolParserManager.get_tool_parser(name) for name in agent.TOOL_PARSERS.values())


@pytest.mark.vllm
def test_a_killed_run_keeps_its_samples_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    tiny_checkpoint.make(checkpoint / "model", chat=TEMPLATE)
    (checkpoint / "manifest.json").write_text(json.dumps({"identity": "a"}))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    counts = act(whole, checkpoint)
    assert counts["samples"] == 24 and counts["turns"] >= 24
    warnings = json.loads((whole / "warnings.json").read_text())
    assert any("0 of 24 samples did what the task asks" in text for text in warnings)

    assert not [*temporary(whole).iterdir()], "a server leaves nothing in TMPDIR"

    process = start(killed, checkpoint)
    until(lambda: ended(killed) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "scored.eval").exists(), "it ended before the kill"
    kept = {
        k: v for log in (killed / agent.WORK).glob("logs/*.eval") for k, v in uuids(log).items()
    }
    assert kept
    assert act(killed, checkpoint) == counts
    assert not (killed / agent.WORK).exists()
    again = uuids(killed / "scored.eval")
    assert kept.items() <= again.items(), "a sample that had ended was made again"
    assert texts(killed) == texts(whole)


def ended(folder: Path) -> int:
    """How many samples are in the log of a run under way; 0 while it is being written."""
    count = 0
    for log in (folder / agent.WORK).glob("logs/*.eval"):
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(log) as archive:
            count += sum(name.startswith("samples/") for name in archive.namelist())
    return count


def uuids(log: Path) -> dict[str, str | None]:
    """The name that Inspect gave each sample of a log when it ran."""
    from inspect_ai.log import read_eval_log

    return {f"{s.id}/{s.epoch}": s.uuid for s in read_eval_log(str(log)).samples or []}


def texts(folder: Path) -> dict[str, list[str]]:
    """What was said in each sample, in order."""
    from inspect_ai.log import read_eval_log

    log = read_eval_log(str(folder / "scored.eval"))
    return {
        str(sample.id): [message.text for message in sample.messages]
        for sample in log.samples or []
    }


SCRIPT = """
import json, sys
from pathlib import Path
from core.cell.context import StageContext
from eval import agent
folder, checkpoint, settings, files = sys.argv[1:]
context = StageContext(
    Path(folder), "0" * 64, json.loads(settings),
    {"files": json.loads(files), "engine": {"max_model_len": 2048}},
    {"checkpoint": Path(checkpoint)},
)
counts = agent.run(context)
(Path(folder) / "counts.json").write_text(json.dumps(counts))
(Path(folder) / "warnings.json").write_text(json.dumps(context.warnings))
"""


def start(folder: Path, checkpoint: Path) -> "subprocess.Popen[bytes]":
    folder.mkdir(exist_ok=True)
    files = json.dumps({"items": str(TICKETS)})
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(checkpoint), json.dumps(SETTINGS), files],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary(folder))},
        start_new_session=True,
    )


def temporary(folder: Path) -> Path:
    made = folder.with_name(f"tmp-{folder.name}")
    made.mkdir(exist_ok=True)
    return made


def act(folder: Path, checkpoint: Path) -> dict[str, int]:
    assert start(folder, checkpoint).wait() == 0
    counts: dict[str, int] = json.loads((folder / "counts.json").read_text())
    return counts
