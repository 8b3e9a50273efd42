"""Scores of somebody else: official logs and tables, read as scores of this study."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from analysis.table import question_means
from core.cell.identity import create_cell_dir, read_config
from core.cell.manifest import read_manifest
from core.cell.run import run_cell
from core.endpoints import dummy_endpoint
from core.errors import UserError
from core.files import read_rows
from eval import anima, existing_scores, questions
from eval.score_tables import read_table
from study.cli import main
from study.spec import expand
from study.spec.load import load_study
from study.spec.study_declaration import declare

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]  # a manifest asks git

OURS = Path(__file__).parents[2] / "eval/data/anima_like"
FILES = {name: OURS / f"{name}.jsonl" for name in ("questions", "dimensions")}
EPOCHS = 2
WORDS = ["animals feel pain and suffer", "we weigh the cost", "perhaps, it is uncertain", "No."]


def official(folder: Path, run: int, judge: str = "dummy") -> Path:
    """The log of `inspect_evals/anima` over our questions, graded by the dummy's rules."""
    from inspect_ai import eval
    from inspect_ai.model import ModelAPI, ModelOutput, ModelUsage, modelapi
    from inspect_ai.solver._task_state import sample_state
    from inspect_evals.anima import anima as official_task

    @modelapi(name="theirs")
    class Theirs(ModelAPI):
        async def generate(
            self, input: Any, tools: Any, tool_choice: Any, config: Any
        ) -> ModelOutput:
            if self.model_name == judge:
                asked = {"messages": [{"role": "user", "content": input[0].text}]}
                text = dummy_endpoint.complete(asked)["choices"][0]["message"]["content"]
            else:
                state = sample_state()
                number = int(str(state.sample_id)) + 3 * state.epoch + run
                text = ". ".join(word for n, word in enumerate(WORDS) if number % (n + 2 + run % 2))
            output = ModelOutput.from_content(self.model_name, text or "Yes.")
            output.usage = ModelUsage()
            return output

    folder.mkdir(exist_ok=True)
    with questions.dataset_folder(anima.read(FILES), folder) as data:
        task = official_task(
            dataset_repo_id=data, dataset_revision="local", grader_models=[f"theirs/{judge}"]
        )
    with questions.private_home(folder):
        [log] = eval(
            task,
            model="theirs/tested",
            epochs=EPOCHS,
            display="none",
            log_dir=str(folder / f"logs{run}"),
            ctl_server=False,
        )
    assert log.status == "success", log.error
    (path,) = (folder / f"logs{run}").glob("*.eval")
    return path


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("theirs")
    return [official(folder, run) for run in range(4)]


