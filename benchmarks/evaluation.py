"""What an evaluation costs, beside what one would run otherwise, in pairs within one run.

    python -m benchmarks.evaluation generate       780 answers and their log, beside vLLM alone
    python -m benchmarks.evaluation judge          2,190 grades, 16 at once, 0.4 s each, beside `inspect_ai.score`
    python -m benchmarks.evaluation checkpoints    four in one process, beside a process or a `vllm serve` for each
    python -m benchmarks.evaluation likelihood     998 two-choice items, beside lm-eval's hf backend and transformers

The kit runs whole cells, as planned for the tiny study with a random Llama of 4 layers of width 256, in fp32 on one CPU
thread. Contenders take turns, every other round in reverse. Figures are medians over rounds; a ratio is that of the
kit's to a contender's in the same round, with its range. CPU seconds, children's too, tell more on a busy machine.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from tabulate import tabulate

from benchmarks import training, writer
from core.cell.identity import Cell, create_cell_dir
from core.cell.run import run_cell
from core.inference import vllm_engine as engine
from eval import anima
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
    told: dict[str, list[Facts]] = {name: [] for name in contenders}
    for i in range(rounds + 1):  # the first one imports, and does not count
        for name in list(contenders)[:: 1 if i % 2 else -1]:
            began, cpu = time.perf_counter(), sum(os.times()[:4])
            more = contenders[name]()
            facts = {"seconds": time.perf_counter() - began, "CPU": sum(os.times()[:4]) - cpu}
            told[name] += [facts | (more if isinstance(more, dict) else {})] if i else []
    kit, table = next(iter(told.values())), []
    for name, each in told.items():
        row = {"": name.replace("_", " ")} | {
            key: f"{median(f[key] for f in each):,.2f}" for key in each[0]
        }
        for key in ("seconds", "CPU") if each is not kit else ():
            ratios = [ours[key] / theirs[key] for ours, theirs in zip(kit, each, strict=True)]
            row[f"kit's {key} to these"] = (
                f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )
        table.append(row)
    print(tabulate(table, headers="keys", disable_numparse=True), file=FIGURES, flush=True)
    return told


def planned(folder: Path, *changes: str, models: int = 1) -> dict[tuple[str, str], Cell]:
    """The tiny study's cells by stage and name, with random models m0, m1 ... that are finished already."""
    training.make(folder / "made", training.CPU | {"tokens": 1})
    names = [f"m{i}" for i in range(models)]
    for name in names:
        shutil.copytree(folder / "made/start/model", folder / name)
        (folder / name / "README.md").write_text(
            f"{name}: another model, though of the same weights\n"
        )
    more = [f"models.{name}={{path: {folder / name}}}" for name in names] + [
        f"arms.{n}={{start: {n}}}" for n in names
    ]
    study = load_study(
        writer.ROOT / "studies/tiny.yaml", None, ["engine.max_model_len=1024", *more, *changes]
    )
    cells = {(cell.stage, cell.name): cell for cell in plan.in_order(plan.analysis(study))}
    for name in names:
        again(cells["model", name], folder)
    return cells


def again(cell: Cell, folder: Path) -> Path:
    shutil.rmtree(folder / cell.relpath, ignore_errors=True)
    run_cell(create_cell_dir(cell, folder))
    return folder / cell.relpath


def clocked(parts: Facts, function: Callable[..., Any], *arguments: Any) -> Any:
    began = time.perf_counter()
    result = function(*arguments)
    parts[function.__name__] = time.perf_counter() - began
    return result


def generate(folder: Path, rounds: int) -> None:
    from eval import generate as own

    cell = planned(folder, *PAPER)["generate", "ahb-m0"]
    lm = engine.open_engine(
        folder / cell.inputs["checkpoint"].relpath / "model", cell.settings["engine"]
    )
    with mock.patch.object(lm.model, "generate", wraps=lm.model.generate) as asked:
        again(cell, folder)

    def kit() -> Facts:
        parts: Facts = {}
        timers: Any = {
            f.__name__: partial(clocked, parts, f)
            for f in (own.encode, own.complete, own.write_log)
        }
        with mock.patch.multiple(own, **timers):
            again(cell, folder)
        return parts

    compare(
        rounds,
        kit=kit,
        vLLM_alone=lambda: lm.model.generate(*asked.call_args.args, **asked.call_args.kwargs),
    )


