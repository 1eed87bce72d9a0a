"""The exchange rate of a block, on curves whose answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from nanoprune.evaluation.exchange_rate import RESAMPLES, equal_time, first_at, tokens_to_reach
from nanoprune.evaluation.measured import RunResult

MARKS = (0, 100, 200, 300, 400)


def run(losses, seconds: float = 400.0, spread=(0.0, 0.0, 0.0)) -> RunResult:
    """A run whose three documents of 10 tokens have these losses, apart by `spread`."""
    validation = [{"tokens": tokens, "nll": [10 * (loss + more) for more in spread], "predicted": [10] * 3}
                  for tokens, loss in zip(MARKS, losses, strict=True)]
    return RunResult(steps=4, tokens=400, seconds=seconds, validation=validation)


def test_a_curve_that_is_half_as_steep_needs_twice_the_tokens():
    full, reduced = run((4.0, 3.6, 3.2, 2.8, 2.4)), run((4.0, 3.8, 3.6, 3.4, 3.2))
    rows = {row["tokens"]: row for row in tokens_to_reach([full], [reduced])}
    assert rows[100]["reduced"] == pytest.approx(200) and rows[200]["reduced"] == pytest.approx(400)
    assert rows[100]["reduced_low"] == pytest.approx(200) and rows[100]["reduced_high"] == pytest.approx(200)
    assert math.isinf(rows[400]["reduced"]) and rows[300]["nll"] == pytest.approx(2.8)


def test_seeds_widen_the_interval_and_diverged_runs_do_not_count():
    """A seed that never reaches the loss makes the upper end infinite."""
    full = [run((4.0, 3.6, 3.2, 2.8, 2.4))]
    seeds = [run((4.0, 3.8, 3.6, 3.4, 3.2)), run((4.0, 3.7, 3.4, 3.1, 2.8)), RunResult(diverged=True)]
    row = tokens_to_reach(full, seeds)[2]
    assert row["reduced_low"] == pytest.approx(800 / 3) and row["reduced_high"] == pytest.approx(400)
    assert row["reduced_low"] < row["reduced"] < row["reduced_high"]
    slow = [*seeds, run((4.0, 3.9, 3.9, 3.9, 3.9))]
    assert math.isinf(tokens_to_reach(full, slow)[2]["reduced_high"])
    assert tokens_to_reach([RunResult(diverged=True)], seeds) == [] and RESAMPLES >= 1000


def test_documents_are_resampled_for_both_arms_alike():
    """Documents that differ in level alone leave an exact difference."""
    spread = (-1.0, 0.0, 2.0)
    full = [run((4.0, 3.6, 3.2, 2.8, 2.4), spread=spread)]
    reduced = [run((4.1, 3.7, 3.3, 2.9, 2.5), spread=spread)]
    row = tokens_to_reach(full, reduced)[1]
    assert row["reduced_low"] == pytest.approx(125) and row["reduced_high"] == pytest.approx(125)


def test_equal_time_gives_the_slower_model_fewer_tokens():
    full, reduced = run((4.0, 3.6, 3.2, 2.8, 2.4)), run((4.0, 3.7, 3.4, 3.1, 2.8), seconds=300.0)
    result = equal_time([full], [reduced])
    assert result["full_tokens"] == pytest.approx(300) and result["lost"] == pytest.approx(0.0)
    slower = equal_time([full], [replace(reduced, seconds=500.0)])
    assert slower["full_tokens"] == 400 and slower["lost"] == pytest.approx(0.4)
    assert equal_time([full], [RunResult(diverged=True)]) is None


def test_a_loss_between_two_marks_is_reached_between_them():
    assert first_at([0, 100], np.array([4.0, 3.0]), 3.25) == pytest.approx(75)
    assert first_at([0, 100], np.array([4.0, 3.0]), 4.5) == 0
