"""The loss without each block, and the scores that estimate it."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from nanoprune.figures.style import BESIDE, draw_intervals, looks, numbers, read_csv, save, scale_differences
from nanoprune.statistics import spearman

NAMES = {"influence": "block influence", "angular": "angular distance", "taylor": "Taylor importance",
         "magnitude": "weight magnitude"}  # of columns; others go by the column's own name
PARTS = {"": "whole block", "attn": "its attention", "mlp": "its MLP"}
INTERVAL = ("difference", "difference_low", "difference_high")


def draw_blocks(path: Path, out: Path) -> Path:
    """Rise of the loss without each block, with intervals; below it a panel for each ranked estimate."""
    rows = [row for row in read_csv(path, ("block", "nll", *INTERVAL)) if row["block"] != "none"]
    whole = [row for row in rows if "." not in row["block"]]
    if not whole:
        raise ValueError(f"{path} holds no whole block: give the table that prune.py --score writes")
    blocks = [row["block"] for row in whole]
    estimates = [column.removesuffix("_rank") for column in rows[0]
                 if column.endswith("_rank") and rows[0][column]]
    size = (max(6, 0.35 * len(blocks) + 2), 3.4 + 1.3 * len(estimates))
    figure, panels = plt.subplots(1 + len(estimates), figsize=size, sharex=True, squeeze=False,
                                  height_ratios=[3] + [1] * len(estimates))
    panels = panels[:, 0]
    _draw_losses(panels[0], rows, blocks)
    for axes, estimate in zip(panels[1:], estimates, strict=True):
        values, name = numbers(whole, estimate), NAMES.get(estimate, estimate)
        axes.plot(values, "o", markersize=5)
        correlation = spearman(numbers(whole, "nll"), values)
        axes.set_title(f"{name}: rank correlation with the loss {correlation:+.2f}", fontsize=9, loc="left")
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
        axes.margins(y=0.2)
    panels[-1].set_xlabel("block removed")
    panels[-1].set_xticks(range(len(blocks)), blocks)
    return save(figure, out)


def _draw_losses(axes, rows: list[dict], blocks: list[str]) -> None:
    styles = looks(PARTS.values())
    for k, (half, name) in enumerate(PARTS.items()):
        part = [row for row in rows if row["block"].partition(".")[2] == half]
        if part:
            at = [blocks.index(row["block"].partition(".")[0]) + 0.22 * k for row in part]
            draw_intervals(axes, at, part, INTERVAL, markersize=5, **styles[name])
    whole = numbers([row for row in rows if row["block"] in blocks], "difference")
    best = np.nan_to_num(whole, nan=np.inf).argmin()
    axes.plot(best, whole[best], "o", color="black", markersize=12, markerfacecolor="none",
              label="costs least")
    scale_differences(axes, "rise, nats per token")
    axes.legend(**BESIDE)
    axes.set_title("The loss without each block (95 % intervals)")

