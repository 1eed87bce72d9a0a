"""How sure are we: intervals of ratios and of rank correlations, by resampling."""

import math

import numpy as np

FEW = 10  # documents or sources: with fewer, resampling them says little
RESAMPLES = 10_000


def resample(parts: np.ndarray, groups, seed: int = 0) -> np.ndarray | None:
    """Sums (k, RESAMPLES) of the parts (k, n) over whole groups drawn with replacement (Efron 1979); None of a single group."""
    _, index = np.unique(np.asarray(list(groups)), return_inverse=True)
    if not index.any():
        return None
    size, rng, found = index.max() + 1, np.random.default_rng(seed), []
    sums = np.stack([np.bincount(index, weights=part) for part in parts])
    for _ in range(10):  # in ten parts, to bound the memory
        drawn = rng.integers(size, size=(RESAMPLES // 10, size)) + size * np.arange(RESAMPLES // 10)[:, None]
        found.append(sums @ np.bincount(drawn.ravel(), minlength=size * len(drawn)).reshape(drawn.shape).T)
    return np.concatenate(found, axis=1)


def bootstrap(numerators: np.ndarray, denominators: np.ndarray, groups, seed: int = 0, level: float = 0.95) -> tuple:
    """Percentile interval (low, high) of sum(numerators) / sum(denominators), resampling whole groups.

    `numerators` (n,), or (k, n) for k of them under the same resamples, which gives arrays (k,). With the differences of two
    models it is the paired bootstrap. One group alone tells nothing: (nan, nan).
    """
    rows = np.atleast_2d(numerators)
    if (drawn := resample([*rows, denominators], groups, seed)) is None:
        return (math.nan, math.nan) if rows is not numerators else (np.full(len(rows), math.nan),) * 2
    low, high = np.quantile(drawn[:-1] / drawn[-1], [(1 - level) / 2, (1 + level) / 2], axis=1)
    return (low, high) if rows is numerators else (float(low[0]), float(high[0]))


def bootstrap_ratios(a: tuple, b: tuple, groups, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of sum(b[0]) / sum(b[1]) - sum(a[0]) / sum(a[1]), each part (n,), resampling groups together."""
    if (drawn := resample([*a, *b], groups, seed)) is None:
        return math.nan, math.nan
    low, high = np.quantile(drawn[2] / drawn[3] - drawn[0] / drawn[1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p of as many answers right in one alone, of two models' 0 and 1 on the same questions (McNemar 1947)."""
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    n, fewer = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def detectable_difference(low: float, high: float) -> float:
    """The smallest difference that a 95 % interval as wide as this one would have shown in four cases of five."""
    return (high - low) / 2 / 1.96 * (1.96 + 0.84)


def digits(value: float, low: float, high: float) -> int:
    """Decimals that an interval supports: two digits of half its width."""
    half = (high - low) / 2
    return max(0, 1 - math.floor(math.log10(half))) if math.isfinite(half) and half > 0 else 4


def average_ranks(values) -> np.ndarray:
    """Ranks from 1 along the last axis, the mean of them where values are equal; what is not finite comes last."""
    values = np.nan_to_num(np.asarray(values, float), nan=np.inf, posinf=np.inf)
    one, other = values[..., :, None], values[..., None, :]
    return (one > other).sum(-1) + ((one == other).sum(-1) + 1) / 2


def spearman(a, b) -> np.ndarray:
    """Rank correlation along the last axis (Spearman 1904); nan where one side is all equal or there are fewer than three."""
    a, b = (rank - rank.mean(-1, keepdims=True) for rank in (average_ranks(a), average_ranks(b)))
    spread = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    known = (spread > 0) & (a.shape[-1] > 2)
    return np.where(known, (a * b).sum(-1) / np.where(known, spread, 1), np.nan)


def spearman_interval(a, b, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the rank correlation, resampling the pairs."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    drawn = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    found = np.concatenate([spearman(a[part], b[part]) for part in np.array_split(drawn, 10)])
    found = found[np.isfinite(found)]
    low, high = np.quantile(found, [0.025, 0.975]) if len(found) > resamples / 2 else (math.nan, math.nan)
    return float(low), float(high)
