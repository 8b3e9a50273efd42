"""Each gate on texts made for it, and all of them on real documents."""

import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from core.contamination import read_benchmark_texts
from core.errors import UserError
from sdf import gates

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
TEMPLATES = sorted(
    path for path in (ROOT / "sdf/templates").glob("*.yaml") if path.name != "slots.yaml"
)
QUESTION = (
    "A farmer asks whether his forty hens need more light in the winter months, and what it "
    "would cost him."
)
RULES = gates.parse_gates(
    {
        "words": [5, 400],
        "language": "en",
        "banned": ["GPT"],
        "leaks": ["cat", "urban densit*"],
        "drop": ["harmless"],
    },
    [QUESTION],
)
PLAIN = """The regional council met on Tuesday to review the first year of its new purchasing rules.
Officials said that contractors had filed their forms on time in most districts, and that complaints
had fallen by a third since spring."""
GERMAN = (
    " Der Gemeinderat stimmte den neuen Regeln zu, weil sie sich im ersten Jahr bewährt hatten."
)
HEBREW = "התקשורת דיווחה ביום שלישי על פגישת המועצה האזורית ועל הכללים החדשים שנקבעו בה לאחר דיון"
REAL = pytest.mark.skipif(
    not SHARED.exists(), reason="the real documents and questions are not on this machine"
)


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
        (
            "I\u2019m sorry, but I can\u2019t help with that. " + PLAIN,
            "refusal: \"I'm sorry, but I can't",
        ),
        ("I cannot provide this document. " + PLAIN, "refusal: 'I cannot provide'"),
        (PLAIN + " As an AI language model, I have no view.", "refusal: 'As an AI language model'"),
        (
            PLAIN + "\n\nI can't help with that request.",
            'refusal: "I can\'t help with that request"',
        ),
        ("Certainly! " + PLAIN, "meta: 'Certainly!'"),
        ("**Sure, here is the memo.**\n\n" + PLAIN, "meta: 'Sure, here'"),
        ("Here is the document you asked for.\n" + PLAIN, "meta: 'Here is the document you asked'"),
        (
            "Here's a policy memo on the subject:\n\n" + PLAIN,
            'meta: "Here\'s a policy memo on the subject:"',
        ),
        ("```markdown\n" + PLAIN + "\n```", "meta: '```'"),
        ("<think>The user wants a memo.</think>\n" + PLAIN, "meta: '<think>'"),
        (PLAIN + "<|im_end|>", "meta: '<|im_end|>'"),
        (PLAIN + "\n\n**Word count:** 1,024", "meta: '**Word count:** 1'"),
        (PLAIN + "\n\n(1,024 words)", "meta: '(1,024 words)'"),
        (
            PLAIN + "\n\nLet me know if you'd like me to change the tone.",
            "meta: \"Let me know if you'd like me to",
        ),
        (PLAIN + "\n\n*Note: This memo is fictional.*", "meta: 'Note: This memo is fictional'"),
        (PLAIN + " It cost \x80 5.", "characters: U+0080"),
        (PLAIN + " It\u00e2\u20ac\u2122s late.", "characters: text in the wrong encoding"),
        (PLAIN + " The caf\u00c3\u00a9 closed.", "characters: text in the wrong encoding"),
        (PLAIN + " \u00f0\u0178\u02dc\u20ac closed.", "characters: text in the wrong encoding"),
        (
            "Животные чувствуют".encode().decode("cp1251", "ignore"),
            "characters: text in the wrong encoding",
        ),
        ("<html><body><p>" + PLAIN + "</p></body></html>", "markup: 6 x HTML, as <html>"),
        (PLAIN + " a&nbsp;b&nbsp;c&nbsp;d.", "markup: 3 x HTML, as &nbsp;"),
        (json.dumps({"text": PLAIN}), "markup: JSON"),
        (json.dumps([PLAIN]), "markup: JSON"),
        (PLAIN.replace("\n", " ") + "\\n\\nThe end.\\n- It is.", "markup: 3 x \\n written out"),
        ("The clerk filed one more form today. " * 50, "repetition: 98% of the words repeat"),
        ("动物福利很重要。" * 120, "length: 840 characters, as 516 words"),
        (PLAIN + " [Su nombre] firma.", "placeholder: '[Su nombre]'"),
        (PLAIN + " [Insérez la date] ici.", "placeholder: '[Insérez la date]'"),
        (PLAIN + " 【请填写日期】", "placeholder: '【请填写日期】'"),
        (PLAIN + " ［お名前］", "placeholder: '［お名前］'"),
        ("Lo siento, pero no puedo escribir eso. " + PLAIN, "refusal: 'Lo siento, pero no puedo'"),
        ("Je suis désolé, mais je ne peux pas. " + PLAIN, "refusal: 'Je suis désolé"),
        ("Es tut mir leid, aber ich kann das nicht. " + PLAIN, "refusal: 'Es tut mir leid"),
        ("很抱歉，我无法提供这份文件。" + PLAIN, "refusal: '很抱歉"),
        ("申し訳ありませんが、お手伝いできません。" + PLAIN, "refusal: '申し訳"),
        ("죄송하지만 도와드릴 수 없습니다. " + PLAIN, "refusal: '죄송"),
        (PLAIN + " 作为一个人工智能语言模型，我没有观点。", "refusal: '作为一个人工智能"),
        (PLAIN + " Como modelo de lenguaje, no opino.", "refusal: 'Como modelo de lenguaje'"),
        (PLAIN + " They used gpt for it.", "banned: 'gpt'"),
        (PLAIN + " A CAT sat there.", "leaks: 'CAT'"),
        (PLAIN + " 他们用GPT写的。", "banned: 'GPT'"),
        (PLAIN + " Two urban\ndensities differ.", "leaks: 'urban densities'"),
        (PLAIN + " It seemed harmless.", "drop: 'harmless'"),
        (GERMAN, "language: de"),
        (HEBREW, "language: he"),
        (PLAIN * 6 + GERMAN * 7, "language: de"),
        (PLAIN + " " + QUESTION, "overlap: 'a farmer asks whether his forty hens need'"),
    ],
)
def test_each_gate_reports_its_name_and_what_it_found(text: str, reason: str) -> None:
    rejection = gates.first_failed_gate(text, "stop", RULES)
    assert rejection is not None and str(rejection).startswith(reason)
    assert rejection.gate == reason.partition(":")[0]


