"""HTTP as a guest: robots.txt, one request at a time, no question twice, patient retries, bounded answers."""

import random
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic, sleep
from urllib.parse import urljoin, urlsplit
from urllib.robotparser import RobotFileParser

import requests

from nanoprune.web.archive import Archive

USER_AGENT = "nanoprune/0.1 (press-release research)"
TIMEOUT = (10, 30)  # seconds to connect, and to wait for the next bytes
MAX_BYTES = 20 * 2**20  # of one response, unpacked: a small gzip can hold gigabytes
MAX_REDIRECTS = 5
RETRIES = 3  # after the first try
BACKOFF = 1.0  # seconds before the first retry, doubled each time
JITTER = 1.25  # pauses are up to this many times the delay, so that requests keep no beat
MAX_WAIT = 120  # seconds; a server that asks for more is left alone
MAX_UNANSWERED = 3  # URLs in a row without any answer: the network or the host is gone


class FetchError(Exception):
    """A URL that could not be had, and the HTTP status if there was one."""

    def __init__(self, reason: str, status: int | None = None):
        super().__init__(reason)
        self.status = status


class Disallowed(FetchError):
    """A URL that robots.txt asks to leave alone."""


class Fetcher:
    """GETs from a site at its pace: robots.txt and its crawl delay, `delay` seconds between requests, patient retries.

    Answers are kept in `store`, and asked for again on the condition that they changed. `hosts` are the names of other
    hosts that redirects may lead to. ValueError where the site's robots.txt cannot be asked for.
    """

    def __init__(self, base_url: str, delay: float = 1.0, store: Archive | None = None, hosts: Iterable[str] = ()):
        self.session = requests.Session()
        self.session.headers["User-Agent"] = USER_AGENT
        # No proxy could reach this machine's own server.
        self.session.trust_env = urlsplit(base_url).hostname not in ("127.0.0.1", "localhost", "::1")
        self.store, self.delay, self.next_start, self.unanswered = store, delay, 0.0, 0
        self.hosts, self.rules = {_host(base_url), *hosts}, {}
        try:
            self.robots = self._robots(base_url)
        except FetchError as error:
            raise ValueError(f"cannot read {base_url}/robots.txt: {error}. Check the network and --base-url, "
                             "and run the same command again") from error

    def get(self, url: str, kind: str = "page", version: str = "") -> bytes:
        """The unpacked body; FetchError where the URL is refused or the host does not give it.

        `kind` and `version` (what a sitemap says of the last change) are kept with the answer.
        """
        known, kept = self.kept(url)
        asked, conditions = url, {"If-None-Match": known.get("etag"), "If-Modified-Since": known.get("last_modified")}
        for _ in range(MAX_REDIRECTS + 1):
            self._check(url)
            response, body = self._patiently(url, {name: value for name, value in conditions.items() if value})
            target = self.session.get_redirect_target(response)
            if target is None:
                break
            url, conditions = urljoin(url, target), {}  # what is known is of the first URL
        else:
            raise FetchError(f"more than {MAX_REDIRECTS} redirects")
        given = response.headers
        about = {"version": version, "etag": given.get("ETag"), "last_modified": given.get("Last-Modified")}
        if response.status_code == 304 and kept is not None:
            body, about = kept, {key: value or known.get(key) for key, value in about.items()}
        elif response.status_code != 200:
            raise FetchError(f"{response.status_code} {response.reason}", response.status_code)
        if self.store is not None:
            self.store.keep(asked, kind, body, **(about if url == asked else {"version": version}))
        return body

    def kept(self, url: str) -> tuple[dict, bytes | None]:
        """The line and the body of the answer that is kept of a URL, if it can be read."""
        answer = self.store.latest.get(url, {}) if self.store else {}
        try:
            return answer, self.store.read(answer) if answer else None
        except ValueError:  # then it is asked for anew
            return {}, None

    def _check(self, url: str) -> None:
        try:
            if urlsplit(url).scheme not in ("http", "https") or not {_host(url), urlsplit(url).hostname} & self.hosts:
                raise FetchError(f"refused: {url} is on another host; --allow-host would allow it")
        except ValueError as error:
            raise FetchError(f"not a URL: {error}") from error
        if not self._robots(url).can_fetch(USER_AGENT, url):
            raise Disallowed("disallowed by robots.txt")

    def _robots(self, url: str) -> RobotFileParser:
        """The rules of a URL's host, asked for once; RFC 9309: where there are none, all is allowed."""
        if (host := _host(url)) not in self.rules:
            rules = RobotFileParser()
            place = urlsplit(url)
            try:
                self.rules[host] = RobotFileParser()
                self.rules[host].parse([])  # allows all, for the one request that is made without asking
                text = self.get(f"{place.scheme}://{place.netloc}/robots.txt", "robots").decode("utf-8-sig", "replace")
            except FetchError as error:
                if error.status is None or not 400 <= error.status < 500 or error.status == 429:
                    del self.rules[host]
                    raise
                text = ""
            rules.parse(text.splitlines())
            self.rules[host], self.delay = rules, max(self.delay, float(rules.crawl_delay(USER_AGENT) or 0))
        return self.rules[host]

    def _patiently(self, url: str, headers: dict) -> tuple[requests.Response, bytes]:
        """The first answer that is neither "too many requests" nor a server's error."""
        for attempt in range(RETRIES + 1):
            wait, status = BACKOFF * 2**attempt, None
            try:
                response, body = self._once(url, headers)
                self.unanswered, status = 0, response.status_code
                if status != 429 and status < 500:
                    return response, body
                problem = f"{status} {response.reason}"
                wait = max(wait, retry_after(response.headers.get("Retry-After", "")))
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                problem = "no answer in time" if isinstance(error, requests.Timeout) else _cause(error)
            except requests.RequestException as error:
                raise FetchError(_cause(error)) from error
            if wait > MAX_WAIT:
                raise FetchError(f"{problem}; it asks to come back in {wait:.0f} s", status)
            if attempt < RETRIES:
                sleep(wait)
        self.unanswered += status is None
        raise FetchError(f"{problem}, {RETRIES + 1} times", status)

    def _once(self, url: str, headers: dict) -> tuple[requests.Response, bytes]:
        sleep(max(0.0, self.next_start - monotonic()))
        self.next_start = monotonic() + self.delay * random.uniform(1, JITTER)
        body = bytearray()
        with self.session.get(url, headers=headers, timeout=TIMEOUT, stream=True, allow_redirects=False) as response:
            for chunk in response.iter_content(2**16):
                body += chunk
                if len(body) > MAX_BYTES:
                    raise FetchError(f"larger than {MAX_BYTES >> 20} MB", response.status_code)
        return response, bytes(body)


def retry_after(header: str) -> float:
    """The seconds a server asks to wait, from a number or a date; 0 where it says nothing of the kind."""
    if re.fullmatch(r"\s*\d+\s*", header):
        return float(header)
    try:
        when = parsedate_to_datetime(header)
        return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _host(url: str) -> tuple[str | None, int | None]:
    parts = urlsplit(url)
    return parts.hostname, None if parts.port in (80, 443) else parts.port


def _cause(error: Exception) -> str:
    """The last part of the nested messages of requests, which is what happened."""
    return str(error).rsplit(": ", 1)[-1].strip("'\"() ") or type(error).__name__
