"""Means and contrasts with the two-way (seed and question) variance that verdicts rest on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis.reference import Reference
from core.garbage import collections_skipped

ALPHA = 0.05
ROUNDING = 1e-12  # a difference this small is one of rounding
NO_VARIATION = "the scores vary neither over seeds nor over questions: there is nothing to test"


@dataclass(frozen=True)
class Arm:
    """Question means of one arm at one dose.

    `scores` has shape (seeds, questions), NaN where nothing was graded. `fixed` marks a checkpoint
    without a training seed (an untrained model): it has no variance over seeds. `replicates` has
    the replicate of its corpus that each seed was trained on; None where the corpus was written
    once.
    """

    scores: np.ndarray
    fixed: bool = False
    replicates: tuple[int, ...] | None = None

    def of_corpora(self) -> np.ndarray:
        """The scores with a row for each replicate, the mean of its runs, in place of each seed.

        Where the corpus was written once, a row for each seed. Shape (corpora or seeds, questions).
        """
        if self.replicates is None:
            return self.scores
        numbers = np.array(self.replicates)
        # In the order of their first seeds: with a replicate for each seed no row moves.
        runs = (self.scores[numbers == number] for number in dict.fromkeys(self.replicates))
        means = []
        for scores in runs:
            graded = np.isfinite(scores).sum(axis=0)
            mean = np.nansum(scores, axis=0) / np.maximum(graded, 1)
            means.append(np.where(graded > 0, mean, np.nan))
        return np.array(means)

    def runs_of_corpora(self) -> tuple[int, ...] | None:
        """How many graded runs each replicate has; None where the corpus was written once."""
        if self.replicates is None:
            return None
        graded = np.isfinite(self.scores).any(axis=1)
        used = [number for number, has in zip(self.replicates, graded, strict=True) if has]
        return tuple(Counter(used).values())

    def drop_seed(self, row: int) -> "Arm":
        """The arm without one seed, by its row."""
        replicates = self.replicates and self.replicates[:row] + self.replicates[row + 1 :]
        return replace(self, scores=np.delete(self.scores, row, axis=0), replicates=replicates)


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference of two means, in score units (0..1).

    A number that the data can't give is None, and `reason` says why. `seed_se`, `question_se` and
    `interaction_se` are the square roots of the three parts of the variance. `low` and `high` are
    the ends of the interval at the level of the test. `reference` is what `estimate` / `se` is
    compared with, and `df` Satterthwaite's degrees of freedom (`question_df` those of the question
    part). `seeds` has a number for each arm (0 for a fixed one), `corpora` the runs on each
    replicate of its corpus (None where it was written once), `seed_sds` the standard deviation over
    seeds, or corpora, of their means (None for fewer than 2).
    """

    estimate: float | None = None
    se: float | None = None
    df: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    seed_se: float | None = None
    question_se: float | None = None
    interaction_se: float | None = None
    question_df: float | None = None
    reference: Reference | None = None
    seeds: tuple[int, ...] = ()
    corpora: tuple[tuple[int, ...] | None, ...] = ()
    seed_sds: tuple[float | None, ...] = ()
    questions: int = 0
    clusters: int = 0
    left_out: int = 0
    reason: str | None = None


