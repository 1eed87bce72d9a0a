"""A newsroom's press releases, one JSON line each.

    python scrape.py --out data/raw/articles.jsonl                          # everything in the topics' feeds
    python scrape.py --out data/raw/articles.jsonl --since 2025-09-01       # only what is newer
    python scrape.py --out data/raw/articles.jsonl --source sitemap         # every page of the sitemaps in robots.txt
    python scrape.py --out data/raw/articles.jsonl URL URL                  # single articles

A line has `id, url, title, teaser, date, category, tags, text`. Paragraphs are separated by an empty line, list items
start with "- ", the cells of a table's row with " | "; a line break inside a paragraph stays one. Nothing is cleaned
here: contact blocks and the like are left for prepare.py, which sees the whole corpus.

The feed carries the full text, so twenty articles cost one request; an article's own page is fetched only where the
feed's text is missing or cut short, and only pages give teaser, category and tags (empty otherwise). Run the command
again to go on: articles that the output file has are not fetched again.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path
from urllib.parse import urljoin, urlsplit
from urllib.robotparser import RobotFileParser

import requests
from lxml import etree
from tqdm import tqdm

USER_AGENT = "nanoprune/0.1 (press-release research)"
TIMEOUT = (10, 30)  # seconds to connect, and to wait for the next bytes
MAX_BYTES = 20 * 2**20  # of one response, unpacked: a small gzip can hold gigabytes
MAX_REDIRECTS = 5
RETRIES = 3  # after the first try
BACKOFF = 1.0  # seconds before the first retry, doubled each time
MAX_WAIT = 120  # seconds; a server that asks for more is left alone
MAX_UNANSWERED = 3  # URLs in a row without any answer: the network or the host is gone

# ---------------------------------------------------------------- sites


def _by_class(name: str) -> str:
    """The XPath condition for one of an element's classes."""
    return f"contains(concat(' ', normalize-space(@class), ' '), ' {name} ')"


@dataclass(frozen=True)
class Site:
    """All that is particular to one newsroom. Dates are patterns with the groups `day`, `month` and `year`."""

    base_url: str
    feed: str  # path of one page of a topic's RSS feed
    topics: tuple[str, ...]
    sitemaps: str  # pattern of the sitemaps in robots.txt that hold its articles
    id: str  # pattern of an article's id; the group `language`, where there is one, must equal the next field
    language: str
    title: str  # XPaths within an article's page
    teaser: str
    date: str
    category: str
    tags: str
    body: str
    dates: tuple[str, ...]

    def article_id(self, text: str) -> str:
        """The id that stands in a URL or a feed's guid; empty where there is none."""
        match = re.search(rf"(?<![A-Za-z0-9])(?:{self.id})(?![A-Za-z0-9])", text)
        return match[0] if match else ""

    def speaks(self, article_id: str) -> bool:
        """Whether an article is in the site's language, by its id."""
        match = re.fullmatch(self.id, article_id)
        return match is None or match.groupdict().get("language", self.language) == self.language


SITES = {
    "bmw": Site(
        base_url="https://www.press.bmwgroup.com",
        feed="/global/rss2/topic/{topic}?page={page}",
        # corporate, brands, bmw, mini, technology, people, heritage, motor shows, motorrad, bmw i, bmw m, sports
        topics=("803", "4099", "4100", "5127", "5236", "5249", "5254", "4098", "6629", "6728", "7309", "10837"),
        sitemaps="pcgl_en",
        id=r"T\d{7}(?P<language>[A-Z]{2})(?:_[A-Z]{2})?",
        language="EN",
        title=f"//*[{_by_class('article-detail')}]//h1",
        teaser=f"//h2[{_by_class('teaser')}]",
        date=f"//*[{_by_class('article-info')}]//span[{_by_class('date')}]",
        category=f"//*[{_by_class('article-info')}]//span[{_by_class('category')}]",
        tags=f"//*[{_by_class('tagging-info')}]//*[{_by_class('tag')}]",
        body="//*[@id='article-text']",
        dates=(
            r"(?P<month>[A-Z][a-z]{2}) (?P<day>\d{1,2}) \d\d:\d\d:\d\d \S+ (?P<year>\d{4})",  # Fri Dec 05 08:34:40 CET 2025
            r"(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.(?P<year>\d{4})",  # 05.12.2025
        ),
    ),
}
RFC_822 = r"(?P<day>\d{1,2}) (?P<month>[A-Za-z]{3}) (?P<year>\d{4})"  # Fri, 05 Dec 2025 08:34:40 +0100, in every RSS feed
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

