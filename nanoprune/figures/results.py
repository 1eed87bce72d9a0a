"""Figures of an evaluation: differences and accuracy, categories, slices, cost.

All show the models of `models.csv` in its order and alike. None stands for a figure that would be empty.
"""

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
    scale_levels,
)
from nanoprune.statistics import digits

BITS = ("bits_per_byte", "bits_low", "bits_high")
SPEED = ("decode_tokens_per_s", "decode_tokens_per_s_low", "decode_tokens_per_s_high")
ACCURACY = ("accuracy", "low", "high")
DIFFERENCE = ("difference", "low", "high")
NLL = ("nll", "low", "high")
LEAST_QUESTIONS = 10  # a set of fewer is left out
MOST_PAIRS = 10  # where no pair is a step of the experiment
TEXTS = ("test perplexity", "general perplexity", "test bits per byte", "general bits per byte")


def draw_results(folder: Path, out: Path) -> Path | None:
    """Changes by each step of the experiment, and every model's question accuracy, with 95 % intervals."""
    answers = [row for row in _read_accuracy(folder) if not row["category"]]
    forests = _read_differences(folder, distinct(answers, "set"))
    pairs = distinct([row for rows in forests.values() for row in rows], "pair")
    mosaic, heights = [], []
    if forests:
        mosaic.append(list(forests))
        heights.append(0.8 + 0.3 * len(pairs) + 0.2 * max(map(len, forests.values())))
    if answers:
        mosaic.append(["accuracy"] * max(1, len(forests)))
        heights.append(3.2)
    if not mosaic:
        return None
    figure, panels = plt.subplot_mosaic(mosaic, figsize=(3 + 4 * len(mosaic[0]), sum(heights)),
                                        height_ratios=heights)
    for label, rows in forests.items():
        panels[label].set_xlabel(label)
        _draw_forest(panels[label], rows, pairs)
        panels[label].tick_params("y", labelleft=label == mosaic[0][0])
    if answers:
        _draw_accuracy(panels["accuracy"], answers, "set", _looks(folder))
    return save(figure, out)


def draw_categories(folder: Path, out: Path) -> Path | None:
    """Question accuracy by category, with 95 % intervals: a panel for each question set."""
    answers = [row for row in _read_accuracy(folder) if row["category"]]
    figure, panels = _split(answers, "set", "category")
    for name, axes in panels.items():
        _draw_accuracy(axes, [row for row in answers if row["set"] == name], "category", _looks(folder))
        axes.set_title(name)
    return save(figure, out) if panels else None


def draw_slices(folder: Path, out: Path) -> Path | None:
    """Test loss by month and by position in the document, with 95 % intervals."""
    rows = read_csv(folder / "slices.csv", ("model", "slice", "value", *NLL))
    figure, panels = _split([row for row in rows if row["slice"] in ("month", "position")], "slice", "value")
    for kind, axes in panels.items():
        _draw_models(axes, [row for row in rows if row["slice"] == kind], "value", NLL, _looks(folder))
        axes.tick_params("x", rotation=60 if len(axes.get_xticks()) > 6 else 0)
        axes.set(title="95 % intervals", xlabel=f"{kind} of the document")
        scale_levels(axes, "test nll, nats a token")
    return save(figure, out) if panels else None


def draw_tradeoff(folder: Path, out: Path) -> Path:
    """Test bits per byte, with 95 % intervals, over size and, where it was measured, the speed of writing."""
    models = read_csv(folder / "models.csv", ("model", "params", *BITS))
    labels = {"params": "parameters"}
    if SPEED[0] in models[0]:
        labels[SPEED[0]] = "written tokens/s"
    figure, panels = plt.subplots(1, len(labels), figsize=(4 * len(labels) + 2, 3.8), sharey=True,
                                  squeeze=False)
    for axes, (column, label) in zip(panels[0], labels.items(), strict=True):
        for row, look in zip(models, _looks(folder).values(), strict=True):
            draw_intervals(axes, numbers([row], column), [row], BITS, **look)
            if SPEED[1] in row and column == SPEED[0]:
                draw_intervals(axes, numbers([row], BITS[0]), [row], SPEED, horizontal=True,
                               **look | {"label": None})
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.margins(0.15)
        axes.grid(axis="x")
    scale_levels(panels[0][0], "test bits per byte (95 % interval)")
    panels[0][-1].legend(**BESIDE)
    return save(figure, out)


def _looks(folder: Path) -> dict[str, dict]:
    return looks(distinct(read_csv(folder / "models.csv", ("model",)), "model"))


