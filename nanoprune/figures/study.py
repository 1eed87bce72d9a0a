"""A study: each block before and after healing."""

import math
from pathlib import Path

import matplotlib.pyplot as plt

from nanoprune.figures.style import draw_intervals, numbers, read_csv, save

LABELS = {"before": "before healing", "after": "after, to the full model fine-tuned as long"}


def draw_study(folder: Path, out: Path) -> Path:
    """Test loss lost to the full model without each block, before and after healing, with 95 % intervals."""
    columns = {when: (f"lost_{when}", f"lost_{when}_low", f"lost_{when}_high") for when in LABELS}
    rows = read_csv(folder / "study.csv", ("block", *columns["before"], *columns["after"]))
    rows = [row for row in rows if row["block"] != "none"]
    figure, axes = plt.subplots(figsize=(max(6, 0.45 * len(rows) + 2), 4.5))
    lows, highs = [0.0], [0.0]
    for when, marker, colour, shift in (("before", "o", "C1", -0.08), ("after", "s", "C0", 0.08)):
        lost, low, high = columns[when]
        finite = [(k + shift, row) for k, row in enumerate(rows) if math.isfinite(float(row[lost]))]
        at, known = [place for place, _ in finite], [row for _, row in finite]
        draw_intervals(axes, at, known, columns[when], fmt=marker, color=colour, markersize=5,
                       label=LABELS[when])
        lows += filter(math.isfinite, numbers(rows, low))
        highs += filter(math.isfinite, numbers(rows, high))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(min(-0.005, 2 * min(lows)), max(0.005, 3 * max(highs)))
    axes.set(title="What each block is worth (95 % intervals)", xlabel="block removed",
             ylabel="test loss lost to the full model, nats per token", xticks=range(len(rows)))
    axes.set_xticklabels([row["block"] for row in rows])
    axes.legend()
    return save(figure, out)
