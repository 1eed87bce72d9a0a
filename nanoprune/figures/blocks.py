"""The loss without each block, and the scores that estimate it."""

import math
from pathlib import Path

import matplotlib.pyplot as plt

from nanoprune.figures.style import COLOURS, read_csv, save
from nanoprune.statistics import spearman

ESTIMATES = {"influence": "block influence", "angular": "angular distance", "taylor": "Taylor importance",
             "magnitude": "weight magnitude"}
HALVES = {"": "whole block", "attn": "its attention", "mlp": "its MLP"}


def draw_blocks(path: Path, out: Path) -> Path:
    """How much the loss rises without each block, with intervals, and below it what the cheap scores say of the same blocks."""
    rows = [row for row in read_csv(path, ("block", "nll", "difference")) if row["block"] != "none"]
    kinds = {half: [row for row in rows if row["block"].partition(".")[2] == half] for half in HALVES}
    blocks = [row["block"] for row in kinds[""]]
    scores = [name for name in ESTIMATES if rows[0].get(name)]
    size = (max(6, 0.35 * len(blocks) + 2), 3.4 + 1.3 * len(scores))
    figure, panels = plt.subplots(1 + len(scores), 1, figsize=size, sharex=True, layout="constrained", squeeze=False,
                                  height_ratios=[3] + [1] * len(scores))
    panels = panels[:, 0]
    finite = [float(row["difference"]) for row in rows if math.isfinite(float(row["difference"]))]
    for k, (half, kind) in enumerate(kinds.items()):
        known = [row for row in kind if math.isfinite(float(row["difference"]))]
        if not known:
            continue
        at = [blocks.index(row["block"].partition(".")[0]) + 0.22 * k for row in known]
        values = [float(row["difference"]) for row in known]
        errors = None
        if known[0].get("difference_low"):
            errors = [[max(0, v - float(row["difference_low"])) for v, row in zip(values, known, strict=True)],
                      [max(0, float(row["difference_high"]) - v) for v, row in zip(values, known, strict=True)]]
        panels[0].errorbar(at, values, errors, fmt="os^"[k], color=COLOURS[k], capsize=3, markersize=5, label=HALVES[half])
        if half == "":
            best = min(range(len(values)), key=values.__getitem__)
            panels[0].annotate("missed least", (at[best], values[best]), xytext=(0, 14), textcoords="offset points",
                               ha="center", fontsize=8, arrowprops={"arrowstyle": "-", "linewidth": 0.6})
    if finite and min(finite) > 0 and max(finite) > 20 * min(finite):
        panels[0].set_yscale("log")
    else:
        panels[0].axhline(0, color="black", linewidth=0.6)
    if any(kinds[half] for half in ("attn", "mlp")):
        panels[0].legend(frameon=False, fontsize=8)
    panels[0].set(title="The loss without each block (95 % intervals)", ylabel="rise, nats per token")
    for axes, name in zip(panels[1:], scores, strict=True):
        known = [row for row in kinds[""] if row[name] and math.isfinite(float(row["nll"]))]
        axes.bar([blocks.index(row["block"]) for row in known], [float(row[name]) for row in known], 0.6, color=COLOURS[0])
        low = min(float(row[name]) for row in known)
        high = max(float(row[name]) for row in known)
        if low > 0.5 * high:  # else all bars look the same
            axes.set_ylim(low - 0.3 * (high - low), high + 0.1 * (high - low))
        rank = spearman([float(row["nll"]) for row in known], [float(row[name]) for row in known])
        axes.set_title(f"{ESTIMATES[name]}: rank correlation with the loss {rank:+.2f}", fontsize=9, loc="left")
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    panels[-1].set(xlabel="block removed", xticks=range(len(blocks)))
    panels[-1].set_xticklabels(blocks)
    for axes in panels:
        axes.grid(alpha=0.3, axis="y")
    return save(figure, out)
