"""Do 95 % intervals cover? Simulated documents, questions and blocks like ours, and several intervals.

    python -m benchmarks.coverage --out docs/results    (coverage.csv and coverage.md)

Each case draws data sets from a distribution whose true value is known, and counts how often an interval
contains it. The standard error of a coverage near .95 from 1,000 data sets is .007.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import scipy.stats

from nanoprune import command_line
from nanoprune.io.files import write_csv, write_text
from nanoprune.io.markdown import table
from nanoprune.progress import progress
from nanoprune.statistics import (
    Ratio,
    share_interval,
    spearman,
    spearman_interval,
    t_quantile,
    wilson_interval,
)

SETS, RESAMPLES = 1000, 999  # data sets of a case, and resamples of each
LENGTH_SPREAD = 0.7  # standard deviation of the log of the releases' lengths in tokens
DOCUMENTS = (10, 12, 14, 20, 24, 30, 40, 60, 100, 250)
SOURCES = (10, 12, 20, 40, 100, 250)
BLOCKS = (8, 12, 16, 24, 30)
ENOUGH = 0.935


class Case(NamedTuple):
    """A kind of estimate, a distribution of its units, and the truth."""

    kind: str
    name: str
    draw: Callable  # (rng, n) -> arrays of a data set
    truth: float


def percentile(values: np.ndarray) -> tuple[float, float]:
    return tuple(np.quantile(values, [0.025, 0.975]))


# ---------------------------------------------------------------- documents
def lengths(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.exp(rng.normal(7, LENGTH_SPREAD, n))


def documents(level: float, noise: Callable) -> Callable:
    """Sums of nll over documents whose mean per token is level + noise, and their tokens."""
    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = lengths(rng, n)
        return tokens * (level + noise(rng, n)), tokens
    return draw


def lognormal(sigma: float, scale: float) -> Callable:
    """Noise of mean zero, skewed to the right: skewness 1.8 for sigma .5, 6.2 for 1."""
    return lambda rng, n: scale * (np.exp(rng.normal(0, sigma, n)) - math.exp(sigma**2 / 2))


def normal(scale: float) -> Callable:
    return lambda rng, n: rng.normal(0, scale, n)


def document_cases() -> list[Case]:
    return [
        Case("level", "normal", documents(3.1, normal(0.4)), 3.1),
        Case("level", "skewed (sigma .5)", documents(3.1, lognormal(0.5, 0.4)), 3.1),
        Case("difference", "normal", documents(0.1, normal(0.05)), 0.1),
        Case("difference", "skewed (sigma .5)", documents(0.1, lognormal(0.5, 0.05)), 0.1),
        Case("difference", "most skewed (sigma 1)", documents(0.1, lognormal(1.0, 0.05)), 0.1)]


def ratio_intervals(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Four intervals of sum(x) / sum(y)."""
    n, value = len(x), x.sum() / y.sum()
    residuals = x - value * y
    error = math.sqrt(n / (n - 1) * (residuals**2).sum()) / y.sum()
    counts = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    sums = counts @ np.stack([x, y, x * x, x * y, y * y], axis=1)
    drawn = sums[:, 0] / sums[:, 1]
    squares = sums[:, 2] - 2 * drawn * sums[:, 3] + drawn**2 * sums[:, 4]
    errors = np.sqrt(n / (n - 1) * np.maximum(squares, 1e-12)) / sums[:, 1]
    low_t, high_t = percentile((drawn - value) / errors)
    return {
        "percentile": percentile(drawn),
        "BCa": bias_corrected(x, y, value, drawn),
        "bootstrap-t": (value - high_t * error, value - low_t * error),
        "delta t": t_interval(value, error, n - 1),
        "jackknife t": t_interval(value, jackknife_error(residuals / y.sum(), y / y.sum()), n - 1),
        "jackknife t, Satterthwaite": tuple(Ratio(x, y).interval())}


def t_interval(value: float, error: float, freedom: float) -> tuple[float, float]:
    margin = error * t_quantile(0.975, freedom)
    return value - margin, value + margin


def jackknife_error(influences: np.ndarray, shares: np.ndarray) -> float:
    n = len(shares)
    return math.sqrt((n - 1) / n * ((influences / (1 - shares)) ** 2).sum())


def bias_corrected(x: np.ndarray, y: np.ndarray, value: float, drawn: np.ndarray) -> tuple[float, float]:
    """Bias-corrected and accelerated percentiles (Efron 1987)."""
    unit = NormalDist()
    below = min(max((drawn < value).mean(), 0.5 / len(drawn)), 1 - 0.5 / len(drawn))
    left_out = (x.sum() - x) / (y.sum() - y)
    deviations = left_out.mean() - left_out
    if not deviations.any():
        return value, value
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    bias, ends = unit.inv_cdf(below), []
    for z in (unit.inv_cdf(0.025), unit.inv_cdf(0.975)):
        ends.append(unit.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))))
    return tuple(np.quantile(drawn, np.clip(ends, 0, 1)))


# ---------------------------------------------------------------- questions
def answers(accuracy: float, within: float) -> Callable:
    """Right answers and questions of sources with one to six questions, alike within a source."""
    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        sizes = rng.integers(1, 7, n)
        shared = within / (1 - within)  # beta-binomial with this correlation within a source
        chance = rng.beta(accuracy / shared, (1 - accuracy) / shared, n)
        return rng.binomial(sizes, chance).astype(float), sizes.astype(float)
    return draw


