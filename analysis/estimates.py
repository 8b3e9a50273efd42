"""Means and contrasts with the two-way (seed and question) variance that verdicts rest on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

ALPHA = 0.05


@dataclass(frozen=True)
class Arm:
    """Question means of one arm at one dose.

    `scores` has shape (seeds, questions), NaN where nothing was graded. `fixed` marks a checkpoint
    without a training seed (an untrained model): it has no variance over seeds.
    """

    scores: np.ndarray
    fixed: bool = False


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference of two means, in score units (0..1).

    A number that the data can't give is None, and `reason` says why. `seed_se`, `question_se` and
    `interaction_se` are the square roots of the three parts of the variance. `low` and `high` are
    the ends of the 95 % interval. `seeds` has a number for each arm (0 for a fixed one).
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
    seeds: tuple[int, ...] = ()
    questions: int = 0
    clusters: int = 0
    left_out: int = 0
    reason: str | None = None


def two_way(arms: Sequence[Arm], scenarios: np.ndarray) -> Estimate:
    """The mean of one arm, or the first arm's minus the second's, with its two-way variance.

    The estimate is the mean over questions of the difference between the arms' means over seeds.
    Its variance is that of a crossed design in which seeds and questions are both random:

        variance = seed part + question part - interaction part, at least the larger of the first
        two

    - seed part: variance over seeds of the seed means / seeds, summed over arms (arms train
      independently);
    - question part: variance over scenarios of the paired difference / scenarios. Questions of one
      scenario (translations, rewordings) are one cluster; with clusters of unequal size this is
      the usual cluster-robust form with its C / (C - 1) correction;
    - interaction part: mean square of what is left after seed and question means / (seeds x
      questions), which the two other parts both contain.

    Sum and difference of parts as in Cameron, Gelbach and Miller, "Robust inference with multiway
    clustering", J. Bus. Econ. Stat. 29 (2011), with the mean squares of the two-way random-effects
    analysis of variance (Searle, Casella and McCulloch, "Variance Components", 1992), unbiased
    when the design is balanced. Clusters of questions: Miller, "Adding error bars to evals", arXiv
    2411.00640. The test and interval use Student's t with the degrees of freedom of Satterthwaite,
    "An approximate distribution of estimates of variance components", Biometrics 2 (1946):
    variance^2 / sum over parts of part^2 / df(part), with seeds - 1 for each arm's seed part and
    scenarios - 1 for the question part. Few seeds therefore widen the interval only as far as
    seeds matter.

    A question without any grade in one arm leaves both arms (`left_out`). A grade that is missing
    in some seeds only is averaged over the others and counts as fitted (no residual).
    `scenarios` has shape (questions,).
    """
    graded = np.logical_and.reduce([np.isfinite(arm.scores).any(axis=0) for arm in arms])
    left_out = int((~graded).sum())
    questions = int(graded.sum())
    if not questions:
        reason = "no question was graded" + (" in both arms" if len(arms) > 1 else "")
        return Estimate(left_out=left_out, reason=reason)
    _, cluster = np.unique(scenarios[graded], return_inverse=True)
    clusters = int(cluster.max()) + 1
    correction = clusters / (clusters - 1) if clusters > 1 else 0.0

    paired = np.zeros(questions)
    seed_parts = []
    interaction_part = 0.0
    seeds = []
    for sign, arm in zip((1, -1), arms, strict=False):
        scores = arm.scores[:, graded]
        scores = scores[np.isfinite(scores).any(axis=1)]
        of_question = np.nanmean(scores, axis=0)
        paired = paired + sign * of_question
        seeds.append(0 if arm.fixed else len(scores))
        if seeds[-1] < 2:
            continue
        # deviations from the question's mean: a seed that lost an easy question is no worse seed
        deviation = scores - of_question
        of_seed = np.nanmean(deviation, axis=1)
        of_seed -= of_seed.mean()
        seed_parts.append((float(of_seed.var(ddof=1)) / len(scores), len(scores) - 1))
        residual = np.nan_to_num(deviation - of_seed[:, None], nan=0.0)
        summed = np.stack([np.bincount(cluster, row, clusters) for row in residual]) / questions
        squares = correction * float((summed**2).sum())
        interaction_part += squares / (len(scores) * (len(scores) - 1))

    estimate = float(paired.mean())
    summed = np.bincount(cluster, paired - estimate, clusters) / questions
    question_part = correction * float((summed**2).sum())
    result = Estimate(
        estimate, seeds=tuple(seeds), questions=questions, clusters=clusters, left_out=left_out
    )
    if clusters > 1:
        result = replace(result, question_se=question_part**0.5)
    if 1 in seeds:
        reason = "one seed per arm: how far another training seed would differ is unknown"
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
    variance = max(seed_part + question_part - interaction_part, seed_part, question_part)
    se = variance**0.5
    if se < 1e-9:
        reason = "the scores vary neither over seeds nor over questions: there is nothing to test"
        return replace(result, reason=reason)
    parts = [*seed_parts, (question_part, clusters - 1)]
    df = variance**2 / sum(part**2 / part_df for part, part_df in parts)
    half = float(stats.t.ppf(1 - ALPHA / 2, df)) * se
    # a single mean is described, not tested against 0
    p = float(2 * stats.t.sf(abs(estimate) / se, df)) if len(arms) > 1 else None
    return replace(result, se=se, df=df, low=estimate - half, high=estimate + half, p=p)


def adjusted(ps: Sequence[float | None], method: str) -> list[float | None]:
    """p-values adjusted for several tests, by statsmodels' `method`.

    A test that could not be made (None) stays None and counts as p = 1.
    """
    if not ps:
        return []
    values = multipletests([1.0 if p is None else p for p in ps], method=method)[1]
    return [None if p is None else float(q) for p, q in zip(ps, values, strict=True)]


def pair_by_seed(
    arms: Sequence[Arm], seeds: Sequence[list[int]]
) -> tuple[list[Arm], list[list[int]]]:
    """Turn two arms into their difference within each seed that both have, beside zeros.

    For arms whose runs of one seed share an earlier training: its effect is in both and cancels.

    Args:
        arms: two arms with the same questions.
        seeds: the training seeds of the rows of each arm.

    Returns:
        Two arms for `two_way` (the differences, and a fixed arm of zeros) and their seeds.
    """
    common = [seed for seed in seeds[0] if seed in seeds[1]]
    first, second = (
        arm.scores[[arm_seeds.index(seed) for seed in common]]
        for arm, arm_seeds in zip(arms, seeds, strict=True)
    )
    zeros = Arm(np.zeros((1, first.shape[1])), fixed=True)
    return [Arm(first - second), zeros], [common, []]


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
