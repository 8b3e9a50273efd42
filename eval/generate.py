"""A checkpoint's answers to a judged question set, as an Inspect log that can be scored later."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from core.cell.context import StageContext, derive_seed
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.inference import vllm_engine as engine
from core.inference.requests import Request, Result, open_results, run_requests
from core.model_folder.chat import Chat, Messages
from core.model_folder.tokenizer import special_names
from eval import contamination, questions
from eval.plain_text import encode_with_names

if TYPE_CHECKING:
    from inspect_ai.dataset import Dataset
    from inspect_ai.model import ModelOutput
    from vllm import RequestOutput

RESUMABLE = True  # finished answers are read from requests.jsonl


MAX_UNUSABLE = 0.05  # share of empty answers, and of cut ones, above which a warning is given


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus sampling, 0 to 1.
        max_tokens: The most tokens of one answer.
        epochs: Answers to each question.
    """

    temperature: float
    top_p: float
    max_tokens: int
    epochs: int = 1


def run(context: StageContext) -> dict[str, int | float]:
    """Answer every question `epochs` times; write `samples.eval`, an unscored Inspect log.

    Settings: scorer (a module of eval), files {questions: identity}, rows (expected, or None),
    sampling (`Sampling`), prompt ("chat" for the checkpoint's own chat template, otherwise a format
    string with {question} that the model continues), chat_date (of templates that ask for today's)
    and engine (arguments of vLLM that change answers); files may have a chat_template that replaces
    the checkpoint's, a system prompt (system) and the beginning of each answer (prefill).
    Resources: files {questions: path ...}, engine (arguments that change none: max_model_len ...).
    Inputs: checkpoint and, where it was trained on documents, contamination.

    The seed of an answer follows from the checkpoint's identity, the prompt's token ids, the
    sampling settings and the epoch.

    Returns counts: questions, epochs, answers, distinct_answers (summed over questions),
    empty_answers, cut_answers (that reached max_tokens), tokens (generated).
    """
    settings = context.settings
    sampling = Sampling(**settings["sampling"])
    questions.remove_temporary(context.folder)
    contamination.check(context)
    scorer, question_set = questions.load_questions(context)
    checkpoint = context.inputs["checkpoint"]
    lm = engine.open_engine(checkpoint / "model", settings["engine"], context.resources["engine"])
    texts = [row["question"] for row in question_set.questions]
    chat = Chat.of_cell(lm.tokenizer, settings, context.resources)
    prompts, stop = encode(chat, texts, settings["prompt"])
    engine.check_lengths(
        lm,
        (
            (f"question {row['id']}", len(prompt), sampling.max_tokens)
            for row, prompt in zip(question_set.questions, prompts, strict=True)
        ),
    )
    epochs = range(1, sampling.epochs + 1)
    keys = [(row["id"], epoch) for row in question_set.questions for epoch in epochs]
    seeds = answer_seeds(checkpoint, prompts, sampling)
    batch = [prompt for prompt in prompts for _ in epochs]
    context.log(f"{len(batch)} answers from {checkpoint.name}")
    with open_results(context, lm) as results:
        if advice := cache_advice(context.facts["engine"], batch, sampling.max_tokens):
            context.log(advice)
        replies = complete(
            lm,
            batch,
            seeds,
            sampling,
            stop,
            results,
            lambda number: context.progress(number, len(batch), "answers"),
            chat.prefill or "",
        )
    answers = dict(zip(keys, replies, strict=True))
    distinct = [
        len({answers[row["id"], epoch].completion for epoch in epochs})
        for row in question_set.questions
    ]
    same = sum(count == 1 for count in distinct)
    if same and len(epochs) > 1 and sampling.temperature > 0:
        context.warn(
            f"{same} of {len(distinct)} questions got the same answer in all {len(epochs)} epochs"
        )
    empty, cut = count_unusable(replies, chat.prefill or "")
    # What continues a text, without a chat template, has no end.
    warnings = unusable_warnings(len(replies), empty, cut if stop else 0)
    context.facts["answers"] = warnings
    for warning in warnings:
        context.warn(warning)
    dataset = scorer.task(question_set, context.folder, None).dataset
    write_log(
        context.folder / "samples.eval",
        settings["scorer"],
        dataset,
        checkpoint.name,
        sampling.epochs,
        answers,
        {
            "identity": context.identity,
            "prompt": settings["prompt"],
            "sampling": settings["sampling"],
            **({"system": chat.system} if chat.system is not None else {}),
            **({"prefill": chat.prefill} if chat.prefill is not None else {}),
        },
    )
    return {
        "questions": len(question_set.questions),
        "epochs": sampling.epochs,
        "answers": len(answers),
        "distinct_answers": sum(distinct),
        "empty_answers": empty,
        "cut_answers": cut,
        "tokens": sum(reply.usage.output_tokens for reply in replies if reply.usage),
    }


