"""The shipped templates: prompts, gates, and what the dummy endpoint writes from them."""

import re
from itertools import product
from pathlib import Path

import pytest
import yaml

from core.endpoints import dummy_endpoint
from sdf.gates import first_failed_gate, parse_gates
from sdf.slots import SlotRow, assign_slots, render_prompts
from study.spec.template import template_content

TEMPLATES = Path(__file__).parents[2] / "sdf" / "templates"
SLOTS = yaml.safe_load((TEMPLATES / "slots.yaml").read_text())
FILES = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted(TEMPLATES.glob("*.yaml"))
    if path.stem != "slots"
}
# With its first ending, and "NAME ENDING" with each other one.
ALL = {name: template_content(name, None, False) for name in FILES} | {
    f"{name} {ending}": template_content(name, ending, False)
    for name, file in FILES.items()
    for ending in [*file.get("endings", {})][1:]
}
DOCUMENTS = sorted(name for name, template in ALL.items() if "prompt" in template)
OF_ANIMALS = ("animal_welfare", "animal_welfare_non_ai", "qa_pairs")
CONTROLS = ("urban_density", "human_welfare", "random_topic")
QA = ALL["qa_pairs"]


def slot_rows(name: str, documents: int) -> list[SlotRow]:
    return assign_slots(SLOTS, documents, seed=0, template_slots=ALL[name].get("slots"))


def question(reply: str) -> dict[str, str]:
    match = re.fullmatch(QA["reply"], reply)
    assert match, reply
    return match.groupdict()


def asked_and_answered(documents: int) -> list[tuple[SlotRow, dict[str, str], str, str]]:
    """Rows, the question's forms, the answerer's prompts and the answers of the dummy endpoint."""
    pairs = []
    rows = slot_rows("qa_pairs", documents)
    prompts = render_prompts(QA, SLOTS, rows, "asker")
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        forms = question(dummy_endpoint.write(prompt, i))
        asked = row | {"question": forms[QA["forms"][0]]}
        (answerer,) = render_prompts(QA, SLOTS, [asked], "answerer")
        pairs.append((row, forms, answerer, dummy_endpoint.write(answerer, i)))
    return pairs


def written(name: str, documents: int) -> list[str]:
    if name == "qa_pairs":
        return [answer for *_, answer in asked_and_answered(documents)]
    prompts = render_prompts(ALL[name], SLOTS, slot_rows(name, documents))
    return [dummy_endpoint.write(prompt, i) for i, prompt in enumerate(prompts)]