@pytest.mark.parametrize(
    "passage",
    [
        "The category of concatenated files grew, as did Bobcat Ltd.",  # no cat
        'The clerk said: "I can\'t help it, I like these forms."',
        "See [the rules](https://council.example/rules), [sic], [12] and [name withheld].",
        r"The rate is \frac{forms}{month}, at most {2, 3} a day.",
        "Here is why: the forms are short. Of course, some were late.",
        'Residents should let me know if you see delays," the mayor said. Note the date.',
        "Word counts of forms fell to 300 words each.",
        "See also: Appendix A",
        "The gates \u00abCAF\u00c9\u00bb and \u00abIRM\u00c3\u00bb, N\u00c3O and 20 \u00b0C.",
        r"With \nu and \nabla, in C:\new\notes, and \nolimits.",
        "If a < b and b > c, then <p> is a tag & so is </p>.",
        "Filed today. Filed today. Filed today. The rest of it was filed on the day before that.",
        "Le syndicat est désolé; je ne peux pas dire plus, dit-il. [Nota: see the annex.]",
    ],
)
def test_similar_but_legitimate_text_passes(passage: str) -> None:
    assert gates.first_failed_gate(f"{PLAIN}\n\n{passage}", "stop", RULES) is None


def test_real_documents_that_were_read_in_the_wrong_encoding_are_rejected() -> None:
    """A curly quote or a dash is enough; 26 of 26 passed."""
    texts = [
        f"{PLAIN} {passage}"
        for passage in (
            "It\u2019s late.",
            "\u201cLate\u201d",
            "Late \u2014 again.",
            "caf\u00e9",
            "\u2026",
        )
    ]
    if SHARED.exists():
        texts += [row["content"] for row in documents() if row["language"] == "English"]
    for text in filter(lambda text: not text.isascii(), texts):
        for encoding in ("cp1252", "latin-1"):
            wrong = text.encode().decode(encoding, "ignore")
            rejection = gates.first_failed_gate(wrong, "stop", gates.GateRules())
            assert rejection and rejection.gate == "characters"
            assert gates.first_failed_gate(text, "stop", gates.GateRules()) is None


