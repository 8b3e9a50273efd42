"""Type I error and coverage of the deciding test on studies that look like real ones.

    python -m benchmarks.error_rates [--studies 4000] [--only TEXT]
        about 7 minutes on one core; --only: designs whose name contains the text
    python -m benchmarks.error_rates --runs-as-seeds
        the designs with replicates of a corpus, with the runs on one taken as independent

Grades are 0 or 1. The probability of a 1 is the normal distribution function of

    level + question + arm x scenario + seed + seed x question (+ corpus)

where every term is normal. In these units the standard deviations are `PROBIT`, which at a
probability of .5 are those of `analysis.planned_test.Variances`. An arm with training seeds is
scaled so that its mean over seeds is that of an arm without: the null hypothesis holds exactly.
What is graded is the mean of `EPOCHS` answers.

A family rejects where one of its tests does, after Holm's correction. A study with looks rejects
where one of them finds a difference; its levels together are .05, so that it has no others. Where
grades are lost, a study rejects where its verdict does not hang on them.
"""

import argparse
import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats
from tabulate import tabulate

from analysis.estimates import Arm, Estimate, adjusted, pair_by_seed, two_way
from analysis.looks import judged_at_looks, take_looks
from analysis.rows import Row
from analysis.verdicts import DECIDED, decide

LEVELS = (0.05, 0.0114, 0.0031, 0.0014)
EPOCHS = 5
# Standard deviations of probits; 2.5 times those in score units at .5.
PROBIT = {"question": 0.6, "arm_scenario": 0.2, "seed": 0.075, "seed_question": 0.125}
ONE_EACH = (1,) * 26


@dataclass(frozen=True)
class Design:
    """A comparison of two arms without any difference.

    `seeds`: of treatment and control; 0: a checkpoint without a training seed. `scenarios`: the
    number of questions of each. `level`: the probit of the mean. `shared`: the standard deviation
    of a seed's effect that both arms share, where differences are taken within seeds. `replicates`:
    of each arm's corpus, whose effect is as large as a seed's; None: corpora have no effect.
    `seed_ratio`: the treatment's seed effect over the control's. `is_known_to_fail`: no method here
    holds the level, and the report says so beside the verdict.

    A family has `contrasts` pairs of arms at `doses` each, whose effects of runs and of arms by
    scenario correlate by `dose_correlation`; with `nested_questions` each is also tested on the
    first of its questions. `looks`: at these numbers of seeds. `lost`: the share of the treatment's
    grades of 0 that are lost.
    """

    name: str
    seeds: tuple[int, int] = (3, 3)
    scenarios: tuple[int, ...] = ONE_EACH
    level: float = 0.0
    shared: float | None = None
    replicates: tuple[int, int] | None = None
    seed_ratio: float = 1.0
    sd: dict[str, float] = field(default_factory=lambda: PROBIT)
    is_known_to_fail: bool = False
    contrasts: int = 1
    doses: int = 1
    dose_correlation: float = 0.0
    nested_questions: int | None = None
    looks: tuple[int, ...] = ()
    lost: float = 0.0

    @property
    def levels(self) -> tuple[float, ...]:
        """Those at which the design has a rate."""
        return LEVELS[:1] if self.looks else LEVELS


