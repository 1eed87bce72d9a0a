"""nanoprune/statistics.py: intervals as wide as they should be, and rank correlations as in scipy's
definition.
"""

import math

import numpy as np
import pytest

from nanoprune.statistics import (
    Ratio,
    average_ranks,
    bootstrap_rows,
    detectable_difference,
    digits,
    mcnemar,
    mean,
    percentiles,
    resample,
    spearman,
    spearman_interval,
)


def test_the_bootstrap_finds_the_known_interval():
    """Of a mean of many independent values: mean +- 1.96 standard errors."""
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = mean(values).interval()
    error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.02)
    assert mean(values).interval() == mean(values).interval(range(400)) == (low, high)


def test_the_bootstrap_resamples_groups():
    """Copies of one observation are no further evidence: the interval is that of the groups."""
    values = np.random.default_rng(2).normal(0, 1, 50)
    single, copies = mean(values).interval(), mean(np.repeat(values, 8))
    assert copies.interval(np.repeat(np.arange(50), 8)) == pytest.approx(single)
    as_if_independent = copies.interval()
    assert as_if_independent[1] - as_if_independent[0] < 0.5 * (single[1] - single[0])


def test_the_bootstrap_covers_the_truth():
    """95 % intervals of a ratio of sums hold the true ratio about as often as they say."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(100):
        tokens = rng.integers(50, 500, 60)
        nll = tokens * rng.normal(2.0, 0.3, 60)
        low, high = Ratio(nll, tokens).interval()
        hits += low <= 2.0 <= high
    assert 88 <= hits <= 99


def test_several_rows_share_their_resamples():
    rng = np.random.default_rng(3)
    rows, tokens = rng.normal(2, 1, (3, 40)), np.ones(40)
    together = bootstrap_rows(rows, tokens, range(40))
    for k in range(3):
        alone = Ratio(rows[k], tokens).interval()
        assert (together[0][k], together[1][k]) == pytest.approx(alone, rel=1e-12)
    low, high = bootstrap_rows(rows - rows[:1], tokens, range(40))
    assert low[0] == high[0] == 0


def test_one_group_has_no_interval():
    assert all(map(math.isnan, mean(np.ones(4)).interval(["one"] * 4)))
    assert np.isnan(bootstrap_rows(np.ones((2, 4)), np.ones(4), ["one"] * 4)).all()


def test_rank_correlation():
    """Known values: ties take the mean of their ranks, what is not finite comes last."""
    assert average_ranks([3, 1, 1, math.nan]).tolist() == [3, 1.5, 1.5, 4]
    assert spearman([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    a, b = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110], [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert spearman(a, b) == pytest.approx(-29 / 165)  # 1 - 6 x 194 / (10 x 99)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3])) and math.isnan(spearman([1, 2], [1, 2]))


def test_the_interval_of_a_rank_correlation():
    rng = np.random.default_rng(4)
    x = rng.normal(size=28)
    low, high = spearman_interval(x, x + rng.normal(size=28) * 0.1)
    assert 0.8 < low < high <= 1
    low, high = spearman_interval(x, rng.normal(size=28))
    assert low < 0 < high


def test_mcnemar_is_the_binomial_test():
    def p(only_a: int, only_b: int) -> float:
        a = np.array([1] * only_a + [0] * only_b + [1, 0])
        return mcnemar(a, np.array([0] * only_a + [1] * only_b + [1, 0]))

    assert p(0, 0) == 1 and p(5, 5) == 1 and p(0, 5) == p(5, 0) == 0.0625
    assert p(1, 9) == pytest.approx(2 * 11 / 1024) and p(4, 15) == pytest.approx(0.019210815, rel=1e-6)


def test_a_difference_of_ratios():
    rng = np.random.default_rng(5)
    sizes = rng.integers(50, 90, 200).astype(float)
    a, b = sizes * rng.normal(2, 0.2, 200), sizes * rng.normal(2.5, 0.2, 200)
    total_a, size_a, total_b, size_b = resample([a, sizes, b, 2 * sizes])
    low, high = percentiles(total_b / size_b - total_a / size_a)
    assert low < 1.25 - 2 < high and high - low < 0.1
    ours, theirs = Ratio(a, sizes).resampled(), Ratio(b, 2 * sizes).resampled()
    assert percentiles(theirs - ours) == pytest.approx((low, high))  # they share their resamples
    assert Ratio(a, sizes).value == a.sum() / sizes.sum()


def test_digits_and_what_could_have_been_shown():
    assert [digits(1 - half, 1 + half) for half in (30, 3, 0.3, 0.035, 0.0015)] == [0, 1, 2, 3, 4]
    assert digits(math.nan, math.nan) == 4
    assert detectable_difference(-0.1, 0.1) == pytest.approx(0.1 * 2.8 / 1.96)
