"""A study: each block before and after healing, and what one block buys."""

from collections import defaultdict
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter

from nanoprune.figures.style import (
    BESIDE,
    distinct,
    draw_intervals,
    looks,
    numbers,
    read_csv,
    save,
    scale_differences,
    scale_levels,
)

BEFORE = ("lost_before", "lost_before_low", "lost_before_high")
AFTER = ("lost_after", "lost_after_low", "lost_after_high")
LOST = ("lost", "lost_low", "lost_high")


def draw_study(folder: Path, out: Path) -> Path:
    """Test loss lost to the full model without each block, before and after healing, with 95 % intervals."""
    rows = [row for row in read_csv(folder / "study.csv", ("block", *BEFORE, *AFTER))
            if row["block"] != "none" and row["lost_before"]]
    figure, axes = plt.subplots(figsize=(max(6, 0.36 * len(rows) + 2), 4.5))
    at = np.arange(len(rows))
    draw_intervals(axes, at - 0.08, rows, BEFORE, color="C1", markersize=5, label="before healing")
    draw_intervals(axes, at + 0.08, rows, AFTER, color="C0", markersize=5, marker="s",
                   label="after, to the full model fine-tuned as long")
    scale_differences(axes, "test loss lost to the full model, nats per token")
    axes.set(title="What each block is worth (95 % intervals)", xlabel="block removed")
    axes.set_xticks(at, [row["block"] for row in rows], rotation=90 if any(
        len(row["block"]) > 2 for row in rows) else 0)
    axes.legend(**BESIDE)
    return save(figure, out)


def draw_exchange(folder: Path, out: Path) -> Path:
    """Validation loss over tokens of the full model and its rivals; what each option loses, and its size."""
    options = read_csv(folder / "exchange.csv", ("what", "bytes", *LOST))
    curves = read_csv(folder / "curves.csv", ("block", "tokens", "nll"))
    names = distinct(options, "what")
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, max(4.5, 1 + 0.4 * len(names))))
    for place, (option, style) in enumerate(zip(options, looks(names).values(), strict=True)):
        draw_intervals(right, [place], [option], LOST, horizontal=True, **style)
        marks = defaultdict(list)
        for row in curves:
            if row["block"] == option["what"]:
                marks[int(row["tokens"])].append(row)
        tokens = sorted(marks)
        by_seed = [numbers(marks[mark], "nll") for mark in tokens]
        if tokens:
            course = style if len(tokens) > 2 else style | {"linestyle": ""}  # unknown between two marks
            left.plot(tokens, [nll.mean() for nll in by_seed], markersize=4, **course)
            left.fill_between(tokens, list(map(min, by_seed)), list(map(max, by_seed)),
                              color=style["color"], alpha=0.15, linewidth=0)
    left.set(title="Healing (mean of seeds, band: lowest and highest)", xlabel="tokens of fine-tuning")
    scale_levels(left, "validation loss, nats per token")
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    right.axvline(0, color="black", linewidth=0.8)
    right.grid(axis="x")
    right.yaxis.tick_right()
    right.set(title="What the same bytes could buy (95 % intervals)", ylim=(len(names) - 0.5, -0.5),
              xlabel="test loss lost to the full model, fine-tuned, nats per token")
    right.set_yticks(range(len(names)), [f"{fill(name, 34)}\n{size:,.4g} MB" for name, size in zip(
        names, numbers(options, "bytes") / 1e6, strict=True)], fontsize=8)
    return save(figure, out)
