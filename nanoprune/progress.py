"""Progress of long work: a bar on a terminal; in a file or pipe a line every half minute."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines


def progress(items: Iterable, label: str, total: int | None = None) -> Iterator:
    """The items, with their progress on stderr; `total`: how many, where they do not tell."""
    if sys.stderr.isatty():
        yield from tqdm(items, label, total, leave=False)
        return
    total = len(items) if total is None and hasattr(items, "__len__") else total
    began = told = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - told >= EVERY:
            left = f" of {total}, {(now - began) / done * (total - done):,.0f} s left" if total else ""
            print(f"{label}: {done}{left}", file=sys.stderr, flush=True)
            told = now
        yield item
