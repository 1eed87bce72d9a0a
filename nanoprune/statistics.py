"""Intervals that cover what they say, and tests of paired answers.

docs/results/coverage.md has the simulations by which they were chosen (`python -m benchmarks.coverage`).
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

UPPER = 0.975  # the quantile at the upper end of a 95 % interval
LEAST = 12  # documents, sources or blocks: over fewer there is no interval


class Interval(NamedTuple):
    low: float
    high: float


class Spread(NamedTuple):
    """The uncertainty of an estimate that is linear in independent units, or nearly so."""

    standard_error: float  # nan where there are fewer units than LEAST
    freedom: float  # degrees of freedom

    def interval(self, value: float) -> Interval:
        """95 % t interval around a value; the value alone where nothing varies."""
        margin = self.standard_error and self.standard_error * t_quantile(UPPER, self.freedom)
        return Interval(value - margin, value + margin)

    def p_value(self, value: float) -> float:
        """Two-sided p of the value's difference from 0; nan without a spread."""
        if not self.standard_error:
            return float(value == 0)
        return 2 * t_tail(abs(value) / self.standard_error, self.freedom)

    def detectable(self) -> float:
        """Minimum detectable difference: a true one of this size is shown in 80 of 100 samples."""
        return self.standard_error * (t_quantile(UPPER, self.freedom) + t_quantile(0.8, self.freedom))


NO_SPREAD = Spread(math.nan, math.nan)


class Ratio(NamedTuple):
    """A mean over units, sum(numerators) / sum(denominators), such as nats by tokens of each document."""

    numerators: np.ndarray  # (n,), or (seeds, n) of several runs, whose mean it is
    denominators: np.ndarray  # (n,)

    @property
    def value(self) -> float:
        return np.atleast_2d(self.numerators).mean(0).sum() / self.denominators.sum()

    @property
    def influences(self) -> np.ndarray:
        """What each unit adds to the value's deviation from the truth, to first order (delta method).

        (n,) or (seeds, n).
        """
        return (self.numerators - self.value * self.denominators) / self.denominators.sum()

    def spread(self, groups: Sequence | None = None) -> Spread:
        return spread(self.influences, self.denominators, groups)

    def interval(self, groups: Sequence | None = None) -> Interval:
        """95 % t interval over groups; with differences of two models as numerators it is paired."""
        return self.spread(groups).interval(self.value)

    def columns(self, name: str, groups: Sequence | None = None) -> dict:
        """The value and the ends of its interval, as columns of a table."""
        return columns(name, self.value, self.interval(groups))


