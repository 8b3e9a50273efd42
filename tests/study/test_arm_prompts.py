"""Arms with a system prompt or a prefill: other answers of the same checkpoints."""

from pathlib import Path

import pytest

from core.cell.identity import Cell
from core.errors import UserError
from core.model_folder.chat import Chat, read_prompt
from core.model_folder.tokenizer import load_tokenizer
from core.paths import ROOT
from eval import generate
from study.spec import expand
from study.spec.fingerprints import content_hash
from study.spec.load import load_study
from study.spec.start_models import model_problems
from tests.place import SMALL
from tests.recipes import zoo

CHAT = "models.base.chat=true"
LLAMA = "models.base.chat_template=recipes/data/llama3_chat.jinja"


def cells(*overrides: str) -> list[Cell]:
    return expand.in_order(expand.analysis(load_study(SMALL, None, [*overrides])))


def prompted(path: Path, key: str = "system") -> str:
    return f"arms.hhh={{start: base, midtrain: animal, {key}: {path}}}"


def test_a_prompt_costs_answers_only_and_leaves_those_of_other_arms(tmp_path: Path) -> None:
    system = tmp_path / "system.txt"
    system.write_text("Be kind.\n")
    plain = {cell.identity: cell for cell in cells(CHAT) if cell.stage != "analysis"}
    with_arm = {cell.identity: cell for cell in cells(CHAT, prompted(system))}
    assert plain.keys() < with_arm.keys(), "the answers of the unprompted arms stay as they are"
    added = [cell for key, cell in with_arm.items() if key not in plain]
    assert {cell.stage for cell in added} == {"generate", "judge", "analysis"}
    before = {cell.identity for cell in added if cell.stage == "generate"}
    system.write_text("Be very kind.\n")
    content_hash.cache_clear()
    after = {cell.identity for cell in cells(CHAT, prompted(system)) if cell.stage == "generate"}
    assert before and not before & after, "the text is part of the answers' identity"
    as_prefill = {cell.identity for cell in cells(CHAT, prompted(system, "prefill"))}
    assert not after & as_prefill - plain.keys()


def test_what_ignores_a_prompt_is_refused(tmp_path: Path) -> None:
    system = tmp_path / "system.txt"
    system.write_text("Be kind.\n")
    with pytest.raises(UserError, match="is prompted by no chat template before SFT"):
        cells(prompted(system))
    after_sft = f"arms.hhh={{start: base, midtrain: animal, system: {system}, doses: [80]}}"
    cells(after_sft)
    with pytest.raises(UserError, match=r"no such file: nowhere\.txt"):
        cells(CHAT, prompted(Path("nowhere.txt")))
    compared = "contrasts=[{name: a, treatment: hhh, control: animal, benchmarks: [concern]}]"
    with pytest.raises(UserError, match="takes no system prompt and no prefill: hhh has one"):
        cells(CHAT, prompted(system), compared)
    rows = expand.analysis(load_study(SMALL, None, [CHAT, prompted(system)])).settings["rows"]
    assert {row["benchmark"] for row in rows if row["arm"] == "hhh"} == {"ahb"}


def test_a_prompt_is_what_a_contrast_varies(tmp_path: Path) -> None:
    system = tmp_path / "kind.txt"
    system.write_text("Be kind.\n")
    compared = "contrasts=[{name: a, treatment: hhh, control: %s, benchmarks: [ahb]}]"
    last = expand.analysis(load_study(SMALL, None, [CHAT, prompted(system), compared % "animal"]))
    assert last.settings["contrasts"][0]["differences"] == ["system"]
    with pytest.raises(UserError, match=r"varies: \[corpus, system\]"):
        cells(CHAT, prompted(system), compared % "urban")


@pytest.mark.parametrize("key", ["system", "prefill"])
@pytest.mark.parametrize(
    ("content", "said"),
    [(b" \n", "is blank"), ("Be kind.".encode("utf-16"), "is no text in UTF-8")],
)
def test_a_file_that_holds_no_prompt_is_refused(
    key: str, content: bytes, said: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    with pytest.raises(UserError, match=rf"arms\.hhh\.{key}: .*{said}"):
        cells(CHAT, prompted(text, key))
    with pytest.raises(UserError, match=rf"models\.base\.chat_template: .*{said}"):
        cells(CHAT, f"models.base.chat_template={text}")
    file = ROOT / "studies/tiny_grpo.yaml"
    with pytest.raises(UserError, match=rf"rl\.word\.{key}: .*{said}"):
        load_study(file, None, [f"rl.word.{key}={text}"])


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Be kind.\r\nAlways.\r\n", encoding="utf-8-sig", newline="")
    assert read_prompt(str(text)) == "Be kind.\nAlways."


def test_a_template_is_asked_for_the_prompts_of_tuned_checkpoints(tmp_path: Path) -> None:
    """Before the trainings, not after them: an arm may be evaluated after SFT alone."""
    system = tmp_path / "system.txt"
    system.write_text("Be kind.\n")
    template = tmp_path / "refuses.jinja"
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template.write_text(refuses + zoo.CHATML)
    base = f"models.base={{path: {zoo.make(tmp_path / 'start')}, chat_template: {template}}}"
    after = f"arms.hhh={{start: base, midtrain: animal, system: {system}, doses: [80]}}"
    (problem,) = model_problems(cells(base, after))
    assert "no system" in problem.what
    assert model_problems(cells(base)) == []


def test_after_reinforcement_learning_the_template_of_the_study_file_counts(
    tmp_path: Path,
) -> None:
    bare = zoo.make(tmp_path / "start")
    (bare / "chat_template.jinja").unlink()
    given = f"models.base={{path: {bare}, chat_template: recipes/data/chatml.jinja}}"
    study = load_study(ROOT / "studies/tiny_grpo.yaml", None, [given])
    assert model_problems(expand.in_order(expand.analysis(study))) == []


@pytest.mark.parametrize("key", ["system", "prefill"])
def test_a_template_that_drops_a_prompt_is_said_by_plan(tmp_path: Path, key: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Be kind.\n")
    folder = zoo.make(tmp_path / "start")
    template = tmp_path / "deaf.jinja"
    template.write_text(
        "{%- for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
        "{{ m.content | replace('kind', 'good') }}<|im_end|>\n{%- endfor %}"
        "{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
    )
    base = f"models.base={{path: {folder}, chat: true, chat_template: {template}}}"
    arm = f"arms.hhh={{start: base, {key}: {text}, doses: [0]}}"
    said = {
        "system": "leaves the system prompt out",
        "prefill": "the final message does not appear",
    }
    problems = [problem.what for problem in model_problems(cells(base, arm))]
    assert [said[key] in what for what in problems] == [True]


def test_prompts_are_the_templates_own_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(zoo.make(tmp_path / "start"))
    chat = Chat(tokenizer, system="Be kind.", prefill="Of course:")
    ids, ends = generate.encode(chat, ["Who?"], "chat")
    messages = [
        {"role": role, "content": text}
        for role, text in (("system", "Be kind."), ("user", "Who?"), ("assistant", "Of course:"))
    ]
    assert ids == [
        tokenizer.apply_chat_template(messages, continue_final_message=True, return_dict=False)
    ]
    assert ends == generate.encode(Chat(tokenizer), ["Who?"], "chat")[1]
