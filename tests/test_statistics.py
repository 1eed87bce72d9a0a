"""nanoprune/statistics.py: intervals as wide as they should be, and rank correlations as in scipy's
definition.
"""

import math

import numpy as np
import pytest
import scipy.stats

from nanoprune import statistics
from nanoprune.statistics import (
    Ratio,
    average_ranks,
    binomial_interval,
    digits,
    mcnemar,
    mean,
    share_interval,
    spearman,
    spearman_interval,
    spread,
    t_quantile,
    t_tail,
    wilson_interval,
)

LEAST = 12  # the shipped value: tests of small worlds lower it


@pytest.fixture(autouse=True)
def least(monkeypatch):
    monkeypatch.setattr(statistics, "LEAST", LEAST)


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(1).normal(3, 2, 30)
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean(values).interval() == pytest.approx(tuple(theirs), rel=1e-6)
    assert mean(values).interval(range(30)) == mean(values).interval()



@pytest.mark.parametrize("freedom", [2, 2.5, 11, 38, 1000])
def test_students_distribution(freedom):
    for t in (0.0, 0.3, 1.7, 12.0):
        assert t_tail(t, freedom) == pytest.approx(scipy.stats.t.sf(t, freedom), rel=1e-5, abs=1e-14)
    for p in (0.5, 0.8, 0.975, 0.9999):
        assert t_quantile(p, freedom) == pytest.approx(scipy.stats.t.ppf(p, freedom), rel=1e-5, abs=1e-9)


def test_a_ratio_is_linearised():
    """The standard error is that of the jackknife, to first order, and clusters are its units."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(50, 500, 200).astype(float)
    nll = tokens * rng.normal(2.0, 0.3, 200)
    ratio = Ratio(nll, tokens)
    left_out = (nll.sum() - nll) / (tokens.sum() - tokens)
    jackknife = math.sqrt(199 / 200 * ((left_out - left_out.mean()) ** 2).sum())
    assert ratio.spread().standard_error == pytest.approx(jackknife, rel=1e-3)
    assert 100 < ratio.spread().freedom < 199
    clusters = np.repeat(np.arange(40), 5)
    summed = Ratio(nll.reshape(40, 5).sum(1), tokens.reshape(40, 5).sum(1))
    assert ratio.spread(clusters).standard_error == pytest.approx(summed.spread().standard_error)
    assert 25 < ratio.spread(clusters).freedom < 39


def test_degrees_of_freedom_are_of_the_sizes():
    """Of equal sizes one fewer than units; where one unit is most of the text, nearly one."""
    even = Ratio(np.arange(20.0), np.full(20, 7.0)).spread()
    assert even.freedom == pytest.approx(19)
    sizes = np.array([1e6, *np.ones(19)])
    assert Ratio(np.arange(20.0), sizes).spread().freedom == pytest.approx(0.95, abs=0.01)


def test_copies_of_an_observation_are_no_further_evidence():
    values = np.random.default_rng(2).normal(0, 1, 50)
    single, copies = mean(values).interval(), mean(np.repeat(values, 8))
    assert copies.interval(np.repeat(np.arange(50), 8)) == pytest.approx(single)
    as_if_independent = copies.interval()
    assert as_if_independent[1] - as_if_independent[0] < 0.5 * (single[1] - single[0])


def test_units_of_no_size_count_nowhere():
    values, sizes = np.arange(15.0), np.ones(15)
    with_empty = Ratio(np.append(values, np.zeros(9)), np.append(sizes, np.zeros(9)))
    assert with_empty.interval() == pytest.approx(Ratio(values, sizes).interval())
    few = np.arange(20) < LEAST - 1
    assert math.isnan(Ratio(np.arange(20.0) * few, 1.0 * few).interval().low)


def test_fewer_units_than_the_least_have_no_interval():
    assert all(map(math.isnan, mean(np.arange(LEAST - 1.0)).interval()))
    assert all(map(math.isfinite, mean(np.arange(float(LEAST))).interval()))
    assert all(map(math.isnan, mean(np.ones(40)).interval(["one"] * 40)))
    assert math.isnan(mean(np.arange(4.0)).spread().detectable())


def test_where_nothing_varies_the_interval_is_the_value():
    identical = mean(np.zeros(20)).spread()
    assert identical.interval(0.0) == (0.0, 0.0) and identical.standard_error == 0 == identical.detectable()


def test_what_could_have_been_shown_is_shown_in_four_of_five_samples():
    """Drawn around the minimum detectable difference, 80 % of the intervals exclude zero."""
    rng, shown, n = np.random.default_rng(6), 0, 40
    truth = mean(rng.normal(0, 1, (n,)) * 0 + np.resize([1.0, -1.0], n)).spread().detectable()
    for _ in range(1000):
        low, high = mean(rng.normal(truth, 1, n)).interval()
        shown += low > 0 or high < 0
    assert 0.75 < shown / 1000 < 0.86


def test_seeds_and_documents_together():
    """Where only documents differ the spread is theirs; where only seeds do, that of a t test over seeds."""
    rng = np.random.default_rng(7)
    by_document = np.tile(rng.normal(0, 1, 30) / 30, (3, 1))
    by_document -= by_document.mean()
    alone = spread(by_document, np.ones(30))
    assert alone.standard_error == pytest.approx(spread(by_document[0], np.ones(30)).standard_error)
    assert alone.freedom == pytest.approx(29)
    effects = np.array([0.1, -0.3, 0.2])
    seeds = spread(np.tile(effects[:, None] / 30, (1, 30)), np.ones(30))
    assert seeds.standard_error == pytest.approx(effects.std(ddof=1) / math.sqrt(3))
    assert seeds.freedom == pytest.approx(2)


def test_seeds_and_documents_cover_a_new_seed_and_a_new_document():
    rng, covered = np.random.default_rng(8), 0
    for _ in range(1000):
        seeds, documents = rng.normal(0, 0.05, 3), rng.normal(0, 0.2, 30)
        values = 1.0 + seeds[:, None] + documents + rng.normal(0, 0.05, (3, 30))
        influences = (values - values.mean()) / 30
        low, high = spread(influences, np.ones(30)).interval(values.mean())
        covered += low <= 1.0 <= high
    assert covered / 1000 > 0.92


@pytest.mark.parametrize("successes, n", [(0, 6), (6, 6), (3, 20), (66, 66), (90, 300)])
def test_intervals_of_a_share(successes, n):
    theirs = scipy.stats.binomtest(successes, n)
    exact, score = theirs.proportion_ci(method="exact"), theirs.proportion_ci(method="wilson")
    assert binomial_interval(successes, n) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert wilson_interval(successes, n) == pytest.approx((score.low, score.high), abs=1e-9)


@pytest.mark.parametrize("n", range(1, 60))
def test_a_share_is_no_less_than_none_and_no_more_than_all(n):
    assert 0 <= wilson_interval(0, n).low < 1e-15 and 1 - 1e-15 < wilson_interval(n, n).high <= 1


def test_rank_correlation():
    """Known values: ties take the mean of their ranks, what is not finite comes last."""
    assert average_ranks([3, 1, 1, math.nan]).tolist() == [3, 1.5, 1.5, 4]
    assert spearman([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    a, b = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110], [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert spearman(a, b) == pytest.approx(-29 / 165)  # 1 - 6 x 194 / (10 x 99)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3])) and math.isnan(spearman([1, 2], [1, 2]))


def test_the_interval_of_a_rank_correlation():
    """Fisher's z with the variance of Bonett and Wright; none over few pairs or a constant side."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=28)
    low, high = spearman_interval(x, x + rng.normal(size=28) * 0.1)
    assert 0.8 < low < high <= 1
    y = rng.normal(size=28)
    low, high = spearman_interval(x, y)
    r = scipy.stats.spearmanr(x, y).statistic
    assert (math.atanh(high) + math.atanh(low)) / 2 == pytest.approx(math.atanh(r))
    width = 2 * 1.959964 * math.sqrt((1 + r**2 / 2) / 25)
    assert math.atanh(high) - math.atanh(low) == pytest.approx(width)
    assert all(map(math.isnan, spearman_interval(x[:8], y[:8])))
    assert all(map(math.isnan, spearman_interval(np.ones(28), y)))


