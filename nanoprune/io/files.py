"""Files on disk: JSON, CSV, text and bytes. Reading checks what it finds; writing is all or nothing."""

import csv
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def read_json(path: str | Path) -> dict:
    """The object in a JSON file; ValueError if the file is missing, damaged or holds something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, found {type(content).__name__}")
    return content


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of a folder's safetensors, by name."""
    return {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))}


def make_folder(folder: str | Path) -> Path:
    """The folder, made if it was missing; ValueError if nothing can be written to it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder}: {error.strerror}; "
                         "choose another place to write to") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write into {folder}: permission denied; choose another place to write to")
    return Path(folder)


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, flush it to the disk and rename it to `path`.

    Readers see the old file or the new one, never half of one. ValueError if the file cannot be written.
    """
    path = Path(path)
    make_folder(path.parent)
    beside = path.with_name(path.name + ".tmp")
    try:
        write(beside)
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ValueError(f"cannot write {path}: {error}. What was there before is unharmed; "
                         "free some space or write elsewhere") from error


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder that replaces `folder` when the `with` block ends; after an error the old one stays."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another place to write to")
    parent = make_folder(folder.parent)
    beside, before = (parent / f".{folder.name}.{os.getpid()}.{state}" for state in ("new", "old"))
    shutil.rmtree(beside, ignore_errors=True)  # a killed process may have had the same number
    try:
        yield make_folder(beside)
        if folder.exists():
            os.replace(folder, before)
        os.replace(beside, folder)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error}. What was there before is unharmed; "
                         "free some space or write elsewhere") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if before.exists() and not folder.exists():
            os.replace(before, folder)
        shutil.rmtree(before, ignore_errors=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    replace_file(path, lambda beside: beside.write_bytes(data))


def write_text(path: str | Path, text: str) -> None:
    replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_csv(path: str | Path, rows: list[dict], columns: Iterable[str] = ()) -> None:
    """Write rows under `columns`; without those, under every key of any row, in the order of appearance.

    A row that lacks a key leaves its cell empty.
    """
    table, columns = io.StringIO(), list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
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
