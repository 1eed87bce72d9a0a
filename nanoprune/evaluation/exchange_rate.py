"""The exchange rate of a block: how many more tokens of fine-tuning stand for it."""

import math

import numpy as np

from nanoprune.evaluation.measured import RunResult

RESAMPLES = 1000


class Curves:
    """Validation sums of an arm's runs at the marks that all have."""

    def __init__(self, runs: list[RunResult]):
        marks = [run.validation for run in runs if not run.diverged]
        self.tokens = [mark["tokens"] for mark in marks[0]] if marks else []
        self.nll = np.array([[mark["nll"] for mark in run] for run in marks], float)  # (runs, marks, docs)
        self.predicted = np.array(marks[0][0]["predicted"], float) if marks else np.zeros(0)

    def losses(self, runs: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Nats per token (marks,), a mean over these runs and documents."""
        return self.nll[runs].mean(0)[:, documents].sum(1) / self.predicted[documents].sum()

    @property
    def all(self) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(self.nll)), np.arange(len(self.predicted))


def first_at(tokens: list[int], losses: np.ndarray, target: float) -> float:
    """Tokens at which a curve first reaches a loss, linear between marks; inf where it never does."""
    for k, loss in enumerate(losses):
        if loss <= target:
            if k == 0:
                return float(tokens[0])
            share = (losses[k - 1] - target) / (losses[k - 1] - loss)
            return tokens[k - 1] + share * (tokens[k] - tokens[k - 1])
    return math.inf


def tokens_to_reach(full: list[RunResult], reduced: list[RunResult]) -> list[dict]:
    """For each mark of the full model, the tokens that the reduced one needs to reach its loss there.

    With a 95 % percentile interval over resampled seeds, of each arm, and documents, of both alike; inf where
    the loss is not reached.
    """
    a, b = Curves(full), Curves(reduced)
    if not a.tokens or not b.tokens:
        return []
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        documents = rng.integers(len(a.predicted), size=len(a.predicted))
        sums = [curves.losses(rng.integers(len(curves.nll), size=len(curves.nll)), documents)
                for curves in (a, b)]
        drawn.append([first_at(b.tokens, sums[1], target) for target in sums[0]])
    targets, losses = a.losses(*a.all), b.losses(*b.all)
    rows = []
    for k, tokens in enumerate(a.tokens):
        ordered = np.sort(np.array(drawn)[:, k])
        rows.append({"tokens": tokens, "nll": targets[k], "reduced": first_at(b.tokens, losses, targets[k]),
                     "reduced_low": ordered[int(0.025 * RESAMPLES)],
                     "reduced_high": ordered[int(0.975 * RESAMPLES) - 1]})
    return rows


def equal_time(full: list[RunResult], reduced: list[RunResult]) -> dict | None:
    """The reduced model at its end beside the full one at the same time; None where one diverged.

    `lost`: nats of validation loss, with a 95 % percentile interval over resampled seeds and documents.
    """
    a, b = Curves(full), Curves(reduced)
    if not a.tokens or not b.tokens:
        return None
    seconds = [np.median([run.seconds / run.tokens for run in runs if not run.diverged])
               for runs in (full, reduced)]
    full_tokens = min(a.tokens[-1], b.tokens[-1] * seconds[1] / seconds[0])

    def lost(runs_a: np.ndarray, runs_b: np.ndarray, documents: np.ndarray) -> float:
        return b.losses(runs_b, documents)[-1] - np.interp(full_tokens, a.tokens, a.losses(runs_a, documents))

    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        documents = rng.integers(len(a.predicted), size=len(a.predicted))
        runs = [rng.integers(len(curves.nll), size=len(curves.nll)) for curves in (a, b)]
        drawn.append(lost(*runs, documents))
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    value = lost(a.all[0], b.all[0], a.all[1])
    return {"tokens": b.tokens[-1], "full_tokens": float(full_tokens), "lost": float(value),
            "lost_low": low, "lost_high": high}
