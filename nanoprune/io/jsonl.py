"""JSON lines: read whole or on demand, written, appended."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from nanoprune.io.files import write_text

HALF_CHARACTER = re.compile(rb"\\u[dD]|\xed")  # may be half of a pair, which is no text: JSON lets it pass


def parse_lines(data: bytes, path: str | Path, first: int = 1, required: tuple[str, ...] = ()) -> list[dict]:
    """The objects of some lines of a JSONL file; a ValueError names file and line (the first is number `first`) of the one
    that is empty, broken or incomplete."""
    rows = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else [], start=first):
        where = f"{path}, line {number}"
        if not line.strip():
            raise ValueError(f"{where}: empty line; every line must be one JSON object. Delete the line and run again")
        try:
            row = json.loads(line)
            if HALF_CHARACTER.search(line):
                json_line(row).encode()
        except (ValueError, RecursionError) as error:  # broken JSON or broken UTF-8
            raise ValueError(f"{where}: not valid JSON ({error}). Mend or delete the line and run again") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, found {type(row).__name__}")
        if missing := [key for key in required if key not in row]:
            raise ValueError(f"{where}: lacks {', '.join(missing)}; it has {', '.join(row) or 'nothing'}")
        rows.append(row)
    return rows


def read_jsonl(path: str | Path, required: tuple[str, ...] = ()) -> list[dict]:
    """The objects of a JSONL file; ValueError as by `parse_lines`."""
    try:
        return parse_lines(Path(path).read_bytes(), path, required=required)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


class JsonLines(Sequence):
    """A JSONL file whose objects are read when they are asked for: only where each line begins is held, 8 bytes."""

    def __init__(self, path: str | Path):
        self.path = path
        ends, size = [], 0
        try:
            self.file = open(path, "rb")  # noqa: SIM115 (open as long as the object is)
            while block := self.file.read(2**20):
                ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (size + 1))
                size += len(block)
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from error
        self.starts = np.unique(np.concatenate([[0], *ends, [size]])).astype(np.int64)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> dict:
        i = range(len(self))[i]  # from the end, or an IndexError, as in a list
        self.file.seek(self.starts[i])
        return parse_lines(self.file.read(self.starts[i + 1] - self.starts[i]), self.path, i + 1)[0]


def json_line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    write_text(path, "".join(map(json_line, rows)))


def read_log(path: Path, required: tuple[str, ...]) -> list[dict]:
    """The objects of a JSONL file, none where there is no file; half a last line is cut off, with a warning.

    ValueError names another line that is no object with the required keys; nothing is changed then.
    """
    rows, size = [], 0
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return rows
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; choose another --out") from error
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append({key: row[key] for key in required} | row)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) or line.endswith(b"\n"):
                raise ValueError(f"{path}, line {number}: damaged ({error}). Nothing was changed; mend or delete the line, "
                                 "or choose another --out") from error
            print(f"warning: {path}, line {number}: a half line at the end is dropped", file=sys.stderr)
            with open(path, "rb+") as file:
                file.truncate(size)
            return rows
        size += len(line)
    if lines and not lines[-1].endswith(b"\n"):
        with open(path, "ab") as file:
            file.write(b"\n")
    return rows


def append_line(path: Path, row: dict) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; what was collected before is kept: make room or choose "
                         "another --out, and run the same command again") from error
