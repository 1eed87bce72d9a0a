"""The loss without each block, and the scores that estimate it."""

import math
from pathlib import Path

import matplotlib.pyplot as plt

from nanoprune.figures.style import draw_intervals, numbers, read_csv, save
from nanoprune.statistics import spearman

NAMES = {"influence": "block influence", "angular": "angular distance", "taylor": "Taylor importance",
         "magnitude": "weight magnitude"}  # of columns; others go by the column's own name
HALVES = {"": "whole block", "attn": "its attention", "mlp": "its MLP"}
INTERVAL = ("difference", "difference_low", "difference_high")


def draw_blocks(path: Path, out: Path) -> Path:
    """Rise of the loss without each block, with intervals; below it a panel for each ranked estimate."""
    rows = [row for row in read_csv(path, ("block", "nll", *INTERVAL)) if row["block"] != "none"]
    kinds = {half: [row for row in rows if row["block"].partition(".")[2] == half] for half in HALVES}
    blocks = [row["block"] for row in kinds[""]]
    estimates = [column.removesuffix("_rank") for column in rows[0]
                 if column.endswith("_rank") and rows[0][column]]
    size = (max(6, 0.35 * len(blocks) + 2), 3.4 + 1.3 * len(estimates))
    figure, panels = plt.subplots(1 + len(estimates), 1, figsize=size, sharex=True, squeeze=False,
                                  height_ratios=[3] + [1] * len(estimates))
    panels = panels[:, 0]
    _draw_losses(panels[0], kinds, blocks)
    for axes, estimate in zip(panels[1:], estimates, strict=True):
        _draw_estimate(axes, kinds[""], blocks, estimate)
    panels[-1].set(xlabel="block removed", xticks=range(len(blocks)))
    panels[-1].set_xticklabels(blocks)
    return save(figure, out)


def _draw_losses(axes, kinds: dict[str, list[dict]], blocks: list[str]) -> None:
    rises = []
    for k, (half, rows) in enumerate(kinds.items()):
        finite = [row for row in rows if math.isfinite(float(row["difference"]))]
        if not finite:
            continue
        at = [blocks.index(row["block"].partition(".")[0]) + 0.22 * k for row in finite]
        draw_intervals(axes, at, finite, INTERVAL, fmt="os^"[k], color=f"C{k}", markersize=5,
                       label=HALVES[half])
        values = numbers(finite, "difference")
        rises += values
        if half == "":
            best = values.index(min(values))
            axes.annotate("costs least", (at[best], values[best]), xytext=(0, 14), textcoords="offset points",
                          ha="center", fontsize=8, arrowprops={"arrowstyle": "-", "linewidth": 0.6})
    if rises and min(rises) > 0 and max(rises) > 20 * min(rises):
        axes.set_yscale("log")
    else:
        axes.axhline(0, color="black", linewidth=0.6)
    if kinds["attn"] or kinds["mlp"]:
        axes.legend()
    axes.set(title="The loss without each block (95 % intervals)", ylabel="rise, nats per token")


def _draw_estimate(axes, rows: list[dict], blocks: list[str], estimate: str) -> None:
    finite = [row for row in rows if row[estimate] and math.isfinite(float(row["nll"]))]
    values = numbers(finite, estimate)
    axes.bar([blocks.index(row["block"]) for row in finite], values, 0.6)
    low, high = min(values), max(values)
    if low > 0.5 * high:  # else all bars look the same
        axes.set_ylim(low - 0.3 * (high - low), high + 0.1 * (high - low))
    correlation = spearman(numbers(finite, "nll"), values)
    name = NAMES.get(estimate, estimate)
    axes.set_title(f"{name}: rank correlation with the loss {correlation:+.2f}", fontsize=9, loc="left")
    axes.ticklabel_format(axis="y", scilimits=(-2, 4))
