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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import count
from pathlib import Path
from urllib.parse import urljoin

from tqdm import tqdm

from fetch import MAX_UNANSWERED, Disallowed, Fetcher, FetchError
from pages import SITES, Site, blank_article, parse_article, parse_feed, parse_sitemap

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
                 f"failed      {len(self.failed):6}"]
        return "\n".join(lines + [f"  {url}: {reason}" for url, reason in self.failed])


def collect(site: Site, out: Path, report: Report, *, source: str = "feed", urls: Iterable[str] = (),
            since: str | None = None, limit: int | None = None, delay: float = 1.0) -> None:
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
                                     "run the same command again to go on") from error
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
                             "Check --base-url and --site, or try another --source")


def from_feed(fetcher: Fetcher, site: Site, since: str | None, report: Report) -> Iterator[dict]:
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


def from_sitemap(fetcher: Fetcher, site: Site, report: Report) -> Iterator[dict]:
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
    return blank_article(site.article_id(url), url, date=changed)


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
                             "the same command again") from error

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
                                             "delete the line, or choose another --out") from error
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
        raise ValueError(f"unknown --site {args.site!r}; known: {', '.join(SITES)}. A new one is a definition in pages.py")
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