# ---------------------------------------------------------------- collecting


@dataclass
class Report:
    """What became of every article that was listed."""

    listed: int = 0
    new: int = 0
    had: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # by reason
    failed: list[tuple[str, str]] = field(default_factory=list)  # URL, reason

    def miss(self, url: str, error: Exception) -> None:
        if isinstance(error, Disallowed):
            self.skipped[str(error)] += 1
        else:
            self.failed.append((url, str(error)))

    def __str__(self) -> str:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(self.skipped.items()))
        lines = [f"new         {self.new:6}", f"already had {self.had:6}",
                 f"skipped     {self.skipped.total():6}" + (f"  ({reasons})" if reasons else ""),
                 f"failed      {len(self.failed):6}"]  # fmt: skip
        return "\n".join(lines + [f"  {url}: {reason}" for url, reason in self.failed])


def collect(site: Site, out: Path, report: Report, *, source: str = "feed", urls: Iterable[str] = (),
            since: str | None = None, limit: int | None = None, delay: float = 1.0) -> None:  # fmt: skip
    """Append the site's articles that `out` does not have, each as soon as it is read, and count them in `report`.

    `since` is YYYY-MM-DD, `limit` a number of new articles, `delay` the seconds between requests. An article that
    fails is named in the report. ValueError where `out` is damaged or cannot be written, where the host does not
    answer, and where no article is found at all.
    """
    with open_collection(out) as (have, append):
        fetcher = Fetcher(site.base_url, delay)
        if source == "feed":
            listed = from_feed(fetcher, site, since, report)
        elif source == "sitemap":
            listed = from_sitemap(fetcher, site, report)
        else:
            listed = [_candidate(site, url) for url in urls]
        seen = set()
        for candidate in tqdm(listed, desc="articles", unit="", disable=None):
            article_id, url = candidate["id"], candidate["url"]
            if (article_id or url) in seen:  # topics overlap
                continue
            seen.add(article_id or url)
            report.listed += 1
            if article_id in have:
                report.had += 1
                continue
            if not site.speaks(article_id):
                report.skipped["in another language"] += 1
                continue
            try:
                old = since and candidate["date"] and candidate["date"] < since
                article = candidate if old or is_complete(candidate) else parse_article(fetcher.get(url), site, url)
            except (FetchError, ValueError) as error:
                report.miss(url, error)
                if fetcher.unanswered >= MAX_UNANSWERED:
                    raise ValueError(f"{site.base_url} does not answer any more ({error}); what was collected is kept: "
                                     "run the same command again to go on") from error  # fmt: skip
                continue
            if since and article["date"] < since:
                report.skipped[f"older than {since}"] += 1
                continue
            append(article)
            have.add(article_id)
            report.new += 1
            if report.new == limit:
                break
        if not report.listed or not have:
            why = "".join(f"\n  {url}: {reason}" for url, reason in report.failed[:5])
            why += "".join(f"\n  {number} URLs {reason}" for reason, number in report.skipped.items())
            raise ValueError(f"nothing collected from {site.base_url} by --source {source}{why or ': it lists no article'}\n"
                             "Check --base-url and --site, or try another --source")  # fmt: skip


def from_feed(fetcher: "Fetcher", site: Site, since: str | None, report: Report) -> Iterator[dict]:
    """The articles of every topic, newest first, page by page.

    A topic ends with a page that is missing, no feed or without anything new (some start over with page 1), or as soon
    as a whole page is older than `since`.
    """
    for topic in site.topics:
        url, seen = site.base_url + site.feed.format(topic=topic, page=1), set()
        for page in count(1):
            try:
                articles, following = parse_feed(fetcher.get(url), site)
                following = urljoin(url, following or site.feed.format(topic=topic, page=page + 1))
            except FetchError as error:
                if page == 1 or error.status not in (404, 410):
                    report.miss(url, error)
                break
            except ValueError as error:
                if page == 1:
                    report.miss(url, error)
                break
            found = {article["id"] or article["url"] for article in articles}
            if found <= seen:
                break
            seen |= found
            yield from articles
            if since and all(article["date"] and article["date"] < since for article in articles):
                break
            url = following