def test_mcnemar_is_the_binomial_test():
    def p(only_a: int, only_b: int) -> float:
        a = np.array([1] * only_a + [0] * only_b + [1, 0])
        return mcnemar(a, np.array([0] * only_a + [1] * only_b + [1, 0]))

    assert p(0, 0) == 1 and p(5, 5) == 1 and p(0, 5) == p(5, 0) == 0.0625
    assert p(1, 9) == pytest.approx(2 * 11 / 1024) and p(4, 15) == pytest.approx(0.019210815, rel=1e-6)


def test_digits():
    assert [digits(1 - half, 1 + half) for half in (30, 3, 0.3, 0.035, 0.0015)] == [0, 1, 2, 3, 4]
    assert digits(math.nan, math.nan) == 4


def test_the_interval_of_a_share_knows_its_groups():
    """Of independent answers Wilson's; of copies that of the originals; exact over few groups."""
    right = np.array([1.0] * 30 + [0.0] * 20)
    assert share_interval(right) == pytest.approx(wilson_interval(30, 50), abs=0.01)
    copies, sources = np.repeat(right, 4), np.repeat(np.arange(50), 4).tolist()
    assert share_interval(copies, sources) == pytest.approx(wilson_interval(30, 50), abs=0.01)
    assert share_interval(copies) == pytest.approx(wilson_interval(120, 200), abs=0.01)
    assert share_interval(np.ones(6)) == binomial_interval(6, 6)
    assert share_interval(np.ones(12), ["a"] * 6 + ["b"] * 6) == binomial_interval(2, 2)
    assert share_interval(np.ones(66)) == wilson_interval(66, 66) and share_interval(np.ones(66)).low < 1
