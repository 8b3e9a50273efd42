"""What an evaluation costs, beside what one would run otherwise, in pairs within one run.

    python -m benchmarks.evaluation generate
        780 answers and their log, beside vLLM alone
    python -m benchmarks.evaluation judge
        2,190 grades, 16 at once, 0.4 s each, beside `inspect_ai.score`
    python -m benchmarks.evaluation checkpoints
        four in one process, beside a process or a `vllm serve` for each
    python -m benchmarks.evaluation likelihood
        998 two-choice items, beside lm-eval's hf backend and transformers

The kit runs whole cells, as planned for the tiny study with a random Llama of 4 layers of width
256, in fp32 on one CPU thread. Contenders alternate, every other round in reverse. Figures are
medians over rounds. A ratio is the kit's figure to a contender's in the same round, with its range.
On a busy machine CPU seconds (children's included) are the steadier measure.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from benchmarks import contenders, training, writer
from core.cell.identity import Cell, create_cell_dir
from core.cell.run import run_cell
from core.inference import vllm_engine as engine
from core.inference.requests import Request, Result, run_requests
from eval import anima, questions
from study.spec import expand as plan
from study.spec.load import load_study

CALLS, LATENCY = 16, 0.4  # to the judge at once; seconds for each
PAPER = [
    f"benchmarks.ahb.{setting}" for setting in ("epochs=30", "max_tokens=128", "temperature=1.0")
]
FILES = {
    name: writer.ROOT / f"eval/data/anima_like/{name}.jsonl" for name in ("questions", "dimensions")
}
FIGURES = sys.stdout  # whatever else is printed goes to stderr
Facts = dict[str, float]


def compare(rounds: int, **contenders: Callable[[], Any]) -> dict[str, list[Facts]]:
    """Print the contenders' figures, the kit's first; returns them round by round."""
    measured: dict[str, list[Facts]] = {name: [] for name in contenders}
    for i in range(rounds + 1):  # the first one imports, and does not count
        for name in list(contenders)[:: 1 if i % 2 else -1]:
            started = time.perf_counter()
            cpu = sum(os.times()[:4])
            parts = contenders[name]()
            facts = {"seconds": time.perf_counter() - started, "CPU": sum(os.times()[:4]) - cpu}
            if i:
                measured[name].append(facts | (parts if isinstance(parts, dict) else {}))
    kit = next(iter(measured.values()))
    table = []
    for name, figures in measured.items():
        row = {"": name.replace("_", " ")}
        row |= {key: f"{median(facts[key] for facts in figures):,.2f}" for key in figures[0]}
        for key in ("seconds", "CPU") if figures is not kit else ():
            ratios = [a[key] / b[key] for a, b in zip(kit, figures, strict=True)]
            row[f"kit's {key} to these"] = (
                f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )
        table.append(row)
    print(tabulate(table, headers="keys", disable_numparse=True), file=FIGURES, flush=True)
    return measured


def planned(folder: Path, *changes: str, models: int = 1) -> dict[tuple[str, str], Cell]:
    """The tiny study's cells by stage and name, with finished random models m0, m1 ..."""
    contenders.make_inputs(folder / "made", training.CPU | {"tokens": 1})
    names = [f"m{i}" for i in range(models)]
    for name in names:
        shutil.copytree(folder / "made/start/model", folder / name)
        (folder / name / "README.md").write_text(
            f"{name}: another model, though of the same weights\n"
        )
    models_and_arms = [f"models.{name}={{path: {folder / name}}}" for name in names]
    models_and_arms += [f"arms.{name}={{start: {name}}}" for name in names]
    settings = ["engine.max_model_len=1024", *models_and_arms, *changes]
    study = load_study(writer.ROOT / "studies/tiny.yaml", None, settings)
    cells = {(cell.stage, cell.name): cell for cell in plan.in_order(plan.analysis(study))}
    for name in names:
        again(cells["model", name], folder)
    return cells


def again(cell: Cell, folder: Path) -> Path:
    shutil.rmtree(folder / cell.relpath, ignore_errors=True)
    run_cell(create_cell_dir(cell, folder))
    return folder / cell.relpath


