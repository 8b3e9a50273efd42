"""Labels by people: a blind, stratified sample of graded answers, and its labels read back."""

import csv
import json
import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from core.errors import UserError
from eval import anima, generate, judge, questions
from eval.labels import SHEET, read_back, write_out
from tests.eval.test_questions import jsonl

MORAL, TRADE = "Moral Consideration", "Trade-Off Transparency"
RUBRIC = {"scoring": "1 or 0", "default_weighting": 1.0}
DIMENSIONS = [
    RUBRIC
    | {
        "dimension": MORAL,
        "guiding_question": "Is {{animal}} considered?",
        "observable_indicators": "kindness",
    },
    RUBRIC
    | {
        "dimension": TRADE,
        "guiding_question": "Does it weigh?",
        "observable_indicators": "both sides",
    },
]
QUESTIONS = [
    {
        "id": 0,
        "question": "Hühner, and cows?",
        "tags": [MORAL, TRADE],
        "variables": "animal:hens,cows",
    },
    {"id": 1, "question": "Ducks?", "tags": [TRADE], "translation": "Hühner, and cows?"},
]
EPOCHS = 4
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8}
ARMS = [("animal", 0), ("urban", 0), ("untrained", None)]
LONG = '- A list, with 鶏 and "quotes";\n- which goes on; ' + "and on " * 40


def scripted() -> Any:
    """A judge without a server: C where the answer says "kind", but never for cows.

    It gives no grade to an "odd" answer about ducks.
    """
    from inspect_ai.model import ModelOutput, get_model

    model = get_model("none/none", memoize=False)

    async def grade(messages: Any) -> ModelOutput:
        prompt = messages[0].text
        answer = prompt.split("[Submission]: ")[1].split("\n***")[0]
        reply = "GRADE: " + ("C" if "kind" in answer and "Is cows" not in prompt else "I")
        return ModelOutput.from_content(
            "none", "No." if "odd" in answer and "Ducks" in prompt else reply
        )

    model.generate = grade
    return model


def judge_cell(folder: Path, files: dict[str, Path], arm: str) -> Path:
    """A judge cell's folder, graded by the official scorer.

    In each arm one answer in four is kind and one is odd.
    """
    from inspect_ai import score
    from inspect_ai.log import read_eval_log, write_eval_log
    from inspect_ai.model import ModelOutput

    folder.mkdir()
    found = anima.read(files)
    texts = dict(enumerate(("kind", LONG, "odd", "=no"), 1))
    answers = {
        (row["id"], epoch): ModelOutput.from_content("vllm", f"{text} {arm[:2]}{row['id']}")
        for row in found.questions
        for epoch, text in texts.items()
    }
    task = anima.task(found, folder, scripted())
    generate.write_log(
        folder / "s.eval", "anima", task.dataset, arm, EPOCHS, answers, {"sampling": SAMPLING}
    )
    log = read_eval_log(folder / "s.eval")
    for sample in log.samples or []:
        sample.target = next(asked.target for asked in task.dataset if asked.id == sample.id)
    with questions.private_home(folder):
        log = score(log, task.scorer or [], model="none/none", action="overwrite", display="none")
    write_eval_log(log, folder / "scored.eval")
    judge.scores_table(log, found, anima.to_scores, "mock").to_parquet(
        folder / "scores.parquet", index=False
    )
    return folder


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> dict[str, Any]:
    """`scored` and `dimensions` for write_out: three arms of 12 graded units, 16 lines each."""
    root = tmp_path_factory.mktemp("cells")
    files = {
        "questions": jsonl(root / "q.jsonl", QUESTIONS),
        "dimensions": jsonl(root / "d.jsonl", DIMENSIONS),
    }
    facts = [
        {"answers": f"of {arm}", "arm": arm, "seed": seed, "dose": 0, "benchmark": "ahb"}
        for arm, seed in ARMS
    ]
    scored = [(row, judge_cell(root / f"cell-{row['arm']}", files, row["arm"])) for row in facts]
    return {"scored": scored, "dimensions": files["dimensions"]}


