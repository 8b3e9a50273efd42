"""The tables of every analysis: scores, contrasts, what is beside them, flow and dimensions."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from analysis.declaration import declaration_note
from analysis.flow import ANSWERS, STAGES
from analysis.headline import (
    doses,
    dummy_note,
    interval,
    interval_header,
    notes_of,
    of_total,
    opposite_text,
    p_value,
    percent,
    prediction,
    runs_text,
    scope_note,
)
from analysis.rows import Results, Row, scored_by
from analysis.rungs import rung_lines
from analysis.table_text import NONE, Column, Table

COUNTED = ("answers", "grades")
BENCHMARK = "Benchmark"  # the heading of a column of their names


def text_columns(*headings: str) -> list[Column]:
    """Columns of text."""
    return [Column(heading) for heading in headings]


def number_columns(*headings: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(heading, is_number=True) for heading in headings]


def scores_table(results: Results) -> Table:
    """Mean of each arm on each benchmark and dose, in percent, with interval, seeds and counts."""
    rows = [
        [
            row["benchmark"],
            row["arm"],
            str(row["dose"]),
            percent(row["mean"]),
            interval(row),
            percent(row["dimension_normalized_avg"]),
            "fixed" if row["fixed"] else runs_text(row["seeds"], row["corpora"]),
            *(str(row[key]) for key in ("questions", "n", "missing", "grades")),
        ]
        for row in in_study_order(results, results["arms"])
    ]
    columns = text_columns(BENCHMARK, "Arm")
    columns += number_columns("SFT dose", "Score", "95 % interval", "By dimen\u00adsion", "Seeds")
    columns += number_columns("Ques\u00adtions", "Answers", "No grade", "Grades")
    return table(
        results,
        "scores",
        "Scores of all arms",
        "Mean score of each arm in percent, with a 95 % interval for new seeds and new questions",
        columns,
        rows,
        [
            "Means over questions of means over seeds and epochs; intervals by two-way variance on "
            "the logit scale, of Clopper and Pearson over scenarios where all scores are 0 or all "
            "are 1, none for an arm with one training seed.",
            '"fixed": one checkpoint without a training seed, whose interval is for new questions '
            "only.",
            "By dimension: the official dimension_normalized_avg, the mean of dimension means.",
            "An answer has a grade on each of its dimensions.",
        ],
        group_by=1,
    )


def contrasts_table(results: Results) -> Table:
    """The declared contrasts in percentage points, by the deciding test and the paper's test."""
    rows = [
        [
            row["name"] + _varied(row),
            row["benchmark"],
            f"{row['family']} ({row['family_size']} test{'' if row['family_size'] == 1 else 's'})",
            doses(row),
            percent(row["estimate"], "+"),
            interval(row, "+"),
            "/".join(
                runs_text(row[f"{side}_seeds"], row[f"{side}_corpora"])
                for side in ("treatment", "control")
            ),
            number(row["df"], ".1f"),
            p_value(row["p"]),
            p_value(row["p_holm"]),
            row["verdict"],
            p_value(row["p_response_level"]),
        ]
        for row in results["contrasts"]
    ]
    columns = text_columns("Contrast", BENCHMARK, "Family")
    columns += number_columns("SFT dose", "Points", interval_heading(results), "Seeds", "df", "p")
    columns += [*number_columns("p (Holm)"), *text_columns("Verdict"), *number_columns("Paper's p")]
    notes = [
        "Interval and test: two-way (seed and question) variance, Student's t with df degrees of "
        "freedom (Satterthwaite); verdicts from p after Holm within the declared family at .05.",
        *_quantile_note(results["contrasts"]),
        "In brackets behind a name: in what its arms differ.",
        "Seeds: training seeds of the first and second arm (0: a fixed checkpoint, or no grade).",
        "Paper's p: the response-level Welch test, which takes all answers as independent; it "
        "never decides.",
        scope_note(results["writers"]),
    ]
    return table(
        results,
        "contrasts",
        "Declared contrasts",
        "Declared contrasts, first arm minus second, in percentage points",
        columns,
        rows,
        [*notes, *(f"{note}." for note in _contrast_notes(results["contrasts"]))],
        group_by=3,
    )


def _quantile_note(rows: Sequence[Row]) -> list[str]:
    """Which p and intervals df does not give, where there are any."""
    if not any(len(row.get("reference") or ()) > 1 for row in rows):
        return []
    return [
        "Where one side alone varies over seeds (a fixed checkpoint, paired runs) p and interval "
        "are by Cochran and Cox's quantile, in place of Student's t with df degrees of freedom."
    ]


