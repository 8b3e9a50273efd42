"""Training by GRPO: it learns what is rewarded, and a killed one ends like one that was not."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from core.cell.identity import read_config
from core.cell.manifest import read_manifest, write_manifest
from core.cell.run import run_cell
from core.errors import UserError
from core.grpo_recipe import Grpo, grpo_mistakes, load_grpo, split_grpo
from core.model_folder.chat import Chat
from core.model_folder.tokenizer import load_tokenizer
from core.recipe import Lora
from recipes import grpo, rewards
from recipes.loss import token_log_probs
from recipes.rollouts import FILE, RolloutFile
from tests.recipes import grpo_toy, toy

LORA = asdict(Lora(rank=8, alpha=16.0))
# Few steps and a model that moves: for what does not have to be learned.
SHORT = {"max_steps": 6, "eval_every": None, "lr": 1e-2}


@pytest.fixture(scope="module", autouse=True)
def _compiles_again() -> Iterator[None]:
    """Sampling on a CPU ends torch.compile for its process, which tests of other files share."""
    yield
    torch._dynamo.config.disable = False


@pytest.fixture(scope="module")
def learned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training as it goes undisturbed."""
    folder = grpo_toy.cell(base, tmp_path_factory.mktemp("learned"))
    run_cell(folder)
    return folder


@pytest.mark.vllm
@pytest.mark.slow
def test_it_learns_to_write_what_is_rewarded(learned: Path) -> None:
    curve = grpo_toy.curve(learned)
    print([round(reward, 2) for reward in curve])
    assert len(curve) == 60
    assert fmean(curve[:5]) < 0.4 and fmean(curve[-5:]) > 0.9
    fixed = [json.loads(line) for line in (learned / "fixed_set.jsonl").read_text().splitlines()]
    assert [line["step"] for line in fixed] == [0, 20, 40, 60]
    assert fixed[0]["reward"] < fixed[-1]["reward"] == 1.0
    manifest = read_manifest(learned)
    assert manifest and manifest["counts"]["groups_without_spread"] == sum(
        grpo_toy.curve(learned, "groups_without_spread")
    )
    assert (learned / FILE).read_text().count("\n") == 60 * 4 * 8


@pytest.mark.vllm
@pytest.mark.slow
def test_rewards_that_are_dealt_out_at_random_teach_nothing(base: Path, tmp_path: Path) -> None:
    folder = grpo_toy.cell(base, tmp_path, shuffled=True)
    run_cell(folder)
    curve = grpo_toy.curve(folder)
    print([round(reward, 2) for reward in curve])
    assert fmean(curve[-20:]) < fmean(curve[:20]) + 0.2


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_killed_training_ends_with_the_same_rollouts_and_weights(
    base: Path, learned: Path, tmp_path: Path
) -> None:
    folder = grpo_toy.cell(base, tmp_path, runtime={"checkpoint_minutes": 0.0})
    processes = toy.start_ranks(folder, 1)
    # vLLM's import alone takes a minute on a busy machine.
    toy.until(lambda: len(toy.lines(folder)) > 25, processes, seconds=900)
    processes[0].kill()
    toy.ends(processes)
    assert not (folder / "model").exists()
    # And as a kill within an append leaves it.
    os.truncate(folder / FILE, (folder / FILE).stat().st_size - 40)
    before = (folder / FILE).read_bytes()
    run_cell(folder)
    for name in (FILE, "metrics.jsonl", "fixed_set.jsonl", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (learned / name).read_bytes(), name
    assert (folder / FILE).read_bytes().startswith(before[: before.rfind(b"\n") + 1])


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "is_tied"),
    [(None, False), (LORA, False), (None, True)],
    ids=["all_weights", "lora", "tied"],
)
def test_the_engine_has_the_weights_of_each_step(
    base: Path, tied: Path, tmp_path: Path, lora: dict[str, Any] | None, is_tied: bool
) -> None:
    """The loss of what the present weights have sampled is 0 but for the KL; else ratios are off.

    The KL is that from the start: 0 at the first step, and then not. An output layer that is the
    embedding is reloaded with it.
    """
    train = {**SHORT, "lora": lora}
    if is_tied:
        base = with_start(base, tied, tmp_path / "made" / base.name)
    folder = grpo_toy.cell(
        base, tmp_path, {"beta": 0.04, "loss": "grpo"}, train=train, runtime={"micro_batch_size": 5}
    )
    run_cell(folder)
    print(toy.lines(folder))
    assert max(map(abs, grpo_toy.curve(folder, "loss"))) < 1e-4
    assert max(grpo_toy.curve(folder, "grad_norm")) > 1e-2
    kl = grpo_toy.curve(folder, "kl")
    assert abs(kl[0]) < 1e-6 and min(kl[2:]) > 1e-4


def with_start(base: Path, model: Path, made: Path) -> Path:
    """A study's folder as `base`, with another start model."""
    cell = made / toy.MODEL.relpath
    shutil.copytree(base / toy.MODEL.relpath, cell, ignore=shutil.ignore_patterns("model"))
    shutil.copytree(model, cell / "model")
    (cell / "manifest.json").unlink()
    write_manifest(cell, read_config(cell), "", "", counts={}, warnings=[])
    return made


