"""Foreign text in what scripts print: titles, generated text, the names of files. Notes, once each."""

import io
import re
import sys
from functools import cache

CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
MOVES = re.compile(r"(\r|(\x1b\[A)+\Z)?")  # by which tqdm draws its bars on stderr


class SafeText(io.TextIOWrapper):
    """A stream that prints the numbers of control characters, which a terminal would obey."""

    def write(self, text: str) -> int:
        kept = MOVES.match(text)[0] if self is sys.stderr else ""
        return super().write(kept + text[len(kept) :].translate(CONTROL))


@cache  # a file is read more than once
def note(text: str) -> None:
    """Print a note on stderr, once."""
    print(f"note: {text}", file=sys.stderr)
