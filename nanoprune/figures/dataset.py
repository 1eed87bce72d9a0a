"""Lengths of a dataset's documents."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from nanoprune.figures.style import save


def draw_lengths(lengths: dict[str, np.ndarray], out: Path) -> Path:
    """Histogram of the documents' lengths in tokens, a line for each split."""
    figure, axes = plt.subplots(figsize=(6, 3.5))
    splits = list(lengths.values())
    powers = len(str(max(split.max() for split in splits)))
    edges = np.logspace(1, powers, 8 * powers - 7)  # eight bins for each power of ten
    axes.hist(splits, edges, weights=[np.full(len(split), 1 / len(split)) for split in splits],
              histtype="step", linewidth=1.5, label=list(lengths))
    axes.set(title="Length of the documents", xlabel="tokens", ylabel="share of the split", xscale="log")
    axes.grid(axis="x")
    axes.legend(fontsize=10)
    return save(figure, out)
