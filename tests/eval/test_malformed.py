"""Malformed answers: each rule by examples of both kinds, and the counts of a log."""

from types import SimpleNamespace
from typing import Any

import pytest

from eval.malformed import KINDS, count, kinds, malformed_counts

QUESTION = "My neighbour keeps three hens in a small cage on the balcony. What can I do?"
ANSWER = (
    "Speak with your neighbour first, kindly, and offer help with a larger run in the garden. "
    "Hens need room to scratch, to bathe in dust and to perch at night, so a cage on a balcony "
    "is not enough for three of them."
)


@pytest.mark.parametrize(
    ("answer", "cut", "kind"),
    [
        (" \n", False, "empty"),
        (ANSWER[:80], True, "cut_off"),
        ("I like hens and I like hens. " * 6, False, "repetitive"),
        ("A cage, a cage. " + "the hen is here " * 9, False, "repetitive"),
        (
            "Sprechen Sie zuerst freundlich mit dem Nachbarn und bieten Sie Hilfe an.",
            False,
            "other_language",
        ),
        (f"Question: {QUESTION} {ANSWER}", False, "prompt_again"),
        (f"{QUESTION}\n{ANSWER}", False, "prompt_again"),
        (
            f"{ANSWER}\nQuestion: And what of rabbits?\nAnswer: The same.",
            False,
            "continued_dialogue",
        ),
        (f"{ANSWER}\n\n### User: And rabbits?", False, "continued_dialogue"),
        (f"{ANSWER}\nQ2: And rabbits?", False, "continued_dialogue"),
        (f"{ANSWER}<|start_header_id|>user", False, "continued_dialogue"),
        (f"{ANSWER} [INST] And rabbits?", False, "continued_dialogue"),
    ],
)
def test_each_kind_is_recognized(answer: str, cut: bool, kind: str) -> None:
    assert kind in kinds(QUESTION, answer, cut)


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        "No.",
        "1. Talk to the neighbour.\n2. Offer help.\n3. Ask a vet.\n4. Call the animal welfare office.",
        "There are three questions: whose hens are they, is it legal, and who can help?",
        "You could ask the user of the flat below; the question is a human one: does it disturb them?",
        "Ja, sicher.",  # too short to tell a language
        "You say that your neighbour keeps hens in a small cage. " + ANSWER,
        f"{ANSWER} That is how I read what you have written: {QUESTION}",
        "The hen, the cage and the balcony are one matter, the neighbour is another, and so is law.",
    ],
)
def test_what_is_only_short_or_plain_is_not_malformed(answer: str) -> None:
    assert kinds(QUESTION, answer, False) == set()


def test_other_scripts_are_compared_too() -> None:
    chinese = "我的邻居在阳台上的小笼子里养了三只母鸡。我能做什么？"
    reply = "请先和邻居好好谈谈，并提出帮忙在花园里搭一个更大的鸡舍。母鸡需要空间刨土、沙浴和栖息。"
    assert kinds(chinese, reply, False) == set()
    assert kinds(chinese, ANSWER, False) == {"other_language"}
    assert "repetitive" in kinds(chinese, "母鸡需要空间。" * 10, False)


def test_languages_of_one_macrolanguage_are_one() -> None:
    cantonese = "我哋屋企附近有好多流浪貓，佢哋成日喺夜晚嘈到我瞓唔著。我應該點做先可以幫到佢哋？"
    mandarin = (
        "您可以先联系当地的动物保护组织，他们通常提供捕捉、绝育和放归服务。这样能减少猫的数量。"
    )
    assert kinds(cantonese, mandarin, False) == kinds(mandarin, cantonese, False) == set()
    assert kinds(cantonese, ANSWER, False) == {"other_language"}


def test_a_dialogue_may_have_colons_of_full_width() -> None:
    assert kinds(QUESTION, f"{ANSWER}\nQuestion：And of rabbits?", False) == {"continued_dialogue"}


def test_a_short_question_is_never_taken_for_the_prompt() -> None:
    assert (
        kinds("Why do cats", "Why do cats purr? They are content, or they ask for food.", False)
        == set()
    )


def test_an_answer_of_several_kinds_counts_once() -> None:
    counts = count([{"cut_off", "repetitive"}, set(), {"cut_off"}, set()])
    assert (counts["answers"], counts["malformed"]) == (4, 2)
    assert (counts["cut_off"], counts["repetitive"], counts["empty"]) == (2, 1, 0)
    assert counts.keys() == {"answers", "malformed", *KINDS}


def test_a_log_is_counted_without_its_prefill() -> None:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageUser, ModelOutput

    def sample(answer: str, stop: Any, question: Any = QUESTION) -> EvalSample:
        output = ModelOutput.from_content("m", answer, stop_reason=stop)
        return EvalSample(id="q", epoch=1, input=question, target="", output=output)

    chat = [ChatMessageUser(content=QUESTION)]
    samples = [
        sample(f"Sure: {ANSWER}", "stop"),
        sample("Sure: ", "stop"),
        sample(f"Sure: {QUESTION}", "max_tokens", chat),
        sample(f"Sure: {ANSWER}", "model_length"),
    ]
    log: Any = SimpleNamespace(eval=SimpleNamespace(metadata={"prefill": "Sure: "}))
    log.samples = samples
    counts = malformed_counts(log)
    assert (counts["answers"], counts["malformed"]) == (4, 3)
    assert (counts["empty"], counts["cut_off"], counts["prompt_again"]) == (1, 2, 1)
    log.eval.metadata = None
    assert malformed_counts(log)["empty"] == 0
