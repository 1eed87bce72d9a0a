"""Loss curves of runs."""

from pathlib import Path

import matplotlib.pyplot as plt
import matplotlib.ticker

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
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.grid(axis="x")
        axes.legend(fontsize=10)
    return save(figure, out)


def running_mean(values: list[float], width: int) -> list[float]:
    """Mean over the last `width` values (fewer at the start)."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]
