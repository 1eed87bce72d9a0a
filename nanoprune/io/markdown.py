"""Tables of Markdown, and their cells."""

import math
from collections.abc import Sequence

import numpy as np

from nanoprune.statistics import digits


def table(rows: list[dict]) -> list[str]:
    """The lines of a table whose columns are the keys of any row; none if there are no rows."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    lines = [head, ["---"] * len(head), *([row.get(key, "") for key in head] for row in rows)] if rows else []
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def interval_table(rows: list[dict], columns: Sequence[str] = ()) -> list[str]:
    """The lines of a table of some columns (none named: all) whose intervals stand beside their values.

    The ends of a value's interval are the columns that end in _low and _high. A column that begins with
    "lost" is a difference.
    """
    named = [column for column in columns or (rows[0] if rows else ())
             if not any(column == f"{other}{end}" for other in rows[0] for end in ("_low", "_high"))]
    shown = [{column.replace("_", " "): cell(row, column) for column in named} for row in rows]
    return table(shown)


def with_interval(value: float, interval: Sequence[float], sign: str = "") -> str:
    """A value and its interval, with as many digits as the interval supports; [-] where there is none."""
    low, high = interval
    if math.isnan(low):
        return f"{value:{sign}.4g} [-]"
    form = f"{sign}.{digits(low, high)}f"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def cell(row: dict, column: str) -> str:
    """A value, with its interval if the row has one; empty where there is none."""
    value, low, high = (row.get(f"{column}{end}", "") for end in ("", "_low", "_high"))
    if value == "" or isinstance(value, str):
        return value
    if low == "":
        return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:,.5g}"
    if low == high == value:
        return f"{value:.4g}"
    if math.isinf(high):
        return f"{value:,.0f} [{low:,.0f}, {high:,.0f}]"
    sign = "+" if column.startswith(("lost", "difference", "spearman")) else ""
    shown = with_interval(value, (low, high), sign)
    return f"{shown}, no difference shown" if column.startswith("lost") and low <= 0 <= high else shown