def sheet_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fill(path: Path, grades: dict[str, str], **how: Any) -> None:
    """What a person's spreadsheet would save: the same lines with grades."""
    rows = sheet_of(path)
    with path.open(
        "w", encoding=how.pop("encoding", "utf-8"), errors="replace", newline=""
    ) as file:
        writer = csv.DictWriter(file, SHEET, **how)
        writer.writeheader()
        writer.writerows(row | {"grade": grades.get(row["label_id"], "")} for row in rows)


def labels_of(key: Path) -> dict[str, dict[str, Any]]:
    return json.loads(key.read_text(encoding="utf-8"))["labels"]


@pytest.mark.slow
def test_the_sheet_shows_what_the_judge_saw_and_nothing_else(cells, tmp_path):
    key = labels_of(write_out(n=36, seed=1, path=tmp_path / "labels.csv", **cells))
    rows = sheet_of(tmp_path / "labels.csv")
    assert (
        (tmp_path / "labels.csv")
        .read_bytes()
        .startswith(b"\xef\xbb\xbflabel_id,question,answer,dimension,guid")
    )
    assert (
        list(rows[0]) == SHEET and len(rows) == len(key) == 3 * 16
    )  # the moral questions twice, for hens and cows
    text = (tmp_path / "labels.csv").read_text(encoding="utf-8")
    assert not any(
        word in text for word in ("urban", "untrained", "animal", "cell-", "mock", "0/1", "{{")
    )
    assert {row["grade"] for row in rows} == {""} and all(
        re.fullmatch("L[0-9a-f]{12}", row["label_id"]) for row in rows
    )
    for row in rows:
        unit = key[row["label_id"]]
        assert (
            row["question"] == QUESTIONS[int(unit["question"])]["question"]
            and row["dimension"] == unit["dimension"]
        )
        animal = unit["variables"].get("animal")
        moral = (f"Is {animal} considered?", "kindness")
        assert (row["guiding question"], row["indicators"]) == (
            moral if animal else ("Does it weigh?", "both sides")
        )
        text = {1: "kind", 2: " " + LONG, 3: "odd", 4: " =no"}[unit["epoch"]]
        assert row["answer"] == f"{text} {unit['arm'][:2]}{unit['question']}"
        assert (
            unit["response"] == f"{unit['question']}/{unit['epoch']}"
            and unit["cell"] == f"cell-{unit['arm']}"
        )
    assert {unit["seed"] for unit in key.values()} == {0, None} and not any(
        "score" in unit for unit in key.values()
    )
    in_order = [key[row["label_id"]]["arm"] for row in rows]
    assert sum(a != b for a, b in pairwise(in_order)) > 15


def strata(key: Path) -> Counter[tuple[str, str]]:
    """The sample by arm and the judge's grade; a dimension with two animals counts once."""
    units = {(u["arm"], u["question"], u["epoch"], u["dimension"]) for u in labels_of(key).values()}
    kind = {MORAL: "half", TRADE: "pass"}  # for the hens, not for the cows
    odd = {"0": "fail", "1": "none"}
    return Counter(
        (arm, {1: kind[name], 3: odd[question]}.get(epoch, "fail"))
        for arm, question, epoch, name in units
    )


@pytest.mark.slow
def test_arms_get_the_same_and_grades_their_share(cells, tmp_path):
    """Of an arm's 12 the judge passed 2, failed 8, gave .5 to 1 and had no grade for 1."""
    everything = strata(write_out(n=36, seed=0, path=tmp_path / "all.csv", **cells))
    assert everything == {
        (arm, g): n
        for arm, _ in ARMS
        for g, n in {"pass": 2, "fail": 8, "half": 1, "none": 1}.items()
    }
    drawn, ungraded = set(), 0
    for seed in range(6):
        key = write_out(n=18, seed=seed, path=tmp_path / f"{seed}.csv", **cells)
        found = strata(key)
        for arm, _ in ARMS:
            assert (
                found[arm, "pass"],
                found[arm, "fail"],
                found[arm, "half"] + found[arm, "none"],
            ) == (1, 4, 1)
        ungraded += sum(found[arm, "none"] for arm, _ in ARMS)
        drawn.add(
            frozenset((u["arm"], u["response"], u["dimension"]) for u in labels_of(key).values())
        )
    assert len(drawn) > 3 and 3 < ungraded < 15, "each seed draws another sample"
    two = {**cells, "scored": cells["scored"][:2]}
    odd = strata(write_out(n=3, seed=0, path=tmp_path / "odd.csv", **two))
    assert sorted(Counter(arm for arm, _ in odd.elements()).values()) == [1, 2]


