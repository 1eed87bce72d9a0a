"""Figures of an evaluation: perplexity and accuracy, categories, slices, cost."""

from pathlib import Path

import matplotlib.pyplot as plt
import matplotlib.ticker

from nanoprune.figures.style import COLOURS, _has_rows, read_csv, save
from nanoprune.statistics import digits


def draw_results(folder: Path, out: Path) -> Path:
    """Test perplexity (bits per byte where the tokenizers differ) and question accuracy, with 95 % intervals."""
    models = read_csv(folder / "models.csv", ("model", "tokenizer", "perplexity", "perplexity_low", "perplexity_high",
                                              "bits_per_byte", "bits_low", "bits_high"))
    several = len({row["tokenizer"] for row in models}) > 1
    keys = ("bits_per_byte", "bits_low", "bits_high") if several else ("perplexity", "perplexity_low", "perplexity_high")
    columns = ("model", "set", "category", "accuracy", "low", "high", "chance")
    answers = read_csv(folder / "accuracy.csv", columns) if _has_rows(folder / "accuracy.csv") else []
    answers = [row for row in answers if not row["category"]]
    names = [row["model"] for row in models]
    size = (10, 4) if answers else (5.5, 4)
    figure, panels = plt.subplots(1, 2 if answers else 1, figsize=size, layout="constrained", squeeze=False)
    left = panels[0][0]
    for i, row in enumerate(models):
        value, low, high = (float(row[key]) for key in keys)
        left.errorbar(i, value, [[value - low], [high - value]], fmt="o", color=COLOURS[i % len(COLOURS)], capsize=4)
        left.annotate(f"{value:.{digits(value, low, high)}f}", (i, value), xytext=(7, 0), textcoords="offset points",
                      va="center", fontsize=9)
    if max(float(row[keys[0]]) for row in models) > 5 * min(float(row[keys[0]]) for row in models):
        left.set_yscale("log")
    left.set(title=f"Test {'bits per byte' if several else 'perplexity'} (95 % interval)", xticks=range(len(names)),
             xlim=(-0.5, len(names) - 0.3))
    left.set_xticklabels(names, rotation=15)
    left.grid(alpha=0.3, axis="y")
    if answers:
        right, sets = panels[0][1], list(dict.fromkeys(row["set"] for row in answers))
        for i, name in enumerate(names):
            rows = {row["set"]: row for row in answers if row["model"] == name}
            at = [k + (i - (len(names) - 1) / 2) * 0.8 / len(names) for k, label in enumerate(sets) if label in rows]
            values = [[float(rows[label][key]) for label in sets if label in rows] for key in ("accuracy", "low", "high")]
            errors = [[v - low for v, low in zip(values[0], values[1], strict=True)],
                      [high - v for v, high in zip(values[0], values[2], strict=True)]]
            right.bar(at, values[0], 0.75 / len(names), yerr=errors, capsize=3, color=COLOURS[i % len(COLOURS)], label=name)
        for k, label in enumerate(sets):
            chance = next(float(row["chance"]) for row in answers if row["set"] == label)
            right.hlines(chance, k - 0.45, k + 0.45, color="black", linestyle=":", linewidth=1, label=None if k else "chance")
        right.set(title="Question accuracy (95 % interval)", ylim=(0, 1.05), xticks=range(len(sets)))
        right.set_xticklabels(sets)
        right.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return save(figure, out)


def _points(axes, rows: list[dict], names: list[str], key: str, measure: str) -> list[str]:
    """Each model's measure with its interval over every value of `key`, side by side; these values."""
    values = list(dict.fromkeys(row[key] for row in rows))
    for i, name in enumerate(names):
        mine = [row for row in rows if row["model"] == name]
        at = [values.index(row[key]) + (i - (len(names) - 1) / 2) * 0.7 / len(names) for row in mine]
        middle, low, high = ([float(row[end]) for row in mine] for end in (measure, "low", "high"))
        errors = [[max(0, m - end) for m, end in zip(middle, low, strict=True)],
                  [max(0, end - m) for m, end in zip(middle, high, strict=True)]]
        axes.errorbar(at, middle, errors, fmt="o", markersize=4, capsize=2, color=COLOURS[i % len(COLOURS)], label=name)
    return values


