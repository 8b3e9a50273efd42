"""A mixed model of the same contrast, beside the two-way test, which alone decides."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import linalg, optimize, stats
from statsmodels.tools.numdiff import approx_fprime, approx_hess

from analysis.estimates import ALPHA, Arm, two_way

ZERO = 1e-4  # a variance below this share of the residual's is reported as zero
AS_GOOD = 1e-3  # of the deviance: a variance without which the model fits as well is zero
FEWEST_DF = 1.0
STEEPEST = 0.01  # slope of the deviance, by the logarithm of a variance, at the end of a search
Arms = tuple[np.ndarray, np.ndarray]
Fixed = tuple[bool, bool]


@dataclass(frozen=True)
class Mixed:
    """Treatment minus control in score units.

    A number that the model can't give is None, and `reason` says why. `variances`: per random
    intercept and for the residual, in squared score units. `at_zero`: those estimated as zero, a
    usual outcome with few seeds and not a failure.
    """

    estimate: float | None = None
    se: float | None = None
    df: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    variances: dict[str, float] = field(default_factory=dict)
    at_zero: tuple[str, ...] = ()
    reason: str | None = None


def mixed_model(
    treatment: np.ndarray,
    control: np.ndarray,
    scenarios: np.ndarray,
    fixed: Fixed = (False, False),
) -> Mixed:
    """The difference between two arms by REML under
    `score ~ arm + (1 | run) + (1 | scenario) + (1 | arm:scenario)`.

    Args:
        treatment, control: question means of shape (seeds, questions), NaN where nothing was
            graded. A seed of one arm is another run than that of the other.
        scenarios: shape (questions,). Where a scenario has several questions, they get intercepts
            `question` and `arm:question` beside the scenario's.
        fixed: marks an arm without a training seed: its checkpoint has no run intercept.

    Means are modelled rather than single answers. With as many answers to each question the means
    carry all that the answers say about the arms, and a model of answers needs an intercept for
    run x question too, without which it takes 30 answers to a question for 30 questions.

    Fitted as in R's lme4 (Bates et al., J. Stat. Softw. 67(1), 2015): the REML deviance, profiled
    over the residual's variance, is minimized over the other variances in multiples of it, which
    may be zero. statsmodels' MixedLM stops before the minimum in designs of five intercepts, with
    standard errors a fifth off.

    se, p and interval use Student's t with Satterthwaite's degrees of freedom
    2 v^2 / (g' A g), where v is the variance of the difference, g its gradient in the variances
    and A the inverse of half the Hessian of the REML deviance, as in R's lmerTest (Kuznetsova,
    Brockhoff and Christensen, J. Stat. Softw. 82(13), 2017). Variances at zero leave g and A.
    With few seeds these intervals rest on a normal model; they decide nothing.
    """
    direct = two_way([Arm(treatment, fixed[0]), Arm(control, fixed[1])], scenarios)
    if direct.reason:
        return Mixed(direct.estimate, reason=direct.reason)
    arms = (treatment, control)
    endog, exog, intercepts = _design(arms, scenarios, fixed)
    scale = float(endog.std())
    start = _moments(arms, fixed)
    used = dict(intercepts)
    ratios = {name: start[name.replace("question", "scenario")] for name in intercepts}
    try:
        while True:
            theta = _fit(endog / scale, exog, used, [ratios[name] for name in used])
            if theta is None:
                return Mixed(reason="the mixed model did not converge")
            ratios = dict(zip(used, (theta[:-1] / theta[-1]).tolist(), strict=True))
            model = _Restricted(endog / scale, exog, list(used.values()))
            at_zero = model.at_zero(theta)
            kept = {
                name: intercept
                for (name, intercept), is_zero in zip(used.items(), at_zero, strict=True)
                if ratios[name] > ZERO and not is_zero
            }
            if len(kept) == len(used):
                estimate, variance = model.difference(theta)
                df = model.satterthwaite(theta)
                if df > 0 or not used:
                    break
                # too near zero for the deviance to have a curvature there
                del kept[min(kept, key=lambda name: ratios[name])]
            # a search that ends at zero is loose in the other variances: fit again without it
            used = kept
    except (ValueError, ZeroDivisionError) as error:
        return Mixed(reason=f"the mixed model can't be fitted: {error}")
    se = variance**0.5 * scale
    estimate *= scale
    if not (np.isfinite([estimate, se, df]).all() and se > 0 and df > 0):
        return Mixed(reason="the mixed model gives no finite standard error")
    if df < FEWEST_DF:
        return Mixed(estimate, reason=f"no interval: {df:.1f} degrees of freedom, fewer than 1")
    half = float(stats.t.ppf(1 - ALPHA / 2, df)) * se
    fitted = dict(zip([*used, "residual"], (theta * scale**2).tolist(), strict=True))
    return Mixed(
        estimate=estimate,
        se=se,
        df=df,
        low=estimate - half,
        high=estimate + half,
        p=float(2 * stats.t.sf(abs(estimate) / se, df)),
        variances=dict.fromkeys(intercepts, 0.0) | fitted,
        at_zero=tuple(name for name in intercepts if name not in used),
    )


def _design(
    arms: Arms, scenarios: np.ndarray, fixed: Fixed
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Scores (rows,), fixed effects (rows, 2) and a 0/1 matrix (rows, levels) per intercept."""
    graded = _graded_in_both(arms)
    cells = [np.argwhere(np.isfinite(arm) & graded) for arm in arms]
    endog = np.concatenate([arm[tuple(cell.T)] for arm, cell in zip(arms, cells, strict=True)])
    side = np.repeat([1, 0], [len(cell) for cell in cells])
    seed, question = np.concatenate(cells).T
    scenario = np.unique(scenarios, return_inverse=True)[1][question]
    run = np.where(np.array(fixed)[1 - side], -1, 2 * seed + side)
    levels = {"run": run, "scenario": scenario, "arm:scenario": 2 * scenario + side}
    if len(np.unique(scenario)) < len(np.unique(question)):
        levels |= {"question": question, "arm:question": 2 * question + side}
    intercepts = {
        name: (codes[:, None] == np.unique(codes[codes >= 0])).astype(float)
        for name, codes in levels.items()
    }
    return endog, np.column_stack([np.ones(len(endog)), side]), intercepts