def from_sitemap(fetcher: "Fetcher", site: Site, report: Report) -> Iterator[dict]:
    """The article pages in the sitemaps that robots.txt declares, and in the sitemaps that those name."""
    declared = [urljoin(site.base_url, url) for url in fetcher.robots.site_maps() or []]
    if not declared:
        raise ValueError(f"{site.base_url}/robots.txt declares no sitemap; use --source feed or give the articles' URLs")
    waiting = [url for url in declared if re.search(site.sitemaps, url)] or declared
    known = set(waiting)
    while waiting:
        url = waiting.pop(0)
        try:
            pages, nested = parse_sitemap(fetcher.get(url))
        except (FetchError, ValueError) as error:
            report.miss(url, error)
            continue
        waiting += [other for other in nested if other not in known]
        known.update(nested)
        yield from (_candidate(site, page, changed) for page, changed in pages if site.article_id(page))


def is_complete(article: dict) -> bool:
    """Whether a feed's article needs no page: it has title, date and a text that does not break off with dots."""
    whole = not re.search(r"(\.\.\.|…)\s*[\])]?$|\bread more\W*$", article["text"][-40:], re.IGNORECASE)
    return bool(article["id"] and article["title"] and article["date"] and article["text"]) and whole


def _candidate(site: Site, url: str, changed: str = "") -> dict:
    """An article of which only the URL is known; it cannot be newer than the day of its last change."""
    return _article(site.article_id(url), url, date=changed)


def _article(id: str, url: str, *, title="", teaser="", date="", category="", tags=(), text="") -> dict:
    return {"id": id, "url": url, "title": title, "teaser": teaser, "date": date, "category": category,
            "tags": list(tags), "text": text}  # fmt: skip


# ---------------------------------------------------------------- parsing


def parse_article(html: bytes, site: Site, url: str) -> dict:
    """The article on its page, with its id from `url`; ValueError where id, title, date or body are missing."""
    root = _parse_html(html)

    def texts(path: str) -> list[str]:
        return [text for element in root.xpath(path) if (text := html_to_text(element))]

    def first(path: str) -> str:
        return " ".join(next(iter(texts(path)), "").split())

    article = _article(site.article_id(url), url, title=first(site.title), teaser=first(site.teaser),
                       category=first(site.category), tags=[" ".join(tag.split()) for tag in texts(site.tags)],
                       text=next(iter(texts(site.body)), ""))  # fmt: skip
    # No second place to look for a body: what stands elsewhere on a page without one is no article.
    if missing := [key for key in ("id", "title", "text") if not article[key]]:
        raise ValueError(f"the page has no {' and no '.join(missing)}")
    return article | {"date": parse_date(first(site.date), site.dates)}


def parse_feed(xml: bytes, site: Site) -> tuple[list[dict], str | None]:
    """The articles of one page of an RSS feed and the link to the next page, if it names one.

    Articles have all keys; what the feed does not say is empty. ValueError where the page is no RSS feed.
    """
    root, sound = _parse_xml(xml)
    if root.tag != "rss":
        raise ValueError(f"not an RSS feed: its first element is <{root.tag}>")
    articles = []
    for item in root.iter("item"):
        link = (item.findtext("link") or "").strip()
        content = item.find("{http://purl.org/rss/1.0/modules/content/}encoded")
        description = item.find("description") if content is None else content
        try:
            day = parse_date(item.findtext("pubDate") or "", (RFC_822, *site.dates))
        except ValueError:
            day = ""
        try:  # a damaged feed may have lost any part of a text: the page has to give it
            text = html_to_text(_inner(description)) if sound and description is not None else ""
        except ValueError:
            text = ""
        title = " ".join(html_to_text(item.findtext("title") or "").split())
        article_id = site.article_id(item.findtext("guid") or "") or site.article_id(link)
        articles.append(_article(article_id, link, title=title, date=day, text=text))
    following = root.find(".//{http://www.w3.org/2005/Atom}link[@rel='next']")
    return articles, None if following is None else following.get("href")


