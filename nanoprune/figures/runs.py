"""Loss curves of runs."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter, LogLocator

from nanoprune.figures.style import numbers, read_csv, save


def draw_curves(runs: list[Path], out: Path) -> Path:
    """Training loss (thin: every step, thick: running mean) and validation loss over tokens seen."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for k, run in enumerate(runs):
        steps = read_csv(run / "train.csv", ("tokens", "loss"))
        tokens, loss = numbers(steps, "tokens"), numbers(steps, "loss")
        left.plot(tokens, loss, color=f"C{k}", alpha=0.25, linewidth=0.8)
        left.plot(tokens, running_mean(loss, max(1, len(loss) // 40)), color=f"C{k}", label=run.name)
        validations = read_csv(run / "eval.csv", ("tokens", "nll"))
        right.plot(numbers(validations, "tokens"), numbers(validations, "nll"), "o-", markersize=3,
                   label=run.name)
    for axes, title in ((left, "Training loss (running mean)"), (right, "Validation loss")):
        axes.set(title=title, xlabel="tokens seen", ylabel="nats per token")
        axes.set_yscale("log")  # the first steps would flatten the rest, where the runs differ
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(axis="x")
        axes.legend(fontsize=10)
    return save(figure, out)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over the last `width` values (fewer at the start)."""
    counts = np.minimum(np.arange(len(values)) + 1, width)
    return np.convolve(values, np.ones(width))[: len(values)] / counts
