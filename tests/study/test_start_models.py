"""What trainings and prompts refuse of a start model is said by `plan`, before a document is paid."""

import json
import shutil
from pathlib import Path

import pytest

from core.cell.identity import Cell
from core.errors import UserError
from study import cli
from study.spec import expand
from study.spec.doses import unreachable
from study.spec.load import load_study
from study.spec.start_models import model_problems
from tests.place import SMALL
from tests.recipes import zoo


def cells(*overrides: str) -> list[Cell]:
    return expand.in_order(expand.analysis(load_study(SMALL, None, [*overrides])))


def starting_from(folder: Path, **model: object) -> str:
    return f"models.base={json.dumps({'path': str(folder), **model})}"


def test_plan_and_run_refuse_a_model_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = zoo.model("byte-level under LlamaTokenizerFast", tmp_path / "start")
    study = [str(SMALL), "--runs", str(tmp_path / "runs"), "--set", starting_from(folder)]
    assert cli.main(["plan", *study]) == 0
    refusals = [line for line in capsys.readouterr().out.splitlines() if "can't run" in line]
    line = f"can't run: {folder}: transformers' LlamaTokenizer reads other tokens than"
    assert len(refusals) == 1 and refusals[0].startswith(line)
    assert cli.main(["run", *study]) == 2
    assert "reads other tokens" in capsys.readouterr().err
    assert not [*(tmp_path / "runs").rglob("*.jsonl")], "nothing was written"


def test_a_template_is_asked_of_what_reads_it(tmp_path: Path) -> None:
    folder = zoo.with_template("no header of an answer", tmp_path / "start")
    base = starting_from(folder)
    (problem,) = model_problems(cells(base))
    assert "ignores add_generation_prompt" in problem.what
    # No SFT: documents and plain prompts need none, chat prompts do.
    without = ["sft.doses=[0]", "contrasts=[]"]
    assert model_problems(cells(base, *without)) == []
    (problem,) = model_problems(cells(starting_from(folder, chat=True), *without))
    assert "ignores add_generation_prompt" in problem.what
    # Another template is the cure, and keeps the midtrainings.
    cured = cells(starting_from(folder, chat_template="recipes/data/llama3_chat.jinja"))
    assert model_problems(cured) == []

    def midtrainings(of: list[Cell]) -> set[str]:
        return {cell.identity for cell in of if cell.stage in ("model", "midtrain")}

    assert midtrainings(cured) == midtrainings(cells(base))


def test_the_date_of_templates_is_in_what_renders_them() -> None:
    def identities(*overrides: str) -> dict[str, set[str]]:
        stages: dict[str, set[str]] = {}
        for cell in cells("models.base.chat=true", *overrides):
            stages.setdefault(cell.stage, set()).add(cell.identity)
        return stages

    before, same = identities(), identities("chat_date=2024-07-26")
    after = identities("chat_date=2025-02-03")
    assert before == same
    assert not before["sft"] & after["sft"] and not before["generate"] & after["generate"]
    assert all(before[stage] == after[stage] for stage in ("model", "midtrain", "documents"))
    with pytest.raises(UserError, match="chat_date"):
        cells("chat_date=today")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{max_steps: 10}", "max_steps 10 of 8 rows end before the dose 81 is seen: 81 rows;"),
        ("{max_steps: 11}", None),
    ],
)
def test_a_dose_that_the_recipe_does_not_reach_is_refused(
    tmp_path: Path, settings: str, said: str | None
) -> None:
    recipe = tmp_path / "sft.yaml"
    steps = settings.strip("{}")
    recipe.write_text(f"seq_len: 64\nepochs: 1\nlr: 1.0e-4\nglobal_batch_size: 8\n{steps}\n")
    study = load_study(SMALL, None, [f"sft.recipe={recipe}", "sft.doses=[0, 81]"])
    problems = unreachable(study)
    assert [said in f"{problem.what};" for problem in problems] == ([True] if said else [])
    replay = load_study(
        SMALL, None, [f"sft.recipe={recipe}", "sft.doses=[0, 80]", "sft.replay=0.2"]
    )
    if said:
        assert "80 rows and 16 replayed ones" in unreachable(replay)[0].what


def test_a_moved_weight_makes_the_finished_model_cell_another(tmp_path: Path) -> None:
    folder = zoo.make(tmp_path / "start")
    (before,) = [cell for cell in cells(starting_from(folder)) if cell.stage == "model"]
    twin = shutil.copytree(folder, tmp_path / "twin")
    file = twin / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (after,) = [cell for cell in cells(starting_from(twin)) if cell.stage == "model"]
    assert before.identity != after.identity