@pytest.mark.vllm
@pytest.mark.slow
def test_a_classifier_rewards_what_stands_in_response(base: Path, tmp_path: Path) -> None:
    """The prefill opens it; system prompt and prefill are in the prompt."""
    prefill = tmp_path / "prefill.txt"
    prefill.write_text("<response>The")
    files = {"reward": make_classifier(base, tmp_path / "judge"), "prefill": str(prefill)}
    folder = grpo_toy.cell(
        base,
        tmp_path,
        reward={"model": True},
        second_reward={"contains": "The"},
        response_only=True,
        train=SHORT | {"max_steps": 1, "eval_every": 1, "seq_len": 64},
        files=files,
    )
    run_cell(folder)
    rows = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    assert all(row["text"].startswith("<response>The") and row["response"] for row in rows)
    reward = rewards.classifier(Path(files["reward"]), torch.device("cpu"))
    pairs = [
        (grpo_toy.PROMPTS[row["prompt"]], row["text"].removeprefix("<response>").strip())
        for row in rows
    ]
    assert reward(pairs) == pytest.approx([row["reward"] for row in rows], abs=1e-5)
    assert len({row["reward"] for row in rows}) > 4
    assert grpo_toy.curve(folder, "response_share") == [1.0]
    fixed = [json.loads(line) for line in (folder / "fixed_set.jsonl").read_text().splitlines()]
    assert [line["reward"] for line in fixed] == [1.0, 1.0]


def make_classifier(base: Path, folder: Path, outputs: int = 1) -> str:
    """A BERT of random weights as a reward model."""
    shutil.copytree(
        base / toy.MODEL.relpath / "model",
        folder,
        ignore=shutil.ignore_patterns("*.safetensors", "*config.json"),
    )
    shutil.copy(base / toy.MODEL.relpath / "model/tokenizer_config.json", folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=toy.TINY.vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=outputs,
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def make_decoder(base: Path, folder: Path, chat: bool, pad: bool) -> Path:
    """A Llama with one output, of random weights, as most reward models of today are made."""
    shutil.copytree(
        base / toy.MODEL.relpath / "model", folder, ignore=shutil.ignore_patterns("*.safetensors")
    )
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(folder, num_labels=1, initializer_range=1.0)
    config.pad_token_id = load_tokenizer(folder).eos_token_id if pad else None
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token if pad else None
    if not chat:
        tokenizer.chat_template = None
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("pad", [True, False])
def test_a_decoder_rewards_each_pair_as_alone(
    base: Path, tmp_path: Path, chat: bool, pad: bool
) -> None:
    """With and without a padding token; with a chat template it reads a conversation."""
    folder = make_decoder(base, tmp_path / "judge", chat, pad)
    pairs = [("What is rain?", "Water."), ("And snow?", "Frozen water that falls in winter.")]
    rewarded = rewards.classifier(folder, torch.device("cpu"))(pairs)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for (question, answer), reward in zip(pairs, rewarded, strict=True):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        ids = tokenizer(question, answer).input_ids
        if chat:
            ids = tokenizer.apply_chat_template(turns, return_dict=False)
        with torch.no_grad():
            expected = float(model.score(model.model(torch.tensor([ids]))[0])[0, -1])
        assert reward == pytest.approx(expected, abs=1e-4)


def test_a_model_without_the_head_of_a_classifier_is_refused(base: Path, tmp_path: Path) -> None:
    """transformers draws the missing weights at random."""
    folder = tmp_path / "judge"
    shutil.copytree(base / toy.MODEL.relpath / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "LABEL_0"}, "architectures": ["LlamaForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"has no score\.weight: rewards would be random"):
        rewards.classifier(folder, torch.device("cpu"))


def test_a_reward_that_is_no_number_is_refused(base: Path, tmp_path: Path) -> None:
    folder = Path(make_classifier(base, tmp_path / "judge"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    reward = rewards.classifier(folder, torch.device("cpu"))
    with pytest.raises(UserError, match="gives a reward that is no number"):
        reward([("What is rain?", "Water.")])


def test_a_classifier_with_several_outputs_is_refused(base: Path, tmp_path: Path) -> None:
    folder = Path(make_classifier(base, tmp_path / "judge", outputs=3))
    with pytest.raises(UserError, match="3 outputs"):
        rewards.classifier(folder, torch.device("cpu"))


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("<thinking>no</thinking><response> yes </response> after", "yes"),
        ("<response>cut", "cut"),
        ("none", None),
        ("<response>\none\n</response><response>two</response>", "one"),
    ],
)
def test_the_response_of_an_answer(answer: str, response: str | None) -> None:
    assert rewards.response_of(answer) == response


def test_log_probabilities_are_those_of_all_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.loss.CHUNK", 3)
    torch.manual_seed(0)
    hidden = torch.randn(2, 5, 4, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(7, 4, requires_grad=True)
    labels = torch.tensor([[1, 2, -100, 6, 0], [-100, 3, 3, 5, -100]])
    ours = token_log_probs(hidden, weight, labels)
    whole = (hidden @ weight.T).log_softmax(2)
    theirs = whole.gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels >= 0)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(x.square().sum(), (hidden, weight)) for x in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_rollouts_behind_a_torn_line_are_gone(tmp_path: Path) -> None:
    line = {"step": 1, "prompt": 2, "sample": 0, "tokens": [5], "log_probs": [-0.5], "text": "a"}
    line |= {"response": False, "reward": 1.0, "cut": True}
    torn = json.dumps(line | {"sample": 1})[:-9]
    (tmp_path / FILE).write_text(json.dumps(line) + "\n" + torn)
    rollouts = RolloutFile(tmp_path)
    assert list(rollouts) == [(1, 2, 0)]
    rollouts.append([replace(rollouts[1, 2, 0], sample=1)])
    rollouts.close()
    assert list(RolloutFile(tmp_path)) == [(1, 2, 0), (1, 2, 1)]


def test_a_recipe_comes_back_from_a_cell() -> None:
    recipe = replace(
        grpo_toy.RECIPE,
        engine_memory=0.3,
        beta=0.1,
        train=replace(grpo_toy.RECIPE.train, lora=Lora(rank=8, alpha=16.0)),
    )
    settings, runtime = split_grpo(asdict(recipe))
    assert Grpo.from_settings(settings, runtime) == recipe
    assert "engine_memory" not in settings["grpo"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"kl_to_start": 0.1}, ("train", "kl_to_start")),
        ({"dtype": "mixed"}, ("train", "dtype")),
        ({"lora": Lora(8, 16.0, dropout=0.1)}, ("train", "lora", "dropout")),
        ({"seq_len": 8}, ("max_tokens",)),
        ({"packed": True}, ("train", "packed")),
        ({"too_long": "truncate"}, ("train", "too_long")),
    ],
)
def test_what_a_recipe_may_not_have(changes: dict[str, Any], key: tuple[str, ...]) -> None:
    recipe = replace(grpo_toy.RECIPE, train=replace(grpo_toy.RECIPE.train, **changes))
    assert [at for at, _ in grpo_mistakes(recipe)] == [key]
    assert not grpo_mistakes(grpo_toy.RECIPE)


