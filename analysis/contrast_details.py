"""What is reported of a contrast beside its verdict. Nothing here decides."""

from collections.abc import Sequence

import numpy as np

from analysis.estimates import ALPHA, Arm, Estimate, combine_parts


def prediction_interval(result: Estimate, arms: Sequence[Arm]) -> tuple[float, float] | None:
    """The 95 % interval for the difference between one new training run of each side.

    For new questions too, as the estimate's own; None where the estimate has none. To the variance
    of the estimate it adds that of one run over seeds, on each side that has seeds: the seed part
    sd^2 / n becomes sd^2 (1 + 1 / n), as for a single future observation (Hahn and Meeker,
    "Statistical Intervals", 1991). Parts are combined as in `estimates.two_way`. Scores of runs
    contain what is particular to these questions, so that it is rather too wide. Where a corpus was
    written several times the new run is on another writing: to the variance over writings it adds
    what their means over several runs lack of a single run's. It is at least as wide as the
    interval of the estimate, also where more of its variance has many degrees of freedom.

    Args:
        result: `two_way` of the arms.
        arms: both sides.
    """
    if result.se is None:
        return None
    assert result.estimate is not None
    assert result.question_se is not None
    assert result.question_df is not None
    seed_parts = []
    for arm, sd, seeds in zip(arms, result.seed_sds, result.seeds, strict=True):
        if sd is not None:
            runs = arm.runs_of_corpora() or (1,) * seeds
            of_run = sd**2 + (1 - float(np.mean([1 / n for n in runs]))) * _run_variance(arm)
            seed_parts.append((sd**2 / len(runs) + of_run, len(runs) - 1))
    question_part = (result.question_se**2, result.question_df)
    se, _, reference = combine_parts(seed_parts, question_part, (result.interaction_se or 0.0) ** 2)
    assert result.reference is not None
    of_estimate = result.reference.quantile(ALPHA) * result.se
    half = max(reference.quantile(ALPHA) * se, of_estimate)
    return result.estimate - half, result.estimate + half


def _run_variance(arm: Arm) -> float:
    """The variance of the means of runs on one writing of the corpus; 0.0 where none has two."""
    graded = np.isfinite(arm.scores).any(axis=1)
    means = np.nanmean(arm.scores[graded], axis=1)
    corpora = np.array(arm.replicates or range(len(arm.scores)))[graded]
    groups = [means[corpora == corpus] for corpus in np.unique(corpora)]
    df = len(means) - len(groups)
    return sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / df if df else 0.0


def cohens_d(estimate: float | None, answers: Sequence[np.ndarray]) -> float | None:
    """Cohen's d: the difference over the standard deviation of single answers.

    The standard deviation is the root of the mean of both arms' variances over all their graded
    answers (Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, equation
    2.3.2). It holds every source of variation, of seeds, questions and sampling, as Westfall, Kenny
    and Judd (J. Exp. Psychol. Gen. 143, 2014) ask for crossed designs. None without variation.

    Args:
        estimate: the difference in score units.
        answers: the scores of each arm's answers, NaN where an answer has no grade.
    """
    graded = [scores[np.isfinite(scores)] for scores in answers]
    if estimate is None or min(map(len, graded)) < 2:
        return None
    sd = float(np.mean([scores.var(ddof=1) for scores in graded])) ** 0.5
    return estimate / sd if sd > 1e-9 else None


def question_signs(arms: Sequence[Arm], estimate: float | None) -> tuple[int | None, int]:
    """How many questions differ with the opposite sign than `estimate`, and how many not at all.

    Of the questions that are graded in both `arms`. The first is None where `estimate` has no sign.
    """
    means = []
    for scores in (arm.of_corpora() for arm in arms):
        graded = np.isfinite(scores).any(axis=0)
        mean = np.full(scores.shape[1], np.nan)
        mean[graded] = np.nanmean(scores[:, graded], axis=0)
        means.append(mean)
    difference = means[0] - means[1]
    difference = difference[np.isfinite(difference)]
    equal = np.abs(difference) < 1e-9
    if not estimate:
        return None, int(equal.sum())
    opposite = ~equal & (np.sign(difference) == -np.sign(estimate))
    return int(opposite.sum()), int(equal.sum())