def draw_categories(folder: Path, out: Path) -> Path:
    """Question accuracy by category, with 95 % intervals: a panel a question set."""
    columns = ("model", "set", "category", "n", "accuracy", "low", "high", "chance")
    rows = [row for row in read_csv(folder / "accuracy.csv", columns) if row["category"]]
    sets, names = list(dict.fromkeys(row["set"] for row in rows)), list(dict.fromkeys(row["model"] for row in rows))
    widths = [len({row["category"] for row in rows if row["set"] == label}) for label in sets]
    figure, panels = plt.subplots(1, len(sets), figsize=(max(6, 1.1 * sum(widths) + 2.5), 4), layout="constrained",
                                  squeeze=False, width_ratios=widths, sharey=True)
    for axes, label in zip(panels[0], sets, strict=True):
        here = [row for row in rows if row["set"] == label]
        categories = list(dict.fromkeys(row["category"] for row in here))
        _points(axes, here, names, "category", "accuracy")
        axes.axhline(float(here[0]["chance"]), color="black", linestyle=":", linewidth=1)
        counts = {row["category"]: row["n"] for row in here}
        axes.set(title=label, ylim=(-0.03, 1.05), xticks=range(len(categories)), xlim=(-0.6, len(categories) - 0.4))
        axes.set_xticklabels([f"{c}\n(n = {counts[c]})" for c in categories], fontsize=8)
        axes.grid(alpha=0.3, axis="y")
    panels[0][0].set_ylabel("accuracy (95 % interval; dotted: chance)")
    panels[0][-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return save(figure, out)


def draw_slices(folder: Path, out: Path) -> Path:
    """Test loss by month and by position in the document, with 95 % intervals."""
    rows = read_csv(folder / "slices.csv", ("model", "slice", "value", "nll", "low", "high"))
    names, kinds = list(dict.fromkeys(row["model"] for row in rows)), ("month", "position")
    shown = [(kind, [row for row in rows if row["slice"] == kind]) for kind in kinds]
    shown = [(kind, here) for kind, here in shown if here]
    figure, panels = plt.subplots(1, len(shown), figsize=(5.2 * len(shown) + 1, 4), layout="constrained", squeeze=False)
    for axes, (kind, here) in zip(panels[0], shown, strict=True):
        here = sorted(here, key=lambda row: row["value"]) if kind == "month" else here
        values = _points(axes, here, names, "value", "nll")
        axes.set(xlabel={"month": "month of the document", "position": "position in the document, tokens"}[kind],
                 xticks=range(len(values)))
        axes.set_xticklabels(values, fontsize=8, rotation=60 if len(values) > 6 else 0)
        axes.grid(alpha=0.3, axis="y")
    panels[0][0].set_ylabel("test nll, nats a token (95 % interval)")
    panels[0][-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return save(figure, out)


def draw_tradeoff(folder: Path, out: Path) -> Path:
    """Test bits per byte, with 95 % intervals, over size and over the speed of writing."""
    rows = read_csv(folder / "models.csv", ("model", "params", "bits_per_byte", "bits_low", "bits_high", "decode_tokens_per_s"))
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    for axes, column, label in zip(panels, ("params", "decode_tokens_per_s"), ("parameters", "written tokens/s"), strict=True):
        for i, row in enumerate(rows):
            value, low, high = (float(row[key]) for key in ("bits_per_byte", "bits_low", "bits_high"))
            axes.errorbar(float(row[column]), value, [[max(0, value - low)], [max(0, high - value)]], fmt="o", capsize=3,
                          color=COLOURS[i % len(COLOURS)], label=row["model"])
        axes.set(xlabel=label)
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.margins(x=0.15, y=0.15)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="test bits per byte (95 % interval)")
    panels[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle("Quality against size and speed")
    return save(figure, out)
