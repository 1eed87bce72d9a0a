"""A study: each block before and after healing."""

import math
from pathlib import Path

import matplotlib.pyplot as plt

from nanoprune.figures.style import COLOURS, read_csv, save


def draw_study(folder: Path, out: Path) -> Path:
    """What is lost to the full model without each block, before healing and after: paired differences, 95 % intervals."""
    whens = {"before": "before healing", "after": "after, to the full model fine-tuned as long"}
    columns = ("block", *(f"lost_{when}{end}" for when in whens for end in ("", "_low", "_high")))
    rows = [row for row in read_csv(folder / "study.csv", columns) if row["block"] != "none"]
    figure, axes = plt.subplots(figsize=(max(6, 0.45 * len(rows) + 2), 4.5), layout="constrained")
    for k, (when, label) in enumerate(whens.items()):
        known = [(i, row) for i, row in enumerate(rows) if math.isfinite(float(row[f"lost_{when}"]))]
        values = [float(row[f"lost_{when}"]) for _, row in known]
        errors = [[max(0, v - float(row[f"lost_{when}_low"])) for v, (_, row) in zip(values, known, strict=True)],
                  [max(0, float(row[f"lost_{when}_high"]) - v) for v, (_, row) in zip(values, known, strict=True)]]
        axes.errorbar([i + 0.16 * k - 0.08 for i, _ in known], values, errors, fmt="os"[k], color=COLOURS[1 - k], capsize=3,
                      markersize=5, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.yaxis.set_major_formatter("{x:g}")
    ends = [[float(row[f"lost_{when}_{end}"]) for when in whens for row in rows] for end in ("low", "high")]
    lowest, highest = min(filter(math.isfinite, ends[0]), default=0), max(filter(math.isfinite, ends[1]), default=1)
    axes.set_ylim(min(-0.005, 2 * lowest), max(0.005, 3 * highest))
    axes.set(title="What each block is worth (95 % intervals)", xlabel="block removed",
             ylabel="test loss lost to the full model, nats per token", xticks=range(len(rows)))
    axes.set_xticklabels([row["block"] for row in rows])
    axes.grid(alpha=0.3, axis="y")
    axes.legend(frameon=False, fontsize=8)
    return save(figure, out)