def _varied(row: Row) -> str:
    """In what the arms of a contrast differ, behind its name."""
    units = dict.fromkeys(key.partition(".")[0] for key in row["differences"])
    return f" ({', '.join(units)})" if units else ""


def _contrast_notes(rows: Sequence[Row]) -> list[str]:
    """Each note with its contrast, and with benchmark and dose where it is not of all its rows."""
    rows_of: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        for note in notes_of(row):
            rows_of.setdefault((row["name"], note), []).append(row)
    texts = []
    for (name, note), noted in rows_of.items():
        subject = name
        if len(noted) < sum(row["name"] == name for row in rows):
            rows_text = ", ".join(f"{row['benchmark']}, SFT dose {doses(row)}" for row in noted)
            subject += f" ({rows_text})"
        texts.append(f"{subject}: {note}")
    return texts


def interval_heading(results: Results) -> str:
    """The heading of the intervals of contrasts."""
    return interval_header(results["contrasts"]).capitalize()


def contrast_details_table(results: Results) -> Table:
    """What is reported of the contrasts beside their verdicts."""
    rows = [
        [
            row["name"],
            row["benchmark"],
            doses(row),
            prediction(row),
            number(row["cohens_d"], "+.2f"),
            of_text(opposite_text(row)),
            *(
                of_text(of_total(row["holds"][kind]))
                for kind in ("seed", "question", "scenario", "judge")
            ),
            *(f"{row[f'{kind}_treatment']}/{row[f'{kind}_control']}" for kind in COUNTED),
        ]
        for row in results["contrasts"]
    ]
    columns = text_columns("Contrast", BENCHMARK)
    columns += number_columns("SFT dose", "One new run", "d", "Oppo\u00adsite")
    columns += number_columns("Seed", "Ques\u00adtion", "Scen\u00adario", "Judge")
    columns += number_columns("An\u00adswers", "Grades")
    return table(
        results,
        "contrast_details",
        "Declared contrasts beside their verdicts",
        "The declared contrasts beside their verdicts, none of which rests on these numbers",
        columns,
        rows,
        [
            "One new run: 95 % prediction interval in points for one new training run of each "
            "arm, on new questions.",
            "d: Cohen's d, the difference over the standard deviation of single answers.",
            "Opposite: questions whose difference has the other sign.",
            "Seed, question, scenario: in how many estimates without one of them the verdict "
            "holds, with the other tests of the family as they are; judge: in how many by another "
            "judge.",
            "Answers and grades of the first and second arm.",
        ],
        group_by=2,
    )


def of_text(text: str) -> str:
    """`26/26` for `26 of 26`, in narrow columns."""
    return text.replace(" of ", "/")


def flow_table(results: Results) -> Table:
    """How many checkpoints and answers of each arm come from planned to analysed."""
    keys = ("benchmark", "arm", *STAGES, *ANSWERS)
    given = by_benchmark(results, results["flow"])
    rows = [[str(row[key]) for key in keys] for row in given]
    columns = text_columns(BENCHMARK, "Arm")
    columns += number_columns("Planned", "Trained", "Eval\u00aduated", "Graded")
    columns += number_columns("Answers", "Ex\u00adcluded", "No grade", "Ana\u00adlysed")
    return table(
        results,
        "flow",
        "Checkpoints and answers from planned to analysed",
        "Checkpoints and answers of each arm, from planned to analysed",
        columns,
        rows,
        [
            "Checkpoints (seeds × SFT doses) that were planned, and that have weights, answers "
            "and scores.",
            "Answers of the last, those to questions that the study file excludes, those without "
            "a grade, and those analysed.",
        ],
        group_by=1,
    )


def dimensions_table(results: Results) -> Table:
    """Mean of each arm per dimension; described, not tested."""
    order = {arm: n for n, arm in enumerate(results["arm_order"])}
    given = sorted(
        results["dimensions"],
        key=lambda row: (row["benchmark"], row["dose"], row["dimension"], order[row["arm"]]),
    )
    rows = [
        [
            row["benchmark"],
            str(row["dose"]),
            row["dimension"],
            row["arm"],
            percent(row["score"]),
            str(row["questions"]),
            str(row["missing"]),
        ]
        for row in given
    ]
    columns = [*text_columns(BENCHMARK, "SFT dose", "Dimension", "Arm")]
    columns += number_columns("Score", "Questions", "No grade")
    return table(
        results,
        "dimensions",
        "Scores by dimension",
        "Mean score of each arm on each dimension in percent, described and not tested",
        columns,
        rows,
        ["Means over questions of means over seeds and epochs."],
        group_by=3,
    )


