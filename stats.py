"""How sure are we: intervals of ratios and of rank correlations, by resampling."""

import math

import numpy as np

FEW = 10  # documents or sources: with fewer, resampling them says little
RESAMPLES = 10_000


def bootstrap(numerators: np.ndarray, denominators: np.ndarray, groups, seed: int = 0) -> tuple:
    """95 % percentile interval (low, high) of sum(numerators) / sum(denominators), resampling whole groups (Efron 1979).

    `numerators` (n,), or (k, n) for k of them under the same resamples, which gives arrays (k,). With the differences of two
    models it is the paired bootstrap. One group alone tells nothing: (nan, nan).
    """
    _, index = np.unique(np.asarray(list(groups)), return_inverse=True)
    rows = np.atleast_2d(numerators)
    if not index.any():
        return (math.nan, math.nan) if rows is not numerators else (np.full(len(rows), math.nan),) * 2
    size = index.max() + 1
    sums = np.stack([np.bincount(index, weights=part) for part in (*rows, denominators)])
    rng, found = np.random.default_rng(seed), []
    for _ in range(10):  # in ten parts, to bound the memory
        drawn = rng.integers(size, size=(RESAMPLES // 10, size)) + size * np.arange(RESAMPLES // 10)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * len(drawn)).reshape(drawn.shape)
        resampled = sums @ counts.T
        found.append(resampled[:-1] / resampled[-1])
    low, high = np.quantile(np.concatenate(found, axis=1), [0.025, 0.975], axis=1)
    return (low, high) if rows is numerators else (float(low[0]), float(high[0]))


def ranked(values) -> np.ndarray:
    """Ranks from 1 along the last axis, the mean of them where values are equal; what is not finite comes last."""
    values = np.nan_to_num(np.asarray(values, float), nan=np.inf, posinf=np.inf)
    one, other = values[..., :, None], values[..., None, :]
    return (one > other).sum(-1) + ((one == other).sum(-1) + 1) / 2


def spearman(a, b) -> np.ndarray:
    """Rank correlation along the last axis (Spearman 1904); nan where one side is all equal or there are fewer than three."""
    a, b = (rank - rank.mean(-1, keepdims=True) for rank in (ranked(a), ranked(b)))
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
