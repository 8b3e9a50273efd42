"""A mixed model of the same contrast: a check by another method on the two-way test, which alone gives verdicts."""

import warnings
from dataclasses import dataclass, field

import numpy as np
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM, MixedLMParams, MixedLMResults, VCSpec
from statsmodels.tools.numdiff import approx_fprime, approx_hess

from analysis.estimates import ALPHA, Arm, two_way

ZERO = 1e-4  # a variance below this share of the residual's is reported as zero


@dataclass(frozen=True)
class Mixed:
    """`of` minus `against` in score units. None where the model can't say; `reason` tells why.

    `variances`: per random intercept and for the residual, in squared score units. `at_zero`: those estimated as zero,
    a usual outcome with few seeds, not a failure.
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


def sensitivity(
    of: np.ndarray, against: np.ndarray, scenarios: np.ndarray, fixed: tuple[bool, bool] = (False, False)
) -> Mixed:
    """The difference between two arms under `score ~ arm + (1 | run) + (1 | scenario) + (1 | arm:scenario)`, by REML.

    `of`, `against`: question means of shape (seeds, questions), NaN where nothing was graded; a seed of one arm is
    another run than that of the other. `scenarios`: shape (questions,); where a scenario has several questions, they
    get intercepts `question` and `arm:question` beside the scenario's. `fixed` marks an arm without a training seed:
    its checkpoint has no run intercept. Means rather than single answers, because with as many answers to each
    question the means carry all that the answers say about the arms, and a model of answers needs an intercept for
    run x question too, without which it takes 30 answers to a question for 30 questions.

    Fitted by statsmodels' MixedLM; crossed intercepts are variance components of one group that holds everything.
    se, p and interval: Student's t with Satterthwaite's degrees of freedom 2 v^2 / (g' A g), where v is the variance
    of the difference, g its gradient in the variances and A the inverse of half the Hessian of the REML deviance,
    as in R's lmerTest (Kuznetsova, Brockhoff and Christensen, J. Stat. Softw. 82(13), 2017). Variances at zero leave
    g and A. Crossed with few seeds, these intervals rest on a normal model; they are a second opinion.
    """
    found = two_way([Arm(of, fixed[0]), Arm(against, fixed[1])], scenarios)
    if found.reason:
        return Mixed(found.estimate, reason=found.reason)
    endog, exog, intercepts = _design((of, against), scenarios, fixed)
    scale = float(endog.std())
    start = _moments((of, against), fixed)
    kept, at = dict(intercepts), {name: start[name.replace("question", "scenario")] for name in intercepts}
    try:
        while True:
            fit = _fit(endog / scale, exog, kept, [at[name] for name in kept])
            if not fit.converged:
                return Mixed(reason="the mixed model did not converge")
            at = dict(zip(kept, np.asarray(fit.vcomp, float) / fit.scale, strict=True))
            if min(at.values()) > ZERO or len(kept) == 1:
                theta = float(fit.scale) * np.array([*at.values(), 1.0])
                model = _Restricted(endog / scale, exog, list(kept.values()))
                (estimate, variance), df = model.difference(theta), model.satterthwaite(theta)
                if df > 0 or len(kept) == 1:
                    break
                at[min(at, key=lambda name: at[name])] = 0.0  # too near zero for the deviance to have a curvature there
            # a search that ends at zero is loose in the others: again without
            kept = {name: kept[name] for name in kept if at[name] > ZERO} or {"scenario": intercepts["scenario"]}
    except (ValueError, ZeroDivisionError) as error:
        return Mixed(reason=f"the mixed model can't be fitted: {error}")
    se = variance**0.5 * scale
    estimate *= scale
    if not (np.isfinite([estimate, se, df]).all() and se > 0 and df > 0):
        return Mixed(reason="the mixed model gives no finite standard error")
    half = float(stats.t.ppf(1 - ALPHA / 2, df)) * se
    return Mixed(
        estimate,
        se,
        df,
        estimate - half,
        estimate + half,
        float(2 * stats.t.sf(abs(estimate) / se, df)),
        dict.fromkeys(intercepts, 0.0) | dict(zip([*kept, "residual"], (theta * scale**2).tolist(), strict=True)),
        tuple(name for name in intercepts if name not in kept),
    )


def _design(
    arms: tuple[np.ndarray, np.ndarray], scenarios: np.ndarray, fixed: tuple[bool, bool]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Scores (rows,), fixed effects (rows, 2) and a 0/1 matrix (rows, levels) per random intercept."""
    both = np.isfinite(arms[0]).any(axis=0) & np.isfinite(arms[1]).any(axis=0)
    places = [np.argwhere(np.isfinite(arm) & both) for arm in arms]
    endog = np.concatenate([arm[tuple(place.T)] for arm, place in zip(arms, places, strict=True)])
    side = np.repeat([1, 0], [len(place) for place in places])
    seed, question = np.concatenate(places).T
    scenario = np.unique(scenarios, return_inverse=True)[1][question]
    run = np.where(np.array(fixed)[1 - side], -1, 2 * seed + side)
    levels = {"run": run, "scenario": scenario, "arm:scenario": 2 * scenario + side}
    if len(np.unique(scenario)) < len(np.unique(question)):
        levels |= {"question": question, "arm:question": 2 * question + side}
    intercepts = {
        name: (found[:, None] == np.unique(found[found >= 0])).astype(float) for name, found in levels.items()
    }
    return endog, np.column_stack([np.ones(len(endog)), side]), intercepts


def _moments(arms: tuple[np.ndarray, np.ndarray], fixed: tuple[bool, bool]) -> dict[str, float]:
    """Variances of the intercepts in multiples of the residual's, by analysis of variance: where the search starts.

    With every score there these are the REML estimates themselves, so the search ends at once.
    """
    both = np.isfinite(arms[0]).any(axis=0) & np.isfinite(arms[1]).any(axis=0)
    means, squares, runs, freedom, inverse = [], 0.0, 0.0, 0, 0.0
    for arm, alone in zip(arms, fixed, strict=True):
        scores = arm[:, both]
        scores = scores[np.isfinite(scores).any(axis=1)]
        means.append(np.nanmean(scores, axis=0))
        inverse += 1 / len(scores)
        if alone:
            continue
        of_seed = np.nanmean(scores - means[-1], axis=1)
        squares += float(np.nansum((scores - means[-1] - (of_seed - of_seed.mean())[:, None]) ** 2))
        runs += float(((of_seed - of_seed.mean()) ** 2).sum())
        freedom += len(scores) - 1
    questions = int(both.sum())
    residual = max(squares / freedom / (questions - 1), 1e-12)
    arm_question = (np.var(means[0] - means[1], ddof=1) - residual * inverse) / 2
    question = np.var((means[0] + means[1]) / 2, ddof=1) - arm_question / 2 - residual * inverse / 4
    found = {"run": runs / freedom - residual / questions, "scenario": question, "arm:scenario": arm_question}
    return {name: max(float(value / residual), 0.01) for name, value in found.items()}


def _fit(endog: np.ndarray, exog: np.ndarray, intercepts: dict[str, np.ndarray], start: list[float]) -> MixedLMResults:
    columns = [[[str(i) for i in range(z.shape[1])]] for z in intercepts.values()]
    spec = VCSpec(list(intercepts), columns, [[z] for z in intercepts.values()])
    model = MixedLM(endog, exog, groups=np.zeros(len(endog)), exog_vc=spec)
    begin = MixedLMParams.from_components(np.zeros(exog.shape[1]), np.empty((0, 0)), vcomp=np.array(start))
    with warnings.catch_warnings():
        # it warns of searches that it then repeats by another method, and of boundaries that are none
        warnings.simplefilter("ignore")
        return model.fit(reml=True, method=["bfgs", "lbfgs", "powell"], start_params=begin)


class _Restricted:
    """The REML deviance of y = X b + sum of Z_k u_k + e as a function of the variances (..., residual)."""

    def __init__(self, endog: np.ndarray, exog: np.ndarray, intercepts: list[np.ndarray]) -> None:
        z = np.column_stack([*intercepts, np.empty((len(endog), 0))])
        self.size, self.effects = len(endog), exog.shape[1]
        self.sizes = [each.shape[1] for each in intercepts]
        known = np.column_stack([exog, endog])
        self.zz, self.zk, self.kk = z.T @ z, z.T @ known, known.T @ known

    def _solved(self, theta: np.ndarray) -> tuple[np.ndarray, float]:
        """[X y]' V^-1 [X y] and log |V|, by the Woodbury identity."""
        component = np.repeat(theta[:-1], self.sizes)
        inner = np.eye(len(component)) + component[:, None] * self.zz / theta[-1]
        inverse = np.linalg.solve(inner, component[:, None] * self.zk)
        known = (self.kk - self.zk.T @ inverse / theta[-1]) / theta[-1]
        return known, self.size * np.log(theta[-1]) + np.linalg.slogdet(inner)[1]

    def deviance(self, theta: np.ndarray) -> float:
        known, logdet = self._solved(theta)
        xx, xy = known[: self.effects, : self.effects], known[: self.effects, -1]
        squares = known[-1, -1] - xy @ np.linalg.solve(xx, xy)
        return float(logdet + np.linalg.slogdet(xx)[1] + squares)

    def difference(self, theta: np.ndarray) -> tuple[float, float]:
        """The last fixed effect and its variance."""
        known, _ = self._solved(theta)
        inverse = np.linalg.inv(known[: self.effects, : self.effects])
        return float((inverse @ known[: self.effects, -1])[-1]), float(inverse[-1, -1])

    def satterthwaite(self, theta: np.ndarray) -> float:
        # differentiated in multiples of each variance, so that one step size suits all
        def of(function):  # type: ignore[no-untyped-def]
            return lambda multiple: function(theta * multiple)

        ones = np.ones(len(theta))
        gradient = approx_fprime(ones, of(lambda at: self.difference(at)[1]), centered=True)
        covariance = np.linalg.inv(approx_hess(ones, of(self.deviance)) / 2)
        return float(2 * self.difference(theta)[1] ** 2 / (gradient @ covariance @ gradient))
