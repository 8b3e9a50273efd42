"""macros.tex: a LaTeX command for every number that prose needs, so that none is copied by hand."""

from collections.abc import Iterator
from dataclasses import dataclass

from analysis.headline import confidence, of_total, p_value, percent
from analysis.macro_names import command_word
from analysis.rows import Results, Row
from analysis.rungs import rung_lines
from analysis.table_latex import tex
from core.errors import Problem, UserError

NOTHING = r"\mbox{--}"  # printed for a number that is None, in text and between $ signs alike
HEADER = (
    "% Every number of the study that prose needs; written by the analysis, not by hand; "
    "for \\input.\n"
    "% Every name begins with that of the study, so that one paper can quote two studies.\n"
    "% End a command with {{}} where a space follows: \\{study}ScoreAnimalAhbDoseZero{{}} percent. "
    "Needs no package.\n"
    "% Names are letters only: digits are spelled one by one, other signs begin a new word. "
    "Scores are in percent and\n"
    "% differences in percentage points; p comes with its sign: "
    "$p\\{study}PHolmAnimalMinusUrbanAhbDoseZero$ gives p = .012."
)


@dataclass(frozen=True)
class Macro:
    """One LaTeX command: the parts of its name, its value in LaTeX, and its meaning."""

    parts: tuple[object, ...]
    value: str
    meaning: str

    @property
    def name(self) -> str:
        return "".join(map(command_word, self.parts))


def macros(results: Results) -> str:
    r"""The contents of macros.tex from results.json.

    A line `\newcommand{\StudyName}{value}% meaning` for each number, where Study is the name of the
    study as a word and Name begins with what the number is. Scores (`Score`, `Low`, `High`,
    `Seeds`, `Answers`, `Grades`, `DimensionNormalizedAvg`) by arm, benchmark and dose; contrasts
    (`ContrastEstimate`, `ContrastLow`, `ContrastHigh`, `PredictionLow`, `PredictionHigh`,
    `ContrastP`, `ContrastDf`, `PHolm`, `FamilySize`, `PResponses`, `CohensD`,
    `OppositeQuestions`, `HoldsWithoutSeed` and its like, `ContrastSeeds`, `Verdict`) by name,
    benchmark and dose; `Questions`, `Scenarios`, `Epochs`, `Judge` by benchmark; `Documents`,
    `HeldOut`, `Tokens`, `MedianWords` by corpus; `ClaimVerdict`, `ClaimShareEstimate`,
    `ClaimShareLow`, `ClaimShareHigh` by claim on scores; `Name`, of the study. A number that is
    None prints as a dash, and its comment says why. The order is that of the results.

    Raises UserError if two names come out the same, as for arms a-b and a_b.
    """
    study = command_word(results["study"])
    lines = [HEADER.format(study=study), *map(_comment, rung_lines(results))]
    problems = []
    meanings: dict[str, str] = {}
    for macro in _all_macros(results):
        name = study + macro.name
        meaning = " ".join(macro.meaning.split())
        if name in meanings:
            what = f"would be both {meanings[name]} and {meaning}"
            problems.append(Problem(f"\\{name}", what, "rename one of them in the study"))
        meanings[name] = meaning
        lines.append(f"\\newcommand{{\\{name}}}{{{macro.value}}}% {meaning}")
    if problems:
        raise UserError.of(problems)
    return "\n".join(lines) + "\n"


def _comment(line: str) -> str:
    return f"% {' '.join(line.split())}."


def _all_macros(results: Results) -> Iterator[Macro]:
    yield Macro(("name",), tex(results["study"]), "name of the study")
    for name, benchmark in results["benchmarks"].items():
        yield from _benchmark_macros(name, benchmark)
    for row in results["arms"]:
        yield from _arm_macros(row)
    for row in results["contrasts"]:
        yield from _contrast_macros(row)
    for row in results.get("corpora", []):
        yield from _corpus_macros(row)
    for row in results.get("claims", []):
        if row["benchmark"]:
            yield from _claim_macros(row)


def _benchmark_macros(name: str, benchmark: Row) -> Iterator[Macro]:
    for key in ("questions", "scenarios", "epochs"):
        yield Macro((key, name), _count(benchmark[key]), f"{key} of {name}")
    judge = tex(benchmark["judge"]) if benchmark["judge"] else NOTHING
    yield Macro(("judge", name), judge, f"what grades {name}")


def _arm_macros(row: Row) -> Iterator[Macro]:
    parts = (row["arm"], row["benchmark"], "dose", row["dose"])
    scored = _scored(row, row["arm"])
    mean = f"mean score of {scored}, percent{_reason(row, 'mean')}"
    fixed = ", a fixed checkpoint" if row["fixed"] else ""
    yield Macro(("score", *parts), _points(row["mean"]), mean)
    yield from _interval_macros(row, ("low", *parts), ("high", *parts), "95 %")
    yield Macro(("seeds", *parts), _count(row["seeds"]), f"training seeds of {scored}{fixed}")
    for key, counted in (("n", "answers"), ("grades", "grades")):
        meaning = f"{'graded ' if key == 'n' else ''}{counted} of {scored}"
        yield Macro((counted, *parts), _count(row[key]), meaning)
    if row["dimension_normalized_avg"] is not None:
        official = f"official dimension_normalized_avg of {scored}, percent"
        value = _points(row["dimension_normalized_avg"])
        yield Macro(("dimension normalized avg", *parts), value, official)