def test_the_same_seed_gives_the_same_bytes_whatever_the_order_of_cells(cells, tmp_path):
    another = cells["scored"][0][0] | {"seed": 1, "answers": "of another"}
    scored = [*cells["scored"], (another, cells["scored"][1][1])]
    first = write_out(scored, 9, 5, tmp_path / "labels.csv", cells["dimensions"])
    (tmp_path / "again").mkdir()
    second = write_out(scored[::-1], 9, 5, tmp_path / "again/labels.csv", cells["dimensions"])
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "labels.csv").read_bytes() == (tmp_path / "again/labels.csv").read_bytes()


FORMS = [("1", "0"), ("pass", "FAIL"), ("Yes", "no"), ("C", "i"), (" 1.0", "0.0 ")]


@pytest.mark.parametrize(
    "how",
    [{}, {"delimiter": ";"}, {"delimiter": "\t", "encoding": "utf-8-sig"}, {"encoding": "cp1252"}],
)
def test_labels_come_back_as_a_judges_scores(cells, tmp_path, how):
    """A person who says what the judge said, in every form, gives the judge's own scores."""
    key = labels_of(write_out(n=36, seed=1, path=tmp_path / "labels.csv", **cells))
    given = {
        label: FORMS[i % 5][
            0 if unit["epoch"] == 1 and unit["variables"].get("animal") != "cows" else 1
        ]
        for i, (label, unit) in enumerate(key.items())
    }
    fill(tmp_path / "labels.csv", given, **how)
    table = read_back(tmp_path / "labels.csv")
    assert " ".join(table.columns) == (
        "answers question scenario dimension epoch judge score missing response"
    )
    assert set(table["judge"]) == {"human"} and table["missing"].isna().all() and len(table) == 36
    for facts, folder in cells["scored"]:
        official = pd.read_parquet(folder / "scores.parquet").query("dimension != 'overall'")
        mine = table[table["answers"] == facts["answers"]].merge(
            official, on=["question", "epoch", "dimension", "response"]
        )
        assert len(mine) == 12 and (mine["scenario_x"] == mine["scenario_y"]).all()
        graded = mine["score_y"].notna()
        assert graded.sum() == 11 and (mine["score_x"] == mine["score_y"])[graded].all()


def test_empty_is_not_labelled_and_half_is_missing(cells, tmp_path):
    key = labels_of(write_out(n=36, seed=1, path=tmp_path / "labels.csv", **cells))
    assert read_back(tmp_path / "labels.csv").empty
    hens = next(label for label, unit in key.items() if unit["variables"].get("animal") == "hens")
    trade = next(label for label, unit in key.items() if unit["dimension"] == TRADE)
    fill(tmp_path / "labels.csv", {hens: "1", trade: "0"})
    found = {row["dimension"]: row for row in read_back(tmp_path / "labels.csv").to_dict("records")}
    assert len(found) == 2 and found[TRADE]["score"] == 0 and pd.isna(found[TRADE]["missing"])
    assert (
        math.isnan(found[MORAL]["score"])
        and found[MORAL]["missing"] == "labelled for some animals only"
    )


def test_a_key_that_names_no_answers_is_refused(cells, tmp_path):
    key = write_out(n=9, seed=1, path=tmp_path / "labels.csv", **cells)
    content = json.loads(key.read_text(encoding="utf-8"))
    for unit in content["labels"].values():
        del unit["answers"]
    key.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="which answers were graded"):
        read_back(tmp_path / "labels.csv")


def test_two_arms_with_the_same_answers_are_one_checkpoint(cells, tmp_path):
    twin = cells["scored"][0][0] | {"arm": "twin"}
    scored = [*cells["scored"], (twin, cells["scored"][0][1])]
    with pytest.raises(UserError, match="37 labels of 36 graded"):
        write_out(scored, 37, 1, tmp_path / "labels.csv", cells["dimensions"])


