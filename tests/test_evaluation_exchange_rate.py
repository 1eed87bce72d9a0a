"""The exchange rate of a block, on curves whose answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from nanoprune.evaluation.exchange_rate import equal_time, first_at, tokens_to_reach
from nanoprune.evaluation.measured import RunResult
from nanoprune.statistics import Ratio

MARKS = (0, 100, 200, 300, 400)
DIVERGED = RunResult(diverged=True)


def run(losses, seconds: float = 400.0, spread=(0.0, 0.0, 0.0)) -> RunResult:
    """A run whose documents of 10 tokens have these losses, apart by `spread`."""
    validation = [{"tokens": tokens, "nll": [10 * (loss + more) for more in spread],
                   "predicted": [10] * len(spread)}
                  for tokens, loss in zip(MARKS, losses, strict=True)]
    return RunResult(steps=4, tokens=400, seconds=seconds, validation=validation)


def test_a_curve_that_is_half_as_steep_needs_twice_the_tokens():
    full, reduced = run((4.0, 3.6, 3.2, 2.8, 2.4)), run((4.0, 3.8, 3.6, 3.4, 3.2))
    rows = {row["tokens"]: row for row in tokens_to_reach([full], [reduced])}
    assert rows[100]["reduced"] == pytest.approx(200) and rows[200]["reduced"] == pytest.approx(400)
    assert rows[100]["reduced_low"] == pytest.approx(200) and rows[100]["reduced_high"] == pytest.approx(200)
    assert math.isinf(rows[400]["reduced"]) and rows[300]["nll"] == pytest.approx(2.8)


def test_the_interval_is_where_that_of_the_difference_holds_zero():
    """On a straight curve its ends are those of the difference over the slope."""
    noise = np.random.default_rng(0).normal(0, 0.05, 20)
    full = run((4.0, 3.6, 3.2, 2.8, 2.4), spread=[0.0] * 20)
    reduced = run((4.0, 3.8, 3.6, 3.4, 3.2), spread=noise)
    row = tokens_to_reach([full], [reduced])[1]
    low, high = Ratio(10 * noise, np.full(20, 10.0)).interval()
    assert (row["reduced_low"], row["reduced_high"]) == pytest.approx((200 + low / 0.002, 200 + high / 0.002))
    assert row["reduced"] == pytest.approx(200 + noise.mean() / 0.002)


def test_seeds_widen_the_interval_and_diverged_runs_do_not_count():
    """A seed that never reaches the loss makes the upper end infinite."""
    full = [run((4.0, 3.6, 3.2, 2.8, 2.4))] * 4
    seeds = [run((4.0, 3.8, 3.6, 3.4, 3.2)), run((4.0, 3.79, 3.58, 3.37, 3.16)), DIVERGED]
    row = tokens_to_reach(full, [*seeds, run((4.0, 3.81, 3.62, 3.43, 3.24))])[1]
    assert row["reduced_low"] < 190 < row["reduced"] < 210 < row["reduced_high"]
    assert math.isinf(tokens_to_reach(full, [*seeds, run((4.0, 3.9, 3.9, 3.9, 3.9))])[1]["reduced_high"])
    assert tokens_to_reach([DIVERGED], seeds) == []


def test_documents_are_paired():
    """Documents that differ in level alone leave an exact difference."""
    spread = (-1.0, 0.0, 2.0)
    full = [run((4.0, 3.6, 3.2, 2.8, 2.4), spread=spread)]
    reduced = [run((4.1, 3.7, 3.3, 2.9, 2.5), spread=spread)]
    row = tokens_to_reach(full, reduced)[1]
    assert row["reduced_low"] == pytest.approx(125) and row["reduced_high"] == pytest.approx(125)
    assert equal_time(full, reduced)["lost_low"] == pytest.approx(0.1)


def test_fewer_documents_than_the_least_have_no_interval():
    full = run((4.0, 3.6, 3.2, 2.8, 2.4), spread=(0, 0))
    reduced = run((4.0, 3.8, 3.6, 3.4, 3.2), spread=(0, 1))
    row = tokens_to_reach([full], [reduced])[0]
    assert row["reduced"] > 0 and math.isnan(row["reduced_low"]) and math.isnan(row["reduced_high"])
    assert math.isnan(equal_time([full], [reduced])["lost_high"])


def test_equal_time_gives_the_slower_model_fewer_tokens():
    full, reduced = run((4.0, 3.6, 3.2, 2.8, 2.4)), run((4.0, 3.7, 3.4, 3.1, 2.8), seconds=300.0)
    result = equal_time([full], [reduced])
    assert result["full_tokens"] == pytest.approx(300) and result["lost"] == pytest.approx(0.0)
    slower = equal_time([full], [replace(reduced, seconds=500.0)])
    assert slower["full_tokens"] == 400 and slower["lost"] == pytest.approx(0.4)
    assert equal_time([full], [DIVERGED]) is None


def test_nothing_is_lost_between_two_marks():
    assert first_at([0, 100], [0.75, -0.25]) == pytest.approx(75)
    assert first_at([0, 100], [-0.5, -1]) == 0 and first_at([0, 100], [0.5, 0.1]) == math.inf
    assert math.isnan(first_at([0, 100], [math.nan, -1]))
