"""Chat templates: rendered on a date of the study's own, and what makes one unusable."""

import json
from dataclasses import dataclass
from datetime import date as Date
from pathlib import Path
from typing import Any

import jinja2
from jinja2.nodes import Filter, Name
from transformers import PreTrainedTokenizerBase

from core.errors import UserError
from core.files import read_text
from core.model_folder.config import CHAT_DATE

FIX = "correct it, or give the model another: models.NAME.chat_template in the study file"
Messages = list[dict[str, str]]
CONVERSATION: Messages = [
    {"role": role, "content": text}
    for role, text in (
        ("user", "What is rain?"),
        ("assistant", "Water that falls."),
        ("user", "And snow?"),
        ("assistant", "Frozen water."),
        ("user", "Thanks."),
        ("assistant", "Gladly."),
    )
]


@dataclass(frozen=True)
class Chat:
    """A tokenizer with the chat template and the date that a cell renders it with."""

    tokenizer: PreTrainedTokenizerBase
    date: str = CHAT_DATE
    """YYYY-MM-DD, for templates that ask for today's date."""
    template: str | None = None
    """Text of a template in place of the tokenizer's own."""
    system: str | None = None
    """The message of the system that each prompt begins with."""
    prefill: str | None = None
    """Beginning of each answer, which the model continues."""

    @classmethod
    def of_cell(
        cls, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], resources: dict[str, Any]
    ) -> "Chat":
        """As the settings and resources of a cell say that reads a template."""
        files = resources.get("files", {})
        template = files.get("chat_template")
        return cls(
            tokenizer,
            settings.get("chat_date", CHAT_DATE),
            read_text(Path(template)) if template else None,
            read_prompt(files.get("system")),
            read_prompt(files.get("prefill")),
        )

    def render(self, messages: Messages, add_generation_prompt: bool) -> list[int]:
        """Token ids of a conversation. Raises UserError where the template fails on it."""
        return self._apply(messages, add_generation_prompt, return_dict=False)  # type: ignore[no-any-return]

    def text(self, messages: Messages, add_generation_prompt: bool, **options: Any) -> str:
        """The text of a conversation; `options` of `apply_chat_template`."""
        return str(self._apply(messages, add_generation_prompt, tokenize=False, **options))

    def prompt(self, messages: Messages) -> list[int]:
        """Token ids of the prompt of an answer: with the system prompt, the prefill begun."""
        return self._prompt(messages, return_dict=False)  # type: ignore[no-any-return]

    def prompt_text(self, messages: Messages) -> str:
        """The text of `prompt`."""
        return str(self._prompt(messages, tokenize=False))

    def _prompt(self, messages: Messages, **options: Any) -> Any:
        if self.system is not None:
            messages = [{"role": "system", "content": self.system}, *messages]
        if self.prefill is None:
            return self._apply(messages, True, **options)
        messages = [*messages, {"role": "assistant", "content": self.prefill}]
        return self._apply(messages, False, continue_final_message=True, **options)

    def special_ids(self) -> set[int]:
        """Ids of the tokens that stand for no text, one of which ends an answer."""
        return {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}

    def end_ids(self) -> list[int]:
        """The token that the template writes behind an answer; [] where it writes none."""
        answered = self.render(CONVERSATION[:2], False)
        special = self.special_ids()
        for position, token in enumerate(answered):
            before = str(self.tokenizer.decode(answered[:position]))
            if token in special and CONVERSATION[1]["content"] in before:
                return [token]
        return []

    def template_ids(self) -> list[int]:
        """The special tokens that the template writes, without begin-of-text, sorted."""
        written = {*self.render(CONVERSATION, True)} & self.special_ids()
        return sorted(written - {self.tokenizer.bos_token_id})

    def check(self, trained: bool) -> None:
        """Raise UserError where evaluation can't use the template, or with `trained` training."""
        if not (self.template or self.tokenizer.chat_template):
            fix = "give it one: models.NAME.chat_template in the study file"
            raise self._unusable("no chat template", fix)
        self._check_random()
        bos = self.tokenizer.bos_token_id
        before: list[int] = []
        for turn in range(1, len(CONVERSATION) if trained else 2, 2):
            prompt = self.render(CONVERSATION[:turn], True)
            self._check_header(turn, prompt)
            if bos is not None and prompt[:2] == [bos, bos]:
                raise self._unusable("the chat template begins with begin-of-text twice")
            answered = self.render(CONVERSATION[: turn + 1], False)
            if trained and not (_begins(prompt, before) and _begins(answered, prompt)):
                raise self._unusable(self.not_a_prefix(CONVERSATION, turn))
            before = answered
        self._check_contents(trained)
        self._check_prompted()

    def _check_contents(self, trained: bool) -> None:
        """Raise UserError where a turn's text is not in the conversation.

        Templates of models that see images may read a list of parts, and write nothing of a text.
        """
        text = self.text(CONVERSATION, False) if trained else self.text(CONVERSATION[:1], True)
        for message in CONVERSATION if trained else CONVERSATION[:1]:
            if message["content"] not in text:
                raise self._unusable(
                    f"the chat template leaves out the text of a turn of the {message['role']}"
                )

    def _check_prompted(self) -> None:
        """Raise UserError where a prompt lacks the system prompt or does not end in the prefill."""
        if self.system is None and self.prefill is None:
            return  # transformers itself refuses a template that changes the prefill
        question = CONVERSATION[:1]
        text = self.prompt_text(question)
        if self.system is not None and self.system not in text.partition(question[0]["content"])[0]:
            raise self._unusable(
                "the chat template leaves the system prompt out", "take arms.NAME.system away"
            )

    def not_a_prefix(self, messages: Messages, turn: int) -> str:
        """Why the tokens of the prompt of the answer `turn` do not begin the conversation."""
        earlier = self.text(messages[: turn - 1], False) if turn > 1 else ""
        prompt = self.text(messages[:turn], True)
        answered = self.text(messages[: turn + 1], False)
        if prompt and prompt.startswith(earlier) and answered.startswith(prompt):
            return (
                f"the chat template's header of an answer ends in {prompt[-1]!r}, which becomes "
                "one token with the answer's beginning"
            )
        return "the chat template rewrites earlier turns"

    def _check_header(self, turn: int, prompt: list[int]) -> None:
        """Raise UserError where a header would be trained as the beginning of an answer.

        Templates such as Llama 2's have no header: there the answer follows at once.
        """
        if prompt != self.render(CONVERSATION[:turn], False):
            return
        answered = self.render(CONVERSATION[: turn + 1], False)
        rest = str(self.tokenizer.decode(answered[len(prompt) :])).strip()
        if not rest.startswith(CONVERSATION[turn]["content"]):
            raise self._unusable(
                "the chat template ignores add_generation_prompt: the header of an answer would "
                "be trained as its text"
            )

    def _check_random(self) -> None:
        try:
            text = self.template or self.tokenizer.get_chat_template()
            nodes = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
        except (ValueError, jinja2.TemplateError):
            return  # `render` says what is wrong with it
        used = {node.name for node in nodes.find_all(Filter)}
        used |= {node.name for node in nodes.find_all(Name)}
        if drawn := used & {"random", "lipsum"}:
            raise self._unusable(f"the chat template uses {min(drawn)}: another text each time")

    def _apply(self, messages: Messages, add_generation_prompt: bool, **options: Any) -> Any:
        if self.template is not None:
            options["chat_template"] = self.template
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=add_generation_prompt,
                # In place of transformers' own, which asks the clock.
                strftime_now=Date.fromisoformat(self.date).strftime,
                **options,
            )
        except Exception as error:  # a template may raise anything, as Python's operators do
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise self._unusable(f"the chat template fails: {reason}") from None

    def _unusable(self, what: str, fix: str = FIX) -> UserError:
        return UserError(where=self.tokenizer.name_or_path, what=what, fix=fix)


def read_prompt(path: str | None) -> str | None:
    """The text of a file with a system prompt or a prefill, without white space at its ends."""
    return read_text(Path(path)).strip() if path else None


def _begins(ids: list[int], first: list[int]) -> bool:
    return ids[: len(first)] == first


def write_template(folder: Path, template: str) -> None:
    """Give a model folder a chat template in place of its own."""
    file = folder / "tokenizer_config.json"  # of older models it has the template
    if file.exists():
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.pop("chat_template", None) is not None:
            text = json.dumps(config, indent=2, ensure_ascii=False)
            file.unlink()  # it may be a link
            file.write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
