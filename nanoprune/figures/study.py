"""A study: each block before and after healing."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from nanoprune.figures.style import draw_intervals, read_csv, save, scale_differences

BEFORE = ("lost_before", "lost_before_low", "lost_before_high")
AFTER = ("lost_after", "lost_after_low", "lost_after_high")


def draw_study(folder: Path, out: Path) -> Path:
    """Test loss lost to the full model without each block, before and after healing, with 95 % intervals."""
    rows = [row for row in read_csv(folder / "study.csv", ("block", *BEFORE, *AFTER))
            if row["block"] != "none"]
    figure, axes = plt.subplots(figsize=(max(6, 0.45 * len(rows) + 2), 4.5))
    at = np.arange(len(rows))
    draw_intervals(axes, at - 0.08, rows, BEFORE, color="C1", markersize=5, label="before healing")
    draw_intervals(axes, at + 0.08, rows, AFTER, color="C0", markersize=5, fmt="s",
                   label="after, to the full model fine-tuned as long")
    scale_differences(axes)
    axes.set(title="What each block is worth (95 % intervals)", xlabel="block removed",
             ylabel="test loss lost to the full model, nats per token")
    axes.set_xticks(at, [row["block"] for row in rows])
    axes.legend()
    return save(figure, out)
