"""Tables of Markdown, and their cells."""

from collections.abc import Sequence

from nanoprune.statistics import digits


def table(rows: list[dict]) -> list[str]:
    """The lines of a table whose columns are the keys of any row; none if there are no rows."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    lines = [head, ["---"] * len(head), *([row.get(key, "") for key in head] for row in rows)] if rows else []
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def with_interval(value: float, interval: Sequence[float], sign: str = "") -> str:
    """A value and its interval, with as many digits as the interval supports."""
    low, high = interval
    form = f"{sign}.{digits(low, high)}f"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
