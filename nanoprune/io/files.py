"""Files on disk: reading is checked, writing is all or nothing. JSON, CSV and text; every error says what to do."""

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
    """The object in a JSON file; ValueError where it is missing, damaged or something else."""
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
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: str | Path) -> Path:
    """The folder, made where it was missing; ValueError where it cannot be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder}: {error.strerror}; choose another place to write to") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write into {folder}: permission denied; choose another place to write to")
    return Path(folder)


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, put it on the disk and rename it: readers see the old or the new, never half."""
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
    """An empty folder that takes the place of `folder` when the block ends well; otherwise what was there stays whole."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another place to write to")
    parent = make_folder(folder.parent)
    beside, before = (parent / f".{folder.name}.{os.getpid()}.{state}" for state in ("new", "old"))
    shutil.rmtree(beside, ignore_errors=True)  # of a killed process that had the same number
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


def write_text(path: str | Path, text: str) -> None:
    replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_csv(path: str | Path, rows: list[dict], columns: Iterable[str] = ()) -> None:
    """Under `columns`, or under all that the rows have in the order of their appearance; empty where a row has none."""
    table, columns = io.StringIO(), list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())


def finite_or_none(value):
    """The same with None for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Beside and then renamed: what stands there is always whole."""
    beside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ValueError(f"cannot write {path}: {error.strerror}; what was there before is unharmed: make room or choose "
                         "another --out, and run the same command again") from error


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of a folder's safetensors, by name."""
    return {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))}
