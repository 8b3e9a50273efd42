"""The kit's numbers are those of the official task that Inspect runs with the same answers."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.table import dimension_normalized_averages, question_means
from core.cell.context import StageContext
from core.endpoints import dummy_endpoint
from core.files import sha256
from eval import anima, generate, judge, questions
from tests.eval.test_judge import RESOURCES, SAMPLING, SETTINGS
from tests.eval.test_questions import AHB

pytestmark = pytest.mark.vllm

OURS = Path(__file__).parents[2] / "eval/data/anima_like"
EPOCHS = 2


def answer(key: str, epoch: int) -> str:
    """Some answers mention what the dummy's rules look for, others do not."""
    words = [
        "animals feel pain and suffer",
        "we weigh the cost",
        "perhaps, it is uncertain",
        "a kinder option",
        "No.",
    ]
    return ". ".join(
        word for number, word in enumerate(words) if (int(key) + 3 * epoch) % (number + 2)
    )


def official(files: dict[str, Path], folder: Path) -> Any:
    """The log of `inspect_evals/anima` itself over these files."""
    from inspect_ai import eval
    from inspect_ai.model import (
        GenerateConfig,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        get_model,
        modelapi,
    )
    from inspect_ai.solver._task_state import sample_state
    from inspect_evals.anima import anima as official_task

    def reply(text: str) -> ModelOutput:
        output = ModelOutput.from_content("fixed", text)
        output.usage = ModelUsage()
        return output

    @modelapi(name="fixed")
    class Fixed(ModelAPI):
        async def generate(
            self, input: Any, tools: Any, tool_choice: Any, config: Any
        ) -> ModelOutput:
            if self.model_name == "judge":
                messages = [{"role": "user", "content": input[0].text}]
                return reply(
                    dummy_endpoint.complete({"messages": messages})["choices"][0]["message"][
                        "content"
                    ]
                )
            state = sample_state()
            return reply(answer(str(state.sample_id), state.epoch))

    with questions.dataset_folder(anima.read(files), folder) as data:
        task = official_task(
            dataset_repo_id=data,
            dataset_revision="local",
            grader_models=[get_model("fixed/judge", memoize=False)],
        )
    tested = get_model("fixed/tested", config=GenerateConfig(), memoize=False)
    with questions.private_home(folder):
        [log] = eval(
            task,
            model=tested,
            epochs=EPOCHS,
            display="none",
            log_dir=str(folder / "logs"),
            ctl_server=False,
        )
    assert log.status == "success", log.error
    return log


def numbers(log: Any) -> dict[str, Any]:
    return {
        name: metric.value for score in log.results.scores for name, metric in score.metrics.items()
    }


@pytest.mark.parametrize("where", [OURS, AHB], ids=["ours", "real"])
def test_every_number_is_the_official_tasks_own(where: Path, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log
    from inspect_ai.model import ModelOutput

    if not where.exists():
        pytest.skip("the real question set is not part of the project")
    files = {name: where / f"{name}.jsonl" for name in ("questions", "dimensions")}
    found = anima.read(files)
    keys = [(row["id"], epoch) for row in found.questions for epoch in range(1, EPOCHS + 1)]
    answers = {key: ModelOutput.from_content("vllm", answer(*key)) for key in keys}
    dataset = anima.task(found, tmp_path, None).dataset
    generate.write_log(
        tmp_path / "samples.eval", "anima", dataset, "x", EPOCHS, answers, {"sampling": SAMPLING}
    )
    settings = SETTINGS | {"files": {name: sha256(path) for name, path in files.items()}}
    settings |= {"judge": {"model": "dummy", "served_by": "dummy"}, "max_tokens": 999}
    resources = RESOURCES | {
        "files": {name: str(path) for name, path in files.items()},
        "concurrency": 16,
    }
    resources |= {"address": {"base_url": None, "key_env": None}}
    cell = tmp_path / "runs/study/judge/cell"
    cell.mkdir(parents=True)
    judge.run(StageContext(cell, "a", settings, resources, {"samples": tmp_path}))

    theirs, ours = numbers(official(files, tmp_path)), numbers(read_eval_log(cell / "scored.eval"))
    assert ours == theirs and {"overall_mean", "dimension_normalized_avg"} < set(ours)
    assert 0.1 < ours["overall_mean"] < 0.9, "so that it could differ"
    table = pd.read_parquet(cell / "scores.parquet")
    row = {"benchmark": "anima", "dose": 0, "arm": "a", "seed": 0}
    keyed = table.assign(**row)
    average = dimension_normalized_averages(keyed, question_means(keyed))
    assert average["anima", 0, "a"] == pytest.approx(theirs["dimension_normalized_avg"], abs=1e-12)
    means = table.groupby(["dimension", "question"]).score.mean().groupby("dimension").mean()
    dimensions = {
        row["dimension"] for row in map(json.loads, files["dimensions"].read_text().splitlines())
    }
    assert set(means.index) - {"overall"} <= dimensions
    told = {name: value for name, value in theirs.items() if name in means.index} | {
        "overall": theirs["overall_mean"]
    }
    assert told == pytest.approx({name: means[name] for name in told}, abs=1e-12) and len(
        told
    ) == len(means)
