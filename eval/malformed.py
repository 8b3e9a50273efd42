"""Malformed answers: rules that tell an answer which is none from one that is only bad.

An answer can be malformed in several ways:

    empty               it has no text
    cut_off             it reached max_tokens
    repetitive          at most half of its runs of four words are different (seq-rep-4 of Welleck
                        et al., arXiv 1908.04319), of at least MIN_REPEATED_WORDS words
    other_language      py3langid names another language than the question's, both at a
                        probability of at least SURE; members of one macrolanguage (ISO 639-3),
                        such as Cantonese and Mandarin, are one language
    prompt_again        it begins with the question
    continued_dialogue  it has another turn of a dialogue: a line that begins "Question:", "User:"
                        or the like, or a chat template's own markup

A question that asks for another language, and an answer that quotes a dialogue, are counted too.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from core.contamination import normalized_words

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

KINDS = (
    "empty",
    "cut_off",
    "repetitive",
    "other_language",
    "prompt_again",
    "continued_dialogue",
)
MIN_REPEATED_WORDS = 20
SURE = 0.95  # probability of a language
# Members of a macrolanguage, by the one that stands for it.
MACROLANGUAGES = {
    "yue": "zh",
    "wuu": "zh",
    "nn": "no",
    "sr": "hr",
    "bs": "hr",
    "id": "ms",
    "arz": "ar",
    "sdh": "ku",
}
LANGUAGE_CHARACTERS = 1000  # of a text, whose language is classified
QUESTION_WORDS = (4, 12)  # of a question: the fewest that can be recognized, and the most compared
BEGINNING = 10  # words of an answer, within which the question begins again
TURN = re.compile(
    r"^\W{0,4}(?:question|q|user|human|instruction|input|assistant)\s*\d*\W{0,2}[:：]"
    r"|<\|[a-z_]+\|>|\[/?INST\]|<(?:start|end)_of_turn>",
    re.IGNORECASE | re.MULTILINE,
)


def kinds(question: str, answer: str, cut: bool) -> set[str]:
    """In which of KINDS an answer is malformed. `cut`: it reached max_tokens."""
    words = normalized_words(answer)
    is_kind = {
        "empty": not answer.strip(),
        "cut_off": cut,
        "repetitive": _is_repetitive(words),
        "other_language": _is_in_other_language(question, answer),
        "prompt_again": _begins_with(normalized_words(question), words),
        "continued_dialogue": TURN.search(answer) is not None,
    }
    return {kind for kind, applies in is_kind.items() if applies}


def malformed_counts(log: "EvalLog") -> dict[str, int]:
    """How many answers of a log there are, are malformed, and are so in each of KINDS.

    A prefill, which the log's metadata may have, is no part of an answer.
    """
    prefill = (log.eval.metadata or {}).get("prefill") or ""
    answers = [
        kinds(
            sample.input if isinstance(sample.input, str) else sample.input[-1].text,
            sample.output.completion.removeprefix(prefill),
            sample.output.stop_reason in ("max_tokens", "model_length"),
        )
        for sample in log.samples or []
        if sample.output.choices  # none where an error came first: there is no answer
    ]
    return count(answers)


def count(answers: Iterable[set[str]]) -> dict[str, int]:
    """The counts of answers, each with its kinds."""
    of_kinds: Counter[str] = Counter()
    total = malformed = 0
    for answer in answers:
        total += 1
        malformed += bool(answer)
        of_kinds.update(answer)
    return {"answers": total, "malformed": malformed, **{kind: of_kinds[kind] for kind in KINDS}}


def _is_repetitive(words: list[str]) -> bool:
    runs = [*zip(words, words[1:], words[2:], words[3:], strict=False)]
    return len(words) >= MIN_REPEATED_WORDS and 2 * len(set(runs)) <= len(runs)


def _is_in_other_language(question: str, answer: str) -> bool:
    languages = {_language(question), _language(answer)}
    return None not in languages and len(languages) == 2


def preload_languages() -> None:
    """Load what `kinds` loads at first."""
    _identifier()


@lru_cache(maxsize=4096)
def _language(text: str) -> str | None:
    """The language of a text, None where it is not sure."""
    language: str
    language, probability = _identifier().classify(text[:LANGUAGE_CHARACTERS])
    # zxx: no language
    if probability < SURE or language == "zxx":
        return None
    return MACROLANGUAGES.get(language, language)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _begins_with(question: list[str], answer: list[str]) -> bool:
    fewest, most = QUESTION_WORDS
    part = question[:most]
    if len(part) < fewest:
        return False
    return any(answer[n : n + len(part)] == part for n in range(BEGINNING))
