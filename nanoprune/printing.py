"""Foreign text in what scripts print: titles, generated text, the names of files. Notes, once each."""

import io
import re
import sys
from functools import cache
from typing import TextIO

CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
MOVES = re.compile(r"\r|(\x1b\[A)+\Z")  # by which tqdm draws its bars on stderr


def print_safely(stream: TextIO) -> None:
    """Let a stream print the numbers of control characters, which a terminal would obey, and of those that
    its encoding lacks.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return
    write = stream.write

    def write_visibly(text: str) -> int:
        moves = MOVES.match(text) if stream is sys.stderr else None
        kept = moves[0] if moves else ""
        return write(kept + text[len(kept) :].translate(CONTROL))

    stream.write = write_visibly
    stream.reconfigure(errors="backslashreplace")


@cache  # a file is read more than once
def note(text: str) -> None:
    """Print a note on stderr, once."""
    print(f"note: {text}", file=sys.stderr)
