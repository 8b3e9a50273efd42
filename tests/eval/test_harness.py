"""lm-eval's own tasks on the shared engine, over small look-alikes of their data sets."""

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from core.cell.context import StageContext
from core.errors import UserError
from core.inference import requests
from core.inference import vllm_engine as engine
from eval import harness
from tests.eval import tiny_checkpoint
from tests.eval.lookalikes import ANIMALS, ARC, GSM8K, HELLASWAG, IFEVAL, MMLU, TRUTHFULQA, make

pytestmark = pytest.mark.vllm

ENGINE = {"dtype": "float32"}
DECLARED = [
    yaml.safe_load(path.read_text())
    for path in Path(harness.__file__).parent.glob("benchmarks/*.yaml")
]
BENCHMARKS = {row["lm_eval"][0]: row for row in DECLARED if row["scorer"] == "lm_eval"}


def subjects() -> list[str]:
    return sorted(
        path.stem.removeprefix("mmlu_") for path in harness.declared()["mmlu"].glob("mmlu_*.yaml")
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Look-alikes by the name of their declaration; MMLU's subjects have one to four rows."""
    folder = tmp_path_factory.mktemp("data")
    make(folder / "hellaswag", {"default": {"train": HELLASWAG[4:], "validation": HELLASWAG[:4]}})
    make(
        folder / "arc_challenge",
        {"ARC-Challenge": dict.fromkeys(["train", "validation", "test"], ARC * 4)},
    )
    mmlu = {
        subject: {"test": MMLU[: 1 + i % 4], "dev": MMLU * 2}
        for i, subject in enumerate(subjects())
    }
    make(folder / "mmlu", mmlu)
    make(folder / "gsm8k", {"main": {"train": GSM8K[3:] * 2, "test": GSM8K[:3]}})
    make(folder / "ifeval", {"default": {"train": IFEVAL}})
    make(folder / "truthfulqa_mc2", {"multiple_choice": {"validation": TRUTHFULQA}})
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tiny_checkpoint.make(folder / "model")
    yield folder
    engine.close()


def cell(
    folder: Path,
    checkpoint: Path,
    data: Path,
    name: str,
    prompts: dict[str, str] | None = None,
    **others: Any,
) -> StageContext:
    """A cell of the declaration `name`, as the study makes it; keywords replace its settings."""
    declared = {
        key: BENCHMARKS[name].get(key) for key in ("lm_eval", "metric", "filter", "num_fewshot")
    }
    settings = (
        declared | {"task": name, "engine": ENGINE, "num_fewshot": 0, "max_tokens": 24} | others
    )
    folder.mkdir()
    (checkpoint / "manifest.json").touch()
    files = {"data": str(data / name), **(prompts or {})}
    resources = {"files": files, "engine": {"max_model_len": 2048}}
    return StageContext(folder, "a", settings, resources, {"checkpoint": checkpoint})


def ran(*which: Any, **others: Any) -> tuple[dict[str, Any], list[dict[str, Any]], Any]:
    """The counts, samples and scores of a cell."""
    import pandas as pd

    context = cell(*which, **others)
    counts = harness.run(context)
    assert sorted(path.name for path in context.folder.iterdir()) == [
        "requests.jsonl",
        "samples.jsonl",
        "scores.parquet",
    ]
    samples = [
        json.loads(line) for line in (context.folder / "samples.jsonl").read_text().splitlines()
    ]
    return counts, samples, pd.read_parquet(context.folder / "scores.parquet")


def asked(*which: Any, **others: Any) -> tuple[list[list[int]], list[Any]]:
    """The token ids that vLLM was given by a cell, in its order, and their sampling parameters."""
    from vllm.v1.engine.llm_engine import LLMEngine

    with mock.patch.object(
        LLMEngine, "add_request", autospec=True, side_effect=LLMEngine.add_request
    ) as add_request:
        ran(*which, **others)
    calls = [call.args for call in add_request.call_args_list]
    return [prompt["prompt_token_ids"] for _, _, prompt, _ in calls], [call[3] for call in calls]


def reference(checkpoint: Path, context: str, choice: str) -> float:
    """The log-probability of a choice after a context, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "model")
    model = AutoModelForCausalLM.from_pretrained(checkpoint / "model", dtype=torch.float32)
    given = [tokenizer.bos_token_id, *tokenizer.encode(context, add_special_tokens=False)]
    ids = torch.tensor([given + tokenizer.encode(choice, add_special_tokens=False)])
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    return float(logprobs.gather(1, ids[0, 1:, None])[len(given) - 1 :].double().sum())


def test_likelihoods_are_those_of_transformers(checkpoint, data, tmp_path):
    counts, samples, table = ran(tmp_path / "one", checkpoint, data, "hellaswag", rows=4)
    assert counts | {"tokens": 0} == {
        "items": 4,
        "tasks": 1,
        "requests": 16,
        "tokens": 0,
        "missing": 0,
    }
    for i, (sample, row) in enumerate(zip(samples, HELLASWAG[:4], strict=True)):
        context = f"{row['activity_label']}: {row['ctx_a']} It"
        endings = [ending.replace("[step]", "") for ending in row["endings"]]
        logprobs = [reference(checkpoint, context, f" {ending}") for ending in endings]
        assert sample["logprobs"] == pytest.approx(logprobs, rel=1e-6, abs=1e-5)
        best = logprobs.index(max(logprobs))
        normalized = [
            logprob / len(ending) for logprob, ending in zip(logprobs, endings, strict=True)
        ]
        scores = {"acc,none": best == i, "acc_norm,none": normalized.index(max(normalized)) == i}
        assert (
            sample["metrics"] == scores
            and sample["target"] == i
            and sample["id"] == f"hellaswag/{i}"
        )
    assert any(
        sample["metrics"]["acc,none"] != sample["metrics"]["acc_norm,none"] for sample in samples
    )
    assert (
        " ".join(table.columns) == "question scenario dimension epoch judge score missing response"
    )
    assert table.score.tolist() == [sample["metrics"]["acc_norm,none"] for sample in samples]
    assert table[["question", "scenario", "response"]].values.tolist()[1] == [
        "hellaswag/1",
        "hellaswag/1",
        "hellaswag/1/1",
    ]
    assert (
        set(table.dimension) == {"overall"}
        and set(table.judge) == {"lm-eval"}
        and table.missing.isna().all()
    )


@pytest.mark.parametrize("name", ["hellaswag", "gsm8k"])
def test_begin_of_text_once_whatever_the_tokenizer_does(checkpoint, data, tmp_path, name):
    tiny_checkpoint.make(tmp_path / "other" / "model", adds_bos=False)
    one, _ = asked(tmp_path / "one", checkpoint, data, name, num_fewshot=2)
    two, _ = asked(tmp_path / "two", tmp_path / "other", data, name, num_fewshot=2)
    assert one == two and all(ids[0] == 256 and ids.count(256) == 1 for ids in one)
    assert (tmp_path / "one/samples.jsonl").read_bytes() == (
        tmp_path / "two/samples.jsonl"
    ).read_bytes()


def test_chat_is_the_template_with_examples_as_turns(checkpoint, data, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "model")
    prompts, ways = asked(
        tmp_path / "one", checkpoint, data, "gsm8k", chat=True, num_fewshot=1, limit=1
    )
    [prompt], [way] = prompts, ways
    assert (
        "<|eot_id|>" in way.stop
        and "Question:" in way.stop
        and way.temperature == 0
        and way.max_tokens == 24
    )
    turns = re.findall(
        r"<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>", tokenizer.decode(prompt), re.DOTALL
    )
    assert (
        turns[0] != turns[2] == f"Question: {GSM8K[0]['question']}\nAnswer:" and "####" in turns[1]
    )
    roles = ["user", "assistant", "user"]
    chat = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
    assert prompt == tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )
    # Under a system prompt and a prefill, too.
    files = {"system": tmp_path / "system.txt", "prefill": tmp_path / "prefill.txt"}
    files["system"].write_text("Mind the animals.\n")
    files["prefill"].write_text("Let us think.")
    prompts, _ = asked(
        tmp_path / "prompted",
        checkpoint,
        data,
        "gsm8k",
        chat=True,
        num_fewshot=1,
        limit=1,
        prompts={name: str(path) for name, path in files.items()},
    )
    chat = [{"role": "system", "content": "Mind the animals."}, *chat]
    assert prompts == [
        tokenizer.apply_chat_template(
            [*chat, {"role": "assistant", "content": "Let us think."}],
            continue_final_message=True,
            return_dict=False,
        )
    ]
    with pytest.raises(UserError, match="no chat template"):
        tiny_checkpoint.make(tmp_path / "base" / "model", chat=None)
        ran(tmp_path / "two", tmp_path / "base", data, "gsm8k", chat=True)
    twice = "{{- bos_token }}" + tiny_checkpoint.CHAT
    with pytest.raises(UserError, match="begins with begin-of-text twice"):
        tiny_checkpoint.make(tmp_path / "twice" / "model", chat=twice)
        ran(tmp_path / "three", tmp_path / "twice", data, "gsm8k", chat=True, num_fewshot=1)


def test_a_group_has_lm_evals_own_means(checkpoint, data, tmp_path):
    counts, samples, table = ran(tmp_path / "one", checkpoint, data, "mmlu", num_fewshot=1)
    rows = sum(1 + i % 4 for i in range(57))
    assert (counts["tasks"], counts["items"], counts["requests"]) == (57, rows, 4 * rows) and len(
        table
    ) == 2 * rows
    overall, parts = table[table.dimension == "overall"], table[table.dimension != "overall"]
    assert sorted(set(parts.dimension)) == [
        "mmlu_humanities",
        "mmlu_other",
        "mmlu_social_sciences",
        "mmlu_stem",
    ]
    assert parts.question.is_unique and parts.score.tolist() == overall.score.tolist()
    assert set(parts[parts.question == "mmlu_anatomy/0"].dimension) == {"mmlu_stem"}
    assert 0 < overall.score.mean() < 1
    group = harness.load(["mmlu_stem"], data / "mmlu", tmp_path)
    stem = harness.dimensions(group)
    assert len(set(stem.values())) == 19, "the parts of a group of tasks are its tasks"
    kept = [sample for sample in samples if sample["task"] in stem]
    assert len(kept) == (parts.dimension == "mmlu_stem").sum()
    group.get("mmlu_stem").aggregate_metric_list[0].weight_by_size = False
    with pytest.raises(UserError, match="mmlu_stem: is no mean over documents"):
        harness.check(group, {"metric": "acc", "num_fewshot": 0})
    with pytest.raises(AssertionError, match="of mmlu_stem is not lm-eval's"):
        harness.check_official(
            {task: {} for task in stem} | {"mmlu_stem": {"acc,none": 1.0}}, group, kept, "acc,none"
        )


def test_written_answers_are_filtered_and_matched(checkpoint, data, tmp_path):
    _, samples, table = ran(tmp_path / "one", checkpoint, data, "gsm8k", num_fewshot=1, limit=2)
    assert table.score.tolist() == [0, 0] and len(samples) == 2
    said = re.findall(r"\d+", samples[0]["answer"])[-1]
    row = GSM8K[0] | {"answer": f"So it is\n#### {said}"}
    make(tmp_path / "gsm8k", {"main": {"train": GSM8K[3:] * 2, "test": [row]}})
    for name, score in (("strict-match", 0), ("flexible-extract", 1)):
        counts, [sample], table = ran(
            tmp_path / name, checkpoint, tmp_path, "gsm8k", num_fewshot=1, filter=name
        )
        assert table.score.tolist() == [score] == [sample["metrics"][f"exact_match,{name}"]]
        assert sample["answer"] == samples[0]["answer"] and len(sample["answer"]) <= 24
        assert sample["filtered"] == {"strict-match": "[invalid]", "flexible-extract": said}
        assert (counts["items"], counts["requests"]) == (1, 1)


def test_answers_are_greedy_where_a_task_does_not_say(checkpoint, data, tmp_path):
    group = harness.load(["gsm8k"], data / "gsm8k", tmp_path)
    group.get_all_tasks()[0].set_config("generation_kwargs", {"until": "\n\n"})
    with mock.patch.object(harness, "load", lambda *_: group):
        _, [way, *_] = asked(tmp_path / "one", checkpoint, data, "gsm8k")
    assert way.temperature == 0 and "\n\n" in way.stop


def test_a_cell_repeats_exactly(checkpoint, data, tmp_path, monkeypatch):
    """Whatever the engine did before, and however requests are put together."""
    for name, shots in (("truthfulqa_mc2", 0), ("gsm8k", 5)):
        ran(tmp_path / f"{name} one", checkpoint, data, name, num_fewshot=shots)
        monkeypatch.setattr(requests, "MAX_IN_ENGINE", 2)
        ran(tmp_path / f"{name} between", checkpoint, data, "arc_challenge", num_fewshot=3, limit=5)
        ran(tmp_path / f"{name} two", checkpoint, data, name, num_fewshot=shots)
        for file in ("samples.jsonl", "scores.parquet"):
            assert (tmp_path / f"{name} one" / file).read_bytes() == (
                tmp_path / f"{name} two" / file
            ).read_bytes()
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["hellaswag", "gsm8k"])
def test_an_interrupted_cell_continues_and_gives_the_same_bytes(
    checkpoint, data, tmp_path, monkeypatch, name
):
    from vllm.v1.engine.llm_engine import LLMEngine

    prompts, _ = asked(tmp_path / "whole", checkpoint, data, name)
    monkeypatch.setattr(requests, "MAX_IN_ENGINE", 2)  # requests that have not begun are left
    context = cell(tmp_path / "cut", checkpoint, data, name)
    context.report = lambda number, *_: 1 // (2 - number)
    with pytest.raises(ZeroDivisionError):
        harness.run(context)
    with mock.patch.object(
        LLMEngine, "add_request", autospec=True, side_effect=LLMEngine.add_request
    ) as add_request:
        harness.run(replace(context, report=None))
    assert add_request.call_count == len(prompts) - 2
    for file in ("samples.jsonl", "scores.parquet"):
        assert (tmp_path / "whole" / file).read_bytes() == (context.folder / file).read_bytes()


def test_requests_are_reported_as_they_end(checkpoint, data, tmp_path):
    told = []
    context = cell(tmp_path / "one", checkpoint, data, "hellaswag")
    context.report = lambda *progress: told.append(progress)
    counts = harness.run(context)
    assert told == [(number, 16, "requests") for number in range(17)]
    lengths = [
        len(f"Feeding a {a}: The {a} waits by gate {i}. It ") + 1 for i, a in enumerate(ANIMALS[:4])
    ]
    endings = [ending.replace("[step]", "") for row in HELLASWAG[:4] for ending in row["endings"]]
    assert counts["tokens"] == 4 * sum(lengths) + sum(map(len, endings)) + 16, (
        "vLLM writes one for each request"
    )


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_the_probability_of_true_answers(checkpoint, data, tmp_path):
    import math

    _, samples, table = ran(tmp_path / "one", checkpoint, data, "truthfulqa_mc2")
    for sample, score in zip(samples, table.score, strict=True):
        weights = list(map(math.exp, sample["logprobs"]))
        assert score == pytest.approx(sum(weights[:2]) / sum(weights)) and 0 < score < 1
    endless = {"choices": ["Yes. " * 60, "No. " * 60], "labels": [1, 0]}
    rows = [TRUTHFULQA[0], TRUTHFULQA[1] | {"mc2_targets": endless}]
    make(tmp_path / "truthfulqa_mc2", {"multiple_choice": {"validation": rows}})
    counts, samples, table = ran(tmp_path / "two", checkpoint, tmp_path, "truthfulqa_mc2")
    assert max(samples[1]["logprobs"]) < -750, "whose exponential is 0"
    assert counts["missing"] == 1 and table.score.isna().tolist() == [False, True]
    assert table.missing.tolist()[1] == "lm-eval's metric is no number" and table.missing.isna()[0]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_declarations_are_lm_evals_and_pinned(checkpoint, data, tmp_path, name):
    from lm_eval.tasks._yaml_loader import load_yaml

    declared, leaf = BENCHMARKS[name], {"mmlu": "mmlu_anatomy"}.get(name, name)
    configs = (
        load_yaml(path, resolve_func=False) for path in harness.declared()[name].glob("*.yaml")
    )
    pinned = declared["files"]["data"]
    assert (
        pinned["hub"]
        == next(config for config in configs if config.get("task") == leaf)["dataset_path"]
    )
    inspect = Path(importlib.util.find_spec("inspect_evals").origin).parent
    assert f'_REVISION = "{pinned["revision"]}"' in "".join(
        path.read_text() for path in inspect.glob("*/*.py")
    )
    if name in ("mmlu", "ifeval"):
        return  # see the tests of groups and of IFEval
    counts, samples, _ = ran(
        tmp_path / "one", checkpoint, data, name, num_fewshot=declared["num_fewshot"]
    )
    assert counts["items"] == len(samples) > 1
    with pytest.raises(UserError, match=f"rows, not {declared['rows']}"):
        ran(tmp_path / "two", checkpoint, data, name, rows=declared["rows"])


def test_instructions_are_checked(checkpoint, data, tmp_path):
    for package in ("langdetect", "immutabledict"):
        pytest.importorskip(package)
    try:
        one, two = (
            ran(tmp_path / name, checkpoint, data, "ifeval", max_tokens=400)
            for name in ("one", "two")
        )
    except UserError as error:
        pytest.skip(str(error))
    assert one[:2] == two[:2] and one[2].score.tolist() == [1, 0]
    assert one[1][1]["metrics"]["inst_level_strict_acc,none"] == [False, False]


def test_what_checks_instructions_may_be_missing(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(
        UserError, match="lack langdetect; pip install langdetect immutabledict"
    ) as error:
        ran(tmp_path / "one", checkpoint, data, "ifeval")
    assert len(error.value.problems) == 1
    for name in ("langdetect", "immutabledict"):
        monkeypatch.setitem(sys.modules, name, mock.MagicMock())
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(UserError, match=r"lack punkt_tab of nltk; .*NLTK_DATA=FOLDER"):
        ran(tmp_path / "two", checkpoint, data, "ifeval")
    monkeypatch.setattr("nltk.data.find", str)
    harness.prepare_ifeval()
    assert sys.modules["langdetect"].DetectorFactory.seed == 0, (
        "the language of an answer is not drawn"
    )


WRONG = {
    "no such folder; the data set of hellaswag": {"name": "nothing", "lm_eval": ["hellaswag"]},
    "can't read hellaswag from it: KeyError": {"name": "gsm8k", "lm_eval": ["hellaswag"]},
    "has 4 rows, not 5": {"rows": 5},
    "has no task or group hellaswog": {"lm_eval": ["hellaswog"]},
    "has no metric f2 that is a mean; it has acc, acc_norm": {"metric": "f2"},
    "has no filter none; it has strict-match, flexible-extract": {"name": "gsm8k", "filter": None},
    "asks 64 times": {
        "name": "gsm8k",
        "lm_eval": ["gsm8k_cot_self_consistency"],
        "filter": "maj@64",
    },
    "has 35 examples to show": {"num_fewshot": 36},
    "truthfulqa_mc2: has 0 examples": {"name": "truthfulqa_mc2", "num_fewshot": 1},
    r"^item hellaswag/\d: its prompt has \d+ tokens and up to 1 may follow, max_model_len is 2048": {
        "num_fewshot": 35
    },
    r"^item gsm8k/\d: its prompt has \d+ tokens and up to 2040 may follow": {
        "name": "gsm8k",
        "max_tokens": 2040,
    },
}


@pytest.mark.parametrize("words", WRONG)
def test_a_mismatch_is_reported_before_anything_is_generated(checkpoint, data, tmp_path, words):
    from vllm.v1.engine.llm_engine import LLMEngine

    others = {"name": "hellaswag"} | WRONG[words]
    name = others.pop("name")
    with (
        mock.patch.dict(BENCHMARKS, nothing=BENCHMARKS["hellaswag"]),
        mock.patch.object(LLMEngine, "add_request") as add_request,
    ):
        context = cell(tmp_path / "one", checkpoint, data, name, **others)
        with pytest.raises(UserError, match=words) as error:
            harness.run(context)
    [problem] = error.value.problems
    assert problem.where and problem.fix and "\n" not in str(problem)
    assert not add_request.called
    assert {path.name for path in context.folder.iterdir()} <= {"requests.jsonl"}