def count_unusable(replies: list["ModelOutput"], prefill: str = "") -> tuple[int, int]:
    """How many answers are empty behind `prefill`, and how many were cut off at max_tokens."""
    empty = sum(not reply.completion.removeprefix(prefill).strip() for reply in replies)
    return empty, sum(reply.stop_reason == "max_tokens" for reply in replies)


def unusable_warnings(total: int, empty: int, cut: int) -> list[str]:
    """What the manifest and the report say where more than MAX_UNUSABLE of the answers are such."""
    texts = {f"{empty} of {total} answers are empty": empty}
    texts[f"{cut} of {total} answers were cut off at max_tokens: no end token came"] = cut
    return [text for text, count in texts.items() if count > MAX_UNUSABLE * total]


def cache_advice(facts: dict[str, Any], batch: list[list[int]], max_tokens: int) -> str | None:
    """A line for the log where the engine's cache may not hold all answers that are begun at once.

    vLLM then interrupts answers and computes them again later.

    Args:
        facts: Of the engine (`core.inference.vllm_engine.describe`).
        batch: Token ids of the prompts.
        max_tokens: The most tokens of one answer.
    """
    longest = max(map(len, batch)) + max_tokens
    fitting = facts["kv_cache_tokens"] // longest
    if fitting >= min(len(batch), facts["max_num_seqs"]):
        return None
    return (
        f"the cache holds {fitting} answers of {longest} tokens: vLLM may interrupt others and "
        f"compute them again; engine.options: {{max_num_seqs: {fitting}}} avoids it"
    )


def preload() -> None:
    """Import what `run` imports later."""
    import inspect_ai  # noqa: F401
    import inspect_evals._registry  # noqa: F401 (Inspect imports it to look for the task)

    engine.preload()


def answer_seeds(checkpoint: Path, prompts: list[list[int]], sampling: Sampling) -> list[int]:
    """The seed of each answer: of each prompt (token ids), one for each epoch.

    Raises:
        UserError: The folder `checkpoint` is no finished cell.
    """
    manifest = read_manifest(checkpoint)
    if manifest is None:
        raise UserError(
            where=str(checkpoint),
            what="is not finished",
            fix=f"python -m study cell {quote(str(checkpoint))}",
        )
    # Not the number of epochs: more of them add answers and leave those that are there.
    settings = (sampling.temperature, sampling.top_p, sampling.max_tokens)
    return [
        derive_seed(manifest["identity"], prompt, *settings, epoch)
        for prompt in prompts
        for epoch in range(1, sampling.epochs + 1)
    ]


def encode(chat: Chat, texts: list[str], prompt: str) -> tuple[list[list[int]], list[int]]:
    """Token ids of each question's prompt, and the token ids that end an answer.

    A prompt begins with the begin-of-text token once, as rows of a training do. Names of special
    tokens in a question stay text.

    Args:
        chat: The checkpoint's tokenizer and chat template, with the prompts of its arm.
        texts: The questions.
        prompt: "chat" for the tokenizer's chat template, otherwise a format string with {question}.

    Raises:
        UserError: There is no chat template, or one that can't be used, or `prompt` is not a format
            string of {question} alone.
    """
    tokenizer = chat.tokenizer
    bos = tokenizer.bos_token_id
    names = special_names(tokenizer)
    if prompt != "chat":
        try:
            rendered = [prompt.format(question=text) for text in texts]
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(
                where=f"prompt {prompt!r}",
                what=f"bad prompt ({error!r})",
                fix="use {question} and no other braces",
            ) from error
        bare = [
            encode_with_names(tokenizer, names, lambda text: prompt.format(question=text), text)
            if names and names.search(text)
            else tokenizer(whole, add_special_tokens=False).input_ids
            for text, whole in zip(texts, rendered, strict=True)
        ]
        return [ids if bos is None or ids[:1] == [bos] else [bos, *ids] for ids in bare], []
    chat.check(trained=False)

    def ask(text: str) -> Messages:
        return [{"role": "user", "content": text}]

    encoded = [
        encode_with_names(tokenizer, names, lambda text: chat.prompt_text(ask(text)), text)
        if names and names.search(text)
        else chat.prompt(ask(text))
        for text in texts
    ]
    # The config of a base model ends a text, not a message of a chat.
    return encoded, chat.end_ids()


