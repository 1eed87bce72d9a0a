"""JSON lines: read whole, on demand or as a log; written whole or one line at a time."""

import json
import sys
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from nanoprune.config import shown
from nanoprune.io.files import naming_failures, parse_json, write_text


def json_line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    write_text(path, "".join(map(json_line, rows)))


def append_line(path: Path, row: dict) -> None:
    """Add one object to the end of a log, whose folder is made if it is missing; ValueError if that fails."""
    advice = (". All earlier lines are kept: free some space or choose another --out, and run the same "
              "command again")
    with naming_failures(f"write {path}", advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(json_line(row).encode())


def parse_lines(
    data: bytes, path: str | Path, first: int = 1, texts: tuple[str, ...] = (), required: tuple[str, ...] = ()
) -> list[dict]:
    """The objects of some lines of a JSONL file, of which the first has the number `first`.

    ValueError names file and line if a line is empty, is no JSON object or lacks a key that is required, or
    one of `texts`, whose values are text.
    """
    rows = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else [], start=first):
        where = f"{path}, line {number}"
        if not line.strip():
            raise ValueError(f"{where}: empty line; every line must be one JSON object. "
                             "Delete the line and run again")
        row = parse_json(line, where)
        if missing := [key for key in texts + required if key not in row]:
            raise ValueError(f"{where}: lacks {', '.join(missing)}; it has {', '.join(row) or 'nothing'}")
        if wrong := [key for key in texts if not isinstance(row[key], str)]:
            raise ValueError(f"{where}: {wrong[0]} must be text, given {shown(row[wrong[0]])}")
        rows.append(row)
    return rows


def read_jsonl(path: str | Path, texts: tuple[str, ...] = (), required: tuple[str, ...] = ()) -> list[dict]:
    """The objects of a JSONL file; ValueError as by `parse_lines`."""
    with naming_failures(f"read {path}"):
        data = Path(path).read_bytes()
    return parse_lines(data, path, texts=texts, required=required)


def read_log(path: Path, texts: tuple[str, ...]) -> list[dict]:
    """The objects of a JSONL file that is appended to, so that more can be; none if there is no file yet.

    An interrupted write leaves half a last line: it is cut off, with a warning. ValueError as by
    `parse_lines` if another line is damaged; the file is unchanged then.
    """
    with naming_failures(f"read {path}", "; choose another --out"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
    size = data.rfind(b"\n") + 1  # of the lines that end
    rows = parse_lines(data[:size], path, texts=texts)
    if size < len(data):
        number = len(rows) + 1
        try:
            rows += parse_lines(data[size:], path, number, texts)
        except ValueError:
            print(f"warning: {path}, line {number}: a half line at the end is dropped", file=sys.stderr)
            with open(path, "rb+") as file:
                file.truncate(size)
        else:
            with open(path, "ab") as file:
                file.write(b"\n")
    return rows


class JsonLines(Sequence):
    """A JSONL file whose objects are read on access: memory holds 8 bytes a line, its place in the file.

    ValueError as by `parse_lines`, of the line that is read.
    """

    def __init__(self, path: str | Path, texts: tuple[str, ...] = ()):
        self.path, self.texts = path, texts
        with naming_failures(f"read {path}"):
            self.file = open(path, "rb")  # noqa: SIM115 (open as long as the object is)
            self.starts = np.fromiter(accumulate(map(len, self.file), initial=0), np.int64)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> dict:
        i = range(len(self))[i]  # an index from the end counts, one beyond it is an IndexError, as in a list
        self.file.seek(self.starts[i])
        return parse_lines(self.file.read(self.starts[i + 1] - self.starts[i]), self.path, i + 1,
                           self.texts)[0]
