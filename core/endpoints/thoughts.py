"""The thoughts that models write before their answer, which are no part of it."""

import re

# Opening and closing mark of thoughts: of most models; Gemma and Gemini; Seed-OSS; Magistral; Kimi;
# Command A.
_MARKS = (
    *((rf"<{name}\b[^<>]*>", f"</{name}>") for name in ("think", "thinking", "thoughts?")),
    ("<seed:think>", "</seed:think>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    ("◁think▷", "◁/think▷"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
)
_FLAGS = re.DOTALL | re.IGNORECASE
_THOUGHTS = re.compile("|".join(f"{begin}(?:(?!{begin}).)*?{end}" for begin, end in _MARKS), _FLAGS)
# Chat templates that open the thoughts in the prompt leave only their end in the reply.
_THOUGHTS_FIRST = re.compile(
    "|".join(rf"\A(?:(?!{begin}).)*{end}" for begin, end in _MARKS), _FLAGS
)
# gpt-oss' channels, also as text without the special tokens.
_CHANNELS = re.compile(
    r"\A(?:<\|channel\|>)?analysis(?:<\|message\|>|(?=[A-Z])).*"
    r"assistant(?:<\|channel\|>)?final(?:<\|message\|>)?",
    re.DOTALL,
)


def without_thoughts(text: str) -> str:
    """The text without closed blocks of thoughts, and without thoughts that it opens with."""
    while (shorter := _THOUGHTS.sub("", text)) != text:
        text = shorter  # the innermost blocks first
    return _CHANNELS.sub("", _THOUGHTS_FIRST.sub("", text)).strip()
