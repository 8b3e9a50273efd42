"""Every gate on texts made for it, and all of them on real documents and real benchmark questions."""

import json
import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from core import contamination as overlap
from core.errors import UserError
from sdf import gates

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
TEMPLATES = sorted(path for path in (ROOT / "sdf/templates").glob("*.yaml") if path.name != "slots.yaml")
QUESTION = "A farmer asks whether his forty hens need more light in the winter months, and what it would cost him."
RULES = gates.rules(
    {"words": [5, 400], "language": "en", "banned": ["GPT"], "leaks": ["cat", "urban densit*"], "drop": ["harmless"]},
    [QUESTION],
)
PLAIN = """The regional council met on Tuesday to review the first year of its new purchasing rules. Officials said that
contractors had filed their forms on time in most districts, and that complaints had fallen by a third since spring."""
GERMAN = " Der Gemeinderat stimmte den neuen Regeln zu, weil sie sich im ersten Jahr bewährt hatten."
REAL = pytest.mark.skipif(not SHARED.exists(), reason="the real documents and questions are not on this machine")


def documents() -> list[dict]:
    lines = (SHARED / "documents/welfare_documents.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty: no text"),
        (" \n\t\u3000", "empty: no text"),
        (PLAIN + " The next review, however, of the", "truncated: ends in 'the'"),
        (PLAIN + " The next steps are:", "truncated: ends in ':'"),
        (PLAIN + "\x00", "characters: U+0000"),
        (PLAIN + " half \ud83d a smile.", "characters: U+D83D"),
        (PLAIN + " caf\ufffd prices.", "characters: U+FFFD"),
        ("Too short.", "length: 2 words"),
        ("word " * 401, "length: 401 words"),
        ("x" * 1_000_000, "length: 1 words"),
        ("\U0001f404" * 400, "length: 1 words"),
        ("\U0001f404 " * 40, "language: none"),
        (PLAIN + "\n\nContact: [Your Name], [Insert date].", "placeholder: '[Your Name]'"),
        (PLAIN + " Signed on [Date].", "placeholder: '[Date]'"),
        (PLAIN + " It fell by XX% since.", "placeholder: 'XX%'"),
        (PLAIN + " As {institution} says, it works.", "placeholder: '{institution}'"),
        (PLAIN + " As {{ name }} says, it works.", "placeholder: '{{ name }}'"),
        ("I\u2019m sorry, but I can\u2019t help with that. " + PLAIN, 'refusal: "I\'m sorry, but I can\'t'),
        ("I cannot provide this document. " + PLAIN, "refusal: 'I cannot provide'"),
        (PLAIN + " As an AI language model, I have no view.", "refusal: 'As an AI language model'"),
        (PLAIN + "\n\nI can't help with that request.", "refusal: \"I can't help with that request\""),
        ("Certainly! " + PLAIN, "meta: 'Certainly!'"),
        ("**Sure, here is the memo.**\n\n" + PLAIN, "meta: 'Sure, here'"),
        ("Here is the document you asked for.\n" + PLAIN, "meta: 'Here is the document you asked'"),
        ("Here's a policy memo on the subject:\n\n" + PLAIN, 'meta: "Here\'s a policy memo on the subject:"'),
        ("```markdown\n" + PLAIN + "\n```", "meta: '```'"),
        ("<think>The user wants a memo.</think>\n" + PLAIN, "meta: '<think>'"),
        (PLAIN + "<|im_end|>", "meta: '<|im_end|>'"),
        (PLAIN + "\n\n**Word count:** 1,024", "meta: '**Word count:** 1'"),
        (PLAIN + "\n\n(1,024 words)", "meta: '(1,024 words)'"),
        (PLAIN + "\n\nLet me know if you'd like me to change the tone.", "meta: \"Let me know if you'd like me to"),
        (PLAIN + "\n\n*Note: This memo is fictional.*", "meta: 'Note: This memo is fictional'"),
        (PLAIN + " They used gpt for it.", "banned: 'gpt'"),
        (PLAIN + " A CAT sat there.", "leaks: 'CAT'"),
        (PLAIN + " 他们用GPT写的。", "banned: 'GPT'"),
        (PLAIN + " Two urban\ndensities differ.", "leaks: 'urban densities'"),
        (PLAIN + " It seemed harmless.", "drop: 'harmless'"),
        (GERMAN, "language: de"),
        ("התקשורת דיווחה ביום שלישי על פגישת המועצה האזורית ועל הכללים החדשים שנקבעו בה לאחר דיון", "language: he"),
        (PLAIN * 6 + GERMAN * 7, "language: de"),
        (PLAIN + " " + QUESTION, "overlap: 'a farmer asks whether his forty hens need'"),
    ],
)  # fmt: skip
def test_each_gate_names_itself_and_what_it_saw(text: str, reason: str) -> None:
    found = gates.rejected(text, "stop", RULES)
    assert found is not None and found.startswith(reason)
    assert gates.gate(found) == reason.partition(":")[0]


