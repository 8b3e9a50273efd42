"""The planned test: its power by the normal formula, and by simulated studies of each kind."""

import numpy as np
import pytest
from scipy import stats

from analysis.estimates import ALPHA, _jackknife
from analysis.planned_test import Design, PlannedTest, Scenarios, Variances, planned_test
from benchmarks import power as benchmark
from benchmarks.power import TRANSLATED, Case, detected_share

SKEWED = (30, 20, 12, 8, 6, 5, 4, 3, 3, 2, 2, 2, *[1] * 8)


def planned(variances: Variances, seeds: int, questions: int) -> PlannedTest:
    test = planned_test(variances, Design(seeds, Scenarios.equal(questions)))
    assert test
    return test


def test_power_of_a_huge_design_is_the_normal_formula() -> None:
    variances, n = Variances(), 4000
    error = (2 * (0.03**2 + (0.08**2 + 0.05**2 / n + 0.22**2 / 30 / n)) / n) ** 0.5
    expected = stats.norm.sf(1.96 - 2) + stats.norm.cdf(-1.96 - 2)
    test = planned(variances, n, n)
    assert test.power(2 * error) == pytest.approx(expected, abs=0.003)
    assert test.detectable() == pytest.approx((1.96 + 0.8416) * error, rel=0.005)
    # only seed x question: half of the two parts' sum is what both contain
    crossed = Variances(arm_question=0, seed=0, seed_question=0.1, sampling=0)
    power = planned(crossed, n, n).power(3 * 2**0.5 * 0.1 / n)
    assert power == pytest.approx(stats.norm.sf(1.96 - 3), abs=0.01)
    few = planned(variances, 3, 26)
    assert few.power(2) == pytest.approx(1)
    assert few.power(-0.1) == pytest.approx(few.power(0.1))


def test_no_test_is_planned_where_none_is_made() -> None:
    assert planned_test(Variances(), Design(1, Scenarios.equal(26))) is None
    assert planned_test(Variances(), Design(3, Scenarios.of_sizes((7,)))) is None
    nothing = Variances(arm_question=0, seed=0, seed_question=0, sampling=0)
    assert planned_test(nothing, Design(3, Scenarios.equal(26))) is None


def test_each_kind_has_its_own_variance() -> None:
    """Fixed: one side's seeds. Paired: as free, with one part over seeds."""
    scenarios = Scenarios.equal(26)
    tests = {kind: planned_test(Variances(), Design(4, scenarios, kind)) for kind in KINDS}
    cell = 0.05**2 + 0.22**2 / 30
    question = 2 * 0.08**2 / 26
    free = 2 * (0.03**2 + cell / 26) / 4 + question
    fixed = (0.03**2 + cell / 26) / 4 + question + cell / 26
    assert [tests[kind].se ** 2 for kind in KINDS] == pytest.approx([free, fixed, free])
    # the same variance on fewer degrees of freedom
    assert tests["paired"].df < tests["free"].df
    assert tests["paired"].detectable() > 1.05 * tests["free"].detectable()


KINDS = ("free", "fixed", "paired")


@pytest.mark.parametrize("sizes", [SKEWED, TRANSLATED, (3, 3, 3)])
def test_scenarios_of_unequal_size_are_the_jackknifes(sizes: tuple[int, ...]) -> None:
    """Its mean and spread where the questions of a scenario are alike."""
    rng = np.random.default_rng(0)
    scenario = np.repeat(np.arange(len(sizes)), sizes)
    values = rng.normal(0, 1, (4000, len(sizes)))[:, scenario]
    means = values.mean(1)
    jackknives = np.array([_jackknife(row, scenario) for row in values])
    scenarios = Scenarios.of_sizes(sizes)
    assert 1 / means.var() == pytest.approx(scenarios.effective, rel=0.1)
    assert jackknives.mean() == pytest.approx(scenarios.inflation / scenarios.effective, rel=0.06)
    df = 2 * jackknives.mean() ** 2 / jackknives.var()
    assert df == pytest.approx(scenarios.true_df, rel=0.25)
    assert scenarios.true_df <= scenarios.df + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [ALPHA, ALPHA / 8])
def test_power_is_that_of_the_deciding_test(kind: str, level: float) -> None:
    """A difference that is found in 80 % of studies is found in 80 % of simulated ones."""
    case = Case("", kind, 4, (4, 3, 2, *[1] * 23))
    test = planned_test(Variances(), case.design, level)
    assert test
    share = detected_share(case, test.detectable(), 400, level)
    print(f"{kind}, {level:.4f}: {test.detectable():.3f} found in {share:.3f}")
    assert share == pytest.approx(0.8, abs=0.06)
    assert test.power(0.0) < 1.2 * level


def test_the_benchmark_prints_its_table(monkeypatch, capsys) -> None:
    monkeypatch.setattr(benchmark, "CASES", benchmark.CASES[:1])
    monkeypatch.setattr("sys.argv", ["power", "--studies", "5"])
    benchmark.main()
    assert "free, 3 seeds, 26 scenarios" in capsys.readouterr().out
