"""Loss curves of runs."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter

from nanoprune.figures.style import BESIDE, looks, numbers, read_csv, save, scale_differences, scale_levels


def draw_curves(runs: dict[str, Path], out: Path, models: Iterable[str] = ()) -> Path:
    """Training loss (thin: every step, thick: running mean) and validation loss over tokens seen.

    Of two runs also the validation loss of the second less that of the first, where both were validated.
    A run that is still going is drawn as far as it is. A run looks as its name does among `models`.
    """
    titles = ["Training loss (running mean)", "Validation loss"]
    if len(runs) == 2:
        titles.append("Validation loss: {1}\nless {0}".format(*runs))
    figure, panels = plt.subplots(1, len(titles), figsize=(4.5 * len(titles) + 1.5, 4))
    styles, curves = looks([*models, *runs]), []
    for name, run in runs.items():
        steps = read_csv(run / "train.csv", ("tokens", "loss"), log=True)
        tokens, loss = numbers(steps, "tokens"), numbers(steps, "loss")
        panels[0].plot(tokens, loss, color=styles[name]["color"], alpha=0.5 / len(runs), linewidth=0.8)
        mean = running_mean(loss, max(1, len(loss) // 40))
        panels[0].plot(tokens, mean, **styles[name] | {"marker": None})
        validations = read_csv(run / "eval.csv", ("tokens", "nll"), log=True)
        curves.append((numbers(validations, "tokens"), numbers(validations, "nll")))
        panels[1].plot(*curves[-1], markersize=4, **styles[name])
    for axes, title in zip(panels, titles, strict=True):
        scale_levels(axes, "nats per token")  # the first steps would flatten the rest, where the runs differ
        axes.set(title=title, xlabel="tokens seen")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(axis="x")
    panels[-1].legend(*panels[1].get_legend_handles_labels(), **BESIDE)
    if len(runs) == 2:
        (first, first_loss), (second, second_loss) = curves
        tokens, at_first, at_second = np.intersect1d(first, second, return_indices=True)
        panels[2].plot(tokens, second_loss[at_second] - first_loss[at_first], "o-", color="black")
        scale_differences(panels[2], "nats per token")
    return save(figure, out)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over the last `width` values (fewer at the start)."""
    counts = np.minimum(np.arange(len(values)) + 1, width)
    return np.convolve(np.append(values, 0), np.ones(width))[: len(values)] / counts