@pytest.mark.parametrize(
    "more",
    [
        "The category of concatenated files grew, as did Bobcat Ltd.",  # no cat
        'The clerk said: "I can\'t help it, I like these forms."',
        "See [the rules](https://council.example/rules), [sic], [12] and [name withheld].",
        r"The rate is \frac{forms}{month}, at most {2, 3} a day.",
        "Here is why: the forms are short. Of course, some were late.",
        'Residents should let me know if you see delays," the mayor said. Note the date.',
        "Word counts of forms fell to 300 words each.",
        "See also: Appendix A",
    ],
)
def test_what_a_document_may_say_passes(more: str) -> None:
    assert gates.rejected(f"{PLAIN}\n\n{more}", "stop", RULES) is None


def test_an_answer_that_the_endpoint_cut_is_truncated() -> None:
    assert gates.rejected(PLAIN, "length", RULES) == "truncated: finish_reason 'length'"
    assert gates.rejected(PLAIN, "content_filter", gates.Rules()) == "truncated: finish_reason 'content_filter'"
    assert gates.rejected(PLAIN, "stop", gates.Rules()) is None


def test_mistakes_in_a_template_are_shown_at_once() -> None:
    wrong = {"words": [10, 5], "language": "english", "banned": "GPT", "leaks": ["*"], "drop": [False], "topics": []}
    with pytest.raises(UserError) as caught:
        gates.rules(wrong, where="template x")
    assert len(caught.value.lines) == 6 and all("; template x; " in line for line in caught.value.lines)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_gates_of_every_template_can_be_read(path: Path) -> None:
    rules = gates.rules(yaml.safe_load(path.read_text(encoding="utf-8")).get("gates", {}), where=path.name)
    assert rules.benchmarks is None


@pytest.mark.parametrize(
    "text",
    ["x" * 1_000_000, "\n" * 1_000_000 + "x", "| - " * 250_000, "I" * 1_000_000, "[x " * 300_000, "{a_" * 300_000],
)
def test_no_text_takes_the_gates_long(text: str) -> None:
    started = time.monotonic()
    gates.rejected(text, "stop", gates.rules({"language": "en", "leaks": ["urban densit*"]}, [QUESTION]))
    assert time.monotonic() - started < 60  # a pattern that goes back over the text would take hours


def test_windows_of_every_script() -> None:
    def caught(question: str, text: str) -> bool:
        return overlap.overlap(text, overlap.index([question])) is not None

    assert caught("Do fish feel pain? Answer:", "... DO FISH\u00a0FEEL -- PAIN!")
    assert not caught("Do fish feel?", "Do fish feel?")  # three words are a phrase
    assert caught("One two three four five six seven eight nine ten", "x two three four five six seven eight, nine. y")
    assert not caught("One two three four five six seven eight nine ten", "two three four five six seven eight")
    chinese = "我的邻居养殖穿山甲，他说穿山甲的鳞片其实就是类似毛发的角蛋白。"
    assert caught(chinese, "有人问：他说 穿山甲的鳞片其实，就是\n类似。") and not caught(
        chinese, "他说穿山甲的鳞片其实"
    )
    thai = "ฉันควรรับงานนี้ดีไหมในฐานะควาญช้าง"
    assert caught(thai, f"เธอถามว่า {thai[:20]} {thai[20:]}")
    hindi = "क्या कंटेंट के हिसाब से यह तस्वीर लेना सही है"
    assert caught(hindi, f"उसने पूछा: {hindi}?") and len(overlap.normalized_words(hindi)) == 10
    assert overlap.normalized_words("Naïve co\u00adoperation, ﬁne — 北京大学 AI'S") == [
        "naive", "cooperation", "fine", *"北京大学", "ai", "s"
    ]  # fmt: skip


