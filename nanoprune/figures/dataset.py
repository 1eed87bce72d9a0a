"""Lengths of a dataset's documents."""

from pathlib import Path

import matplotlib.pyplot as plt

from nanoprune.figures.style import save


def draw_lengths(lengths: dict[str, list[int]], out: Path) -> Path:
    """Histogram of the documents' lengths in tokens, a line for each split."""
    figure, axes = plt.subplots(figsize=(6, 3.5))
    longest = max(max(split) for split in lengths.values())
    edges = [10 ** (k / 8) for k in range(8, 8 * len(str(longest)) + 1)]  # eight bins for each power of ten
    for k, (name, split) in enumerate(lengths.items()):
        shares = [1 / len(split)] * len(split)
        axes.hist(split, edges, weights=shares, histtype="step", linewidth=1.5, color=f"C{k}", label=name)
    axes.set(title="Length of the documents", xlabel="tokens", ylabel="share of the split", xscale="log")
    axes.grid(axis="x")
    axes.legend(fontsize=10)
    return save(figure, out)
