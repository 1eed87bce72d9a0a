"""Files on disk: JSON, CSV, text and bytes. Reading checks what it finds; writing is all or nothing."""

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Bytes of a JSON text, its entries, each of which may take 250 bytes of memory, and levels of nesting.
MOST_JSON, MOST_ENTRIES, MOST_LEVELS = 2**27, 3_000_000, 100
HALF_CHARACTER = re.compile(rb"\\u[dD]|\xed")  # may be a lone surrogate, which JSON allows and UTF-8 does not
UNHARMED = ". What was there before is unharmed; free some space or write elsewhere"


@contextmanager
def naming_failures(action: str, advice: str = "") -> Iterator[None]:
    """Raise an OSError of the `with` block as a ValueError: "cannot", the action, the reason, the advice."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot {action}: {error.strerror or error}{advice}") from error


def read_json(path: str | Path) -> dict:
    """The object in a JSON file; ValueError if the file is missing, damaged or holds something else."""
    with naming_failures(f"read {path}"), open(path, "rb") as file:
        data = file.read(MOST_JSON + 1)
    return parse_json(data, f"{path} is damaged")


def parse_json(data: bytes, where: str) -> dict:
    """The object in some JSON text; ValueError if it is too large or too deep, or no such object."""
    if len(data) > MOST_JSON or data.count(b",") > MOST_ENTRIES:
        raise ValueError(f"{where}: more than {MOST_JSON:,} bytes or {MOST_ENTRIES:,} entries of JSON")
    try:
        content = json.loads(data)
        level = [content]
        for _ in range(MOST_LEVELS):
            if not level:  # most lines are flat, and there may be millions
                break
            level = [child for item in level if isinstance(item, dict | list)
                     for child in (item.values() if isinstance(item, dict) else item)]
        if level:
            raise RecursionError
        if HALF_CHARACTER.search(data):
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply, more than {MOST_LEVELS} levels") from error
    except ValueError as error:  # broken JSON or broken UTF-8
        raise ValueError(f"{where}: not valid JSON ({error}); mend it or make it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(content).__name__}")
    return content


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of a folder's safetensors, by name."""
    return {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))}


def json_hash(content, default: Callable | None = None) -> str:
    """SHA-256 of content as JSON with sorted keys; `default` gives a form to what JSON does not know."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=default).encode()).hexdigest()


def make_folder(folder: str | Path) -> Path:
    """The folder, made if it was missing; ValueError if nothing can be written to it."""
    with naming_failures(f"make the folder {folder}", "; choose another place to write to"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write into {folder}: permission denied; choose another place to write to")
    return Path(folder)


@contextmanager
def replace_file(path: str | Path) -> Iterator[io.BufferedWriter]:
    """A file to write, which replaces `path` when the `with` block ends, and is on the disk then.

    Readers see the old file or the new one, never half of one. Of a link the target is replaced. ValueError
    if the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} is a folder or a device; choose another place to write to")
    make_folder(target.parent)
    beside = target.with_name(f".{target.name}.tmp")
    try:
        with naming_failures(f"write {path}", UNHARMED):
            with open(beside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    with replace_file(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def all_keys(rows: list[dict]) -> list:
    """The keys of any row, in the order of appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def write_csv(path: str | Path, rows: list[dict], columns: Iterable[str] = ()) -> None:
    """Write rows under `columns`; without those, under every key of any row, in the order of appearance.

    A row that lacks a key leaves its cell empty.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, list(columns) or all_keys(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())


def finite_or_none(value):
    """The same content with None for NaN and infinity, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
