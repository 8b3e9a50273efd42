"""Estimates of several labs as one, against R's metafor."""

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from analysis.pooled_results import pooled_table
from analysis.pooling import Pooled, pool, pooled_rows
from benchmarks.pooling import coverage


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


# Of metafor 3.8.1: rma(yi, vi, test = "knha"), rma(yi, vi, method = "FE") and predict() on its data
# sets dat.bcg (log risk ratios), dat.raudenbush1985 and dat.hine1989 (risk differences), by SCRIPT.
DATA = {
    "bcg": (
        numbers("""
    -0.8893113339202054 -1.5853886572014306 -1.3480731482996933 -1.4415511900213054
    -0.2175473222112956 -0.786115585818864 -1.6208982235983918 0.0119523335238405
    -0.4694176487381494 -1.3713448034727844 -0.3393588283383906 0.4459134005713787
    -0.0173139482168798
    """),
        numbers("""
    0.32558476500396133 0.19458112139814385 0.4153679653679654 0.02001003190224757
    0.05121017216963086 0.00690561845590876 0.22301724757231517 0.00396157929781773
    0.05643421046324897 0.07302479361302891 0.01241221397155972 0.5325058452001528
    0.0714046596839863
    """),
    ),
    "raudenbush": (
        numbers("""
    0.03 0.12 -0.14 1.18 0.26 -0.06 -0.02 -0.32 0.27 0.8 0.54 0.18 -0.02 0.23 -0.18 -0.06 0.3
    0.07 -0.07
    """),
        numbers("""
    0.0156 0.0216 0.0279 0.1391 0.1362 0.0106 0.0106 0.0484 0.0269 0.063 0.0912 0.0497 0.0835
    0.0841 0.0253 0.0279 0.0193 0.0088 0.0303
    """),
    ),
    "hine": (
        numbers("""
    0.0280262373285629 0.0 0.0197111299915038 0.0179611650485437 0.0353344768439108
    0.0440313111545988
    """),
        numbers("""
    0.001775747745493404 0.003756574004507889 0.000813233988978125 0.001089975195085323
    0.000801140329907019 0.000613203061355608
    """),
    ),
}
NAMES = (
    *("tau2", "b", "se", "low", "high", "p", "q", "q_p", "i2"),
    *("common", "common_se", "common_low", "common_high", "further_low"),
)
METAFOR = {
    "bcg": numbers("""
    0.313243258136486 -0.71453234215814 0.180791744092848 -1.10844371368555 -0.320620970630728
    0.0019200150960573 152.233008082373 1.99676459084597e-26 92.2213845212691
    -0.430285163654091 0.0404987517108638 -0.509661258426214 -0.350909068881968
    -1.99601683419621
    """),
    "raudenbush": numbers("""
    0.0188182881410531 0.0837012418833189 0.0615793194692993 -0.0456721076127762
    0.213074591379414 0.190856991834626 35.8295362995928 0.00741931325487901 41.846670248086
    0.0603655663352582 0.0364678501135356 -0.0111101064808764 0.131841239151393
    -0.232208563883969
    """),
    "hine": numbers("""
    0.0 0.0294443203447639 0.00541883929331712 0.0155147504871306 0.0433738902023973
    0.00286331297417549 0.859692677531537 0.973070770049349 0.0 0.0294443203447639
    0.0130683169698183 0.00383088974536649 0.0550577509441614 0.0155147504871306
    """),
}
SCRIPT = """
suppressMessages(library(metafor))
for (file in commandArgs(TRUE)) {
  data <- read.csv(file)
  m <- rma(yi, vi, data = data, test = "knha", control = list(threshold = 1e-12, maxiter = 1000))
  f <- rma(yi, vi, data = data, method = "FE")
  cat(format(c(m$tau2, m$b, m$se, m$ci.lb, m$ci.ub, m$pval, m$QE, m$QEp, m$I2,
               f$b, f$se, f$ci.lb, f$ci.ub, predict(m)$pi.lb), digits = 15), "\\n")
}
"""


def as_metafor(pooled: Pooled) -> list[float]:
    """In the order of NAMES."""
    further = pooled.predicted[0] if pooled.predicted else math.nan
    return [
        *(pooled.tau**2, pooled.estimate, pooled.se, pooled.low, pooled.high, pooled.p),
        *(pooled.q, pooled.q_p, 100 * pooled.i2),
        *(pooled.common, pooled.common_se, pooled.common_low, pooled.common_high, further),
    ]


@pytest.mark.parametrize("name", DATA)
def test_equals_metafor(name: str) -> None:
    values, variances = DATA[name]
    pooled = as_metafor(pool(values, np.sqrt(variances)))
    for label, ours, theirs in zip(NAMES, pooled, METAFOR[name], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-12), label


def test_of_two_maxima_of_the_likelihood_the_higher_one_is_taken() -> None:
    """There is one at 0 too, with an interval of less than half the width."""
    pooled = pool([0.023, 0.029, -0.149], [0.014, 0.019, 0.059])
    # Of metafor 3.8.1, in the order of NAMES, with threshold = 1e-13.
    expected = numbers("""
    0.00639223047084983 -0.0182127632220278 0.0537788955446 -0.249604674939912 0.213179148495857
    """)
    assert as_metafor(pooled)[:5] == pytest.approx(expected, rel=1e-6)


