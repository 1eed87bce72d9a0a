"""The exchange rate of a block: how many more tokens of fine-tuning stand for it."""

import math

import numpy as np

from nanoprune.evaluation.measured import RunResult
from nanoprune.statistics import Ratio


class Curve:
    """Validation losses of an arm's runs."""

    def __init__(self, runs: list[RunResult]):
        marks = [run.validation for run in runs]
        self.tokens = [mark["tokens"] for mark in marks[0]]
        self.predicted = np.array(marks[0][0]["predicted"], float)  # (documents,)
        # (seeds, marks, documents)
        self.nll = np.array([[mark["nll"] for mark in run] for run in marks], float)
        self.seconds = np.median([run.seconds / run.tokens for run in runs])  # a token of training


def paired_curves(full: list[RunResult], reduced: list[RunResult]) -> tuple[Curve, Curve] | None:
    """The curves of both arms, of the seeds that neither diverged with; None if there are none."""
    pairs = [pair for pair in zip(full, reduced, strict=False) if not any(run.diverged for run in pair)]
    return (Curve([a for a, _ in pairs]), Curve([b for _, b in pairs])) if pairs else None


def first_at(tokens: list[int], lost: list[float]) -> float:
    """Tokens at which a curve first loses nothing, linear between marks; inf where it always does."""
    if np.isnan(lost).any():
        return math.nan
    for k, loss in enumerate(lost):
        if loss <= 0:
            if k == 0:
                return float(tokens[0])
            return tokens[k - 1] + lost[k - 1] / (lost[k - 1] - loss) * (tokens[k] - tokens[k - 1])
    return math.inf


def tokens_to_reach(full: list[RunResult], reduced: list[RunResult]) -> list[dict]:
    """For each mark of the full model, the tokens that the reduced one needs to reach its loss there.

    The 95 % interval: the tokens at which that of the paired difference, over documents and seeds, holds 0.
    inf where the loss is not reached.
    """
    curves, rows = paired_curves(full, reduced), []
    if not curves:
        return []
    a, b = curves
    for k, tokens in enumerate(a.tokens):
        lost = [Ratio(b.nll[:, mark] - a.nll[:, k], a.predicted) for mark in range(len(b.tokens))]
        lows, highs = zip(*(ratio.interval() for ratio in lost), strict=True)
        rows.append({"tokens": tokens, "nll": Ratio(a.nll[:, k], a.predicted).value,
                     "reduced": first_at(b.tokens, [ratio.value for ratio in lost]),
                     "reduced_low": first_at(b.tokens, lows), "reduced_high": first_at(b.tokens, highs)})
    return rows


def equal_time(full: list[RunResult], reduced: list[RunResult]) -> dict | None:
    """The reduced model at its end beside the full one at the same time; None where no seed has both.

    `lost`: nats of validation loss a token, paired.
    """
    curves = paired_curves(full, reduced)
    if not curves:
        return None
    a, b = curves
    full_tokens = float(min(a.tokens[-1], b.tokens[-1] * b.seconds / a.seconds))
    at_time = np.apply_along_axis(lambda losses: np.interp(full_tokens, a.tokens, losses), 1, a.nll)
    lost = Ratio(b.nll[:, -1] - at_time, a.predicted)
    return {"tokens": b.tokens[-1], "full_tokens": round(full_tokens)} | lost.columns("lost")