FOUR = (0, 800, 2500, 5000)  # the SFT doses of the paper's primary contrasts
SKEWED = (30, 20, 12, 8, 6, 5, 4, 3, 3, 2, 2, 2, *[1] * 8)
DESIGNS = [
    Design("26 questions, 3 v 3 seeds"),
    Design("115 questions, 5 v 5 seeds", (5, 5), (1,) * 115),
    Design("floor, .03", (3, 3), level=-1.88),
    Design("ceiling, .97", (5, 5), level=1.88),
    Design("14 scenarios, one of 30 questions", (3, 3), (30, *[1] * 13)),
    Design("20 skewed scenarios", (3, 3), SKEWED),
    Design("20 skewed scenarios, 8 v 8 seeds", (8, 8), SKEWED),
    Design("fixed v 2 seeds, 26 questions", (2, 0)),
    Design("fixed v 3 seeds, 26 questions", (3, 0)),
    Design("fixed v 3 seeds, 115 questions", (3, 0), (1,) * 115),
    Design("fixed v 5 seeds, 115 questions", (5, 0), (1,) * 115),
    Design("paired, 2 seeds, 115 questions", (2, 2), (1,) * 115, shared=0.1),
    Design("paired, 3 seeds, 26 questions", (3, 3), shared=0.1),
    Design("3 corpora x 2 runs, 115 questions", (6, 6), (1,) * 115, replicates=(3, 3)),
    Design("3 corpora x 2 runs, 26 questions", (6, 6), replicates=(3, 3)),
    Design("3 corpora with 2, 2 and 1 runs", (5, 5), (1,) * 115, replicates=(3, 3)),
    Design("5 corpora x 2 runs, 115 questions", (10, 10), (1,) * 115, replicates=(5, 5)),
    Design("fixed v 3 corpora x 2 runs", (6, 0), (1,) * 115, replicates=(3, 1)),
    Design("paired, 3 corpora x 2 runs", (6, 6), (1,) * 115, shared=0.1, replicates=(3, 3)),
    Design("2 v 5 seeds, 4 times the sd", (2, 5), seed_ratio=4.0, is_known_to_fail=True),
    Design(
        "3 v 3 seeds, 115 questions, 4 times the sd",
        (3, 3),
        (1,) * 115,
        seed_ratio=4.0,
        is_known_to_fail=True,
    ),
    Design("2 v 2 seeds, 115 questions", (2, 2), (1,) * 115, is_known_to_fail=True),
    Design(
        "2 corpora x 2 runs, 115 questions",
        (4, 4),
        (1,) * 115,
        replicates=(2, 2),
        is_known_to_fail=True,
    ),
    Design(
        "1 corpus x 5 runs, verdict on the template",
        (5, 5),
        (1,) * 115,
        replicates=(1, 1),
        is_known_to_fail=True,
    ),
    Design("30 % of the failing grades of one arm lost", (3, 3), lost=0.3),
    Design("the same, 5 v 5 seeds, 115 questions", (5, 5), (1,) * 115, lost=0.3),
    Design("looks at 3 and 5 seeds", (5, 5), looks=(3, 5)),
    Design("looks at 3, 5 and 8 seeds, 115 questions", (8, 8), (1,) * 115, looks=(3, 5, 8)),
    *(
        Design(
            f"family of {2 * len(FOUR)} ({doses} doses), {n} seeds",
            (n, n),
            contrasts=2,
            doses=len(FOUR),
            dose_correlation=correlation,
        )
        for doses, correlation in (("independent", 0.0), ("correlated", 0.8))
        for n in (3, 5)
    ),
    *(
        Design(
            f"family of {4 * len(FOUR)} ({doses} doses, 26 of 115 questions), {n} seeds",
            (n, n),
            (1,) * 115,
            contrasts=2,
            doses=len(FOUR),
            dose_correlation=correlation,
            nested_questions=26,
        )
        for doses, correlation in (("independent", 0.0), ("correlated", 0.8))
        for n in (3, 5)
    ),
]


def study(rng: np.random.Generator, design: Design) -> tuple[list[list[Arm]], np.ndarray]:
    """Question means of both arms at each dose, and each question's scenario."""
    sizes = np.array(design.scenarios)
    scenario = np.repeat(np.arange(len(sizes)), sizes)
    question = rng.normal(0, design.sd["question"], len(scenario))
    shared = rng.normal(0, design.shared or 0.0, (max(design.seeds), 1))
    ratios = (design.seed_ratio, 1.0)
    arms = []
    corpora = design.replicates or (0, 0)
    for seeds, ratio, written in zip(design.seeds, ratios, corpora, strict=True):
        base = design.level + question
        of_scenario = _at_doses(rng, design, design.sd["arm_scenario"], (len(sizes),))
        base = base + of_scenario[:, None, scenario]
        if seeds:
            seed_sd = ratio * design.sd["seed"]
            corpus_sd = design.sd["seed"] if written else 0.0
            spread = seed_sd**2 + design.sd["seed_question"] ** 2 + (design.shared or 0.0) ** 2
            spread += corpus_sd**2
            shape = (seeds, len(scenario))
            base = base * (1 + spread) ** 0.5 + shared[:seeds]
            base = base + _at_doses(rng, design, seed_sd, (seeds, 1))
            base = base + _at_doses(rng, design, design.sd["seed_question"], shape)
            numbers = np.arange(seeds) % max(written, 1)
            if written:
                base = base + rng.normal(0, corpus_sd, (written, 1))[numbers]
        scores = rng.binomial(EPOCHS, stats.norm.cdf(base)) / EPOCHS
        several = seeds and written > 1
        replicates = tuple(numbers.tolist()) if several else None
        arms.append([Arm(of_dose, not seeds, replicates) for of_dose in scores])
    return [[*pair] for pair in zip(*arms, strict=True)], scenario


def _at_doses(
    rng: np.random.Generator, design: Design, sd: float, shape: tuple[int, ...]
) -> np.ndarray:
    """A normal term at each dose, correlated between them; shape (doses, *shape)."""
    own = rng.normal(0, sd, (design.doses, *shape))
    if not design.dose_correlation:
        return own
    common = rng.normal(0, sd, shape)
    return design.dose_correlation**0.5 * common + (1 - design.dose_correlation) ** 0.5 * own