@pytest.mark.nightly
@pytest.mark.multiprocess
def test_equals_metafor_on_data_made_up(tmp_path: Path) -> None:
    """Two labs and more, alike and unlike, with standard errors that differ tenfold."""
    command = ["Rscript", "-e", "library(metafor)"]
    if not shutil.which("Rscript") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no R with metafor: apt-get install r-cran-metafor")
    random = np.random.default_rng(0)
    files, data = [], []
    for number in range(40):
        labs = 2 + number % 6
        errors = random.uniform(0.01, 0.1, labs)
        values = random.normal(0.1, np.hypot(errors, [0, 0.02, 0.2][number % 3]))
        data.append((values, errors))
        files.append(tmp_path / f"{number}.csv")
        lines = [f"{float(v)!r},{float(e) ** 2!r}" for v, e in zip(values, errors, strict=True)]
        files[-1].write_text("yi,vi\n" + "\n".join(lines) + "\n")
    script = tmp_path / "pool.R"
    script.write_text(SCRIPT)
    command = ["Rscript", str(script), *map(str, files)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for (values, errors), line in zip(data, printed.splitlines(), strict=True):
        ours = as_metafor(pool(values, errors))
        count = len(NAMES) - (len(values) == 2)  # no prediction for a third lab
        expected = [float(number) for number in line.split()][:count]
        assert ours[:count] == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_two_labs_are_pooled_and_predict_nothing() -> None:
    pooled = pool([0.12, 0.3], [math.sqrt(0.002), math.sqrt(0.004)])
    assert pooled.estimate == pytest.approx(0.204444444444444)
    assert (pooled.low, pooled.high) == pytest.approx((-0.936933197900861, 1.34582208678975))
    assert pooled.predicted is None


def test_labs_that_agree_better_than_chance_are_flagged() -> None:
    pooled = pool([0.10, 0.11, 0.12], [0.1, 0.14, 0.17])
    assert pooled.tau == 0 and pooled.agrees_too_well
    assert pooled.high - pooled.low < pooled.common_high - pooled.common_low
    assert not pool([0.1, 0.5, 0.9], [0.1, 0.1, 0.1]).agrees_too_well


def test_equal_estimates_divide_by_nothing() -> None:
    for value, p in ((0.1, 0.0), (0.0, 1.0)):
        pooled = pool([value, value], [0.1, 0.2])
        assert (pooled.se, pooled.p, pooled.low, pooled.high) == (0, p, value, value)


def row(
    estimate: float, se: float | None, name: str = "a - b", **other: object
) -> dict[str, object]:
    keys = {"name": name, "benchmark": "ahb", "dose": 0, "control_dose": 0}
    keys |= {"treatment": "a", "control": "b", "level": 0.05}
    of_lab = {
        "reference": None,
        "low": None,
        "high": None,
        "judge": "j",
        "reason": None,
        "estimate": estimate,
        "se": se,
    }
    sides = {"treatment": "a", "control": "b", "treatment_seeds": 3, "control_seeds": 3}
    return keys | of_lab | sides | other


def test_only_what_two_labs_estimate_with_an_error_is_pooled() -> None:
    labs = {
        "one": {"contrasts": [row(0.1, 0.02), row(0.2, 0.1, "c"), row(0.1, 0.1, dose=80)]},
        "two": {"contrasts": [row(0.2, 0.03), row(0.1, None, "c")]},
        "three": {"contrasts": [row(0.3, None)]},
    }
    first, second, third = pooled_rows(labs)
    assert first["pooled"]["estimate"] == pool([0.1, 0.2], [0.02, 0.03]).estimate
    assert [part["lab"] for part in first["labs"]] == ["one", "two", "three"]
    assert second["pooled"] is None and third["pooled"] is None


def test_a_lab_that_evaluates_what_somebody_else_has_made_is_told() -> None:
    labs = {
        "one": {"contrasts": [row(0.1, 0.02)], "rungs": {"a": "logs", "b": "anew"}},
        "two": {"contrasts": [row(0.2, 0.03)], "rungs": {"a": "anew", "b": "anew"}},
    }
    results = {"contrasts": pooled_rows(labs)}
    assert [cells[3] for cells in pooled_table(results).rows][:2] == [
        "one (their logs, our test)",
        "two",
    ]


def test_coverage_is_as_documented() -> None:
    """docs/statistics.md: labs whose errors are estimated from few seeds, and that differ or not."""
    rng = np.random.default_rng(1)
    like_these, alone, further = coverage(rng, labs=3, tau=0.1, df=4, studies=500)
    assert 0.90 < like_these < 0.98 and 0.40 < alone < 0.55 and 0.82 < further < 0.95
    like_these, alone, further = coverage(rng, labs=3, tau=0.0, df=math.inf, studies=500)
    assert min(like_these, alone, further) > 0.92


def test_the_interval_of_a_lab_with_several_looks_is_one_of_95_percent() -> None:
    of_look = {"level": 0.0114, "reference": [[1.0, 4.0]], "low": 0.0, "high": 0.2}
    labs = {
        "one": {"contrasts": [row(0.1, 0.02, **of_look)]},
        "two": {"contrasts": [row(0.1, 0.1)]},
    }
    (pooled,) = pooled_rows(labs)
    half = 2.7764451051977987 * 0.02  # of Student's t with 4 degrees of freedom
    ends = pooled["labs"][0]["low"], pooled["labs"][0]["high"]
    assert ends == pytest.approx((0.1 - half, 0.1 + half))