def _graded_in_both(arms: Arms) -> np.ndarray:
    """Which questions have a grade in both arms; shape (questions,)."""
    graded: np.ndarray = np.logical_and.reduce([np.isfinite(arm).any(axis=0) for arm in arms])
    return graded


def _moments(arms: Arms, fixed: Fixed) -> dict[str, float]:
    """Variances of the intercepts in multiples of the residual's, where the search starts.

    By analysis of variance: without missing scores these are the REML estimates themselves, so
    that the search ends at once.
    """
    graded = _graded_in_both(arms)
    means = []
    squares = 0.0
    runs = 0.0
    freedom = 0
    inverse = 0.0
    for arm, is_fixed in zip(arms, fixed, strict=True):
        scores = arm[:, graded]
        scores = scores[np.isfinite(scores).any(axis=1)]
        mean = np.nanmean(scores, axis=0)
        means.append(mean)
        inverse += 1 / len(scores)
        if is_fixed:
            continue
        of_seed = np.nanmean(scores - mean, axis=1)
        of_seed = of_seed - of_seed.mean()
        squares += float(np.nansum((scores - mean - of_seed[:, None]) ** 2))
        runs += float((of_seed**2).sum())
        freedom += len(scores) - 1
    questions = int(graded.sum())
    residual = max(squares / freedom / (questions - 1), 1e-12)
    arm_question = (np.var(means[0] - means[1], ddof=1) - residual * inverse) / 2
    question = np.var((means[0] + means[1]) / 2, ddof=1)
    question = question - arm_question / 2 - residual * inverse / 4
    variances = {
        "run": runs / freedom - residual / questions,
        "scenario": question,
        "arm:scenario": arm_question,
    }
    return {name: max(float(value / residual), 0.01) for name, value in variances.items()}