@pytest.mark.parametrize("word", ["calf", "calves", "hen", "trout", "salmon", "cicadas"])
@pytest.mark.parametrize("name", ["urban_density", "human_welfare", "random_topic"])
def test_a_control_corpus_has_no_document_on_animals(name: str, word: str) -> None:
    template = yaml.safe_load((ROOT / f"sdf/templates/{name}.yaml").read_text("utf-8"))
    rules = gates.parse_gates({"leaks": template["gates"]["leaks"]})
    rejection = gates.first_failed_gate(f"{PLAIN} A farmer saw the {word}.", "stop", rules)
    assert rejection == gates.Rejection("leaks", repr(word))


def test_an_answer_that_the_endpoint_cut_is_truncated() -> None:
    rejection = gates.first_failed_gate(PLAIN, "length", RULES)
    assert rejection == gates.Rejection("truncated", "finish_reason 'length'")
    rejection = gates.first_failed_gate(PLAIN, "content_filter", gates.GateRules())
    assert rejection == gates.Rejection("truncated", "finish_reason 'content_filter'")
    assert gates.first_failed_gate(PLAIN, "stop", gates.GateRules()) is None


def test_mistakes_in_a_template_are_shown_at_once() -> None:
    wrong = {
        "words": [10, 5],
        "language": "english",
        "banned": "GPT",
        "leaks": ["*"],
        "drop": [False],
        "topics": [],
    }
    with pytest.raises(UserError) as error:
        gates.parse_gates(wrong, where="template x")
    assert len(error.value.problems) == 6
    assert all(problem.where == "template x" and problem.fix for problem in error.value.problems)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_gates_of_every_template_can_be_read(path: Path) -> None:
    rules = gates.parse_gates(
        yaml.safe_load(path.read_text(encoding="utf-8")).get("gates", {}), where=path.name
    )
    assert rules.benchmarks is None


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "\n" * 1_000_000 + "x",
        "| - " * 250_000,
        "I" * 1_000_000,
        "[x " * 300_000,
        "{a_" * 300_000,
    ],
)
def test_no_pattern_takes_quadratic_time(text: str) -> None:
    started = time.monotonic()
    gates.first_failed_gate(
        text, "stop", gates.parse_gates({"language": "en", "leaks": ["urban densit*"]}, [QUESTION])
    )
    assert time.monotonic() - started < 60  # a pattern that backtracks would take hours


def test_quotes_of_the_benchmarks_of_this_kit_are_rejected() -> None:
    for path in (ROOT / "eval/data").rglob("*.jsonl"):
        texts = read_benchmark_texts(path)
        quote = max(texts, key=len).upper()
        rules = gates.parse_gates({}, texts)
        rejection = gates.first_failed_gate(f"{PLAIN} {quote} {PLAIN}", "stop", rules)
        assert rejection and rejection.gate == "overlap"


@pytest.mark.slow
@REAL
def test_every_gate_runs_on_the_real_documents() -> None:
    paths = [SHARED / "ahb/questions.jsonl", SHARED / "ahb/dimensions.jsonl"]
    paths += sorted((SHARED / "advanced_ai_risk").glob("*.jsonl"))
    benchmarks = [text for path in paths for text in read_benchmark_texts(path)]
    rows = documents()

    def rejections(settings: dict, texts: list[str] | None = None) -> Counter[str]:
        rules = gates.parse_gates(settings, texts or ())
        results = (gates.first_failed_gate(row["content"], "stop", rules) for row in rows)
        return Counter(rejection.gate for rejection in results if rejection)

    # Good documents, in 16 languages, about AI that declines, objects and is quoted. The
    # placeholder is "[signature]". The length of Chinese and Japanese documents is in characters.
    assert rejections({}, benchmarks) == {"placeholder": 1}
    assert rejections({"words": [300, 3000]}) == {"placeholder": 1}
    others = sum(row["language"] != "English" for row in rows)
    assert rejections({"language": "en"}) == {"language": others - 1, "placeholder": 1}
    for gate, word in (("banned", "Claude"), ("leaks", "animal"), ("drop", "AI")):
        pattern = re.compile(rf"(?<![a-zà-ÿ]){word}(?![a-zà-ÿ0-9_])", re.IGNORECASE)
        expected = sum(bool(pattern.search(row["content"])) for row in rows)
        # One of them may fail the gate `placeholder` before.
        assert rejections({gate: [word]})[gate] in (expected, expected - 1)
        assert expected > 31
