"""Texts side by side on a terminal, as they grow."""

from collections.abc import Iterator, Sequence
from textwrap import TextWrapper

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
            *whole, rests[i] = wrap((rests[i] + text.unshown).translate(CONTROL), width)
            lines[i] += whole
            text.unshown = ""
        while any(lines) and all(writing):
            row = [column.pop(0) if column else "" for column in lines]
            print("".join(line.ljust(width + GAP) for line in row).rstrip(), flush=True)
        if writing:
            yield


def wrap(text: str, width: int) -> list[str]:
    """Lines of a text, broken at spaces if possible. More text behind it changes the last line alone."""
    wrapper, lines = TextWrapper(width, drop_whitespace=False, break_on_hyphens=False), []
    for line in text.split("\n"):
        first, *others = wrapper.wrap(line) or [""]
        lines += [first, *(part.lstrip() for part in others)]
    return lines
