"""Markdown tables."""

from collections.abc import Iterable, Sequence


def markdown(header: Sequence[str], rows: Iterable[Sequence]) -> list[str]:
    """Lines of a Markdown table."""
    head, *body = [f"| {' | '.join(map(str, cells))} |" for cells in (header, *rows)]
    return [head, "|" + "---|" * len(header), *body]
