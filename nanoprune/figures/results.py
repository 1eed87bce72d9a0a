"""Figures of an evaluation: perplexity and accuracy, categories, slices, cost."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter

from nanoprune.figures.style import BESIDE, distinct, draw_intervals, numbers, read_csv, save
from nanoprune.statistics import digits

PERPLEXITY = ("perplexity", "perplexity_low", "perplexity_high")
BITS = ("bits_per_byte", "bits_low", "bits_high")
ACCURACY = ("accuracy", "low", "high")


def draw_results(folder: Path, out: Path) -> Path:
    """Test perplexity (bits per byte if the tokenizers differ) and question accuracy, with 95 % intervals."""
    models = read_csv(folder / "models.csv", ("model", "tokenizer", *PERPLEXITY, *BITS))
    questions = folder / "accuracy.csv"
    answered = questions.is_file() and questions.stat().st_size > 1  # else it is an empty line
    figure, panels = plt.subplots(1, 1 + answered, figsize=(5.5 + 4.5 * answered, 4), squeeze=False)
    axes = panels[0][0]
    one_tokenizer = len(distinct(models, "tokenizer")) == 1
    columns = PERPLEXITY if one_tokenizer else BITS
    for k, row in enumerate(models):
        draw_intervals(axes, [k], [row], columns, capsize=4)
        value, low, high = (float(row[column]) for column in columns)
        axes.annotate(f"{value:.{digits(low, high)}f}", (k, value), xytext=(7, 0), textcoords="offset points",
                      va="center", fontsize=9)
    values = numbers(models, columns[0])
    if np.nanmax(values) > 5 * np.nanmin(values):
        axes.set_yscale("log")
    axes.set(title=f"Test {'perplexity' if one_tokenizer else 'bits per byte'} (95 % interval)",
             xlim=(-0.5, len(models) - 0.3), xticks=range(len(models)))
    axes.set_xticklabels(distinct(models, "model"), rotation=15)
    if answered:
        answers = [row for row in _read_accuracy(folder) if not row["category"]]
        _draw_accuracy(panels[0][1], answers, "set", "Question accuracy (95 % interval)")
        panels[0][1].legend(**BESIDE)
    return save(figure, out)


def draw_categories(folder: Path, out: Path) -> Path:
    """Question accuracy by category, with 95 % intervals: a panel for each question set."""
    answers = [row for row in _read_accuracy(folder) if row["category"]]
    sets = {name: [row for row in answers if row["set"] == name] for name in distinct(answers, "set")}
    widths = [len(distinct(rows, "category")) for rows in sets.values()]
    figure, panels = plt.subplots(1, len(sets), figsize=(max(6, 1.1 * sum(widths) + 2.5), 4), squeeze=False,
                                  width_ratios=widths, sharey=True)
    for axes, (name, rows) in zip(panels[0], sets.items(), strict=True):
        _draw_accuracy(axes, rows, "category", name)
    panels[0][0].set_ylabel("accuracy (95 % interval)")
    panels[0][-1].legend(**BESIDE)
    return save(figure, out)


def draw_slices(folder: Path, out: Path) -> Path:
    """Test loss by month and by position in the document, with 95 % intervals."""
    rows = read_csv(folder / "slices.csv", ("model", "slice", "value", "nll", "low", "high"))
    labels = {"month": "month of the document", "position": "position in the document, tokens"}
    kinds = [kind for kind in labels if kind in distinct(rows, "slice")]
    figure, panels = plt.subplots(1, len(kinds), figsize=(5.2 * len(kinds) + 1, 4), squeeze=False)
    for axes, kind in zip(panels[0], kinds, strict=True):
        _draw_models(axes, [row for row in rows if row["slice"] == kind], "value", ("nll", "low", "high"))
        axes.set_xlabel(labels[kind])
        axes.tick_params("x", rotation=60 if len(axes.get_xticks()) > 6 else 0)
    panels[0][0].set_ylabel("test nll, nats a token (95 % interval)")
    panels[0][-1].legend(**BESIDE)
    return save(figure, out)


def draw_tradeoff(folder: Path, out: Path) -> Path:
    """Test bits per byte, with 95 % intervals, over size and over the speed of writing."""
    models = read_csv(folder / "models.csv", ("model", "params", *BITS, "decode_tokens_per_s"))
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    labels = {"params": "parameters", "decode_tokens_per_s": "written tokens/s"}
    for axes, (column, label) in zip(panels, labels.items(), strict=True):
        for row in models:
            draw_intervals(axes, numbers([row], column), [row], BITS, label=row["model"])
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.margins(0.15)
        axes.grid(axis="x")
    panels[0].set_ylabel("test bits per byte (95 % interval)")
    panels[1].legend(**BESIDE)
    figure.suptitle("Quality against size and speed")
    return save(figure, out)


def _read_accuracy(folder: Path) -> list[dict]:
    return read_csv(folder / "accuracy.csv", ("model", "set", "category", "n", *ACCURACY, "chance"))


def _draw_accuracy(axes, rows: list[dict], key: str, title: str) -> None:
    """Every model's accuracy at each value of a column, and dotted that of guessing."""
    _draw_models(axes, rows, key, ACCURACY)
    by_value = {row[key]: row for row in rows}  # all models share their n and chance
    chances, at = numbers(list(by_value.values()), "chance"), np.arange(len(by_value))
    axes.hlines(chances, at - 0.45, at + 0.45, color="black", linestyle=":", linewidth=1, label="chance")
    axes.set(title=title, ylim=(-0.03, 1.05),
             xticklabels=[f"{value}\n(n = {row['n']})" for value, row in by_value.items()])


def _draw_models(axes, rows: list[dict], key: str, columns: tuple[str, str, str]) -> None:
    """A tick for each value of a column, and at it every model's interval, side by side."""
    values, models = distinct(rows, key), distinct(rows, "model")
    for k, model in enumerate(models):
        own = [row for row in rows if row["model"] == model]
        at = [values.index(row[key]) + (k - (len(models) - 1) / 2) * 0.7 / len(models) for row in own]
        draw_intervals(axes, at, own, columns, markersize=4, capsize=2, label=model)
    axes.set_xticks(range(len(values)), values, fontsize=8)
