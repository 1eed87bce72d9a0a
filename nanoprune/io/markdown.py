"""Tables of Markdown and their cells, and a page as HTML."""

import base64
import html
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nanoprune.io.files import all_keys
from nanoprune.statistics import digits


def table(rows: list[dict], note: str = "") -> list[str]:
    """The lines of a table whose columns are the keys of any row, and of a note below it.

    There are none if there are no rows.
    """
    if not rows:
        return []
    head = all_keys(rows)
    cells = [head, ["---"] * len(head), *([row.get(key, "") for key in head] for row in rows)]
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in cells]
    return lines + ["", note] if note else lines


def interval_table(rows: list[dict], columns: Sequence[str] = (), note: str = "") -> list[str]:
    """The lines of a table of some columns (none named: all) whose intervals stand beside their values.

    The ends of a value's interval are the columns that end in _low and _high. A column that begins with
    "lost" is a difference.
    """
    ends = {f"{column}{end}" for row in rows for column in row for end in ("_low", "_high")}
    known = all_keys(rows)
    named = [column for column in columns or known if column in known and column not in ends]
    return table([{column.replace("_", " "): cell(row, column) for column in named} for row in rows], note)


def with_interval(value: float, interval: Sequence[float], sign: str = "") -> str:
    """A value and its interval, with as many digits as the interval supports; [-] where there is none.

    Where all units have one value an interval would have no width: "all equal" stands for it.
    """
    low, high = interval
    if math.isnan(low):
        return f"{value:{sign}.4g} [-]"
    if low == high:
        return f"{value:{sign}.4g} [all equal]"
    form = f"{sign},.{digits(low, high)}f"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def counted(number: int, noun: str) -> str:
    """Such as "1 seed" and "3 seeds"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


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


# ---------------------------------------------------------------- one file to send
STYLE = ("body{font:16px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
         "table{border-collapse:collapse;font-size:14px;display:block;overflow-x:auto}"
         "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}img{max-width:100%}"
         "blockquote{color:#555;border-left:3px solid #ccc;margin-left:0;padding-left:1em}")


def to_html(page: str, folder: Path) -> str:
    """A page of headings, paragraphs, lists, quotes, tables and figures as one file, without links.

    `folder`: of the figures, which the file holds.
    """
    blocks = [convert_block(block.splitlines(), folder) for block in re.split(r"\n{2,}", page.strip())]
    title = html.escape(page.splitlines()[0].lstrip("# "))
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{STYLE}</style></head><body>\n" + "\n".join(blocks) + "\n</body></html>\n")


def convert_block(lines: list[str], folder: Path) -> str:
    first = lines[0]
    if heading := re.match(r"(#+) (.*)", first):
        level = len(heading[1])
        return f"<h{level}>{inline(heading[2])}</h{level}>"
    if figure := re.fullmatch(r"!\[(.*)\]\((.*)\)", first):
        content = base64.b64encode((folder / figure[2]).read_bytes()).decode()
        return f'<img alt="{html.escape(figure[1])}" src="data:image/png;base64,{content}">'
    if first.startswith("| "):
        head, _, *rows = [line[2:-2].split(" | ") for line in lines]
        cells = [[head, "th"], *([row, "td"] for row in rows)]
        return "<table>" + "".join(
            "<tr>" + "".join(f"<{tag}>{inline(cell)}</{tag}>" for cell in row) + "</tr>" for row, tag in cells
        ) + "</table>"
    if first.startswith("- "):
        return "<ul>" + "".join(f"<li>{inline(line[2:])}</li>" for line in lines) + "</ul>"
    if first.startswith("> "):
        return f"<blockquote>{inline(' '.join(line[2:] for line in lines))}</blockquote>"
    return f"<p>{inline(' '.join(lines))}</p>"


def inline(text: str) -> str:
    """Text with its bold and its code marked."""
    text = text.replace("\\|", "|")
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)