def two_way(arms: Sequence[Arm], scenarios: np.ndarray, level: float = ALPHA) -> Estimate:
    """The mean of one arm, or the first arm's minus the second's, with its two-way variance.

    The estimate is the mean over questions of the difference between the arms' means over seeds.
    Its variance is that of a crossed design in which seeds and questions are both random:

        variance = seed part + question part - interaction part, at least the larger of the first
        two

    - seed part: variance over seeds of the seed means / seeds, summed over arms (arms train
      independently);
    - question part: the variance of the mean paired difference by the jackknife that leaves out
      one scenario at a time. Questions of one scenario (translations, rewordings) are one cluster.
      With scenarios of equal size it is their variance / scenarios; with one that dominates it is
      larger, as it has to be;
    - interaction part: the same jackknife of what is left after seed and question means, over seeds
      x (seeds - 1), which the two other parts both contain.

    Sum and difference of parts as in Cameron, Gelbach and Miller, "Robust inference with multiway
    clustering", J. Bus. Econ. Stat. 29 (2011), with the mean squares of the two-way random-effects
    analysis of variance (Searle, Casella and McCulloch, "Variance Components", 1992), unbiased
    when the design is balanced. Clusters of questions: Miller, "Adding error bars to evals", arXiv
    2411.00640. Jackknife: Bell and McCaffrey, "Bias reduction in standard errors for linear
    regression with multi-stage samples", Surv. Methodol. 28 (2002).

    The test and interval (at `level`) use Student's t with the degrees of freedom of Satterthwaite,
    "An approximate distribution of estimates of variance components", Biometrics 2 (1946):
    variance^2 / sum over parts of part^2 / df(part), with seeds - 1 for each arm's seed part and
    scenarios - 1 for the question part, or fewer where scenarios are of unequal size (Bell and
    McCaffrey). Few seeds therefore widen the interval only as far as seeds matter. Where one side
    alone has a seed part (a fixed checkpoint, a paired contrast, a single arm) these degrees of
    freedom promise too much, and the quantile is that of Cochran and Cox (analysis.reference).

    Where an arm's corpus was written several times, its replicates stand for the seeds in all of
    this: the runs on one replicate are averaged first, since they share its documents.

    A question without any grade in one arm leaves both arms (`left_out`). A grade that is missing
    in some seeds only is averaged over the others and counts as fitted (no residual).
    `scenarios` has shape (questions,).
    """
    scores_of = [arm.of_corpora() for arm in arms]
    graded = np.logical_and.reduce([np.isfinite(scores).any(axis=0) for scores in scores_of])
    left_out = int((~graded).sum())
    questions = int(graded.sum())
    if not questions:
        reason = "no question was graded" + (" in both arms" if len(arms) > 1 else "")
        return Estimate(left_out=left_out, reason=reason)
    _, cluster = np.unique(scenarios[graded], return_inverse=True)
    clusters = int(cluster.max()) + 1

    paired = np.zeros(questions)
    seed_parts = []
    seed_sds: list[float | None] = []
    interaction_part = 0.0
    seeds = []
    units = []  # seeds, or replicates
    for sign, arm, arm_scores in zip((1, -1), arms, scores_of, strict=False):
        scores = arm_scores[:, graded]
        scores = scores[np.isfinite(scores).any(axis=1)]
        of_question = np.nanmean(scores, axis=0)
        paired = paired + sign * of_question
        units.append(0 if arm.fixed else len(scores))
        in_rows = np.isfinite(arm.scores[:, graded]).any(axis=1)
        seeds.append(0 if arm.fixed else int(in_rows.sum()))
        seed_sds.append(None)
        if units[-1] < 2:
            continue
        # deviations from the question's mean: a seed that lost an easy question is no worse seed
        deviation = scores - of_question
        of_seed = np.nanmean(deviation, axis=1)
        of_seed -= of_seed.mean()
        seed_variance = float(of_seed.var(ddof=1))
        seed_parts.append((seed_variance / len(scores), len(scores) - 1))
        seed_sds[-1] = seed_variance**0.5
        residual = np.nan_to_num(deviation - of_seed[:, None], nan=0.0)
        squares = sum(_jackknife(row, cluster) for row in residual)
        interaction_part += squares / (len(scores) * (len(scores) - 1))

    estimate = float(paired.mean())
    estimate = estimate if abs(estimate) > ROUNDING else 0.0
    question_part = _jackknife(paired, cluster)
    result = Estimate(
        estimate,
        seeds=tuple(seeds),
        corpora=tuple(arm.runs_of_corpora() for arm in arms),
        seed_sds=tuple(seed_sds),
        questions=questions,
        clusters=clusters,
        left_out=left_out,
    )
    if clusters > 1:
        result = replace(result, question_se=question_part**0.5)
    if 1 in units:
        reason = "one seed per arm: how far another training seed would differ is unknown"
        if (1, 1) not in zip(units, seeds, strict=True):
            reason = "one corpus per arm: how far other documents would differ is unknown"
        return replace(result, reason=reason)
    if len(arms) > 1 and not seed_parts:
        reason = "one checkpoint per arm: how far another training run would differ is unknown"
        return replace(result, reason=reason)
    seed_part = sum(part for part, _ in seed_parts)
    if seed_parts:
        result = replace(result, seed_se=seed_part**0.5, interaction_se=interaction_part**0.5)
    if clusters < 2:
        reason = "one scenario only: nothing can be said about new questions"
        return replace(result, reason=reason)
    if max(seed_part, question_part) < 1e-18:
        return replace(result, reason=NO_VARIATION)
    question_df = jackknife_df(tuple(np.bincount(cluster).tolist()))
    se, df, reference = combine_parts(seed_parts, (question_part, question_df), interaction_part)
    half = reference.quantile(level) * se
    # a single mean is described, not tested against 0
    p = reference.p(estimate / se) if len(arms) > 1 else None
    result = replace(result, low=estimate - half, high=estimate + half, p=p)
    return replace(result, se=se, df=df, question_df=question_df, reference=reference)


