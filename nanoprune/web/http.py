"""HTTP as a guest: robots.txt, one request at a time, nothing requested twice, patient retries, bounded
answers.

The retries are our own: urllib3's `Retry` knows neither a site's crawl delay nor a body that breaks off,
retries the first time without a pause, and waits shorter than a long Retry-After asks, where a guest should
leave.
"""

import random
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic, sleep
from urllib.parse import urljoin

import requests
from protego import Protego
from requests.utils import requote_uri
from urllib3.util import Url, parse_url

from nanoprune.web.archive import Archive
from nanoprune.web.time_limit import time_limit

USER_AGENT = "nanoprune/0.1 (press-release research)"
TIMEOUT = (10, 30)  # seconds to connect, and to wait for the next bytes
MAX_SECONDS = 60  # of one response, since each byte of it may be the next one
MAX_BYTES = 20 * 2**20  # of one response, unpacked: a small gzip can hold gigabytes
MAX_ROBOTS = 500 * 2**10  # bytes of robots.txt that are read (RFC 9309)
MAX_REDIRECTS = 5
NO_RULES = {*range(400, 500)} - {429}  # answers to the request for robots.txt
RETRIES = 3  # after the first try
BACKOFF = 1.0  # seconds before the first retry, doubled each time
JITTER = 1.25  # a pause is up to this many times the delay, so that requests are not periodic
MAX_WAIT = 120  # seconds; a server that asks for more is left alone
MAX_CRAWL_DELAY = 30  # seconds; more is a mistake, or is meant for crawlers that return for ever
MAX_UNANSWERED = 3  # URLs in a row without any answer: the network or the host is gone


class FetchError(Exception):
    """A URL that cannot be fetched; `status` is the HTTP status if there was an answer."""

    def __init__(self, reason: str, status: int | None = None):
        super().__init__(reason)
        self.status = status


