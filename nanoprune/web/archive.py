"""Every answer of a site, stored: a better parser reads the answers again without another request.

    articles.raw/log.jsonl        one line an answer, in the order of arrival: url, kind, sha256, fetched, ...
    articles.raw/ab/abcdef....gz  the body, stored once however often it arrived

A body is on the disk before its line, so the log names no body that is missing. Nothing is ever changed or
removed.
"""

import gzip
import hashlib
import zlib
from datetime import UTC, datetime
from pathlib import Path

from nanoprune.io.files import write_bytes
from nanoprune.io.jsonl import append_line, read_log


class Archive:
    """The answers of one collection: `answers` in the order of arrival, `latest` the last one of each URL."""

    def __init__(self, folder: Path):
        """ValueError if a line of the log is damaged; half a last line, which a killed run leaves, is cut
        off.
        """
        self.folder, self.log = folder, folder / "log.jsonl"
        self.answers = read_log(self.log, ("url", "kind", "sha256"))
        self.latest = {answer["url"]: answer for answer in self.answers}

    def add(self, url: str, kind: str, body: bytes, **about: str | None) -> None:
        """Store an answer, unless it equals the last one of this URL; `about` goes into its line."""
        digest = hashlib.sha256(body).hexdigest()
        answer = {"url": url, "kind": kind, "sha256": digest} | about
        try:
            self.read(answer)
        except ValueError:  # not there yet, or damaged
            write_bytes(self._path(digest), gzip.compress(body, mtime=0))
        if self.latest.get(url, {}).items() >= answer.items():
            return
        answer["fetched"] = datetime.now(UTC).isoformat(timespec="seconds")
        append_line(self.log, answer)
        self.answers.append(answer)
        self.latest[url] = answer

    def read(self, answer: dict) -> bytes:
        """An answer's body; ValueError if it is missing or damaged."""
        path = self._path(answer["sha256"])
        try:
            body = gzip.decompress(path.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} (of {answer['url']}) cannot be read: {error}") from error
        if hashlib.sha256(body).hexdigest() != answer["sha256"]:
            raise ValueError(f"{path} (of {answer['url']}) is damaged: its checksum is wrong")
        return body

    def find(self, url: str) -> tuple[dict, bytes | None]:
        """The line and the body of a URL's last answer; ({}, None) if there is none that can be read."""
        try:
            answer = self.latest[url]
            return answer, self.read(answer)
        except (KeyError, ValueError):
            return {}, None

    def has_page(self, url: str, version: str) -> bool:
        """True if the last answer of this URL is its page in this version, as a sitemap names it."""
        answer = self.latest.get(url, {})
        return answer.get("kind") == "page" and answer.get("version") == version

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.gz"