def combine_parts(
    seed_parts: Sequence[tuple[float, float]],
    question_part: tuple[float, float],
    interaction_part: float,
) -> tuple[float, float, Reference]:
    """Standard error, Satterthwaite's degrees of freedom and reference distribution: see `two_way`.

    `seed_parts` and `question_part` are parts of the variance with their degrees of freedom.
    """
    seed_part = sum(part for part, _ in seed_parts)
    sum_of_parts = seed_part + question_part[0] - interaction_part
    variance = max(sum_of_parts, seed_part, question_part[0])
    parts = [*seed_parts, question_part]
    df = variance**2 / sum(part**2 / part_df for part, part_df in parts)
    one_sided = len(seed_parts) == 1
    reference = Reference.of_parts(*parts) if one_sided else Reference(((1.0, df),))
    return variance**0.5, df, reference


def _jackknife(values: np.ndarray, cluster: np.ndarray) -> float:
    """The variance of the mean of `values` by leaving out one cluster at a time.

    `cluster` numbers them from 0. 0.0 with one cluster.
    """
    sizes = np.bincount(cluster)
    if len(sizes) < 2:
        return 0.0
    sums = np.bincount(cluster, values)
    without = (values.sum() - sums) / (len(values) - sizes)
    return float((len(sizes) - 1) / len(sizes) * ((without - values.mean()) ** 2).sum())


@lru_cache
def jackknife_df(sizes: tuple[int, ...]) -> float:
    """Satterthwaite's degrees of freedom of `_jackknife` for clusters of these sizes.

    Values are taken as independent and of one variance, the working model of Bell and McCaffrey
    (2002). Clusters - 1 where all are of one size; fewer where a few of them carry the mean.
    """
    if len(set(sizes)) == 1:
        return len(sizes) - 1
    n = np.array(sizes, float)
    form = jackknife_form(n, np.sqrt(n))
    return float(np.trace(form) ** 2 / (form**2).sum())


def jackknife_form(sizes: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """The matrix of the quadratic form that `_jackknife` is, times clusters / (clusters - 1).

    It is of independent standard normal variables, for clusters of `sizes` whose sums have the
    standard deviations `sd`.
    """
    # The deviations of the means without a cluster, as a linear map of the clusters' sums.
    deviations = (1 - np.eye(len(sizes))) / (sizes.sum() - sizes)[:, None] - 1 / sizes.sum()
    form: np.ndarray = sd[:, None] * (deviations.T @ deviations) * sd
    return form


def adjusted(ps: Sequence[float | None], method: str) -> list[float | None]:
    """p-values adjusted for several tests, by statsmodels' `method`.

    A test that could not be made (None) stays None and counts as p = 1.
    """
    if not ps:
        return []
    with collections_skipped("statsmodels"):  # Holm's correction collects, though it leaves nothing
        values = multipletests([1.0 if p is None else p for p in ps], method=method)[1]
    return [None if p is None else float(q) for p, q in zip(ps, values, strict=True)]


def pair_by_seed(
    arms: Sequence[Arm], seeds: Sequence[list[int]]
) -> tuple[list[Arm], list[list[int]]]:
    """Turn two arms into their difference within each seed that both have, beside zeros.

    For arms whose runs of one seed share an earlier training: its effect is in both and cancels.

    Args:
        arms: two arms with the same questions. A seed has the same replicate in both.
        seeds: the training seeds of the rows of each arm.

    Returns:
        Two arms for `two_way` (the differences, and a fixed arm of zeros) and their seeds.
    """
    common = [seed for seed in seeds[0] if seed in seeds[1]]
    first, second = ([arm_seeds.index(seed) for seed in common] for arm_seeds in seeds)
    difference = arms[0].scores[first] - arms[1].scores[second]
    replicates = arms[0].replicates and tuple(arms[0].replicates[row] for row in first)
    zeros = Arm(np.zeros((1, difference.shape[1])), fixed=True)
    return [Arm(difference, replicates=replicates), zeros], [common, []]


def response_level_p(treatment: np.ndarray, control: np.ndarray) -> float | None:
    """p of Welch's t-test over single responses, as the paper computes it; it never decides.

    The test takes every answer as independent, though answers share seeds and questions. Under
    plausible variances it rejects a true null hypothesis in a quarter to over half of all studies.
    None where the test is undefined.
    """
    treatment = treatment[np.isfinite(treatment)]
    control = control[np.isfinite(control)]
    if min(len(treatment), len(control)) < 2 or treatment.var() + control.var() < 1e-18:
        return None
    return float(stats.ttest_ind(treatment, control, equal_var=False).pvalue)