def parse_sitemap(xml: bytes) -> tuple[list[tuple[str, str]], list[str]]:
    """(URL, day of the last change or "") of every page in a sitemap, and the URLs of the sitemaps it names.

    ValueError where it is no sitemap.
    """
    root, _ = _parse_xml(xml)
    if etree.QName(root).localname not in ("urlset", "sitemapindex"):
        raise ValueError(f"not a sitemap: its first element is <{root.tag}>")
    pages, nested = [], []
    for entry in root:
        if place := (entry.findtext("{*}loc") or "").strip():
            if etree.QName(entry).localname == "sitemap":
                nested.append(place)
            else:
                day = (entry.findtext("{*}lastmod") or "").strip()[:10]
                pages.append((place, day if re.fullmatch(r"\d{4}-\d\d-\d\d", day) else ""))
    return pages, nested


def parse_date(text: str, patterns: Iterable[str]) -> str:
    """The day as YYYY-MM-DD, by the first pattern found; English months in any locale. ValueError where none fits."""
    for pattern in patterns:
        if match := re.search(pattern, text):
            month = match["month"].lower()
            try:
                number = int(month) if month.isdigit() else MONTHS.index(month) + 1
                return date(int(match["year"]), number, int(match["day"])).isoformat()
            except ValueError:
                break
    raise ValueError(f"no date that can be read: {text[:60]!r}")


SKIPPED_TAGS = {"script", "style", "noscript", "template"}
ITEM_TAGS = {"li", "tr", "dt", "dd"}  # each on a line of its own
BLOCK_TAGS = {"p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "thead", "tbody", "tfoot", "caption",
              "blockquote", "pre", "hr", "section", "article", "aside", "header", "footer", "figure", "figcaption", "address",
              "main", "nav", "form", "fieldset", "center"}  # fmt: skip
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad\0"))  # zero-width spaces, byte order mark, soft hyphen
CELL = "\0"  # between cells until a line is complete; no text has it


def html_to_text(html: str | bytes | etree._Element) -> str:
    """All text of a piece of HTML in its order; paragraphs are separated by an empty line.

    Two `<br>` end a paragraph, one ends a line; items of lists and rows of tables are lines. Inline elements add
    nothing (`CO<sub>2</sub>` is CO2), and the source's own white space is one space. ValueError where the HTML is
    nested too deeply to be read whole.
    """
    root = html if isinstance(html, etree._Element) else _parse_html(html)
    paragraphs, lines, line = [], [], []
    bullet, lists, rows = "", 0, []  # rows: for each open row, whether it has several cells

    def end_line() -> bool:
        nonlocal bullet
        cells = [" ".join(cell.split()) for cell in "".join(line).split(CELL)]
        line.clear()
        if text := " | ".join(filter(None, cells)):
            lines.append(bullet + text)
            bullet = ""
        return bool(text)

    def end_paragraph() -> None:
        end_line()
        if lines:
            paragraphs.append("\n".join(lines))
            lines.clear()

    # A loop instead of recursion, since markup may be nested deeper than Python's stack. Everything that is no start
    # (ends, comments) is followed by text outside it, its tail; the root's own tail belongs to somebody else.
    walk = etree.iterwalk(root, events=("start", "end", "comment", "pi"))
    for event, element in walk:
        starts, tag = event == "start", element.tag if isinstance(element.tag, str) else ""
        if starts and tag in SKIPPED_TAGS:
            walk.skip_subtree()
            continue
        if tag == "tr" and not starts:
            rows.pop()
        if any(rows):  # within a row of several cells all is one line; a single cell is layout and keeps its paragraphs
            if tag in ("td", "th"):
                line.append(CELL)
            elif tag == "br" or tag in ITEM_TAGS or tag in BLOCK_TAGS:
                line.append(" ")
        elif tag == "br":
            if starts and not end_line():
                end_paragraph()
        elif tag in ITEM_TAGS:
            end_line()
            bullet = "- " if tag == "li" and starts else ""  # waits for the item's first text
        elif tag in BLOCK_TAGS:
            if tag in ("ul", "ol") and not starts:
                lists -= 1
            end_line() if lists else end_paragraph()
            if tag in ("ul", "ol") and starts:
                lists += 1
        if tag == "tr" and starts:
            rows.append(sum(child.tag in ("td", "th") for child in element) > 1)
        text = element.text if starts else element.tail if element is not root else None
        if text:
            line.append(text.translate(INVISIBLE))
    end_paragraph()
    return "\n\n".join(paragraphs)


