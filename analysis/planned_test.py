"""The deciding test of a study that has not run: its power, and the difference that it detects."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, stats

from analysis.estimates import ALPHA, jackknife_df, jackknife_form
from analysis.rows import Row

# What varies over training seeds: both sides (free), one side (fixed), or the difference within
# seeds of two sides that share their midtraining (paired).
Kind = Literal["free", "fixed", "paired"]
POWER = 0.8
ROUNDING = 1e-6  # of a score
# Equal shares of a chi-squared distribution, each with its midpoint.
SHARES_OF_SEEDS = {1: 400, 2: 40}  # by the number of parts that vary over seeds
SHARES_OF_QUESTIONS = 10


@dataclass(frozen=True)
class Variances:
    """Standard deviations in score units, as in the study's own power simulation (2026).

    Those of one side. For a paired contrast they are those of the difference within seeds over the
    root of 2, so that they equal a free contrast's where the sides share nothing. `question`
    cancels in a contrast. `sampling` is of one graded answer, and `epochs` of them make a
    question mean.
    """

    question: float = 0.25
    arm_question: float = 0.08
    seed: float = 0.03
    seed_question: float = 0.05
    sampling: float = 0.22
    epochs: int = 30


@dataclass(frozen=True)
class Scenarios:
    """The scenarios of a benchmark, as the test counts them.

    `effective`: scenarios of equal size whose mean varies as much. `per_scenario`: questions in
    each of those. `inflation`: the jackknife's expectation over the variance of the mean (1 for
    equal sizes). `df`: the degrees of freedom that the test counts for it; `true_df`: those that it
    has, fewer where the questions of large scenarios go together.
    """

    effective: float
    per_scenario: float
    inflation: float
    df: float
    true_df: float

    @classmethod
    def of_sizes(cls, sizes: Sequence[int]) -> "Scenarios":
        """From the number of questions in each scenario.

        The questions of a scenario (translations) are taken to differ between arms and seeds alike,
        while their answers are sampled independently.
        """
        if len(set(sizes)) == 1:
            return cls.equal(len(sizes), sizes[0])
        n = np.array(sizes, float)
        total = n.sum()
        effective = float(total**2 / (n**2).sum())
        form = jackknife_form(n, n)
        trace = float(np.trace(form))
        return cls(
            effective,
            float(total / effective),
            (len(n) - 1) / len(n) * trace * effective,
            jackknife_df(tuple(sizes)),
            float(trace**2 / (form**2).sum()),
        )

    @classmethod
    def equal(cls, count: int, per_scenario: float = 1.0) -> "Scenarios":
        """`count` scenarios of equal size."""
        return cls(count, per_scenario, 1.0, count - 1, count - 1)


@dataclass(frozen=True)
class Design:
    """What a contrast on one benchmark is tested with."""

    seeds: int  # training seeds of each side that has any
    scenarios: Scenarios
    kind: Kind = "free"


class PlannedTest:
    """`analysis.estimates.two_way` on studies of one design, by its own formulas.

    Its parts of the variance are independent scaled chi-squared variables, from which the test
    takes its variance and its quantile: Student's t with Satterthwaite's degrees of freedom for a
    free contrast, Cochran and Cox's quantile where one part alone varies over seeds. The estimate
    is normal and independent of them. The interaction part is taken at its expected value.

    A fixed checkpoint differs from question to question as a checkpoint of a trained arm does.

    Attributes:
        se: the estimate's standard error.
    """

    def __init__(self, variances: Variances, design: Design, level: float = ALPHA) -> None:
        """Needs two seeds and two scenarios: see `planned_test`."""
        seeds = design.seeds
        scenarios = design.scenarios
        sides = 1 if design.kind == "fixed" else 2
        cell = variances.seed_question**2
        cell += variances.sampling**2 / (scenarios.per_scenario * variances.epochs)
        fixed = cell if design.kind == "fixed" else 0.0
        seed = (variances.seed**2 + cell / scenarios.effective) / seeds
        interaction = sides * cell / (seeds * scenarios.effective)
        question = (2 * variances.arm_question**2 + fixed) / scenarios.effective + interaction
        self.se = (sides * seed + question - interaction) ** 0.5

        self._level = level
        self._interaction = interaction * scenarios.inflation
        self._seed_parts = [seed, seed] if design.kind == "free" else [sides * seed]
        self._question_part = question * scenarios.inflation
        self._dfs = [*[seeds - 1.0] * len(self._seed_parts), scenarios.df]
        self._true_dfs = [*self._dfs[:-1], scenarios.true_df]

    @property
    def df(self) -> float:
        """Satterthwaite's at the expected parts, which promise too much for few seeds."""
        parts = [np.array(part) for part in (*self._seed_parts, self._question_part)]
        return float(self._satterthwaite(parts, self._variance(parts)))

    def power(self, effect: float) -> float:
        """The probability that the test rejects where the sides differ by `effect`."""
        above = stats.norm.sf((self._half_widths - effect) / self.se)
        below = stats.norm.cdf((-self._half_widths - effect) / self.se)
        return float((above + below).mean())

    def detectable(self, share: float = POWER) -> float:
        """The difference (score units) that the test finds with probability `share`."""
        largest = float(self._half_widths.max()) + 9 * self.se
        effect: float = optimize.brentq(lambda effect: self.power(effect) - share, 0, largest)
        return effect

    @cached_property
    def _half_widths(self) -> np.ndarray:
        """Of the intervals, each of which has the same probability."""
        seed_shares = SHARES_OF_SEEDS[len(self._seed_parts)]
        counts = [*[seed_shares] * len(self._seed_parts), SHARES_OF_QUESTIONS]
        scaled = [
            part * stats.chi2.ppf((np.arange(n) + 0.5) / n, df) / df
            for part, df, n in zip(
                [*self._seed_parts, self._question_part], self._true_dfs, counts, strict=True
            )
        ]
        parts = [grid.ravel() for grid in np.meshgrid(*scaled)]
        variance = self._variance(parts)
        if len(self._seed_parts) == 1:
            seed, question = parts
            of_seed, of_question = (stats.t.isf(self._level / 2, df) for df in self._dfs)
            quantile = (seed * of_seed + question * of_question) / (seed + question)
        else:
            quantile = stats.t.isf(self._level / 2, self._satterthwaite(parts, variance))
        half_widths: np.ndarray = quantile * variance**0.5
        return half_widths

    def _variance(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        *of_seeds, question = parts
        seed = np.sum(of_seeds, axis=0)
        total = seed + question - self._interaction
        variance: np.ndarray = np.maximum.reduce([total, seed, question])
        return variance

    def _satterthwaite(self, parts: Sequence[np.ndarray], variance: np.ndarray) -> np.ndarray:
        terms = [part**2 / df for part, df in zip(parts, self._dfs, strict=True)]
        df: np.ndarray = variance**2 / np.sum(terms, axis=0)
        return df


@lru_cache(maxsize=1000)
def planned_test(variances: Variances, design: Design, level: float = ALPHA) -> PlannedTest | None:
    """The test of a design; None where it makes none, or where nothing varies."""
    if design.seeds < 2 or design.scenarios.effective < 1 + ROUNDING:
        return None
    test = PlannedTest(variances, design, level)
    return test if test.se > ROUNDING else None


def kind_of(contrast: Row) -> Kind:
    """Of a row of analysis.contrasts."""
    if contrast["paired"]:
        return "paired"
    return "fixed" if 0 in (contrast["treatment_seeds"], contrast["control_seeds"]) else "free"