def columns(name: str, value: float, interval: Interval) -> dict:
    return {name: value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def spread(influences: np.ndarray, sizes: np.ndarray, groups: Sequence | None = None) -> Spread:
    """The spread of a ratio, or of a difference of ratios, from its units' influences and sizes (n,).

    Influences (n,) of one run, or (seeds, n): then it is that over new units *and* new seeds. Groups (None:
    each unit is its own) are independent, units of one are not. Units of no size count nowhere.
    """
    influences = np.atleast_2d(influences)
    _, index = np.unique(range(len(sizes)) if groups is None else groups, return_inverse=True)
    sums = np.stack([np.bincount(index, weights=row) for row in influences])
    shares = np.bincount(index, weights=sizes) / sizes.sum()
    sums, shares = sums[:, shares > 0], shares[shares > 0]
    return group_spread(sums[0], shares) if len(sums) == 1 else crossed_spread(sums, shares)


def group_spread(sums: np.ndarray, shares: np.ndarray) -> Spread:
    """The spread of an estimate from its groups' influences and shares of all sizes (groups,).

    The standard error is the jackknife's, to first order. Large groups count for more, so there are fewer
    degrees of freedom than groups: Satterthwaite's (1946), for a variance in proportion to squared sizes.
    """
    count = len(shares)
    if count < LEAST:
        return NO_SPREAD
    without_each = sums / (1 - shares)  # the deviation of the estimate without this group
    freedom = (count - 1) / count * (shares**2).sum() ** 2 / (shares**4).sum()
    return Spread(math.sqrt((count - 1) / count * (without_each**2).sum()), freedom)


def crossed_spread(sums: np.ndarray, shares: np.ndarray) -> Spread:
    """The spread over new groups *and* new seeds, from sums (seeds, groups): two crossed random effects.

    The variances of the effects are added, that of their interaction, which is in both, is subtracted once
    (Cornfield and Tukey 1956); degrees of freedom by Satterthwaite (1946).
    """
    seeds, count = sums.shape
    over_groups = group_spread(sums.mean(0), shares)
    if count < LEAST:
        return over_groups
    effects = sums.sum(1) - sums.sum(1).mean()  # of the seeds
    rest = sums - sums.mean(0) - effects[:, None] * shares
    documents, by_seed = over_groups.standard_error**2, (effects**2).sum() / (seeds - 1) / seeds
    both = count * (rest**2).sum() / (count - 1) / (seeds - 1) / seeds
    variance = max(documents, by_seed, documents + by_seed - both)
    if variance == 0:
        return over_groups
    freedom = variance**2 / (documents**2 / over_groups.freedom + by_seed**2 / (seeds - 1))
    return Spread(math.sqrt(variance), freedom)


def mean(values: np.ndarray) -> Ratio:
    """The mean of values (n,) or (seeds, n) of equal weight."""
    return Ratio(values, np.ones(values.shape[-1]))


def evenly_spaced(items: Sequence, most: int) -> list:
    """At most so many of the items, from the first to the last."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]


# ---------------------------------------------------------------- distributions
def t_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's distribution, t >= 0, by integration of its density over an angle."""
    # With t = sqrt(freedom) tan(angle) the density is proportional to cos(angle)^(freedom - 1).
    start = math.atan(t / math.sqrt(freedom))
    angles = np.linspace(start, math.pi / 2, 2001)
    density = np.cos(angles) ** (freedom - 1)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    step = (math.pi / 2 - start) / 2000
    return scale * step / 3 * (density[0] + density[-1] + 4 * density[1:-1:2].sum()
                               + 2 * density[2:-1:2].sum())


@cache
def t_quantile(p: float, freedom: float) -> float:
    """The value below which Student's t lies with probability p, from 0.5 to below 1."""
    return bisect(lambda t: 1 - t_tail(t, freedom) - p, 0, 1e3 / (1 - p))


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of an increasing function."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2


def binomial_interval(successes: int, n: int) -> Interval:
    """Exact 95 % interval of a share, Clopper and Pearson's (1934)."""
    def at_most(k: int, p: float) -> float:
        return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

    tail = 1 - UPPER
    low = bisect(lambda p: 1 - at_most(successes - 1, p) - tail, 0, 1) if successes else 0.0
    high = bisect(lambda p: tail - at_most(successes, p), 0, 1) if successes < n else 1.0
    return Interval(low, high)


def wilson_interval(successes: float, n: float) -> Interval:
    """Score interval of a share, 95 % (Wilson 1927)."""
    z = NormalDist().inv_cdf(UPPER)
    share = min(1.0, successes / n)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    margin = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(max(0.0, middle - margin), min(1.0, middle + margin))


def share_interval(values: np.ndarray, groups: Sequence | None = None) -> Interval:
    """95 % interval of a share, the mean of values (n,) or (seeds, n) from 0 to 1 that come in groups.

    Wilson's, of as many values as they are worth: n over the design effect of the groups (Kish 1965). Over
    fewer groups than LEAST it is the exact one, of as many values as groups.
    """
    share, varied, count = values.mean(), mean(values).spread(groups), values.shape[-1]
    if math.isnan(varied.standard_error):
        count = count if groups is None else len(set(groups))
        return binomial_interval(round(share * count), count)
    independent = share * (1 - share) / count  # the variance without groups
    effect = max(1.0, varied.standard_error**2 / independent) if independent else 1.0
    return wilson_interval(share * count / effect, count / effect)


# ---------------------------------------------------------------- tests and ranks
def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test (1947).

    a, b (n,): two models' answers to the same questions, 1 right and 0 wrong.
    """
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    n, fewer = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (n,) adjusted so that all hold together (Holm 1979)."""
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted[np.argsort(order)]


def digits(low: float, high: float) -> int:
    """Decimals that an interval supports: two digits of half its width."""
    half = (high - low) / 2
    return max(0, 1 - math.floor(math.log10(half))) if math.isfinite(half) and half > 0 else 4


def average_ranks(values) -> np.ndarray:
    """Ranks from 1 along the last axis; equal values share the mean of theirs.

    Values that are not finite come last.
    """
    values = np.nan_to_num(np.asarray(values, float), nan=np.inf, posinf=np.inf)
    each, other = values[..., :, None], values[..., None, :]
    return (each > other).sum(-1) + ((each == other).sum(-1) + 1) / 2


def spearman(a, b) -> np.ndarray:
    """Rank correlation along the last axis (Spearman 1904).

    nan where a side is constant or has fewer than three values.
    """
    a, b = (rank - rank.mean(-1, keepdims=True) for rank in (average_ranks(a), average_ranks(b)))
    norm = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    known = (norm > 0) & (a.shape[-1] > 2)
    return np.where(known, (a * b).sum(-1) / np.where(known, norm, 1), np.nan)


def spearman_interval(a, b) -> Interval:
    """95 % interval of the rank correlation by Fisher's z, with Bonett and Wright's variance (2000).

    nan over fewer pairs than LEAST, and where a side is constant.
    """
    value, n = float(spearman(a, b)), len(a)
    if n < max(LEAST, 4) or math.isnan(value):
        return Interval(math.nan, math.nan)
    z = math.atanh(min(max(value, -0.9999), 0.9999))
    margin = NormalDist().inv_cdf(UPPER) * math.sqrt((1 + value**2 / 2) / (n - 3))
    return Interval(math.tanh(z - margin), math.tanh(z + margin))
