"""Lengths of a dataset's documents."""

from pathlib import Path

import matplotlib.pyplot as plt

from nanoprune.figures.style import COLOURS, save


def draw_lengths(lengths: dict[str, list[int]], out: Path) -> Path:
    """How long the documents of each split are, in tokens."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    edges = [10 ** (k / 8) for k in range(8, 8 * len(str(max(map(max, lengths.values())))) + 1)]
    for colour, (name, found) in zip(COLOURS, lengths.items(), strict=False):
        axes.hist(found, edges, weights=[1 / len(found)] * len(found), histtype="step", linewidth=1.5, color=colour, label=name)
    axes.set(title="Length of the documents", xlabel="tokens", ylabel="share of the split", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return save(figure, out)
