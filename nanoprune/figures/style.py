"""Style, tables and files that all figures share."""

import csv
import io
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ticker import LogLocator

matplotlib.use("Agg")  # no window, also where there is a display
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = ("#1b4f8a", "#d9772b", "#2f7d4f", "#b06ab3", "#8f1d2c", "#7c8a94")  # dark and light by turns
LOOKS = plt.cycler(color=COLOURS * 2, marker="os^DvPX*<>hp", linestyle=("-", "--", ":", "-.") * 3)  # in turn
plt.rcParams.update({
    "axes.prop_cycle": plt.cycler(color=COLOURS),  # "C0", "C1", ... name these, over and over
    "axes.grid": True, "axes.grid.axis": "y", "grid.alpha": 0.3,
    "legend.frameon": False, "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
})
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # a legend to the right of its axes covers no point


def read_csv(
    path: Path, columns: tuple[str, ...], *, optional: bool = False, log: bool = False
) -> list[dict]:
    """Whole rows of a CSV file that must have these columns, and rows unless they are `optional`.

    `log`: the file may not have begun, and a line without an end is still being written.
    """
    if log and not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            text = file.read()
        if log:
            text = text[: text.rfind("\n") + 1]
        # A kill can leave half a last line.
        rows = [row for row in csv.DictReader(io.StringIO(text, newline="")) if None not in row.values()]
    except (OSError, UnicodeError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not (rows or optional or log):
        raise ValueError(f"{path} holds no rows")
    if missing := [column for column in columns if rows and column not in rows[0]]:
        raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}")
    return rows


def numbers(rows: list[dict], column: str) -> np.ndarray:
    """The values of a column; nan, which is not drawn, where one is missing or not finite."""
    values = np.array([float(row[column] or "nan") for row in rows])
    return np.where(np.isfinite(values), values, np.nan)


def distinct(rows: list[dict], column: str) -> list[str]:
    """The different values of a column, in the order of their appearance."""
    return list(dict.fromkeys(row[column] for row in rows))


def looks(names: Iterable[str]) -> dict[str, dict]:
    """Colour, marker, line and label of each name, by its place; twelve differ, in grey too."""
    return {name: look | {"label": textwrap.fill(name, 30)}
            for name, look in zip(dict.fromkeys(names), LOOKS(), strict=False)}


def draw_intervals(
    axes, at: Sequence[float], rows: list[dict], columns: tuple[str, str, str], *, horizontal: bool = False,
    **style
) -> None:
    """Points with error bars at these places; `columns` name the value and the ends of its interval.

    An end that is not known is not drawn.
    """
    values, lows, highs = (numbers(rows, column) for column in columns)
    errors = np.maximum(0, [values - lows, highs - values])
    style = {"marker": "o", "markersize": 5, "capsize": 3, "elinewidth": 1} | style | {"linestyle": "none"}
    if horizontal:
        axes.errorbar(values, at, xerr=errors, **style)
    else:
        axes.errorbar(at, values, errors, **style)


def scale_levels(axes, label: str) -> None:
    """A log scale with numbers, which the label names, where the highest point is 2.5 times the lowest."""
    low, high = axes.dataLim.intervaly
    if high > 2.5 * low > 0:
        label += ", log scale"
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_ylabel(label)


def scale_differences(axes, label: str) -> None:
    """A line at 0, and a scale on which small and large differences of either sign can be read."""
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel(f"{label}\n(log scale beyond ±0.01)")
    axes.margins(y=0.1)


def save(figure, out: Path) -> Path:
    """Write a figure and return its path."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150, metadata={"Software": None} if out.suffix == ".png" else None)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write the figure {out}: {error}; give a .png, .pdf or .svg in another "
                         "folder") from error
    finally:
        plt.close(figure)
    return out
