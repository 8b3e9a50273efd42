"""lm-eval's vLLM model over an engine that is already open, with prompts as in training."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from lm_eval.models.vllm_causallms import VLLM
from vllm import RequestOutput, SamplingParams
from vllm.sampling_params import RequestOutputKind

from core.errors import UserError
from core.inference.requests import Request, Result, run_requests
from core.inference.vllm_engine import check_lengths
from core.model_folder.chat import Chat
from eval.patches import require_version


class TaskModel(VLLM):
    """lm-eval's `VLLM`, which begins prompts as training does and refuses what it would cut.

    - A text begins with the begin-of-text token exactly once, whatever the tokenizer does by
      default. A chat template writes the token itself.
    - `VLLM` cuts a prompt that does not fit the engine, silently. Here it raises UserError.
    - Finished requests are kept in `results`, and are not computed again.
    - Requests and tokens are counted, and requests are reported as they end.

    It overrides private methods of lm-eval, so its version is checked (`eval.patches`).

    Args:
        opened: The open engine, whose state is shared: a second one is not started.
        chat: The chat template of the prompts; None where they are plain texts. Its prefill begins
            each answer, and is no part of what lm-eval reads as the answer.
        results: Of requests that have ended; new ones are added.
        report: Called with the number of requests answered so far.

    Attributes:
        num_requests: Requests answered so far.
        num_tokens: Tokens read and written so far.
    """

    def __init__(
        self,
        opened: VLLM,
        chat: Chat | None,
        results: dict[str, Result],
        report: Callable[[int], None],
    ) -> None:
        require_version("lm_eval")
        self.__dict__.update(vars(opened))  # VLLM.__init__ would start another engine
        self._results = results
        self.num_requests = 0
        self.num_tokens = 0
        self._chat = chat
        self._bos = "" if chat else self.tokenizer.bos_token or ""
        self._labels: list[str] = []  # of the requests whose likelihoods are being computed
        self._report = report

    def tok_encode(self, string: Any, add_special_tokens: Any = None, **options: Any) -> Any:
        """Token ids of a text, or a list of them for several texts."""
        if not isinstance(string, str):
            return [self.tok_encode(text, add_special_tokens) for text in string]
        if add_special_tokens is not False and not string.startswith(self._bos):
            string = self._bos + string
        return super().tok_encode(string, add_special_tokens=False)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a prompt; without a generation prompt its last message goes on.

        Raises UserError where the task and the arm both begin the answer.
        """
        assert self._chat
        if add_generation_prompt:
            return self._chat.prompt_text(chat_history)
        if self._chat.prefill is not None:
            raise UserError(
                where="prefill",
                what="this task of lm-eval begins its answers itself (gen_prefix)",
                fix="leave the arm out: benchmarks.NAME.arms in the study file",
            )
        return self._chat.text(chat_history, False, continue_final_message=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request. Raises UserError if a prompt and its answer may not fit."""
        lengths = []
        for request in requests:
            text, options = request.args
            _, _, max_tokens = self.modify_gen_kwargs(
                options, default_max_gen_toks=self.max_gen_toks
            )
            lengths.append((_label(request), len(self.tok_encode(text)), max_tokens))
        check_lengths(self, lengths)
        answers: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return answers

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probabilities of choices. Raises UserError if a prompt does not fit."""
        self._labels = [_label(request) for request in requests]
        results: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return results

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        check_lengths(
            self,
            (
                (label, len(context + choice), 1)  # vLLM always writes a token
                for label, (_, context, choice) in zip(self._labels, requests, strict=True)
            ),
        )
        parameters = SamplingParams(
            temperature=0,
            prompt_logprobs=1,
            max_tokens=1,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        asked = [
            Request(context + choice, parameters, len(context)) for _, context, choice in requests
        ]
        # As lm-eval does: where memory is short, it shows at once.
        longest_first = sorted(asked, key=lambda request: -len(request.prompt))
        self._run(longest_first, self._likelihood)
        results = (self._results[request.key] for request in asked)
        return [(result["logprob"], result["greedy"]) for result in results]

    def _likelihood(self, request: Request, output: RequestOutput) -> Result:
        logprob, greedy = self._parse_logprobs(request.prompt, output, request.context)
        return {"logprob": logprob, "greedy": greedy, "tokens": len(output.outputs[0].token_ids)}

    def _model_generate(
        self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None
    ) -> Any:
        """The answers, as far as `generate_until` reads them."""
        asked = []
        for prompt, parameters in zip(requests, sampling_params, strict=True):
            parameters.output_kind = RequestOutputKind.FINAL_ONLY
            asked.append(Request(prompt, parameters))
        results = self._run(asked, _answer)
        return [
            SimpleNamespace(outputs=[SimpleNamespace(text=result["text"])]) for result in results
        ]

    def _run(
        self, requests: list[Request], read: Callable[[Request, RequestOutput], Result]
    ) -> list[Result]:
        bos_id = self.tokenizer.bos_token_id
        # A chat template may open each turn with it.
        checked = slice(1, 2 if self._chat else None)
        if any(bos_id in request.prompt[checked] for request in requests):
            raise UserError(
                what="a begin-of-text token stands inside a prompt",
                fix="correct the data or the chat template",
            )
        before = self.num_requests
        results = run_requests(
            self, requests, self._results, read, lambda number: self._report(before + number)
        )
        self.num_requests += len(requests)
        self.num_tokens += sum(len(request.prompt) for request in requests)
        self.num_tokens += sum(result["tokens"] for result in results)
        return results


def _answer(request: Request, output: RequestOutput) -> Result:
    answer = output.outputs[0]
    return {"text": answer.text, "tokens": len(answer.token_ids)}


def _label(request: Any) -> str:
    """The item that an lm-eval request is about, as `samples.jsonl` names it."""
    return f"item {request.task_name}/{request.doc_id}"
