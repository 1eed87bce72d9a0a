"""What a site answered, kept: a better parser reads it again without asking again.

    articles.raw/log.jsonl             one line an answer, in the order of arrival: url, kind, sha256, fetched, etag, ...
    articles.raw/ab/abcdef....gz       the body, once however often it came

A body is on the disk before its line, so whatever the log names is there. Nothing is ever changed or removed.
"""

import gzip
import hashlib
import json
import os
import sys
import zlib
from datetime import UTC, datetime
from pathlib import Path


class Store:
    """The answers of one collection; `answers` in the order of arrival, `latest` the last one of each URL."""

    def __init__(self, folder: Path):
        """ValueError where the log is damaged in the middle; half a last line, which a killed run leaves, is cut off."""
        self.folder, self.log = folder, folder / "log.jsonl"
        self.answers = read_lines(self.log, ("url", "kind", "sha256"))
        self.latest = {answer["url"]: answer for answer in self.answers}

    def keep(self, url: str, kind: str, body: bytes, **about: str | None) -> None:
        """Write an answer down, unless it is the one that this URL gave last; `about` goes into its line."""
        digest = hashlib.sha256(body).hexdigest()
        answer = {"url": url, "kind": kind, "sha256": digest} | about
        try:
            self.read(answer)
        except ValueError:  # not there yet, or damaged
            write_whole(self._path(digest), gzip.compress(body, mtime=0))
        if self.latest.get(url, {}).items() >= answer.items():
            return
        answer["fetched"] = datetime.now(UTC).isoformat(timespec="seconds")
        append_line(self.log, answer)
        self.answers.append(answer)
        self.latest[url] = answer

    def read(self, answer: dict) -> bytes:
        """An answer's body; ValueError where it is missing or damaged."""
        path = self._path(answer["sha256"])
        try:
            body = gzip.decompress(path.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} (of {answer['url']}) cannot be read: {error}") from error
        if hashlib.sha256(body).hexdigest() != answer["sha256"]:
            raise ValueError(f"{path} (of {answer['url']}) is damaged: its checksum is wrong")
        return body

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.gz"


def read_lines(path: Path, required: tuple[str, ...]) -> list[dict]:
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


def write_whole(path: Path, data: bytes) -> None:
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