def timed(seconds: Facts, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which enters the time of each call in `seconds` by its name."""

    def call(*arguments: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        seconds[function.__name__] = time.perf_counter() - started
        return result

    return call


@contextmanager
def replaced(target: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of a module or object for the time of the `with` block."""
    previous = {name: getattr(target, name) for name in attributes}
    for name, value in attributes.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in previous.items():
            setattr(target, name, value)


def generate(folder: Path, rounds: int) -> None:
    from vllm import TokensPrompt

    from eval import generate as stage

    cell = planned(folder, *PAPER)["generate", "ahb-m0"]
    lm = engine.open_engine(
        folder / cell.inputs["checkpoint"].relpath / "model",
        cell.settings["engine"],
        cell.resources["engine"],
    )
    asked: list[Request] = []

    def recording(lm: Any, requests: list[Request], *others: Any) -> list[Result]:
        asked.extend(requests)
        return run_requests(lm, requests, *others)

    with replaced(stage, run_requests=recording):
        again(cell, folder)
    prompts = [TokensPrompt(prompt_token_ids=request.prompt) for request in asked]
    parameters = [request.parameters for request in asked]

    def kit() -> Facts:
        seconds: Facts = {}
        functions = (stage.encode, stage.complete, stage.write_log)
        timers = {function.__name__: timed(seconds, function) for function in functions}
        with replaced(stage, **timers):
            again(cell, folder)
        return seconds

    compare(
        rounds,
        kit=kit,
        vLLM_alone=lambda: lm.model.generate(prompts, parameters, use_tqdm=False),
    )


def judge(folder: Path, rounds: int) -> None:
    from inspect_ai import log, score
    from inspect_evals.anima import anima as task_of

    with writer.endpoint(latency=LATENCY) as address:
        os.environ |= {"BENCHMARK_API_KEY": writer.KEY, "BENCHMARK_BASE_URL": address}
        judge = (
            f"endpoints.dummy={{base_url: '{address}', model: judge, key_env: BENCHMARK_API_KEY}}"
        )
        cell = planned(folder, *PAPER, judge, f"concurrency={CALLS}")["judge", "ahb-m0"]
        samples = again(cell.inputs["samples"], folder) / "samples.eval"

        def official() -> None:
            graders: Any = {
                "grader_models": ["openai-api/benchmark/judge"],
                "grader_max_connections": CALLS,
            }
            graders |= {"grader_temperature": 0.0, "grader_max_tokens": cell.settings["max_tokens"]}
            with questions.dataset_folder(anima.read(FILES), folder) as data:
                task = task_of(data, "local", **graders)
                answers = log.read_eval_log(samples)
                scored = score(
                    answers,
                    task.scorer or [],
                    action="overwrite",
                    display="none",
                    model="none/none",
                )
            log.write_eval_log(scored, folder / "scored.eval")

        def measured(grade: Callable[[], Any]) -> Facts:
            calls_before = len(writer.stats(address)["times"])
            cpu_before = time.process_time()
            started = time.time()
            grade()
            ended = time.time()
            cpu = time.process_time() - cpu_before
            times = writer.stats(address)["times"][calls_before:]
            ends = {"before": times[0] - LATENCY - started, "after": ended - times[-1]}
            rates = {
                "of the cap": writer.rate(times, LATENCY),
                "start to end": len(times) / (ended - started),
            }
            shares = {name: rate * LATENCY / CALLS for name, rate in rates.items()}
            return ends | {"CPU ms a grade": cpu / len(times) * 1000} | shares

        compare(
            rounds,
            kit=lambda: measured(lambda: again(cell, folder)),
            inspect=lambda: measured(official),
        )


def checkpoints(folder: Path, rounds: int) -> None:
    from openai import OpenAI

    from core.inference.vllm_server import serve

    planned_cells = planned(
        folder, "benchmarks.ahb.epochs=2", "benchmarks.ahb.max_tokens=16", models=4
    )
    path = str(folder / "m0")
    texts = [row["question"] for row in anima.read(FILES).questions] * 2

    def kit(count: int) -> None:
        shutil.rmtree(folder / "generate", ignore_errors=True)
        cells = [
            str(create_cell_dir(planned_cells["generate", f"ahb-m{i}"], folder))
            for i in range(count)
        ]
        subprocess.run(
            [sys.executable, "-m", "study", "cell", "--log", *cells], cwd=writer.ROOT, check=True
        )

    def server() -> None:
        endpoint = {"model": "m"}
        resources = {"path": path, "options": {"max_model_len": 1024}}
        with serve(endpoint, resources, folder / "log") as (address, key):
            ask = OpenAI(base_url=address, api_key=key).completions.create
            ask(model="m", prompt=texts, max_tokens=16, temperature=1.0)

    measured = compare(rounds, four=lambda: kit(4), one=lambda: kit(1), vllm_serve_for_one=server)
    for key in ("seconds", "CPU"):
        medians = [median(facts[key] for facts in figures) for figures in measured.values()]
        four_in_one_process, one_process, one_server = medians
        further = (four_in_one_process - one_process) / 3
        print(
            f"{key} of a further checkpoint: {further:.2f} in the same process, "
            f"{one_process / further:.1f} times that in a process of its own, "
            f"{one_server / further:.1f} times in a server of its own",
            file=FIGURES,
        )


def likelihood(folder: Path, rounds: int) -> None:
    import numpy as np
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    items = folder / "items.jsonl"
    model = folder / "m0"
    choices = ["(A)", "(B)"]
    text = " ".join(row["guiding_question"] for row in anima.read(FILES).dimensions)
    asked = [f"{i}. {text[i % 400 :][:400]}\n\nChoices:\n (A) Yes\n (B) No" for i in range(998)]
    rows = (
        {"id": i, "question": question, "choices": choices, "answer": i % 2}
        for i, question in enumerate(asked)
    )
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cell = planned(folder, f"benchmarks.concern.items={items}")["likelihood", "concern-m0"]
    task = {
        "task": "two_choices",
        "output_type": "multiple_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items)}, "cache_dir": str(folder)},
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
    }
    logprobs: dict[str, list[list[float]]] = {}

    def kit() -> None:
        engine.close()
        lines = (again(cell, folder) / "samples.jsonl").read_text().splitlines()
        logprobs["kit"] = [json.loads(line)["logprobs"] for line in lines]

    def harness(size: int) -> None:
        options: Any = {
            "model_args": f"pretrained={model},dtype=float32",
            "device": "cpu",
            "batch_size": size,
        }
        result: Any = simple_evaluate(
            "hf", **options, tasks=[task], task_manager=TaskManager(include_defaults=False)
        )
        samples = sorted(result["samples"]["two_choices"], key=lambda sample: sample["doc_id"])
        logprobs[f"lm_eval_hf_{size}"] = [
            [x for x, _ in sample["filtered_resps"]] for sample in samples
        ]

    def loop() -> None:
        tokenizer, llama = (
            kind.from_pretrained(model) for kind in (AutoTokenizer, AutoModelForCausalLM)
        )
        logprobs["transformers"] = []
        for text in asked:
            context = f"Question: {text}\nAnswer:"
            start = len(tokenizer(context).input_ids)
            both = [
                torch.tensor([tokenizer(f"{context} {choice}").input_ids]) for choice in choices
            ]
            with torch.inference_mode():
                steps = [
                    llama(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
                    for ids in both
                ]
            logprobs["transformers"].append([float(step[start - 1 :].sum()) for step in steps])

    compare(
        rounds,
        kit=kit,
        lm_eval_hf_1=lambda: harness(1),
        lm_eval_hf_16=lambda: harness(16),
        transformers=loop,
    )
    for name, theirs in logprobs.items():
        away = np.abs(np.subtract(logprobs["kit"], theirs)).max()
        print(
            f"{name}: log-probabilities {'equal' if away < 1e-5 else 'DIFFER'}, by {away:.0e}",
            file=FIGURES,
        )


def main() -> None:
    modes = {
        "generate": generate,
        "judge": judge,
        "checkpoints": checkpoints,
        "likelihood": likelihood,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", nargs="?", choices=modes)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    sys.stdout = sys.stderr
    engine.set_environment()
    for mode in [given.mode] if given.mode else modes:
        print(f"\n{mode}", file=FIGURES, flush=True)
        with tempfile.TemporaryDirectory() as runs:
            # Not `runs` itself: calls of other studies beside this one would be used again.
            (study := Path(runs) / "study").mkdir()
            modes[mode](study, given.rounds)
        engine.close()


if __name__ == "__main__":
    main()