def _fit(
    endog: np.ndarray, exog: np.ndarray, intercepts: dict[str, np.ndarray], start: list[float]
) -> np.ndarray | None:
    """The REML variances of each intercept, then of the residual; None without convergence.

    `start`: of each intercept, in multiples of the residual's.
    """
    model = _Restricted(endog, exog, list(intercepts.values()))
    if not intercepts:
        return np.array([model.residual_variance(np.array([1.0]))])

    def profiled(ratios: np.ndarray) -> float:
        theta = np.append(ratios, 1.0)
        return model.deviance(theta * model.residual_variance(theta))

    search = optimize.minimize(
        profiled,
        start,
        method="L-BFGS-B",
        jac="3-point",
        bounds=[(0, None)] * len(start),
        options={"ftol": 1e-13, "gtol": 1e-6},
    )
    # A search that can't get any lower by rounding reports that as a failure.
    slope = np.where(search.x > 0, search.jac * search.x, np.minimum(search.jac, 0))
    if np.abs(slope).max() > STEEPEST:
        return None
    theta = np.append(search.x, 1.0)
    return theta * model.residual_variance(theta)


class _Restricted:
    """The REML deviance of y = X b + sum of Z_k u_k + e as a function of the variances.

    `theta` is those variances: of each intercept, then of the residual.
    """

    def __init__(self, endog: np.ndarray, exog: np.ndarray, intercepts: list[np.ndarray]) -> None:
        z = np.column_stack([*intercepts, np.empty((len(endog), 0))])
        observed = np.column_stack([exog, endog])
        self.size = len(endog)
        self.effects = exog.shape[1]
        self.sizes = [intercept.shape[1] for intercept in intercepts]
        self.zz = z.T @ z
        self.zk = z.T @ observed
        self.kk = observed.T @ observed

    def _solved(self, theta: np.ndarray) -> tuple[np.ndarray, float]:
        """[X y]' V^-1 [X y] and log |V|, by the Woodbury identity."""
        deviations = np.sqrt(np.repeat(theta[:-1] / theta[-1], self.sizes))
        inner = np.eye(len(deviations)) + deviations[:, None] * self.zz * deviations
        factor, is_lower = linalg.cho_factor(inner)
        scaled = deviations[:, None] * self.zk
        inverse = linalg.cho_solve((factor, is_lower), scaled)
        products = (self.kk - scaled.T @ inverse) / theta[-1]
        logdet = self.size * np.log(theta[-1]) + 2 * np.log(factor.diagonal()).sum()
        return products, float(logdet)

    def deviance(self, theta: np.ndarray) -> float:
        products, logdet = self._solved(theta)
        xx = products[: self.effects, : self.effects]
        return float(logdet + np.linalg.slogdet(xx)[1] + self._squares(products))

    def residual_variance(self, theta: np.ndarray) -> float:
        """The REML variance of the residual where the variances are in proportion to `theta`.

        In units of the last of `theta`.
        """
        squares = self._squares(self._solved(theta)[0])
        return float(squares / (self.size - self.effects))

    def _squares(self, products: np.ndarray) -> float:
        """The sum of squares around the fixed effects, weighted by V^-1."""
        xx = products[: self.effects, : self.effects]
        xy = products[: self.effects, -1]
        return float(products[-1, -1] - xy @ np.linalg.solve(xx, xy))

    def at_zero(self, theta: np.ndarray) -> list[bool]:
        """Of each intercept, whether the model fits as well with its variance at zero.

        A search ends near a zero rather than there. Satterthwaite's formula takes such a variance
        for a known one of its own, and gives a fraction of a degree of freedom.
        """
        deviance = self.deviance(theta)
        without = [theta * (np.arange(len(theta)) != k) for k in range(len(theta) - 1)]
        return [self.deviance(at) < deviance + AS_GOOD for at in without]

    def difference(self, theta: np.ndarray) -> tuple[float, float]:
        """The last fixed effect and its variance."""
        products, _ = self._solved(theta)
        inverse = np.linalg.inv(products[: self.effects, : self.effects])
        coefficients = inverse @ products[: self.effects, -1]
        return float(coefficients[-1]), float(inverse[-1, -1])

    def satterthwaite(self, theta: np.ndarray) -> float:
        """The degrees of freedom of the difference."""

        # differentiated in multiples of each variance, so that one step size suits all
        def scaled(function: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], float]:
            return lambda multiple: function(theta * multiple)

        ones = np.ones(len(theta))
        variance = scaled(lambda at: self.difference(at)[1])
        gradient = approx_fprime(ones, variance, centered=True)
        covariance = np.linalg.inv(approx_hess(ones, scaled(self.deviance)) / 2)
        spread = float(np.asarray(gradient @ covariance @ gradient).item())
        return 2 * self.difference(theta)[1] ** 2 / spread