def judge(folder: Path, rounds: int) -> None:
    from inspect_ai import log, score
    from inspect_evals.anima import anima as task_of

    with writer.endpoint(latency=LATENCY) as address:
        os.environ |= {"BENCHMARK_API_KEY": writer.KEY, "BENCHMARK_BASE_URL": address}
        judge = f"endpoints.stand_in={{base_url: '{address}', model: judge, key_env: BENCHMARK_API_KEY}}"
        cell = planned(folder, *PAPER, judge, f"concurrency={CALLS}")["judge", "ahb-m0"]
        samples = again(cell.inputs["samples"], folder) / "samples.eval"

        def official() -> None:
            graders: Any = {
                "grader_models": ["openai-api/benchmark/judge"],
                "grader_max_connections": CALLS,
            }
            graders |= {"grader_temperature": 0.0, "grader_max_tokens": cell.settings["max_tokens"]}
            with anima.dataset_folder(anima.read(FILES), folder) as data:
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
            earlier, cpu, began = (
                len(writer.stats(address)["times"]),
                time.process_time(),
                time.time(),
            )
            grade()
            ended, cpu, times = (
                time.time(),
                time.process_time() - cpu,
                writer.stats(address)["times"][earlier:],
            )
            ends = {"before": times[0] - LATENCY - began, "after": ended - times[-1]}
            rates = {
                "of the cap": writer.rate(times, LATENCY),
                "start to end": len(times) / (ended - began),
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

    from core.files import fingerprints
    from core.inference.vllm_server import serve

    found = planned(folder, "benchmarks.ahb.epochs=2", "benchmarks.ahb.max_tokens=16", models=4)
    path, texts = str(folder / "m0"), [row["question"] for row in anima.read(FILES).questions] * 2

    def kit(count: int) -> None:
        shutil.rmtree(folder / "generate", ignore_errors=True)
        cells = [str(create_cell_dir(found["generate", f"ahb-m{i}"], folder)) for i in range(count)]
        subprocess.run(
            [sys.executable, "-m", "study", "cell", "--log", *cells], cwd=writer.ROOT, check=True
        )

    def server() -> None:
        what, how = (
            {"model": "m", "files": fingerprints(path)},
            {"path": path, "options": {"max_model_len": 1024}},
        )
        with serve(what, how, folder / "log") as (address, key):
            ask = OpenAI(base_url=address, api_key=key).completions.create
            ask(model="m", prompt=texts, max_tokens=16, temperature=1.0)

    told = compare(rounds, four=lambda: kit(4), one=lambda: kit(1), vllm_serve_for_one=server)
    for key in ("seconds", "CPU"):
        four, one, served = (median(facts[key] for facts in each) for each in told.values())
        times = f"{3 * one / (four - one):.1f} times that in its own, {3 * served / (four - one):.1f} in its own server"
        print(
            f"{key} of one checkpoint more: {(four - one) / 3:.2f} in the same process, {times}",
            file=FIGURES,
        )


def likelihood(folder: Path, rounds: int) -> None:
    import numpy as np
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    items, model, choices = folder / "items.jsonl", folder / "m0", ["(A)", "(B)"]
    about = " ".join(row["guiding_question"] for row in anima.read(FILES).dimensions)
    asked = [f"{i}. {about[i % 400 :][:400]}\n\nChoices:\n (A) Yes\n (B) No" for i in range(998)]
    made = (
        {"id": i, "question": text, "choices": choices, "answer": i % 2}
        for i, text in enumerate(asked)
    )
    items.write_text("".join(json.dumps(row) + "\n" for row in made))
    cell = planned(folder, f"benchmarks.concern.items={items}")["likelihood", "concern-m0"]
    data, before = (
        {"data_files": {"test": str(items)}, "cache_dir": str(folder)},
        "Question: {{question}}\nAnswer:",
    )
    task = {
        "task": "two_choices",
        "output_type": "multiple_choice",
        "dataset_path": "json",
        "dataset_kwargs": data,
    }
    task |= {
        "test_split": "test",
        "doc_to_text": before,
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
    }
    found: dict[str, list[list[float]]] = {}

    def kit() -> None:
        engine.close()
        lines = (again(cell, folder) / "samples.jsonl").read_text().splitlines()
        found["kit"] = [json.loads(line)["logprobs"] for line in lines]

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
        found[f"lm_eval_hf_{size}"] = [
            [x for x, _ in sample["filtered_resps"]] for sample in samples
        ]

    def loop() -> None:
        tokenizer, llama = (
            kind.from_pretrained(model) for kind in (AutoTokenizer, AutoModelForCausalLM)
        )
        found["transformers"] = []
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
            found["transformers"].append([float(logprobs[start - 1 :].sum()) for logprobs in steps])

    compare(
        rounds,
        kit=kit,
        lm_eval_hf_1=lambda: harness(1),
        lm_eval_hf_16=lambda: harness(16),
        transformers=loop,
    )
    for name, theirs in found.items():
        away = np.abs(np.subtract(found["kit"], theirs)).max()
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
        with tempfile.TemporaryDirectory() as folder:
            modes[mode](Path(folder), given.rounds)
        engine.close()


if __name__ == "__main__":
    main()