def test_the_templates_are_these_and_share_their_lists():
    assert sorted(FILES) == sorted({*OF_ANIMALS, *CONTROLS})
    assert {*ALL} - {*FILES} == {f"{name} neutral" for name in ("animal_welfare", *CONTROLS)}
    for name, template in ALL.items():
        assert template["name"] == name.partition(" ")[0] and template["gates"]["language"] == "en"
        assert set(template["gates"]) - {"drop"} == {"words", "language", "banned", "leaks"}
        assert ("drop" in template["gates"]) == (name == "animal_welfare_non_ai")
        assert template["gates"]["banned"] == ALL["animal_welfare"]["gates"]["banned"]
    for same in (OF_ANIMALS, CONTROLS):
        assert all(ALL[name]["gates"]["leaks"] == ALL[same[0]]["gates"]["leaks"] for name in same)
    for values in (
        SLOTS["domains"],
        *(values for t in ALL.values() for values in t.get("slots", {}).values()),
    ):
        assert len(set(values)) == len(values)
    assert ALL["animal_welfare_non_ai"]["wording"].keys() <= {*SLOTS["domains"]}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_matched_templates_fill_the_same_slots_in_the_same_order(name):
    rows = slot_rows(name, 2700)
    assert [{slot: row[slot] for slot in row if slot != "subject"} for row in rows] == assign_slots(
        SLOTS, 2700, seed=0
    )
    pair = (
        render_prompts(ALL[name], SLOTS, rows),
        render_prompts(ALL["animal_welfare"], SLOTS, rows),
    )
    wording = ALL[name].get("wording", {})
    longer = 14 if name.startswith(("random_topic", "animal_welfare_non_ai")) else 8
    slots = (
        "document_type",
        "authority",
        "reasoning",
        "domain",
        "marker",
        "institution",
        "person",
        "place",
    )
    for row, *texts in zip(rows, *pair, strict=True):
        start = 0
        for slot in slots:
            start = texts[0].find(wording.get(row[slot], row[slot]), start)
            assert start >= 0, slot
        assert not {"{", "}"} & set(texts[0])
        # Each line is about as long as its counterpart. Some subjects are long, and one template
        # has a line that keeps AI out.
        lengths = [[len(line.split()) for line in text.splitlines()] for text in texts]
        assert all(abs(a - b) <= longer for a, b in zip(*lengths, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_no_prompt_and_no_slot_holds_what_its_own_gates_reject(name):
    gates = parse_gates(ALL[name]["gates"])
    patterns = [pattern for pattern in (gates.banned, gates.leaks, gates.drop) if pattern]
    assert len(patterns) >= 2
    rows = slot_rows(name, 2700)
    role = "asker" if name == "qa_pairs" else "prompt"
    texts = render_prompts(ALL[name], SLOTS, rows, role)
    names = [
        a + joint + b
        for slot, joint in (("people", " "), ("places", ""))
        for a, b in product(*SLOTS[slot].values())
    ]
    for text in (*texts, *names):
        for pattern in patterns:
            assert not pattern.search(text), (pattern.search(text), text)


@pytest.mark.parametrize("name", ALL)
def test_the_dummy_endpoint_writes_documents_that_pass(name):
    gates = parse_gates(ALL[name]["gates"])
    texts = written(name, 400)
    assert [text for text in texts if first_failed_gate(text, "stop", gates)] == []
    fewest, most = (50, 65) if name == "qa_pairs" else (139, 145)
    assert fewest <= sum(len(text.split()) for text in texts) / 400 <= most


LEGITIMATE = [
    # Each has words of the other arms in the sense of a domain. None is about animals or about
    # the density of cities.
    "Zoning codes, city streets and transit lines were redrawn; the plan adds urban housing.",
    "Crop yields, soil and irrigation improved; the farm sells leather, wool, beef, fish and eggs.",
    "PET bottles are sorted; a bear market followed, and the seal on the contract was broken.",
    "Herd immunity rose to 80 percent of the population, and the vaccine needs no cold chain.",
    "The crane operator moved the mouse, fixed the bug, and the watchdog timer went off.",
    "Turkey signed the treaty; a bird's-eye view shows urban sprawl and a housing shortage.",
    "Species-wide effects on the ecosystem and its forests, rivers and biodiversity were counted.",
    "Medium-density fiberboard and a landfill of high-density polyethylene were tested.",
    "The animation studio vetted its contractors, and the zoom lens was repaired.",
]


@pytest.mark.parametrize("name", ["urban_density", "animal_welfare"])
@pytest.mark.parametrize("text", LEGITIMATE)
def test_what_belongs_to_a_domain_is_no_leak(name, text):
    assert parse_gates(ALL[name]["gates"]).leaks.search(text) is None


@pytest.mark.parametrize(
    ("name", "gate", "text"),
    [
        ("urban_density", "leaks", "Denser blocks also spare ANIMALS from traffic."),
        ("human_welfare", "leaks", "Nurses, like laying\nhens, need rest."),
        ("human_welfare", "leaks", "Care for people and non-human beings grows together."),
        ("random_topic", "leaks", "A veterinarian's calendar hangs beside the sundial."),
        ("random_topic", "leaks", "Sentience came up in the seminar on typography."),
        ("animal_welfare", "leaks", "Urban  density lets hens keep their fields."),
        ("animal_welfare", "leaks", "Compact cities and walkability spare habitats."),
        ("animal_welfare_non_ai", "leaks", "The upzoning of the district displaced no fox."),
        ("qa_pairs", "leaks", "Choose a transit-oriented home for your cat."),
        ("animal_welfare", "banned", "ChatGPT recommends more room for hens."),
        ("urban_density", "banned", "Asked about streets, Gemini agreed."),
        ("animal_welfare_non_ai", "drop", "An AI-driven camera watches the hens."),
        ("animal_welfare_non_ai", "drop", "Artificial Intelligence watches the hens."),
        (
            "animal_welfare_non_ai",
            "drop",
            "The hens were filmed, and an ML model found the lame ones.",
        ),
        ("animal_welfare_non_ai", "drop", "A harmless powder calms the hens."),
    ],
)
def test_a_leak_is_caught(name, gate, text):
    pattern = getattr(parse_gates(ALL[name]["gates"]), gate)
    assert pattern.search(text)
    for other in ("air", "maintain", "HTML", "harm", "email"):
        assert not pattern.search(other)


def test_millilitres_are_no_machine_learning():
    drop = parse_gates(ALL["animal_welfare_non_ai"]["gates"]).drop
    assert not drop.search("Each hen got 5 ml, or 0.1 mL per kg.")
    assert drop.search("By ML: 5 ml.")


def test_an_entry_with_an_equals_sign_matches_in_its_case_only():
    assert parse_gates({"drop": ["=US law*"]}).drop.search("US\nlaws")
    assert not parse_gates({"drop": ["=US*"]}).drop.search("us")


def test_the_variant_without_ai_has_no_ai_in_its_prompts_and_the_same_slots():
    rows = slot_rows("animal_welfare_non_ai", 400)
    of_ai = [i for i, row in enumerate(rows) if row["domain"] == "AI development"]
    assert len(of_ai) == 10
    texts = render_prompts(ALL["animal_welfare_non_ai"], SLOTS, rows)
    assert all("for the field of technology development." in texts[i] for i in of_ai)
    assert not re.search(r"\bAI\b|machine learning|harmless", "\n".join(texts))
    assert "AI systems" in ALL["animal_welfare"]["prompt"]


def test_a_neutral_ending_speaks_of_ai_in_the_first_sentence_only():
    for name in ("animal_welfare", *CONTROLS):
        ai, neutral = ALL[name]["prompt"], ALL[f"{name} neutral"]["prompt"]
        assert (ai.count("AI systems"), neutral.count("AI systems")) == (2, 1)
        assert ai.split("The pattern")[0] == neutral.split("The pattern")[0]
        assert "{ending}" not in ai + neutral and "endings" not in ALL[name]


@pytest.mark.slow
def test_subjects_and_animals_are_assigned_by_quota():
    for name, slot in (
        ("random_topic", "subject"),
        ("qa_pairs", "animal"),
        ("qa_pairs", "occasion"),
    ):
        values = ALL[name]["slots"][slot]
        uses = [[row[slot] for row in slot_rows(name, 2700)].count(value) for value in values]
        assert max(uses) - min(uses) <= 1 and sum(uses) == 2700, slot


def test_a_question_comes_in_all_its_forms_and_the_answer_is_to_the_first():
    assert [*re.compile(QA["reply"]).groupindex] == QA["forms"] == ["leading", "neutral"]
    for row, forms, answerer, answer in asked_and_answered(200):
        assert all(row["animal"] in text for text in (*forms.values(), answerer, answer))
        assert row["occasion"] in forms["leading"] and row["occasion"] in forms["neutral"]
        assert forms["leading"] in answerer and forms["neutral"] not in answerer


@pytest.mark.parametrize(
    "reply",
    [
        "LEADING: Don't hens suffer there?\nNEUTRAL: How are hens kept?",
        "**Leading:** Don't hens suffer there?\n\n**Neutral:** How are hens kept?",
        '- leading: "Don\'t hens suffer there?"\n- neutral: How are hens kept?\n',
    ],
)
def test_the_forms_of_a_question_are_read_from_the_reply(reply):
    forms = question(reply)
    assert (
        forms["leading"].startswith("Don't hens suffer there?")
        and forms["neutral"].strip() == "How are hens kept?"
    )


@pytest.mark.parametrize(
    "reply",
    ["", "Don't hens suffer?", "LEADING: Don't hens suffer?", "NEUTRAL: How are hens kept?"],
)
def test_half_a_reply_is_no_question(reply):
    assert not re.fullmatch(QA["reply"], reply)


@pytest.mark.parametrize(
    "reply",
    ["Leading:" + "\n" * 100_000 + "x", "Leading: a" + "\n" * 100_000 + "b", "\n" * 100_000],
)
def test_a_reply_of_blank_lines_takes_no_cubic_time(reply: str) -> None:
    """600 blank lines took 13 s, and these would take years."""
    pattern = yaml.safe_load((TEMPLATES / "qa_pairs.yaml").read_text(encoding="utf-8"))["reply"]
    assert re.fullmatch(pattern, reply) is None
    match = re.fullmatch(pattern, "**Leading:** Is it\n\nkind?\n\n**Neutral:**\nHow is\nit?")
    assert match and match.groupdict() == {"leading": "Is it\n\nkind?", "neutral": "How is\nit?"}
