"""Rows of instruction data as people have it: JSONL, a JSON array, CSV (also as .gz) or Parquet."""

import codecs
import csv
import gzip
import io
import json
import zlib
from pathlib import Path

from nanoprune.io.jsonl import json_line, parse_lines

MAX_BYTES = 2**30  # that a compressed file may hold


def read_rows(path: Path) -> list[tuple[str, dict]]:
    """Each row with its place, for messages; ValueError names what is not read, and where it stands."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        if start == b"PAR1":
            return _checked(path, "row", _parquet_rows(path))
        packed = start.startswith(b"\x1f\x8b")
        with (gzip.open if packed else open)(path, "rb") as file:
            data = file.read(MAX_BYTES + 1 if packed else -1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if packed and len(data) > MAX_BYTES:
        raise _too_large(path)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16", errors="replace").encode()
    if b"\0" in data:
        raise ValueError(f"{path} is no text (perhaps an archive, or compressed twice): give JSONL, a JSON "
                         "array, CSV or Parquet, perhaps as .gz")
    data = data.removeprefix(codecs.BOM_UTF8).rstrip()
    if {".csv", ".tsv"}.intersection(map(str.lower, path.suffixes)):
        return _checked(path, "row", _csv_rows(path, data))
    if data.startswith(b"["):
        try:
            items = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not valid JSON ({error}); give one array of objects, or an object a "
                             "line") from error
        return _checked(path, "item", items)
    if data.startswith((b"{\n", b"{\r\n")):
        raise ValueError(f"{path}: this is one JSON object over several lines; give an array of the "
                         "examples, or one object a line")
    return _checked(path, "line", parse_lines(data, path))


def _checked(path: Path, unit: str, rows: list) -> list[tuple[str, dict]]:
    placed = [(f"{path}, {unit} {number}", row) for number, row in enumerate(rows, start=1)]
    for place, row in placed:
        if not isinstance(row, dict):
            raise ValueError(f"{place}: this is {json.dumps(row)[:60]}; every {unit} must be one JSON object")
        try:
            json_line(row).encode()
        except ValueError as error:
            raise ValueError(f"{place}: not valid text ({error})") from error
    return placed


def _csv_rows(path: Path, data: bytes) -> list[dict]:
    """The rows of a table with a line of names; empty cells are left out."""
    csv.field_size_limit(max(csv.field_size_limit(), len(data) + 1))  # it holds for the whole process
    try:
        lines = io.StringIO(data.decode(), newline="")
        names = data.split(b"\n")[0].decode()
        reader = csv.DictReader(lines, delimiter=max(",;\t", key=names.count), strict=True)
        rows = [{key: cell for key, cell in row.items() if cell} for row in reader]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV in UTF-8: {error}") from error
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise ValueError(f"{path}, row {number}: more cells than names in the first line")
    return rows


def _parquet_rows(path: Path) -> list[dict]:
    """The rows as JSON has them (days as text), read a few at a time, so that their size stays bounded."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f'{path} is Parquet: pip install "pyarrow", or give JSONL or CSV') from None
    rows, size = [], 0
    try:
        file = ParquetFile(path)
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
        if unpacked > MAX_BYTES:
            raise _too_large(path)
        # A value that is stored once may stand in every row.
        for batch in file.iter_batches(max(1, min(1024, MAX_BYTES // max(1, unpacked)))):
            size += batch.nbytes
            if size > MAX_BYTES:
                raise _too_large(path)
            rows += json.loads(json.dumps(batch.to_pylist(), default=str))
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged or no Parquet: {error}") from error
    return rows


def _too_large(path: Path) -> ValueError:
    return ValueError(f"{path} holds more than {MAX_BYTES / 1e9:.1f} GB when it is decompressed: write it as "
                      "plain JSONL")