def _read_accuracy(folder: Path) -> list[dict]:
    """Rows of the sets that are large enough."""
    columns = ("model", "set", "category", "n", *ACCURACY, "chance")
    rows = read_csv(folder / "accuracy.csv", columns, optional=True)
    sizes = {row["set"]: int(row["n"]) for row in rows if not row["category"]}
    return [row for row in rows if sizes[row["set"]] >= LEAST_QUESTIONS]


def _read_differences(folder: Path, sets: list[str]) -> dict[str, list[dict]]:
    """By the label of a panel: differences, each with its `pair` and the `label` of its measure."""
    columns = ("first", "second", "step", "measure", *DIFFERENCE, "shown")
    rows = read_csv(folder / "differences.csv", columns, optional=True)
    for row in rows:
        row["pair"] = f"{row['step']}\n{fill(row['first'] + ' → ' + row['second'], 36)}".strip()
        row["label"] = row["measure"].removesuffix(" accuracy")
    steps = [row for row in rows if row["step"]]
    rows = steps or [row for row in rows if row["pair"] in distinct(rows, "pair")[:MOST_PAIRS]]
    texts = [row for row in rows if row["measure"] in TEXTS]
    answers = [row for row in rows if row["label"] in sets]
    forests = {"change in %, 95 % intervals (right: worse)": texts,
               "points of accuracy, 95 % intervals (right: better)": answers}
    return {label: own for label, own in forests.items() if own}


def _draw_forest(axes, rows: list[dict], pairs: list[str]) -> None:
    """A line for each difference, filled where one is shown; to its right the measure and the value."""
    for k, pair in enumerate(pairs):
        own = [row for row in rows if row["pair"] == pair]
        for row, at in zip(own, k + _side_by_side(len(own)), strict=True):
            value, low, high = (numbers([row], column)[0] for column in DIFFERENCE)
            draw_intervals(axes, [at], [row], DIFFERENCE, horizontal=True, color="black",
                           fillstyle="full" if row["shown"] == "True" else "none")
            axes.annotate(f"{row['label']} {value:+.{min(2, digits(low, high))}f}", (1, at), (6, 0),
                          va="center", fontsize=8, xycoords=axes.get_yaxis_transform(),
                          textcoords="offset points")
    axes.set_yticks(range(len(pairs)), pairs, fontsize=8)
    axes.set(title="filled: a difference is shown", ylim=(len(pairs) - 0.5, -0.5))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="x")
    if max(axes.dataLim.intervalx) > 100:
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.tick_params("x", rotation=60)
        axes.set_xlabel(f"{axes.get_xlabel()}, log scale beyond ±1")


def _side_by_side(count: int) -> np.ndarray:
    """Places around 0 for marks that share a tick."""
    return (np.arange(count) - (count - 1) / 2) * 0.7 / count


def _split(rows: list[dict], column: str, ticks: str) -> tuple:
    """A figure, and axes for each value of a column that has several ticks."""
    values = {value: {row[ticks] for row in rows if row[column] == value} for value in distinct(rows, column)}
    several = [value for value in values if len(values[value]) > 1]
    if not several:
        return None, {}
    width = 3 + min(10, max(4, 0.8 * max(map(len, values.values()))))
    return plt.subplot_mosaic([[value] for value in several], figsize=(width, 3.5 * len(several)))


def _draw_accuracy(axes, rows: list[dict], key: str, styles: dict[str, dict]) -> None:
    """Every model's accuracy at each value of a column, and dotted that of guessing."""
    by_value = {row[key]: row for row in rows}  # all models share their n and chance
    chances, at = numbers(list(by_value.values()), "chance"), np.arange(len(by_value))
    axes.hlines(chances, at - 0.45, at + 0.45, color="black", linestyle=":", linewidth=1, label="chance")
    _draw_models(axes, rows, key, ACCURACY, styles)
    axes.set(ylabel="accuracy (95 % interval)", ylim=(-0.03, 1.05),
             xticklabels=[f"{fill(value, 16)}\n(n = {row['n']})" for value, row in by_value.items()])


def _draw_models(
    axes, rows: list[dict], key: str, columns: tuple[str, str, str], styles: dict[str, dict]
) -> None:
    """A tick for each value of a column, and at it every model's interval, side by side."""
    values = distinct(rows, key)
    for (model, style), place in zip(styles.items(), _side_by_side(len(styles)), strict=True):
        own = [row for row in rows if row["model"] == model]
        at = [values.index(row[key]) + place for row in own]
        draw_intervals(axes, at, own, columns, capsize=2, **style)
    axes.set_xticks(range(len(values)), values, fontsize=8)
    axes.legend(**BESIDE)
