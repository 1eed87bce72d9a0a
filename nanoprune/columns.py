"""Texts side by side on a terminal, as they grow."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from unicodedata import category, east_asian_width

from nanoprune.printing import CONTROL

GAP, NARROWEST = 3, 30  # cells of a terminal: between two columns, and of a column


def print_growing(title: str, texts: Sequence, width: int) -> Iterator[None]:
    """Print texts from step to step until they end: in columns, or one by one if these were too narrow.

    A text has `unshown`, which is emptied here, and at its end `ended`.
    """
    print(title)
    if 1 < len(texts) <= (width + GAP) // (NARROWEST + GAP):
        yield from print_columns(texts, (width + GAP) // len(texts) - GAP)
        return
    for text in texts:
        writing = True
        while writing:
            writing = not text.ended
            print(text.unshown, end="", flush=True)
            text.unshown = ""
            if writing:
                yield


def print_columns(texts: Sequence, width: int) -> Iterator[None]:
    """Print texts side by side from step to step, a line as soon as every column has it whole."""
    rests, lines = ["" for _ in texts], [[] for _ in texts]
    writing = True
    while writing:
        writing = [column for text, column in zip(texts, lines, strict=True) if not text.ended]
        for i, text in enumerate(texts):
            *whole, rests[i] = wrap((rests[i] + text.unshown).expandtabs().translate(CONTROL), width)
            lines[i] += whole
            text.unshown = ""
        while any(lines) and all(writing):
            row = [column.pop(0) if column else "" for column in lines]
            padded = [line + " " * (width + GAP - sum(cells(line))) for line in row]
            print("".join(padded).rstrip(), flush=True)
        if writing:
            yield


def wrap(text: str, width: int) -> list[str]:
    """Lines of a text, broken at spaces if possible. More text behind it changes the last line alone."""
    lines = []
    for line in text.split("\n"):
        while sum(cells(line)) > width:
            fitting = sum(end <= width for end in accumulate(cells(line)))
            space = line.rfind(" ", 1, fitting + 1)
            lines.append(line[: space if space > 0 else fitting])
            line = line[len(lines[-1]) :].lstrip(" ")
        lines.append(line)
    return lines


def cells(text: str) -> list[int]:
    """The cells of a terminal that each character takes."""
    return [0 if category(c) in ("Mn", "Me", "Cf") else 1 + (east_asian_width(c) in "WF") for c in text]