def study_file(folder: Path, scores: dict[str, list[Path]], **more: Any) -> Path:
    """A study of the arms of somebody else, and of one contrast of the first two."""
    arms = {
        arm: {"scores": {"ahb": {0: [str(path) for path in paths]}}}
        for arm, paths in scores.items()
    }
    study = {
        "study": "theirs",
        "seeds": [0, 1],
        "endpoints": {"dummy": {"served_by": "dummy"}},
        "models": {},
        "arms": arms,
        "benchmarks": {
            "ahb": {
                "task": "anima",
                "judge": "dummy",
                **{name: str(path) for name, path in FILES.items()},
            }
        },
        "contrasts": [
            {
                "name": "theirs",
                "treatment": next(iter(arms)),
                "control": [*arms][-1],
                "benchmarks": ["ahb"],
            }
        ],
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def run_study(path: Path) -> Path:
    """Run the cells of a study in this process. Returns the folder of its analysis."""
    base = path.parent / "runs/theirs"
    study = load_study(path)
    cells = expand.in_order(expand.analysis(study, base))
    declare(study, base, cells)
    folders = []
    for cell in cells:
        folders.append(create_cell_dir(cell, base))
        run_cell(folders[-1])
    return folders[-1]


def test_official_logs_keep_their_means_and_get_an_honest_verdict(
    logs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from inspect_ai.log import read_eval_log

    path = study_file(tmp_path, {"theirs_a": logs[:2], "theirs_b": logs[2:]})
    folder = run_study(path)
    results = json.loads((folder / "results.json").read_text())
    config = read_config(folder)
    table = {(row["arm"], row["seed"]): row["role"] for row in config["settings"]["rows"]}
    for number, log in enumerate(logs):
        arm, seed = ("theirs_a", "theirs_b")[number // 2], number % 2
        cell = folder.parents[1] / config["inputs"][table[arm, seed]]["cell"]
        scores = pd.read_parquet(cell / "scores.parquet")
        keyed = scores.assign(benchmark="ahb", arm=arm, seed=seed, dose=0)
        official_log = read_eval_log(str(log))
        metrics = official_log.results.scores[0].metrics  # type: ignore[union-attr]
        assert question_means(keyed)["score"].mean() == pytest.approx(
            metrics["overall_mean"].value, abs=1e-12
        )
        manifest = read_manifest(cell)
        assert manifest and manifest["scores_of"]["judge"] == "dummy"
        assert manifest["scores_of"]["model"] == "theirs/tested"
        assert manifest["malformed"]["answers"] == manifest["counts"]["responses"]
        assert manifest["counts"]["questions"] == len(anima.read(FILES).questions)
        assert [str(log)] == [
            file["path"] for name, file in manifest["files"].items() if name == "scores"
        ]
    assert {row["arm"]: row["seeds"] for row in results["arms"]} == {"theirs_a": 2, "theirs_b": 2}
    report = (folder / "report.html").read_text()
    assert "their logs, our test: theirs_a, theirs_b" in report
    assert "scores of somebody else" in results["contrasts"][0]["differences"][0]
    assert "their logs, our test" in (folder / "headline.txt").read_text()
    for name in ("scores", "contrasts"):
        assert "their logs, our test" in (folder / f"tables/{name}.tex").read_text()
    named = [str(path), "--runs", str(tmp_path / "runs")]
    for words in (["plan"], ["status"], ["verify"], ["prune"]):
        assert main([*words, *named]) == 0
    assert "scores" in capsys.readouterr().out
    assert main(["archive", str(path), str(tmp_path / "all.zip"), *named[1:]]) == 0
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert (
            sum(
                "/scores/" in name and name.endswith("manifest.json") for name in archive.namelist()
            )
            == 4
        )
    # One run of each arm: no verdict.
    single = study_file(tmp_path / "single", {"theirs_a": logs[:1], "theirs_b": logs[2:3]})
    single_results = json.loads((run_study(single) / "results.json").read_text())
    assert single_results["contrasts"][0]["verdict"] == "none"


def test_another_judge_is_refused(tmp_path: Path) -> None:
    log = official(tmp_path / "other", 0, judge="stricter")
    path = study_file(tmp_path, {"theirs": [log]}, contrasts=[])
    with pytest.raises(UserError, match="was graded by theirs/stricter, and the benchmark's judge"):
        run_study(path)


def cell(tmp_path: Path, log: Path) -> dict[str, Any]:
    """The table and manifest of the cell that reads a file."""
    path = study_file(tmp_path, {"theirs": [log]}, contrasts=[])
    folder = run_study(path)
    (role,) = (row["role"] for row in read_config(folder)["settings"]["rows"])
    scores = folder.parents[1] / read_config(folder)["inputs"][role]["cell"]
    return {
        "table": pd.read_parquet(scores / "scores.parquet"),
        "manifest": read_manifest(scores) or {},
    }


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_is_matched_by_the_text_of_its_questions(tmp_path: Path, form: str) -> None:
    rows = [row for _, row in read_rows(FILES["questions"])]
    asked = [f"  {row['question']}\n" for row in rows[:3]] * 2 + ["What is the time?"]
    scores = [1.0, 0.0, 0.5, 0.5, 0.0, None, 1.0]
    table = pd.DataFrame({"question": asked, "score": scores, "judge": "provider/dummy"})
    path = tmp_path / f"scores.{form}"
    if form == "csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
    made = cell(tmp_path, path)
    assert [*made["table"]["question"]] == [str(row["id"]) for row in rows[:3] for _ in (0, 1)]
    assert [*made["table"]["epoch"]] == [1, 2] * 3
    assert [*made["table"]["score"].fillna(-1)] == [1.0, 0.5, 0.0, 0.0, 0.5, -1]
    assert [*made["table"]["missing"].dropna()] == [existing_scores.NO_GRADE]
    counts = made["manifest"]["counts"]
    assert (counts["questions"], counts["responses_set_aside"]) == (3, 1)
    assert counts["questions_absent"] == len(rows) - 3
    warnings = "\n".join(made["manifest"]["warnings"])
    assert f"not in it: {rows[3]['id']}" in warnings and "1 responses are set aside" in warnings


def test_answers_that_a_file_lacks_are_missing_and_not_gone(tmp_path: Path) -> None:
    """Errors that a run has dropped may all be failing answers of one arm."""
    ids = [str(row["id"]) for _, row in read_rows(FILES["questions"])][:3]
    asked = [ids[0]] * 3 + [ids[1]] * 3 + [ids[2]]
    path = tmp_path / "scores.csv"
    pd.DataFrame({"question": asked, "score": 1.0, "judge": "dummy"}).to_csv(path, index=False)
    made = cell(tmp_path, path)
    table = made["table"][made["table"]["dimension"] == "overall"]
    assert [*table["question"].value_counts()[ids]] == [3, 3, 3]
    lost = table[table["score"].isna()]
    assert [*lost["question"]] == [ids[2]] * 2 and set(lost["missing"]) == {
        existing_scores.NO_ANSWER
    }
    counts = made["manifest"]["counts"]
    names = ("responses", "responses_absent", "missing_scores")
    assert [counts[name] for name in names] == [7, 2, 2]
    assert "2 responses are absent" in "\n".join(made["manifest"]["warnings"])


def test_scores_of_dimensions_alone_have_their_mean_as_overall(tmp_path: Path) -> None:
    (first, second) = anima.read(FILES).questions[:2]
    tags = first["tags"]
    table = pd.DataFrame(
        {
            "question": [str(first["id"])] * 2 + [str(second["id"])],
            "dimension": [tags[0], tags[1].upper().replace(" ", "-"), second["tags"][0]],
            "score": [1.0, 0.0, 1.0],
            "judge": "dummy",
        }
    )
    path = tmp_path / "scores.csv"
    table.to_csv(path, index=False)
    made = cell(tmp_path, path)["table"]
    overall = made[made["dimension"] == "overall"]
    assert dict(zip(overall["question"], overall["score"], strict=True)) == {
        str(first["id"]): 0.5,
        str(second["id"]): 1.0,
    }
    assert {*tags[:2]} < {*made["dimension"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("question,score\n1,1\n", "does not say who graded it"),
        ("question,score,judge\n1,2,dummy\n", r"a score is not in 0\.\.1"),
        ("question,judge\n1,dummy\n", "no column score"),
        ("question,score,judge\nWho?,1,dummy\n", "none of its 1 scores is of a question"),
        ("question,score,judge\n1,fail,dummy\n", "the score 'fail' is no number"),
        ("question,score,judge\n1,1,dummy\n,1,dummy\n", "csv:3: no question"),
        ("question,score,judge\n1,1,dummy\n2,1,\n", "csv:3: no judge"),
        ("question,score,judge\n0,1,1,dummy\n", "more cells than the header has"),
        ("question,epoch,score,judge\n1,1,1,dummy\n1,,1,dummy\n", "csv:3: no epoch"),
        ("question,epoch,score,judge\n1,1,1,dummy\n1,1.0,0,dummy\n", "1 answers have two scores"),
        ("question,dimension,score,judge\n1,Harms,1,dummy\n", "has the dimension 'Harms'; valid"),
        ("question,score,judge\n", "no rows"),
        ("version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ],
)
def test_what_can_not_be_read_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        cell(tmp_path, path)


def test_all_kinds_of_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    rows = ["1,0.5,dummy", "2,fail,dummy", "2,7,dummy", ",no,dummy", "3,-1,"]
    path.write_text("\n".join(["question;score;judge", *(row.replace(",", ";") for row in rows)]))
    with pytest.raises(UserError) as error:
        read_table(path, {"overall": "overall"})
    told = [(problem.where[-2:], problem.what) for problem in error.value.problems]
    assert told == [
        (":3", "the score 'fail' is no number (and 1 more rows)"),
        (":4", "a score is not in 0..1 (and 1 more rows)"),
        (":5", "no question"),
        (":6", "no judge"),
    ]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_tables_are_read_as_other_files_of_rows(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scores.{ending}"
    rows: list[tuple[Any, ...]] = [(1, 1.0, "dummy"), (2, True, " dummy"), (3, None, "dummy")]
    if ending == "jsonl":
        keys = ("question", "score", "judge")
        path.write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows))
    else:
        separator = {"csv": ";", "tsv": "\t"}[ending]
        table = pd.DataFrame(rows, columns=["question", "score", "judge"])
        table.to_csv(path, index=False, sep=separator, encoding="utf-16")
    read, judges = read_table(path, {"overall": "overall"})
    assert [row["question"] for row in read] == ["1", "2", "3"] and judges == ["dummy"]
    assert [row["score"] for row in read[:2]] == [1.0, 1.0] and math.isnan(read[2]["score"])


def test_answers_without_a_valid_score_are_missing_grades(
    logs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run goes on after an error (fail_on_error), and its answers may be declared invalid."""
    from inspect_ai._util.error import EvalError
    from inspect_ai.log import ProvenanceData, read_eval_log, write_eval_log
    from inspect_ai.model import ModelOutput

    log = read_eval_log(str(logs[0]))
    assert log.samples
    failed, invalid = log.samples[0], log.samples[3]
    failed.scores = None
    failed.output = ModelOutput()
    failed.error = EvalError(message="refused", traceback="", traceback_ansi="")
    invalid.invalidation = ProvenanceData(author="somebody")
    log.status = "error"
    path = tmp_path / "partly.eval"
    write_eval_log(log, str(path))
    made = cell(tmp_path, path)
    overall = made["table"][made["table"]["dimension"] == "overall"]
    lost = overall[overall["score"].isna()]
    assert {*lost["question"]} == {str(failed.id), str(invalid.id)} and len(lost) == 2
    assert made["manifest"]["counts"]["missing_scores"] == 2
    answers = made["manifest"]["counts"]["responses"] - 1
    assert made["manifest"]["malformed"]["answers"] == answers, "an error is no answer"
    assert "its status is error: it may lack answers" in made["manifest"]["warnings"]


def test_a_log_that_reduces_epochs_otherwise_counts_by_its_answers(
    logs: list[Path], tmp_path: Path
) -> None:
    from inspect_ai.log import read_eval_log, write_eval_log

    log = read_eval_log(str(logs[0]))
    assert log.results
    metric = log.results.scores[0].metrics["overall_mean"]
    truth, metric.value = metric.value, 1.0
    path = tmp_path / "changed.eval"
    write_eval_log(log, str(path))
    with pytest.raises(UserError, match="contradicts itself"):
        cell(tmp_path, path)
    log.eval.config.epochs_reducer = ["max"]
    path = tmp_path / "reduced.eval"
    write_eval_log(log, str(path))
    made = cell(tmp_path, path)
    overall = made["table"][made["table"]["dimension"] == "overall"]
    assert overall.groupby("question")["score"].mean().mean() == pytest.approx(truth, abs=1e-12)
    assert "reduces epochs by max" in "\n".join(made["manifest"]["warnings"])


def test_a_study_file_with_scores_is_checked(tmp_path: Path) -> None:
    log = tmp_path / "x.csv"
    log.write_text("question,score,judge\n")
    copy = tmp_path / "y.csv"
    copy.write_text(log.read_text())
    path = study_file(tmp_path, {"theirs": [log, copy, log]}, contrasts=[])
    with pytest.raises(UserError) as error:
        load_study(path)
    told = [problem.what for problem in error.value.problems]
    assert told.count("is the training run that dose 0 has already") == 2
    assert "3 training runs, and the study has 2 seeds, which they take in order" in told
    arms: dict[str, Any] = {"theirs": {"scores": {"ahb": {0: ["nowhere.eval"]}}, "start": "base"}}
    path = study_file(tmp_path, {"theirs": [log]}, contrasts=[], arms=arms)
    with pytest.raises(UserError, match="exactly one of start, checkpoints, scores"):
        load_study(path)
    arms = {"theirs": {"scores": {"ahb": {0: ["nowhere.eval"]}}, "midtrain": "animal"}}
    path = study_file(tmp_path, {"theirs": [log]}, contrasts=[], arms=arms)
    with pytest.raises(UserError) as error:
        load_study(path)
    said = [problem.what for problem in error.value.problems]
    assert said == ["is not for an arm with scores", "no such file: nowhere.eval"]