def complete(
    lm: Any,
    batch: list[list[int]],
    seeds: list[int],
    sampling: Sampling,
    stop: list[int],
    results: dict[str, Result],
    report: Callable[[int], None],
    prefill: str = "",
) -> list["ModelOutput"]:
    """One sampled continuation of each prompt in `batch` (token ids), with one seed a prompt.

    All sampling settings are given explicitly, so that none comes from the checkpoint's
    generation_config.json. Its end tokens do end an answer, as do those of `stop`.

    `results` holds the answers that were given before; new ones are added. `report` is called with
    the number of answers so far. `prefill` is the end of each prompt that belongs to the answer.
    """
    from inspect_ai.model import ModelOutput, ModelUsage
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    requests = [
        Request(
            prompt,
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                min_p=0.0,
                repetition_penalty=1.0,
                max_tokens=sampling.max_tokens,
                stop_token_ids=list(stop),
                seed=seed,
                output_kind=RequestOutputKind.FINAL_ONLY,
            ),
        )
        for prompt, seed in zip(batch, seeds, strict=True)
    ]
    replies = []
    answers = run_requests(lm, requests, results, _answer, report)
    for prompt, answer in zip(batch, answers, strict=True):
        reply = ModelOutput.from_content(
            "vllm", prefill + answer["text"], stop_reason="max_tokens" if answer["cut"] else "stop"
        )
        reply.usage = ModelUsage(
            input_tokens=len(prompt),
            output_tokens=answer["tokens"],
            total_tokens=len(prompt) + answer["tokens"],
        )
        replies.append(reply)
    return replies


def _answer(request: Request, output: "RequestOutput") -> Result:
    answer = output.outputs[0]
    return {
        "text": answer.text,
        "tokens": len(answer.token_ids),
        "cut": answer.finish_reason == "length",
    }


def write_log(
    path: Path,
    task: str,
    dataset: "Dataset",
    model: str,
    epochs: int,
    answers: dict[tuple[str, int], "ModelOutput"],
    record: dict[str, Any],
) -> None:
    """Write answers as an unscored Inspect log.

    Inspect runs the task itself, with a solver that gives each sample its answer. Inspect's
    provider `none` refuses every call, so the model under test can never grade itself.

    Args:
        path: The file to write.
        task: The task's name in the log.
        dataset: The samples, in order.
        model: The checkpoint's name.
        epochs: Answers to each question.
        answers: The answers by (question id, epoch from 1).
        record: Metadata of the log; "sampling" holds temperature, top_p and max_tokens, "system"
            the system prompt if there is one.
    """
    from inspect_ai import Task, eval
    from inspect_ai.model import ChatMessageSystem, ModelOutput
    from inspect_ai.solver import Generate, Solver, TaskState, solver

    @solver(name="vllm_answers")
    def recorded_answers() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            answer = answers[str(state.sample_id), state.epoch]
            state.output = ModelOutput.model_validate(answer).model_copy()
            state.output.model = model
            if system := record.get("system"):
                state.messages.insert(0, ChatMessageSystem(content=system))
            state.messages.append(state.output.message)
            return state

        return solve

    sampling = record["sampling"]
    with (
        questions.private_home(path.parent),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=questions.TEMPORARY) as temporary,
    ):
        [log] = eval(
            Task(dataset=dataset, solver=recorded_answers(), name=task),
            model=f"none/{model}",
            epochs=epochs,
            score=False,
            metadata=record,
            display="none",
            log_dir=temporary,
            log_realtime=False,
            ctl_server=False,
            temperature=sampling["temperature"],
            top_p=sampling["top_p"],
            max_tokens=sampling["max_tokens"],
        )
        if log.status != "success":
            reason = log.error.message if log.error else log.status
            raise RuntimeError(f"Inspect could not write {path}: {reason}")
        shutil.move(log.location, path)