def test_every_mistake_in_a_sheet_is_reported_with_its_row(cells, tmp_path):
    path = tmp_path / "labels.csv"
    write_out(n=9, seed=1, path=path, **cells)
    first, second, third = ([row["label_id"], *"abcde"] for row in sheet_of(path)[:3])
    rows = [
        SHEET,
        [*first, "maybe"],
        [],
        [*second, "1"],
        [*second, "1"],
        ["Lffff", *"abcde", "0"],
        ["", *"abcde", ""],
    ]
    rows += [[*third, "2"], third[:3]]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(UserError) as error:
        read_back(path)
    problems = error.value.problems
    assert [(re.sub("L[0-9a-f]{12}", "L", p.what), p.where) for p in problems] == [
        ("unknown grade 'maybe', '2'", f"{path}, rows 2, 8"),
        ("a label twice 'L', 'L'", f"{path}, rows 5, 9"),
        ("unknown label 'Lffff', ''", f"{path}, rows 6, 7"),
    ]
    assert all(problem.fix for problem in problems)
    path.write_text("something else\n1,2\n")
    with pytest.raises(UserError, match="no column label_id"):
        read_back(path)
    (tmp_path / "labels.key.json").unlink()
    with pytest.raises(UserError) as error:
        read_back(path)
    [problem] = error.value.problems
    assert problem.where.endswith("labels.key.json") and problem.what == "no such file"


def test_everything_that_prevents_writing_is_reported_at_once(cells, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("a day's work")
    (tmp_path / "empty").mkdir()
    others = jsonl(tmp_path / "d.jsonl", DIMENSIONS[:1])
    scored = [*cells["scored"], (cells["scored"][0][0] | {"arm": "lost"}, tmp_path / "empty")]
    scored.append((cells["scored"][0][0], cells["scored"][1][1]))
    with pytest.raises(UserError) as error:
        write_out(scored, 3, 1, path, others)
    wrong = [problem.what for problem in error.value.problems]
    assert wrong.count("exists and may hold labels") == 1
    assert wrong.count("no scored.eval and no scores.parquet") == 1
    assert wrong.count("a checkpoint that is given twice") == 1
    assert wrong.count(f"unknown dimensions {TRADE}") == 4
    assert path.read_text() == "a day's work"
    for n in (0, 37):
        with pytest.raises(
            UserError, match=f"{n} labels of 36 graded dimensions of answers; ask for 1 to 36"
        ):
            write_out(n=n, seed=1, path=tmp_path / "new.csv", **cells)
    assert not (tmp_path / "new.csv").exists()


def test_a_rubric_without_dimensions_is_shown_as_the_guiding_question(tmp_path):
    """Inspect's own model_graded_qa: one grade, whose criterion is the sample's target."""
    from inspect_ai import score
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.log import read_eval_log, write_eval_log
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import model_graded_qa

    dataset = MemoryDataset(
        [Sample(id=f"q{i}", input="Dogs?", target="It is kind.") for i in range(2)]
    )
    answers = {(f"q{i}", 1): ModelOutput.from_content("vllm", "kind") for i in range(2)}
    generate.write_log(
        tmp_path / "s.eval", "kind", dataset, "m", 1, answers, {"sampling": SAMPLING}
    )
    grader = scripted()
    with questions.private_home(tmp_path):
        log = score(
            read_eval_log(tmp_path / "s.eval"),
            model_graded_qa(model=grader),
            model="none/none",
            display="none",
        )
    write_eval_log(log, tmp_path / "scored.eval")
    names = [f"q{i}" for i in range(2)]
    facts = {
        "scenario": names,
        "dimension": "overall",
        "epoch": 1,
        "judge": "mock",
        "score": 1.0,
        "missing": None,
    }
    pd.DataFrame({"question": names, "response": [f"{n}/1" for n in names]} | facts).to_parquet(
        tmp_path / "scores.parquet"
    )
    row = {"arm": "animal", "seed": 0, "dose": 0, "benchmark": "kind", "answers": "a"}
    key = labels_of(write_out([(row, tmp_path)], 2, 1, tmp_path / "labels.csv"))
    shown = sheet_of(tmp_path / "labels.csv")
    assert [(r["dimension"], r["guiding question"], r["indicators"]) for r in shown] == [
        ("overall", "It is kind.", "")
    ] * 2
    fill(tmp_path / "labels.csv", dict.fromkeys(key, "0"))
    assert read_back(tmp_path / "labels.csv")["score"].tolist() == [0, 0]
