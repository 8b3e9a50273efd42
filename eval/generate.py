"""A checkpoint's answers to a judged question set, as an Inspect log that can be scored at any time."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cell.context import StageContext
from core.errors import UserError
from core.inference import vllm_engine as engine
from eval import questions

if TYPE_CHECKING:
    from inspect_ai.dataset import Dataset
    from inspect_ai.model import ModelOutput


def run(work: StageContext) -> dict[str, int | float]:
    """Answer every question `epochs` times in one vLLM batch and write `samples.eval`, an unscored Inspect log.

    Settings: scorer (a module of eval), files {questions: identity}, rows (expected, or None), sampling {temperature,
    top_p, max_tokens, epochs}, prompt ("chat" for the checkpoint's own chat template, otherwise a format string with
    {question} that the model continues) and engine {dtype, max_model_len}.
    Resources: files {questions: path}, engine (optional, more arguments for vLLM). Inputs: checkpoint.

    Returns counts: questions, epochs, answers, distinct_answers (summed over questions), tokens (generated).
    """
    settings, sampling = work.settings, work.settings["sampling"]
    scorer, found = questions.open_set(work)
    checkpoint = work.inputs["checkpoint"]
    lm = engine.open_engine(checkpoint / "model", settings["engine"], work.resources.get("engine"))
    prompts, stop = encode(
        lm.tokenizer, [row["question"] for row in found.questions], settings["prompt"]
    )
    longest = max(len(prompt) for prompt in prompts) + sampling["max_tokens"]
    if longest > settings["engine"]["max_model_len"]:
        raise UserError(
            f"prompt and answer need up to {longest} tokens; engine.max_model_len is "
            f"{settings['engine']['max_model_len']}; raise it or lower sampling.max_tokens"
        )
    epochs = range(1, sampling["epochs"] + 1)
    keys = [(row["id"], epoch) for row in found.questions for epoch in epochs]
    seeds = [work.seed(*key) for key in keys]
    batch = [prompt for prompt in prompts for _ in epochs]
    work.log(f"{len(batch)} answers from {checkpoint.name}")
    replies = complete(lm, batch, seeds, sampling, stop)
    work.progress(len(replies), len(batch), "answers")
    answers = dict(zip(keys, replies, strict=True))
    distinct = [
        len({answers[row["id"], epoch].completion for epoch in epochs}) for row in found.questions
    ]
    same = sum(count == 1 for count in distinct)
    if same and len(epochs) > 1 and sampling["temperature"] > 0:
        work.warn(
            f"{same} of {len(distinct)} questions got the same answer in all {len(epochs)} epochs"
        )
    record = {"identity": work.identity, "prompt": settings["prompt"], "sampling": sampling}
    dataset = scorer.task(found, work.folder, None).dataset
    write_log(
        work.folder / "samples.eval",
        settings["scorer"],
        dataset,
        checkpoint.name,
        len(epochs),
        answers,
        record,
    )
    return {
        "questions": len(found.questions),
        "epochs": len(epochs),
        "answers": len(answers),
        "distinct_answers": sum(distinct),
        "tokens": sum(reply.usage.output_tokens for reply in replies if reply.usage),
    }


def encode(tokenizer: Any, texts: list[str], prompt: str) -> tuple[list[list[int]], list[int]]:
    """Token ids of each question's prompt, with the begin-of-text token exactly once, and the ids that end an answer.

    Raises UserError if the checkpoint has no chat template, or one that doubles the begin-of-text token.
    """
    bos = tokenizer.bos_token_id
    if prompt != "chat":
        try:
            rendered = [prompt.format(question=text) for text in texts]
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"bad prompt {prompt!r}; {error!r}; use {{question}} and no other braces"
            ) from error
        plain = [tokenizer(text, add_special_tokens=False).input_ids for text in rendered]
        return [ids if bos is None or ids[:1] == [bos] else [bos, *ids] for ids in plain], []
    if not tokenizer.chat_template:
        raise UserError(
            'no chat template in the checkpoint\'s tokenizer; set prompt: "Question: {question}\\nAnswer:"'
        )
    turns = [[{"role": "user", "content": text}] for text in texts]
    encoded = [
        tokenizer.apply_chat_template(t, add_generation_prompt=True, return_dict=False)
        for t in turns
    ]
    if bos is not None and any(ids.count(bos) > 1 for ids in encoded):
        raise UserError(
            "the checkpoint's chat template writes the begin-of-text token more than once; mend it"
        )
    # A base model's config ends a text, not a turn: what the template puts after an answer must end the answer here.
    turn = [*turns[0], {"role": "assistant", "content": "x"}]
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    ends = [
        i
        for i in tokenizer.apply_chat_template(turn, return_dict=False)[len(encoded[0]) :]
        if i in special
    ]
    return encoded, ends[:1]


def complete(
    lm: Any, batch: list[list[int]], seeds: list[int], sampling: dict[str, Any], stop: list[int]
) -> list["ModelOutput"]:
    """One sampled continuation for each prompt of token ids; every request has a seed of its own.

    All sampling settings are given explicitly, so that none comes from the checkpoint's generation_config.json; its
    end tokens do count, besides those of `stop`.
    """
    from inspect_ai.model import ModelOutput, ModelUsage
    from vllm import SamplingParams, TokensPrompt

    parameters = [
        SamplingParams(
            temperature=sampling["temperature"],
            top_p=sampling["top_p"],
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
            max_tokens=sampling["max_tokens"],
            stop_token_ids=list(stop),
            seed=seed,
        )
        for seed in seeds
    ]
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in batch]
    replies = []
    for request in lm.model.generate(prompts, parameters, use_tqdm=False):
        given, written = len(request.prompt_token_ids), len(request.outputs[0].token_ids)
        cut = request.outputs[0].finish_reason == "length"
        reply = ModelOutput.from_content(
            "vllm", request.outputs[0].text, stop_reason="max_tokens" if cut else "stop"
        )
        reply.usage = ModelUsage(
            input_tokens=given, output_tokens=written, total_tokens=given + written
        )
        replies.append(reply)
    return replies


def write_log(
    path: Path,
    task: str,
    dataset: "Dataset",
    model: str,
    epochs: int,
    answers: dict[tuple[str, int], "ModelOutput"],
    record: dict[str, Any],
) -> None:
    """Write answers, keyed by (question id, epoch), as an unscored Inspect log.

    Inspect runs the task itself, with a solver that hands each sample its answer. `model` is the checkpoint's name;
    Inspect's provider `none` refuses every call, so the model under test can never grade itself.
    """
    from inspect_ai import Task, eval
    from inspect_ai.model import ModelOutput
    from inspect_ai.solver import Generate, Solver, TaskState, solver

    @solver(name="vllm_answers")
    def hand_out() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            state.output = ModelOutput.model_validate(
                answers[str(state.sample_id), state.epoch]
            ).model_copy()
            state.output.model = model
            state.messages.append(state.output.message)
            return state

        return solve

    with (
        questions.private_home(path.parent),
        tempfile.TemporaryDirectory(dir=path.parent) as temporary,
    ):
        [log] = eval(
            Task(dataset=dataset, solver=hand_out(), name=task),
            model=f"none/{model}",
            epochs=epochs,
            score=False,
            metadata=record,
            display="none",
            log_dir=temporary,
            log_realtime=False,
            ctl_server=False,
            temperature=record["sampling"]["temperature"],
            top_p=record["sampling"]["top_p"],
            max_tokens=record["sampling"]["max_tokens"],
        )
        if log.status != "success":
            raise RuntimeError(
                f"Inspect could not write {path}: {log.error.message if log.error else log.status}"
            )
        shutil.move(log.location, path)
