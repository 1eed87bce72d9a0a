"""Style, tables and files that all figures share."""

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no window, also where there is a display
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f", "#c98b2b", "#5c6b73")
plt.rcParams.update({
    "axes.prop_cycle": plt.cycler(color=COLOURS),  # "C0", "C1", ... name these, over and over
    "axes.grid": True, "axes.grid.axis": "y", "grid.alpha": 0.3,
    "legend.frameon": False, "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
})
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # a legend to the right of its axes


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict]:
    """Whole rows of a CSV file that must have these columns."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            # A kill can leave half a last line.
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if not rows:
        raise ValueError(f"{path} holds no rows")
    if missing := [column for column in columns if column not in rows[0]]:
        raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}")
    return rows


def numbers(rows: list[dict], column: str) -> np.ndarray:
    """The values of a column; nan, which is not drawn, where one is missing or not finite."""
    values = np.array([float(row[column] or "nan") for row in rows])
    return np.where(np.isfinite(values), values, np.nan)


def distinct(rows: list[dict], column: str) -> list[str]:
    """The different values of a column, in the order of their appearance."""
    return list(dict.fromkeys(row[column] for row in rows))


def draw_intervals(
    axes, at: Sequence[float], rows: list[dict], columns: tuple[str, str, str], **style
) -> None:
    """Points with error bars at these places; `columns` name the value and the ends of its interval."""
    values, lows, highs = (numbers(rows, column) for column in columns)
    errors = np.fmax(0, [values - lows, highs - values])
    axes.errorbar(at, values, errors, **{"fmt": "o", "capsize": 3} | style)


def scale_differences(axes) -> None:
    """A line at 0, and a scale on which small and large differences of either sign can be read."""
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.1)


def save(figure, out: Path) -> Path:
    """Write a figure and return its path, which ends in .png unless another ending is given."""
    out = out if out.suffix else out.with_suffix(".png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150, metadata={"Software": None} if out.suffix == ".png" else None)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write the figure {out}: {error}; give a .png, .pdf or .svg in another "
                         "folder") from error
    finally:
        plt.close(figure)
    return out