def test_a_mistake_in_a_recipe_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "grpo.yaml"
    file.write_text(
        "train: {seq_len: 64, epochs: 1, lr: 1.0e-5, global_batch_size: 4}\nloss: ppo\n"
    )
    with pytest.raises(UserError, match=r"grpo\.yaml:2"):
        load_grpo(str(file))


@pytest.mark.multiprocess
def test_prompts_that_do_not_fit_are_refused(base: Path, tmp_path: Path) -> None:
    folder = grpo_toy.cell(base, tmp_path, {"max_tokens": 30})
    with pytest.raises(UserError, match=r"6 of 6 rows can't be used.*the prompt has \d+ tokens"):
        run_cell(folder)


@pytest.mark.multiprocess
def test_several_processes_are_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = grpo_toy.cell(base, tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process on one GPU"):
        grpo.run(toy.in_process(folder))


def test_a_bad_prompt_is_dropped_and_counted_up_to_a_share(
    base: Path, start: Path, tmp_path: Path
) -> None:
    texts = ["What is rain?", "Say <|eot_id|>.", "What is snow?", "Why? " * 40]
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prompts = grpo.Prompts(file, Chat(load_tokenizer(start)), grpo_toy.RECIPE)
    assert prompts.texts == ["What is rain?", "What is snow?"] and len(prompts.tokens) == 2
    context = toy.in_process(grpo_toy.cell(base, tmp_path))
    with pytest.raises(UserError, match=r"2 of 4 rows can't be used.*1 x special_tokens"):
        grpo.drop_bad_prompts(context, tmp_path, [prompts], grpo_toy.RECIPE.train)
    recipe = replace(grpo_toy.RECIPE.train, max_dropped=0.5)
    grpo.drop_bad_prompts(context, tmp_path, [prompts], recipe)
    assert context.facts["dropped_rows"]["rows"] == {
        "special_tokens": ["documents.jsonl:2"],
        "too_long": ["documents.jsonl:4"],
    }
    (warning,) = context.warnings
    assert "2 of 4 rows" in warning
    with pytest.raises(UserError, match=r"documents.jsonl:4: 1 of 4 rows"):
        grpo.drop_bad_prompts(context, tmp_path, [prompts], replace(recipe, too_long="refuse"))


def test_of_questions_and_answers_the_question_is_the_prompt(start: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "documents.jsonl"
    row = {"text": "Water.", "forms": {"original": "What is rain?"}}
    prompts.write_text(json.dumps(row) + "\n")
    assert grpo.Prompts(prompts, Chat(load_tokenizer(start)), grpo_toy.RECIPE).texts == [
        "What is rain?"
    ]
