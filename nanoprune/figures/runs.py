"""Loss curves of runs."""

from pathlib import Path

import matplotlib.pyplot as plt
import matplotlib.ticker

from nanoprune.figures.style import COLOURS, read_csv, running_mean, save


def draw_curves(runs: list[Path], out: Path) -> Path:
    """Training loss (thin: every step, thick: running mean) and validation loss over tokens seen."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for colour, run in zip(COLOURS * len(runs), runs, strict=False):
        rows = read_csv(run / "train.csv", ("tokens", "loss"))
        tokens, loss = [int(row["tokens"]) for row in rows], [float(row["loss"]) for row in rows]
        left.plot(tokens, loss, color=colour, alpha=0.25, linewidth=0.8)
        left.plot(tokens, running_mean(loss, max(1, len(loss) // 40)), color=colour, label=run.name)
        rows = read_csv(run / "eval.csv", ("tokens", "nll"))
        right.plot([int(row["tokens"]) for row in rows], [float(row["nll"]) for row in rows], "o-", color=colour,
                   markersize=3, label=run.name)
    for axes, title in ((left, "Training loss (running mean)"), (right, "Validation loss")):
        axes.set(title=title, xlabel="tokens seen", ylabel="nats per token")
        axes.set_yscale("log")  # the first steps would flatten the rest, where the runs differ
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return save(figure, out)