def _parse_html(html: str | bytes) -> etree._Element:
    if isinstance(html, str):
        html = html.encode("utf-8", "replace")
    try:  # UTF-8 is never so by accident, whatever the page says about itself
        html.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = None
    parser = etree.HTMLParser(encoding=encoding, huge_tree=True)
    try:
        root = etree.fromstring(html.replace(b"\0", b"") if encoding else html, parser)
    except etree.LxmlError as error:
        raise ValueError(f"not HTML: {error}") from error
    if any(entry.level_name == "FATAL" for entry in parser.error_log):
        raise ValueError(f"the HTML cannot be read whole: {parser.error_log.last_error.message}")
    return etree.Element("html") if root is None else root


def _parse_xml(xml: bytes) -> tuple[etree._Element, bool]:
    """The root, and whether the XML is sound; ValueError where nothing can be made of it."""
    for recover in (False, True):
        parser = etree.XMLParser(recover=recover, resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
        try:
            if (root := etree.fromstring(xml.strip(), parser)) is not None:
                return root, not recover
        except etree.LxmlError:
            pass
    raise ValueError("not XML")


def _inner(element: etree._Element) -> str:
    """The HTML inside an element: escaped, as it should be, or as elements of the feed itself."""
    return (element.text or "") + "".join(etree.tostring(child, encoding="unicode") for child in element)


# ---------------------------------------------------------------- fetching


class FetchError(Exception):
    """A URL that could not be had, and the HTTP status if there was one."""

    def __init__(self, reason: str, status: int | None = None):
        super().__init__(reason)
        self.status = status


class Disallowed(FetchError):
    """A URL that robots.txt asks to leave alone."""


class Fetcher:
    """GETs from one host at its pace: robots.txt and its crawl delay, `delay` seconds between requests, patient retries.

    ValueError where robots.txt cannot be asked for.
    """

    def __init__(self, base_url: str, delay: float = 1.0):
        self.session = requests.Session()
        self.session.headers["User-Agent"] = USER_AGENT
        # No proxy could reach this machine's own server.
        self.session.trust_env = urlsplit(base_url).hostname not in ("127.0.0.1", "localhost", "::1")
        self.host, self.delay, self.next_start, self.unanswered = _host(base_url), delay, 0.0, 0
        self.robots = RobotFileParser()
        self.robots.parse([])  # allows all, for the one request that is made without asking
        try:
            rules = self.get(base_url + "/robots.txt").decode("utf-8-sig", "replace")
        except FetchError as error:
            if error.status is None or not 400 <= error.status < 500 or error.status == 429:
                raise ValueError(f"cannot read {base_url}/robots.txt: {error}. Check the network and --base-url, "
                                 "and run the same command again") from error  # fmt: skip
            rules = ""  # RFC 9309: where there are no rules, all is allowed
        self.robots.parse(rules.splitlines())
        self.delay = max(delay, float(self.robots.crawl_delay(USER_AGENT) or 0))

    def get(self, url: str) -> bytes:
        """The unpacked body; FetchError where the URL is refused or the host does not give it."""
        for _ in range(MAX_REDIRECTS + 1):
            try:
                if urlsplit(url).scheme not in ("http", "https") or _host(url) != self.host:
                    raise FetchError(f"refused: {url} is on another host")
            except ValueError as error:
                raise FetchError(f"not a URL: {error}") from error
            if not self.robots.can_fetch(USER_AGENT, url):
                raise Disallowed("disallowed by robots.txt")
            response, body = self._patiently(url)
            target = self.session.get_redirect_target(response)
            if target is None:
                if response.status_code != 200:
                    raise FetchError(f"{response.status_code} {response.reason}", response.status_code)
                return body
            url = urljoin(url, target)
        raise FetchError(f"more than {MAX_REDIRECTS} redirects")

    def _patiently(self, url: str) -> tuple[requests.Response, bytes]:
        """The first answer that is neither "too many requests" nor a server's error."""
        for attempt in range(RETRIES + 1):
            wait, status = BACKOFF * 2**attempt, None
            try:
                response, body = self._once(url)
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
                time.sleep(wait)
        self.unanswered += status is None
        raise FetchError(f"{problem}, {RETRIES + 1} times", status)

    def _once(self, url: str) -> tuple[requests.Response, bytes]:
        time.sleep(max(0.0, self.next_start - time.monotonic()))
        self.next_start = time.monotonic() + self.delay
        body = bytearray()
        with self.session.get(url, timeout=TIMEOUT, stream=True, allow_redirects=False) as response:
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


# ---------------------------------------------------------------- the output file


@contextmanager
def open_collection(path: Path) -> Iterator[tuple[set[str], Callable[[dict], None]]]:
    """The ids of the articles in a JSONL file, and a function that appends one article and has it on disk at once.

    A half last line, which a killed run leaves, is cut off with a warning. ValueError where another line is malformed
    (nothing is changed then) or the file cannot be written.
    """
    ids: set[str] = set()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; choose another --out") from error

    def append(article: dict) -> None:
        try:
            file.write((json.dumps(article, ensure_ascii=False) + "\n").encode())
            file.flush()
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror}; the articles before are kept: make room and run "
                             "the same command again") from error  # fmt: skip

    with file:
        try:
            size, line = 0, b"\n"
            with open(path, "rb") as old:
                for number, line in enumerate(old, start=1):  # noqa: B007
                    try:
                        ids.add(json.loads(line)["id"])
                    except (ValueError, KeyError, TypeError) as error:
                        if old.read(1):
                            raise ValueError(f"{path}, line {number}: not an article ({error}). Nothing was changed; mend or "
                                             "delete the line, or choose another --out") from error  # fmt: skip
                        print(f"warning: {path}, line {number}: a half line at the end is dropped", file=sys.stderr)
                        file.truncate(size)
                        line = b"\n"
                    size += len(line)
            if not line.endswith(b"\n"):
                file.write(b"\n")
            yield ids, append
        finally:
            if not path.stat().st_size:
                path.unlink()


