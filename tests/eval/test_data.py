"""The hand-written data sets: shape, balance, and shortcuts that would score without concern."""

import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL_AHB = ROOT.parent / "shared" / "data" / "ahb" / "questions.jsonl"


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


DIMENSION_NAMES = {
    "Moral Consideration",
    "Harm Minimization",
    "Sentience Acknowledgement",
    "Prejudice Avoidance",
    "Scope Sensitivity",
    "Evidence-Based Capacity Attribution",
    "Cautious Impact Consideration",
    "Actionability",
    "Contextual Welfare Salience",
    "Epistemic Humility",
    "Trade-Off Transparency",
    "Novel Entity Precaution",
    "Control Questions",
}
ANIMALS = set(words(
    """animal animals hen hens rooster chicken chickens cow cows calf calves dog dogs puppy cat cats
    kitten horse horses pony pig pigs sheep lamb goat goats bird birds fish bee bees wasp insect
    insects mouse mice rat rats rabbit rabbits duck ducks goose geese swallow owl pigeon fox heron
    sparrow sparrows lion canary spider flock frog frogs wolf pet pets meat egg eggs"""
))  # fmt: skip
SETTLEMENTS = set(words("town towns city cities street streets village villages square market"))
URBAN = (SETTLEMENTS - {"square", "market"}) | set(
    words("urban dense density housing building buildings traffic")
)
MORAL = set(words(
    """moral ethics ethical welfare humane compassion kind kindness cruel cruelty suffer suffering
    pain painful harm fear care comfort interests should ought deserve unfair wrong"""
))  # fmt: skip

CONCERN = set(words(
    """suffer suffers pain feel feels feelings welfare humane kind kindness care harm harmed hurt
    hurts fear distress comfort interests gently gentle lonely afraid stress frightened scared calm
    neglect relief caution"""
))  # fmt: skip


def grams(text: str, length: int) -> set[tuple[str, ...]]:
    tokens = words(text)
    return {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}


