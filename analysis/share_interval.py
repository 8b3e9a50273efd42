"""The interval of a single arm's mean that is a share, and so lies between 0 and 1."""

from dataclasses import replace

import numpy as np
from scipy import special, stats

from analysis.estimates import ALPHA, NO_VARIATION, Estimate

EDGE = 1e-9  # a mean this near to 0 or 1 is one of scores that all are


def share_interval(mean: Estimate) -> Estimate:
    """`mean` with its interval on the logit scale in place of the symmetric one.

    The symmetric interval leaves 0..1 and covers too little near the ends. The standard error of
    the logit is se / (mean (1 - mean)), the delta method; the reference distribution is the same.
    Where every score is 0, or every score 1, the interval is that of Clopper and Pearson
    (Biometrika 26, 1934) with one trial for each scenario. An estimate without an interval for
    another reason is returned as it is.
    """
    if mean.estimate is None:
        return mean
    if mean.reason == NO_VARIATION and not EDGE < mean.estimate < 1 - EDGE:
        farthest = float(stats.beta.isf(ALPHA / 2, 1, mean.clusters))
        ends = (0.0, farthest) if mean.estimate < 0.5 else (1 - farthest, 1.0)
        return replace(mean, low=ends[0], high=ends[1], reason=None)
    if mean.se is None or mean.reference is None or not EDGE < mean.estimate < 1 - EDGE:
        return mean
    slope = mean.estimate * (1 - mean.estimate)
    half = mean.reference.quantile(ALPHA) * mean.se / slope
    ends = special.expit(special.logit(mean.estimate) + np.array([-half, half])).tolist()
    return replace(mean, low=ends[0], high=ends[1])