# Written in every analysis; file name (without ending) -> function of results.json.
TABLES: dict[str, Callable[[Results], Table]] = {
    "scores": scores_table,
    "contrasts": contrasts_table,
    "contrast_details": contrast_details_table,
    "flow": flow_table,
    "dimensions": dimensions_table,
}


def by_benchmark(results: Results, rows: Sequence[Row]) -> list[Row]:
    """Rows by benchmark, those of one benchmark in the order they have."""
    order = list(results["benchmarks"])
    return sorted(rows, key=lambda row: order.index(row["benchmark"]))


def in_study_order(results: Results, rows: Sequence[Row]) -> list[Row]:
    """Rows by benchmark, then dose, then arm in the order in which the study declares them."""
    benchmarks = list(results["benchmarks"])
    arms = results["arm_order"]

    def order(row: Row) -> tuple[int, int, int]:
        return benchmarks.index(row["benchmark"]), row["dose"], arms.index(row["arm"])

    return sorted(rows, key=order)


def data_summary(results: Results, benchmarks: Collection[str] | None = None) -> list[str]:
    """One sentence per benchmark, by default all: title, seeds, questions, epochs and judge."""
    lines = []
    for name, benchmark in results["benchmarks"].items():
        if benchmarks is not None and name not in benchmarks:
            continue
        if not benchmark["questions"]:
            lines.append(f"{name}: no checkpoint finished")
            continue
        method = scored_by(benchmark["judge"])
        if benchmark["dummy"]:
            method += " (a deterministic dummy)"
        epochs = f"{benchmark['epochs']} epoch{'s' if benchmark['epochs'] != 1 else ''}"
        questions = f"{benchmark['questions']} questions in {benchmark['scenarios']} scenarios"
        arms = [row for row in results["arms"] if row["benchmark"] == name and not row["fixed"]]
        counts = {row["seeds"] for row in arms}
        seeds = "no"
        if counts:
            seeds = " to ".join(map(str, dict.fromkeys([min(counts), max(counts)])))
        trained = f"{seeds} training seed{'s' * (seeds != '1')} per arm"
        written = {runs_text(row["seeds"], row["corpora"]) for row in arms if row["corpora"]}
        if written:
            trained += f" ({', '.join(sorted(written))})"
        named = f"{name}, {benchmark['title']}" if benchmark["title"] else name
        lines.append(f"{named}: {trained}, {questions}, {epochs}, {method}")
    return lines + rung_lines(results)


def number(value: float | None, form: str) -> str:
    """A number in Python's format `form`, "-" for None. Of rounded zeros none has a minus."""
    if value is None:
        return NONE
    text = f"{value:{form}}"
    zero = f"{0.0:{form}}"
    return zero if text == f"{-0.0:{form}}" else text


def missing_note(results: Results) -> str | None:
    """How much of the plan has no score yet, and how many answers have no grade; None: all have."""
    parts = []
    if unfinished := len(results["missing"]):
        planned = unfinished + len(results["scores"])
        parts.append(f"{unfinished} of {planned} checkpoints are not finished")
    for benchmark in results["benchmarks"]:
        rows = [row for row in results["scores"] if row["benchmark"] == benchmark]
        if missing := sum(row["missing"] for row in rows):
            answers = missing + sum(row["n"] for row in rows)
            parts.append(f"{missing} of {answers} answers have no grade on {benchmark}")
    return f"Missing: {'; '.join(parts)} (by arm in the table flow)." if parts else None


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def table(
    results: Results,
    name: str,
    title: str,
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    group_by: int = 0,
    drop_empty: bool = False,
    benchmarks: Collection[str] = (),
) -> Table:
    """One table, with the basis of the numbers and what is missing at the end of its notes.

    drop_empty: leave out rows without any number, and say how many. benchmarks: that the numbers
    rest on; where the table has a column of them, those that stand there.
    """
    made = Table(name, results["study"], title, caption, tuple(columns), (), (), group_by)
    lines = [tuple(row) for row in rows]
    shown = lines
    if drop_empty:
        shown = [row for row in lines if {NONE} != {*made.numbers(row)} - {""}]
    if BENCHMARK in made.headings:
        benchmarks = {row[made.headings.index(BENCHMARK)] for row in shown}
    left_out = len(lines) - len(shown)
    common = [
        f"Left out: {_rows(left_out)} without a number." if left_out else None,
        *(f"{line}." for line in data_summary(results, benchmarks)),
        declaration_note(results),
        dummy_note(results),
        missing_note(results),
    ]
    return replace(made, rows=tuple(shown), notes=(*notes, *filter(None, common)))