def paired_answers(changed: float, gain: float) -> Callable:
    """Differences of right answers of two models, and questions: a share is answered otherwise."""
    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        sizes = rng.integers(1, 7, n)
        better, worse = (changed + gain) / 2, (changed - gain) / 2
        counts = rng.multinomial(sizes, [better, worse, 1 - changed])
        return (counts[:, 0] - counts[:, 1]).astype(float), sizes.astype(float)
    return draw


def question_cases() -> list[Case]:
    cases = [Case("accuracy", f"{accuracy:g}", answers(accuracy, 0.1), accuracy)
             for accuracy in (0.03, 0.25, 0.5, 0.97)]
    return cases + [
        Case("difference of accuracies", f"{changed:g} changed, {gain:+g}", paired_answers(changed, gain),
             gain) for changed, gain in ((0.05, 0.0), (0.2, 0.0), (0.2, 0.1), (0.5, 0.05))]


def accuracy_intervals(
    right: np.ndarray, sizes: np.ndarray, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Those of a ratio, and two of a share with as many questions as the clusters are worth."""
    intervals = ratio_intervals(right, sizes, rng)
    if (right < 0).any():  # a difference
        return intervals
    values = np.concatenate([np.arange(size) < count for size, count in zip(sizes, right, strict=True)])
    sources = np.repeat(np.arange(len(sizes)), sizes.astype(int))
    total, count = len(values), int(right.sum())
    exact = scipy.stats.beta.ppf([0.025, 0.975], [count, count + 1], [total - count + 1, total - count])
    return intervals | {
        "Clopper-Pearson, without sources": tuple(np.nan_to_num(exact, nan=float(count > 0))),
        "Wilson, without sources": tuple(wilson_interval(count, total)),
        "Wilson, design effect": tuple(share_interval(values.astype(float), sources))}


# ---------------------------------------------------------------- rank correlations of blocks
def ranked(correlation: float) -> Callable:
    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        a = rng.normal(size=n)
        return a, correlation * a + math.sqrt(1 - correlation**2) * rng.normal(size=n)
    return draw


def rank_cases() -> list[Case]:
    """Spearman's correlation of a normal distribution is 6 / pi arcsin(r / 2)."""
    return [Case("rank correlation", f"{r:g}", ranked(r), 6 / math.pi * math.asin(r / 2))
            for r in (0.0, 0.5, 0.8, 0.95)]


def rank_intervals(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    n, value = len(a), float(spearman(a, b))
    drawn = rng.integers(n, size=(RESAMPLES, n))
    values = spearman(a[drawn], b[drawn])
    clipped = min(max(value, -0.9999), 0.9999)

    def fisher(variance: float) -> tuple[float, float]:
        margin = 1.96 * math.sqrt(variance / (n - 3))
        return math.tanh(math.atanh(clipped) - margin), math.tanh(math.atanh(clipped) + margin)

    return {"percentile": percentile(values[np.isfinite(values)]), "Fisher z, 1.06": fisher(1.06),
            "Fisher z, Bonett and Wright": tuple(spearman_interval(a, b))}


# ---------------------------------------------------------------- the table
def cover(case: Case, n: int, intervals: Callable, seed: int = 0) -> list[dict]:
    """A row per interval: its coverage and median width."""
    rng, ends = np.random.default_rng(seed), {}
    for _ in range(SETS):
        for name, interval in intervals(*case.draw(rng, n), rng).items():
            ends.setdefault(name, []).append(interval)
    rows = []
    for name, drawn in ends.items():
        low, high = np.array(drawn).T
        known = np.isfinite(low)
        covered = (low[known] <= case.truth) & (case.truth <= high[known])
        rows.append({"kind": case.kind, "case": case.name, "n": n, "interval": name,
                     "coverage": round(float(covered.mean()), 4) if known.any() else "",
                     "width": f"{np.median((high - low)[known]):.4g}" if known.any() else ""})
    return rows


def coverage_page(rows: list[dict]) -> str:
    lines = ["# Coverage of 95 % intervals, simulated", "",
             f"{SETS:,} data sets a case (`python -m benchmarks.coverage`); nominal 0.95, {ENOUGH:g} is "
             "enough.", ""]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        lines += [f"## {kind}", ""]
        shown = []
        for row in (row for row in rows if row["kind"] == kind):
            key = {"case": row["case"], "n": row["n"]}
            if not shown or {k: shown[-1][k] for k in key} != key:
                shown.append(key)
            if row["coverage"] != "":
                shown[-1][f"{row['interval']} (width)"] = f"{row['coverage']:.3f} ({row['width']})"
        lines += [*table(shown), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    plan = [(case, n, ratio_intervals) for case in document_cases() for n in DOCUMENTS]
    plan += [(case, n, accuracy_intervals) for case in question_cases() for n in SOURCES]
    plan += [(case, n, rank_intervals) for case in rank_cases() for n in BLOCKS]
    rows = [row for job in progress(plan, "cases") for row in cover(*job)]
    write_csv(args.out / "coverage.csv", rows)
    write_text(args.out / "coverage.md", coverage_page(rows))
    print(f"wrote {args.out / 'coverage.csv'} and {args.out / 'coverage.md'}")


if __name__ == "__main__":
    command_line.run(main)
