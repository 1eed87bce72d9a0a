"""Figures of an evaluation: perplexity and accuracy, categories, slices, cost."""

from pathlib import Path

import matplotlib.pyplot as plt
import matplotlib.ticker

from nanoprune.figures.style import BESIDE, distinct, draw_intervals, numbers, read_csv, save
from nanoprune.statistics import digits

PERPLEXITY = ("perplexity", "perplexity_low", "perplexity_high")
BITS = ("bits_per_byte", "bits_low", "bits_high")
ACCURACY = ("accuracy", "low", "high")


def draw_results(folder: Path, out: Path) -> Path:
    """Test perplexity (bits per byte if the tokenizers differ) and question accuracy, with 95 % intervals."""
    models = read_csv(folder / "models.csv", ("model", "tokenizer", *PERPLEXITY, *BITS))
    answers = _read_accuracy(folder) if _has_rows(folder / "accuracy.csv") else []
    answers = [row for row in answers if not row["category"]]
    if answers:
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
        _draw_accuracy(right, answers, distinct(models, "model"))
    else:
        figure, left = plt.subplots(figsize=(5.5, 4))
    if len(distinct(models, "tokenizer")) > 1:
        _draw_text_quality(left, models, BITS, "Test bits per byte (95 % interval)")
    else:
        _draw_text_quality(left, models, PERPLEXITY, "Test perplexity (95 % interval)")
    return save(figure, out)


def _draw_text_quality(axes, models: list[dict], columns: tuple[str, str, str], title: str) -> None:
    for k, row in enumerate(models):
        draw_intervals(axes, [k], [row], columns, capsize=4)
        value, low, high = (float(row[column]) for column in columns)
        axes.annotate(f"{value:.{digits(low, high)}f}", (k, value), xytext=(7, 0), textcoords="offset points",
                      va="center", fontsize=9)
    values = numbers(models, columns[0])
    if max(values) > 5 * min(values):
        axes.set_yscale("log")
    axes.set(title=title, xticks=range(len(models)), xlim=(-0.5, len(models) - 0.3))
    axes.set_xticklabels([row["model"] for row in models], rotation=15)


def _draw_accuracy(axes, answers: list[dict], models: list[str]) -> None:
    """Bars side by side for each question set, and a dotted line at the accuracy of guessing."""
    sets, width = distinct(answers, "set"), 0.8 / len(models)
    for k, model in enumerate(models):
        rows = [row for row in answers if row["model"] == model]
        at = [sets.index(row["set"]) + (k - (len(models) - 1) / 2) * width for row in rows]
        axes.bar(at, numbers(rows, "accuracy"), 0.75 / len(models), label=model)
        draw_intervals(axes, at, rows, ACCURACY, fmt="none", ecolor="black")
    chances = {row["set"]: float(row["chance"]) for row in answers}
    for k, name in enumerate(sets):
        label = None if k else "chance"  # once in the legend
        axes.hlines(chances[name], k - 0.45, k + 0.45, color="black", linestyle=":", linewidth=1, label=label)
    axes.set(title="Question accuracy (95 % interval)", ylim=(0, 1.05), xticks=range(len(sets)))
    axes.set_xticklabels(sets)
    axes.legend(**BESIDE)


def draw_categories(folder: Path, out: Path) -> Path:
    """Question accuracy by category, with 95 % intervals: a panel for each question set."""
    answers = [row for row in _read_accuracy(folder) if row["category"]]
    sets, models = distinct(answers, "set"), distinct(answers, "model")
    rows_of = {name: [row for row in answers if row["set"] == name] for name in sets}
    widths = [len(distinct(rows, "category")) for rows in rows_of.values()]
    figure, panels = plt.subplots(1, len(sets), figsize=(max(6, 1.1 * sum(widths) + 2.5), 4), squeeze=False,
                                  width_ratios=widths, sharey=True)
    for axes, (name, rows) in zip(panels[0], rows_of.items(), strict=True):
        categories = _draw_models(axes, rows, models, "category", ACCURACY)
        axes.axhline(float(rows[0]["chance"]), color="black", linestyle=":", linewidth=1)
        counts = {row["category"]: row["n"] for row in rows}
        axes.set(title=name, ylim=(-0.03, 1.05), xlim=(-0.6, len(categories) - 0.4))
        axes.set_xticklabels([f"{category}\n(n = {counts[category]})" for category in categories], fontsize=8)
    panels[0][0].set_ylabel("accuracy (95 % interval; dotted: chance)")
    panels[0][-1].legend(**BESIDE)
    return save(figure, out)


def draw_slices(folder: Path, out: Path) -> Path:
    """Test loss by month and by position in the document, with 95 % intervals."""
    rows = read_csv(folder / "slices.csv", ("model", "slice", "value", "nll", "low", "high"))
    months = sorted((row for row in rows if row["slice"] == "month"), key=lambda row: row["value"])
    positions = [row for row in rows if row["slice"] == "position"]
    slices = {"month of the document": months, "position in the document, tokens": positions}
    slices = {label: part for label, part in slices.items() if part}
    figure, panels = plt.subplots(1, len(slices), figsize=(5.2 * len(slices) + 1, 4), squeeze=False)
    for axes, (label, part) in zip(panels[0], slices.items(), strict=True):
        values = _draw_models(axes, part, distinct(rows, "model"), "value", ("nll", "low", "high"))
        axes.set(xlabel=label)
        axes.set_xticklabels(values, fontsize=8, rotation=60 if len(values) > 6 else 0)
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
            draw_intervals(axes, [float(row[column])], [row], BITS, label=row["model"])
        axes.set(xlabel=label)
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.margins(x=0.15, y=0.15)
        axes.grid(axis="x")
    panels[0].set(ylabel="test bits per byte (95 % interval)")
    panels[1].legend(**BESIDE)
    figure.suptitle("Quality against size and speed")
    return save(figure, out)


def _has_rows(path: Path) -> bool:
    return path.is_file() and len(path.read_text(encoding="utf-8").splitlines()) > 1


def _read_accuracy(folder: Path) -> list[dict]:
    return read_csv(folder / "accuracy.csv", ("model", "set", "category", "n", *ACCURACY, "chance"))


def _draw_models(
    axes, rows: list[dict], models: list[str], key: str, columns: tuple[str, str, str]
) -> list[str]:
    """A tick for each value of `key`, and at it every model's interval, side by side; return these values."""
    values = distinct(rows, key)
    for k, model in enumerate(models):
        own = [row for row in rows if row["model"] == model]
        at = [values.index(row[key]) + (k - (len(models) - 1) / 2) * 0.7 / len(models) for row in own]
        draw_intervals(axes, at, own, columns, markersize=4, capsize=2, label=model)
    axes.set_xticks(range(len(values)))
    return values