class Disallowed(FetchError):
    """A URL that robots.txt disallows."""


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Nothing: `Fetcher.get` follows redirects, and only it parses where they lead."""


def web_address(url: str, base: str = "") -> Url:
    """The parts of a URL, or of a link in `base`, in the form in which they are checked and requested.

    FetchError if it is no URL, or names a user.
    """
    try:  # requests unquotes letters and dots, which can make another path
        parts = parse_url(requote_uri(parse_url(urljoin(base, url)).url))
    except ValueError as error:
        raise FetchError(f"not a URL: {error}") from error
    if parts.auth is not None:
        raise FetchError("refused: the URL names a user")
    return parts._replace(host=(parts.host or "").removesuffix("."), fragment=None)


class Fetcher:
    """GETs from a site at its pace: robots.txt and its crawl delay, `delay` seconds between requests,
    retries.

    Answers are stored in `archive`, and requested again on the condition that they changed. Redirects stay on
    the site or lead to one of `hosts`, by name. ValueError if the site's robots.txt cannot be fetched.
    """

    def __init__(self, base_url: str, archive: Archive, delay: float = 1.0, hosts: Iterable[str] = ()):
        self.session, self.rules = _Session(), {}
        self.session.headers["User-Agent"] = USER_AGENT
        self.archive, self.delay, self.next_start, self.unanswered = archive, delay, 0.0, 0
        try:
            base = web_address(base_url)
            self.hosts = {_host(base), *(web_address(name).host for name in hosts)}
            # No proxy could reach this machine's own server.
            self.session.trust_env = base.host not in ("127.0.0.1", "localhost", "[::1]")
            self.robots = self._robots(base)
        except FetchError as error:
            raise ValueError(f"cannot read {base_url}/robots.txt: {error}. Check the network and --base-url, "
                             "and run the same command again") from error

    def get(self, url: str, kind: str = "page", version: str = "") -> bytes:
        """The unpacked body; FetchError if the URL is refused or the host does not give it.

        `kind` and `version` (a sitemap's day of the last change) are stored with the answer.
        """
        stored, stored_body = self.archive.find(url)
        first = place = web_address(url)
        conditions = {"If-None-Match": stored.get("etag"), "If-Modified-Since": stored.get("last_modified")}
        for _ in range(MAX_REDIRECTS + 1):
            if not {_host(place), place.host} & self.hosts:  # requests knows no scheme but http and https
                raise FetchError(f"refused: {place} is on another host; --allow-host would allow it")
            if not self._robots(place).can_fetch(place.url, USER_AGENT):
                raise Disallowed("disallowed by robots.txt")
            response, body = self._get_patiently(place.url, conditions)
            if not response.is_redirect:
                break
            location = response.headers["Location"].encode("latin1").decode("utf-8", "replace")
            place, conditions = web_address(location, place.url), {}  # the stored answer is not its
        else:
            raise FetchError(f"more than {MAX_REDIRECTS} redirects")
        about = {"version": version, "etag": response.headers.get("ETag"),
                 "last_modified": response.headers.get("Last-Modified")}
        if response.status_code == 304 and stored_body is not None:
            body, about = stored_body, {key: value or stored.get(key) for key, value in about.items()}
        elif response.status_code != 200:
            raise FetchError(f"{response.status_code} {response.reason}", response.status_code)
        self.archive.add(url, kind, body, **(about if place == first else {"version": version}))
        return body

    def _robots(self, place: Url) -> Protego:
        """The rules of a URL's host, requested once; RFC 9309: a host without rules allows all."""
        host = _host(place)
        if host not in self.rules:
            self.rules[host] = Protego()  # allows all: no rule can forbid the request for robots.txt
            try:
                body = self.get(place._replace(path="/robots.txt", query=None).url, "robots")
            except FetchError as error:
                if error.status not in NO_RULES:
                    del self.rules[host]
                    raise
                body = b""
            self.rules[host] = Protego.parse(body[:MAX_ROBOTS].decode("utf-8-sig", "replace"))
            delay = self.rules[host].crawl_delay(USER_AGENT) or 0
            if delay > MAX_CRAWL_DELAY:
                print(f"{place.netloc}/robots.txt asks for {delay:g} s between requests; "
                      f"waiting {MAX_CRAWL_DELAY} s, the most that is usual (--delay waits longer)")
            self.delay = max(self.delay, min(delay, MAX_CRAWL_DELAY))
        return self.rules[host]

    def _get_patiently(self, url: str, headers: dict) -> tuple[requests.Response, bytes]:
        """The first answer that is neither "too many requests" nor a server's error."""
        self.unanswered += 1
        for attempt in range(RETRIES + 1):
            wait, status = BACKOFF * 2**attempt, None
            try:
                response, body = self._get_once(url, headers)
                status = response.status_code
                if status != 429 and status < 500:
                    return response, body
                problem = f"{status} {response.reason}"
                wait = max(wait, retry_after(response.headers.get("Retry-After", "")))
            except requests.Timeout:
                problem = "no answer in time"
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                problem = _cause(error)
            except (requests.RequestException, ValueError) as error:  # too slow, or no HTTP
                raise FetchError(_cause(error)) from error
            if wait > MAX_WAIT:
                raise FetchError(f"{problem}; it asks to come back in {wait:.0f} s", status)
            if attempt < RETRIES:
                sleep(wait)
        raise FetchError(f"{problem}, {RETRIES + 1} times", status)

    def _get_once(self, url: str, headers: dict) -> tuple[requests.Response, bytes]:
        sleep(max(0.0, self.next_start - monotonic()))
        self.next_start = monotonic() + self.delay * random.uniform(1, JITTER)
        body = bytearray()
        with time_limit(MAX_SECONDS), self.session.get(
            url, headers=headers, timeout=TIMEOUT, stream=True, allow_redirects=False
        ) as response:
            self.unanswered = 0
            for chunk in response.iter_content(2**16):
                body += chunk
                if len(body) > MAX_BYTES:
                    raise FetchError(f"larger than {MAX_BYTES >> 20} MB")
        return response, bytes(body)


def retry_after(header: str) -> float:
    """The seconds that a server asks to wait, as a number or a date; 0 if the header is neither."""
    if re.fullmatch(r"\s*\d+\s*", header):
        return float(header)
    try:
        when = parsedate_to_datetime(header)
        return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _host(place: Url) -> tuple[str | None, int | None]:
    return place.host, None if place.port in (80, 443) else place.port


def _cause(error: Exception) -> str:
    """The last part of the nested messages of requests, which names the cause."""
    return str(error).rsplit(": ", 1)[-1].strip("'\"() ") or type(error).__name__