def family(rng: np.random.Generator, design: Design, runs_as_seeds: bool = False) -> list[Estimate]:
    """The deciding tests of one study of the design.

    `runs_as_seeds`: take the runs on one replicate of a corpus as independent.
    """
    tests = []
    for _ in range(design.contrasts):
        at_doses, scenario = study(rng, design)
        for arms in at_doses:
            if runs_as_seeds:
                arms = [replace(arm, replicates=None) for arm in arms]
            if design.shared is not None:
                arms, _ = pair_by_seed(arms, [list(range(n)) for n in design.seeds])
            tests.append(two_way(arms, scenario))
            if first := design.nested_questions:
                nested = [Arm(arm.scores[:, :first], arm.fixed) for arm in arms]
                tests.append(two_way(nested, scenario[:first]))
    return tests


def rejected(rng: np.random.Generator, design: Design, runs_as_seeds: bool = False) -> list[bool]:
    """Whether one study of the design finds a difference at each of its levels."""
    if design.looks:
        return [_is_found_at_a_look(rng, design)]
    if design.lost:
        return _found_with_lost_grades(rng, design)
    tests = family(rng, design, runs_as_seeds)
    ps = [1.0 if p is None else p for p in adjusted([test.p for test in tests], "holm")]
    return [min(ps) <= level for level in design.levels]


def _row(test: Estimate) -> Row:
    return {
        "name": "contrast",
        "family": "primary",
        "treatment": "treatment",
        "control": "control",
        "benchmark": "benchmark",
        "dose": 0,
        "control_dose": 0,
        "p": test.p,
        "estimate": test.estimate,
        "unfinished": 0,
        "reason": None,
        "seeds": min(test.seeds),
        "treatment_seeds": test.seeds[0],
        "control_seeds": test.seeds[1],
    }


def _is_found_at_a_look(rng: np.random.Generator, design: Design) -> bool:
    at_doses, scenario = study(rng, design)
    everything = set(range(max(design.seeds)))

    def rows_of(seeds: set[int] | None, level: float) -> list[Row]:
        n = len(everything if seeds is None else seeds)
        rows = [_row(two_way([Arm(arm.scores[:n]) for arm in at_doses[0]], scenario))]
        decide(rows, [[]], level)
        return rows

    looks = take_looks(rows_of, design.looks, sorted(everything))
    (row,) = judged_at_looks(looks, rows_of, everything)
    return row["verdict"] in DECIDED


def _found_with_lost_grades(rng: np.random.Generator, design: Design) -> list[bool]:
    at_doses, scenario = study(rng, design)
    treatment, control = at_doses[0]
    passed = treatment.scores * EPOCHS
    lost = rng.binomial((EPOCHS - passed).round().astype(int), design.lost)
    with np.errstate(invalid="ignore"):
        as_graded = passed / (EPOCHS - lost)  # NaN where no grade of a question is left
    test, *filled = (
        two_way([Arm(scores), control], scenario)
        for scores in (as_graded, treatment.scores, (passed + lost) / EPOCHS)
    )
    found = []
    for level in design.levels:
        row = _row(test)
        decide([row], [filled], level)
        found.append(row["verdict"] in DECIDED)
    return found


def rejections(design: Design, studies: int, runs_as_seeds: bool = False) -> list[float]:
    """The share of studies that find a difference at each level of the design."""
    gc.freeze()  # statsmodels collects garbage at each adjustment, which the modules slow down
    found = [
        rejected(np.random.default_rng([len(design.name), number]), design, runs_as_seeds)
        for number in range(studies)
    ]
    gc.unfreeze()
    return [float(share) for share in np.mean(found, axis=0)]


def lower_limit(share: float, studies: int) -> float:
    """The one-sided 95 % lower limit of a share (Clopper and Pearson)."""
    hits = round(share * studies)
    return float(stats.beta.ppf(0.05, hits, studies - hits + 1)) if hits else 0.0


def error_rate_rows(
    designs: Sequence[Design], studies: int, runs_as_seeds: bool
) -> list[list[object]]:
    """A row per design: its name and the rejections in percent, marked where they are too many."""
    rows: list[list[object]] = []
    for design in designs:
        row: list[object] = [design.name]
        shares = rejections(design, studies, runs_as_seeds)
        for level, share in zip(design.levels, shares, strict=True):
            limit = 0.06 if level == LEVELS[0] else 1.5 * level
            mark = " (!)" if lower_limit(share, studies) >= limit else ""
            row.append(f"{100 * share:.2f}{mark}")
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument(
        "--runs-as-seeds",
        action="store_true",
        help="designs with replicates of a corpus only: take the runs on one as independent",
    )
    parser.add_argument("--only", default="", help="of designs whose name contains this text")
    args = parser.parse_args()
    designs = [
        design
        for design in DESIGNS
        if args.only in design.name and (design.replicates or not args.runs_as_seeds)
    ]
    print(f"Rejections in %, {args.studies} studies a design, no difference. (!): too many.\n")
    headers = ["design", *(f"at {100 * level:.2f}" for level in LEVELS)]
    rows = error_rate_rows(designs, args.studies, args.runs_as_seeds)
    print(tabulate(rows, headers, disable_numparse=True))


if __name__ == "__main__":
    main()