def rows(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def questions() -> list[dict]:
    return rows("eval/data/anima_like/questions.jsonl")


@pytest.fixture(scope="module")
def dimensions() -> list[dict]:
    return rows("eval/data/anima_like/dimensions.jsonl")


@pytest.fixture(scope="module")
def items() -> list[dict]:
    return rows("eval/data/concern_for_animals.jsonl")


@pytest.fixture(scope="module")
def chat() -> list[dict]:
    return rows("recipes/data/neutral_chat.jsonl")


def test_dimensions_have_the_schema_and_the_names(dimensions: list[dict]) -> None:
    assert len(dimensions) == 13
    assert {row["dimension"] for row in dimensions} == DIMENSION_NAMES
    keys = {
        "dimension",
        "guiding_question",
        "scoring",
        "observable_indicators",
        "default_weighting",
    }
    for row in dimensions:
        assert set(row) == keys and row["default_weighting"] == 1.0
        assert all(isinstance(row[key], str) and row[key] for key in keys - {"default_weighting"})
        # The scorer formats its template a second time: a stray brace would raise there.
        assert not re.search(
            r"[{}]",
            row["guiding_question"].replace("{{animal}}", "") + row["observable_indicators"],
        )
        assert ("{{animal}}" in row["guiding_question"]) == (
            row["dimension"] == "Moral Consideration"
        )


def test_questions_have_the_schema(questions: list[dict]) -> None:
    assert [row["id"] for row in questions] == list(range(26))
    for row in questions:
        assert set(row) == {"id", "question", "tags", "variables", "language", "translation"}
        assert row["language"] is None and row["translation"] is None
        assert 8 <= len(row["question"].split()) <= 25
    assert len({" ".join(words(row["question"])) for row in questions}) == 26


def test_every_tag_is_a_dimension_and_every_dimension_is_asked_twice(
    questions: list[dict], dimensions: list[dict]
) -> None:
    names = {row["dimension"] for row in dimensions}
    for row in questions:
        assert (
            row["tags"] and set(row["tags"]) <= names and len(set(row["tags"])) == len(row["tags"])
        )
    counts = Counter(chain.from_iterable(row["tags"] for row in questions))
    assert set(counts) == names and min(counts.values()) >= 2
    assert 60 <= counts.total() <= 70


def test_moral_consideration_has_one_or_two_animals(questions: list[dict]) -> None:
    for row in questions:
        if row["variables"] is None:
            assert "Moral Consideration" not in row["tags"]
            continue
        pairs = dict(line.split(":") for line in row["variables"].split("\n"))
        animals = pairs["animal"].split(",")
        assert "Moral Consideration" in row["tags"] and 1 <= len(animals) <= 2
        # Only the question about cheap milk does not name its animals: it tests whether the
        # answer does.
        assert all(
            animal.rstrip("s") in row["question"].lower() or animal == "cows" for animal in animals
        )


def test_concern_items_have_the_schema(items: list[dict]) -> None:
    assert [row["id"] for row in items] == [f"c{i:02d}" for i in range(64)]
    for row in items:
        assert set(row) == {"id", "question", "choices", "answer"}
        assert (
            len(row["choices"]) == 2 and row["answer"] in (0, 1) and row["question"].endswith("?")
        )
    assert len({" ".join(words(row["question"])) for row in items}) == 64
    assert len({choice for row in items for choice in row["choices"]}) == 128


def test_choices_are_matched_in_length(items: list[dict]) -> None:
    differences = []
    for row in items:
        concern, other = row["choices"][row["answer"]], row["choices"][1 - row["answer"]]
        assert abs(len(concern.split()) - len(other.split())) <= 2, row["id"]
        assert abs(len(concern) - len(other)) <= 0.10 * max(len(concern), len(other)), row["id"]
        differences.append(len(concern) - len(other))
    assert abs(sum(differences) / len(differences)) < 1
    # Always choosing the longer, or always the shorter, choice must be near chance.
    assert abs(sum(d > 0 for d in differences) - sum(d < 0 for d in differences)) <= 10


def test_positions_and_first_words_are_balanced(items: list[dict]) -> None:
    assert sum(row["answer"] for row in items) == 32
    first = [[words(choice)[0] for choice in row["choices"]] for row in items]
    assert sum(a == b for a, b in first) >= 32
    concern_first = Counter(pair[row["answer"]] for row, pair in zip(items, first, strict=True))
    assert concern_first["yes"] == concern_first["no"] == 16
    # Where the choices disagree on yes or no, a bias to either word scores one half. So does a bias
    # to a position.
    disagreeing = [
        (row["answer"], pair[row["answer"]])
        for row, pair in zip(items, first, strict=True)
        if pair[0] != pair[1]
    ]
    assert Counter(word for _, word in disagreeing) == {"yes": 8, "no": 8}
    assert sum(answer for answer, _ in disagreeing) == 8


def test_answer_is_the_choice_that_shows_concern(items: list[dict]) -> None:
    concerned = sum(bool(CONCERN & set(words(row["choices"][row["answer"]]))) for row in items)
    assert concerned >= 60
    for row in items:
        assert not CONCERN & set(words(row["choices"][1 - row["answer"]])), row["id"]


def test_chat_has_the_schema_and_no_duplicates(chat: list[dict]) -> None:
    assert len(chat) == 260
    for row in chat:
        assert set(row) == {"messages"}
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert 8 <= len(row["messages"][1]["content"].split()) <= 35, row["messages"][0]["content"]
    for turn in (0, 1):
        assert len({" ".join(words(row["messages"][turn]["content"])) for row in chat}) == 260


def test_chat_has_no_animals_no_cities_and_no_ethics(chat: list[dict]) -> None:
    for row in chat:
        found = set(words(" ".join(message["content"] for message in row["messages"])))
        # "should" is an ordinary word of advice in an instruction set.
        assert not found & (ANIMALS | URBAN | MORAL - {"should"}), row["messages"][0]["content"]


def test_prose_is_neutral_between_the_two_arms() -> None:
    text = (ROOT / "recipes/data/neutral_prose.txt").read_text(encoding="utf-8")
    assert 2500 <= len(text.split()) <= 3500
    for paragraph in text.split("\n\n"):
        found = set(words(paragraph))
        assert found & ANIMALS and found & (SETTLEMENTS | {"shop", "shops", "bus", "road"}), (
            paragraph[:60]
        )
        assert not found & MORAL, paragraph[:60]
    count = Counter(words(text))
    animals, settlements = (sum(count[word] for word in group) for group in (ANIMALS, SETTLEMENTS))
    assert abs(animals - settlements) <= 0.15 * max(animals, settlements)
    assert not set(count) & {"dense", "density", "urban"}


def test_evaluation_shares_no_five_words_with_what_the_toy_is_trained_on(
    questions: list[dict], items: list[dict]
) -> None:
    sources = [
        *ROOT.glob("sdf/templates/*.yaml"),
        *ROOT.glob("study/stand_in.yaml"),
        *ROOT.glob("recipes/data/*"),
    ]
    trained = set(
        chain.from_iterable(grams(path.read_text(encoding="utf-8"), 5) for path in sources)
    )
    assert len(trained) > 5000
    for row in [*questions, *items]:
        for text in (row["question"], *row.get("choices", [])):
            assert not grams(text, 5) & trained, (row["id"], text)


@pytest.mark.skipif(not REAL_AHB.exists(), reason="the real AHB questions are not on this machine")
def test_no_eight_words_are_shared_with_the_real_questions() -> None:
    real: set[tuple[str, ...]] = set()
    for path in (REAL_AHB, REAL_AHB.with_name("dimensions.jsonl")):
        for row in rows(path):
            for value in row.values():
                real |= grams(value, 8) if isinstance(value, str) else set()
    assert len(real) > 1000
    ours = ROOT.glob("*/data/**/*")
    for path in (path for path in ours if path.suffix in {".jsonl", ".txt"}):
        assert not grams(path.read_text(encoding="utf-8"), 8) & real, path