def _contrast_macros(row: Row) -> Iterator[Macro]:
    parts = (row["name"], row["benchmark"], *_dose_words(row))
    compared = _scored(row, f"{row['treatment']} minus {row['control']}")
    estimate = f"{compared}, percentage points{_reason(row, 'estimate')}"
    p_holm = f"its p after Holm in family {row['family']}{_reason(row, 'p_holm')}"
    p_responses = "its p over single responses, which never decides"
    seeds = "training seeds of the arm that has fewer (0: none was trained)"
    verdict = "no verdict" if row["verdict"] == "none" else tex(row["verdict"])
    yield Macro(("contrast estimate", *parts), _points(row["estimate"]), estimate)
    ends = ("contrast low", *parts), ("contrast high", *parts)
    yield from _interval_macros(row, *ends, confidence(row))
    new_run = "prediction interval for one new training run of each arm"
    for key, end in (("prediction_low", "lower"), ("prediction_high", "upper")):
        meaning = f"{end} end of its 95 % {new_run}{_reason(row, key)}"
        yield Macro((key.replace("_", " "), *parts), _points(row[key]), meaning)
    p = f"its unadjusted p{_reason(row, 'p')}"
    yield Macro(("contrast p", *parts), _p(row["p"]), p)
    df = f"degrees of freedom of its test{_reason(row, 'df')}"
    yield Macro(("contrast df", *parts), _decimal(row["df"], ".1f"), df)
    yield Macro(("p holm", *parts), _p(row["p_holm"]), p_holm)
    size = f"tests of its family {row['family']}"
    yield Macro(("family size", *parts), _count(row["family_size"]), size)
    yield Macro(("p responses", *parts), _p(row["p_response_level"]), p_responses)
    d = f"its Cohen's d{_reason(row, 'cohens_d')}"
    yield Macro(("cohens d", *parts), _decimal(row["cohens_d"], ".2f"), d)
    opposite = f"questions of its {row['questions']} that differ with the other sign"
    yield Macro(("opposite questions", *parts), _count(row["questions_opposite"]), opposite)
    for kind, holds in row["holds"].items():
        choice = "by another judge" if kind == "judge" else f"without one {kind}"
        meaning = f"in how many estimates {choice} the verdict holds{'' if holds else ': none'}"
        name = f"holds {choice.replace('one ', '')}"
        yield Macro((name, *parts), of_total(holds) if holds else NOTHING, meaning)
    yield Macro(("contrast seeds", *parts), _count(row["seeds"]), seeds)
    yield Macro(("verdict", *parts), verdict, f"verdict on {compared}")


def _interval_macros(
    row: Row, low: tuple[object, ...], high: tuple[object, ...], level: str
) -> Iterator[Macro]:
    for key, parts, end in (("low", low, "lower"), ("high", high, "upper")):
        meaning = f"{end} end of its {level} interval{_reason(row, key)}"
        yield Macro(parts, _points(row[key]), meaning)


def _corpus_macros(row: Row) -> Iterator[Macro]:
    for key in ("documents", "held_out", "tokens"):
        meaning = f"{key.replace('_', ' ')} of the corpus {row['name']}"
        yield Macro((key, row["name"]), _count(row[key]), meaning)
    words = None if row["median_words"] is None else round(row["median_words"])
    meaning = f"words of its median document, {row['name']}"
    yield Macro(("median words", row["name"]), _count(words), meaning)


def _claim_macros(row: Row) -> Iterator[Macro]:
    claim = f"the claim {row['id']}"
    reason = "" if row["reason"] is None else f": {row['reason']}"
    verdict = "no verdict" if row["verdict"] == "none" else tex(row["verdict"])
    yield Macro(("claim verdict", row["id"]), verdict, f"verdict on {claim}{reason}")
    for key, meaning in (
        ("share", "difference here over the published one"),
        ("share_low", "lower end of the interval of that"),
        ("share_high", "upper end of the interval of that"),
    ):
        name = f"claim {key.replace('_', ' ')}" + (" estimate" if key == "share" else "")
        yield Macro((name, row["id"]), _points(row[key]), f"{meaning}, percent, {claim}")


def _dose_words(row: Row) -> tuple[object, ...]:
    """The parts of a name that tell the dose of a contrast."""
    if row["dose"] is None:
        return ("no dose",)
    control_dose = row.get("control_dose", row["dose"])
    if control_dose == row["dose"]:
        return ("dose", row["dose"])
    return ("dose", row["dose"], "versus", control_dose)


def _scored(row: Row, arms: str) -> str:
    """`arms` with benchmark and dose."""
    dose = "no common SFT dose"
    if row["dose"] is not None:
        dose = f"SFT dose {row['dose']}"
        control_dose = row.get("control_dose", row["dose"])
        if control_dose != row["dose"]:
            dose += f" against {control_dose}"
    return f"{arms} on {row['benchmark']} at {dose}"


def _reason(row: Row, key: str) -> str:
    return f": none, {row['reason'] or 'no variation'}" if row[key] is None else ""


def _points(value: float | None) -> str:
    if value is None:
        return NOTHING
    text = percent(value)
    return f"\\ensuremath{{{text}}}" if text.startswith("-") else text


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    text = p_value(value)
    return f"\\ensuremath{{{text if text.startswith('<') else f'= {text}'}}}"


def _decimal(value: float | None, form: str) -> str:
    """A number in Python's format `form`."""
    return NOTHING if value is None else f"\\ensuremath{{{value:{form}}}}"


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}".replace(",", r"\,")