# ---------------------------------------------------------------- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="*", metavar="URL", help="article pages (with --source urls, the default then)")
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to make or to go on with")
    parser.add_argument("--site", default="bmw", help=f"one of: {', '.join(SITES)} (default %(default)s)")
    parser.add_argument("--base-url", help="another place that serves the same site, such as a mirror")
    parser.add_argument("--source", choices=("feed", "sitemap", "urls"), help="where to look for articles (default feed)")
    parser.add_argument("--since", metavar="DATE", help="no articles before this day, YYYY-MM-DD")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N new articles")
    parser.add_argument("--delay", type=float, default=1.0, metavar="SECONDS", help="between requests (default %(default)s)")
    args = parser.parse_args()
    if args.site not in SITES:
        raise ValueError(f"unknown --site {args.site!r}; known: {', '.join(SITES)}. A new one is a definition in scrape.py")
    site = replace(SITES[args.site], base_url=(args.base_url or SITES[args.site].base_url).rstrip("/"))
    if not re.match(r"https?://[^/]", site.base_url):
        raise ValueError(f"--base-url {args.base_url!r} is no web address; give one such as https://www.example.com")
    source = args.source or ("urls" if args.urls else "feed")
    if (source == "urls") != bool(args.urls):
        raise ValueError(f"--source {source} takes {'URLs of articles: give some' if source == 'urls' else 'no URLs'}")
    try:
        since = date.fromisoformat(args.since).isoformat() if args.since else None
    except ValueError as error:
        raise ValueError(f"--since {args.since!r} is no date; write YYYY-MM-DD, such as 2025-09-01") from error
    if (args.limit is not None and args.limit < 1) or not 0 <= args.delay <= 3600:
        raise ValueError(f"--limit must be at least 1 and --delay from 0 to 3600 s; given {args.limit} and {args.delay}")
    report = Report()
    try:
        collect(site, args.out, report, source=source, urls=args.urls, since=since, limit=args.limit, delay=args.delay)
    finally:
        if report.listed:
            print(report)
    print(f"wrote {args.out}" if report.new else f"{args.out} is up to date")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"scrape.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nscrape.py: stopped; what was collected is kept, run the same command again to go on", file=sys.stderr)
        sys.exit(130)
