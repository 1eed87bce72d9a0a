"""Intervals of ratios and of rank correlations, by resampling; tests of paired answers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEW = 10  # documents or sources: resampling fewer gives intervals that are too narrow
RESAMPLES = 10_000


class Interval(NamedTuple):
    low: float
    high: float


class Ratio(NamedTuple):
    """A mean over units, sum(numerators) / sum(denominators), such as nats by tokens of each document."""

    numerators: np.ndarray  # (n,)
    denominators: np.ndarray  # (n,)

    @property
    def value(self) -> float:
        return self.numerators.sum() / self.denominators.sum()

    def resampled(self, groups: Sequence | None = None) -> np.ndarray:
        """Its values (RESAMPLES,) over resampled groups; ratios of the same groups share the resamples."""
        numerators, denominators = resample(self, groups)
        return numerators / denominators

    def interval(self, groups: Sequence | None = None) -> Interval:
        """95 % percentile interval; with the differences of two models as numerators it is paired."""
        return percentiles(self.resampled(groups))


def mean(values: np.ndarray) -> Ratio:
    """The mean of values (n,) of equal weight."""
    return Ratio(values, np.ones(len(values)))


def resample(parts: Sequence[np.ndarray], groups: Sequence | None = None) -> np.ndarray:
    """Sums (k, RESAMPLES) of the parts (k, n) over whole groups drawn with replacement (Efron 1979).

    `groups`: the group of each of the n units; None: each is its own. nan where there is a single group:
    resampling it says nothing.
    """
    units = range(len(parts[0])) if groups is None else groups
    _, index = np.unique(units, return_inverse=True)
    if not index.any():
        return np.full((len(parts), RESAMPLES), math.nan)
    size, rng, drawn_sums = index.max() + 1, np.random.default_rng(0), []
    sums = np.stack([np.bincount(index, weights=part) for part in parts])
    for _ in range(10):  # in ten parts, to bound the memory
        drawn = rng.integers(size, size=(RESAMPLES // 10, size)) + size * np.arange(RESAMPLES // 10)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * len(drawn)).reshape(drawn.shape)
        drawn_sums.append(sums @ counts.T)
    return np.concatenate(drawn_sums, axis=1)


def percentiles(drawn: np.ndarray, level: float = 0.95) -> Interval:
    """The ends between which a share `level` of the drawn values lies."""
    return Interval(*np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist())


def bootstrap_rows(
    rows: np.ndarray, denominators: np.ndarray, groups: Sequence | None = None
) -> tuple[list[float], list[float]]:
    """95 % percentile intervals of sum(row) / sum(denominators) for rows (k, n), which share the resamples.

    Returns the lower and the upper ends, k each; nan where there is a single group.
    """
    *numerators, drawn = resample([*rows, denominators], groups)
    low, high = zip(*(percentiles(row / drawn) for row in numerators), strict=True)
    return low, high


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test (1947).

    a, b (n,): two models' answers to the same questions, 1 right and 0 wrong.
    """
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    n, fewer = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def detectable_difference(low: float, high: float) -> float:
    """Minimum detectable difference (80 % power) of a set whose 95 % interval is as wide as this one."""
    return (high - low) / 2 / 1.96 * (1.96 + 0.84)


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
    """95 % percentile interval of the rank correlation, resampling the pairs.

    nan where half of the resamples or more have no rank correlation.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    drawn = np.random.default_rng(0).integers(len(a), size=(2000, len(a)))
    correlations = spearman(a[drawn], b[drawn])
    correlations = correlations[np.isfinite(correlations)]
    if len(correlations) <= len(drawn) / 2:
        return Interval(math.nan, math.nan)
    return percentiles(correlations)