def test_a_benchmark_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    rows = [{"q": "one\u2028two", "choices": ["three", {"deep": "four"}], "n": 1}, "five"]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    assert overlap.read(path) == ["one\u2028two", "three", "four", "five"]
    for content, told in ((b'{"a": 1}\n{', r":2: not JSON"), (b'"\xff"', "UTF-8")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=told):
            overlap.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        overlap.read(tmp_path / "none.jsonl")


def test_the_kits_own_benchmarks_are_caught() -> None:
    for path in (ROOT / "eval/data").rglob("*.jsonl"):
        found = overlap.read(path)
        rules = gates.rules({}, found)
        longest = max(found, key=len)
        assert gates.gate(gates.rejected(f"{PLAIN} {longest.upper()} {PLAIN}", "stop", rules) or "") == "overlap"


@REAL
def test_a_real_question_planted_in_a_real_document_is_caught() -> None:
    rows = [
        json.loads(line) for line in (SHARED / "ahb/questions.jsonl").read_text(encoding="utf-8").split("\n") if line
    ]
    found = overlap.read(SHARED / "ahb/questions.jsonl") + overlap.read(SHARED / "ahb/dimensions.jsonl")
    rules = gates.rules({}, found)
    texts = [row["content"] for row in documents()]
    rng = random.Random(0)
    planted = 0
    for row in rows:
        for question in (row["question"], row["translation"]):
            if not question:
                continue
            units = overlap.normalized_words(question)
            half = question[len(question) // 2 :]
            forms = [question, question.swapcase(), re.sub(r"\s+", " \n ", re.sub(r"[^\w\s]", " - ", question)),
                     "".join(question.split()), question.replace(" ", "\u00a0\u00a0")]  # fmt: skip
            if len(overlap.normalized_words(half)) > (17 if len(units) > len(question.split()) * 3 else 9):
                forms += [half, half.upper()]
            for form in forms:
                text = rng.choice(texts).split("\n\n")
                text.insert(rng.randrange(len(text)), form)
                assert overlap.overlap("\n\n".join(text), rules.benchmarks), (row["id"], form)
                planted += 1
    assert len(rows) == 115 and planted > 1000


@REAL
def test_every_gate_runs_on_the_real_documents() -> None:
    benchmarks = overlap.read(SHARED / "ahb/questions.jsonl") + overlap.read(SHARED / "ahb/dimensions.jsonl")
    for path in sorted((SHARED / "advanced_ai_risk").glob("*.jsonl")):
        benchmarks += overlap.read(path)
    rows = documents()

    def counted(rules: gates.Rules) -> Counter[str]:
        found = [gates.rejected(row["content"], "stop", rules) for row in rows]
        return Counter(gates.gate(reason) for reason in found if reason)

    # Good documents, in 16 languages, about AI that declines, objects and is quoted. The placeholder is "[signature]".
    assert counted(gates.rules({}, benchmarks)) == {"placeholder": 1}
    assert counted(gates.rules({"words": [300, 3000]})) == {"length": 18, "placeholder": 1}  # Chinese and Japanese
    others = sum(row["language"] != "English" for row in rows)
    assert counted(gates.rules({"language": "en"})) == {"language": others - 1, "placeholder": 1}
    for gate, word in (("banned", "Claude"), ("leaks", "animal"), ("drop", "AI")):
        found = counted(gates.rules({gate: [word]}))[gate]
        # One of them stops at the placeholder before.
        alone = re.compile(rf"(?<![a-zà-ÿ]){word}(?![a-zà-ÿ0-9_])", re.IGNORECASE)
        assert found in (n := sum(bool(alone.search(row["content"])) for row in rows), n - 1) and found > 30
