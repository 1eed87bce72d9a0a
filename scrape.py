"""A newsroom's press releases, one JSON line each.

    python scrape.py --out data/raw/articles.jsonl                          # everything in the topics' feeds
    python scrape.py --out data/raw/articles.jsonl --since 2025-09-01       # only what is newer
    python scrape.py --out data/raw/articles.jsonl --source sitemap         # every page of the sitemaps in robots.txt
    python scrape.py --out data/raw/articles.jsonl URL URL                  # single articles
    python scrape.py --out data/raw/articles.jsonl --reparse                # read what was kept again, ask for nothing
    python scrape.py --out data/raw/manuals.jsonl manuals/                  # a folder's .html, .txt and .pdf files

A line has `id, url, title, teaser, date, category, tags, text`, and lines are in order of date and id. Paragraphs are
separated by an empty line, list items start with "- ", the cells of a table's row with " | "; a line break inside a
paragraph stays one. Nothing is cleaned here: contact blocks and the like are left for prepare.py, which sees the whole
corpus.

The feed carries the full text, so twenty articles cost one request; an article's own page is fetched only where the
feed's text is missing or cut short, and only pages give teaser, category and tags (empty otherwise). Every answer is
kept in data/raw/articles.raw/, and the articles are what can be read in there: run the command again to go on, after a
kill as well; what is there is not fetched again unless the site says that it changed.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import count
from pathlib import Path
from urllib.parse import urljoin

from tqdm import tqdm

from nanoprune import command_line
from nanoprune.io.files import write_bytes
from nanoprune.io.jsonl import read_log
from nanoprune.web.archive import Archive
from nanoprune.web.http import MAX_UNANSWERED, Disallowed, Fetcher, FetchError
from nanoprune.web.local_files import READERS, read_folder
from nanoprune.web.sites import SITES, Site, blank_article, parse_article, parse_feed, parse_sitemap


# ---------------------------------------------------------------- collecting
@dataclass
class Report:
    """What became of every article that was listed or had before."""

    listed: int = 0
    new: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # by reason
    failed: list[tuple[str, str]] = field(default_factory=list)  # URL, reason

    def miss(self, url: str, error: Exception) -> None:
        if isinstance(error, Disallowed):
            self.skipped[str(error)] += 1
        else:
            self.failed.append((url, str(error)))

    def __str__(self) -> str:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(self.skipped.items()))
        lines = [f"new       {self.new:6}", f"updated   {self.updated:6}", f"unchanged {self.unchanged:6}",
                 f"skipped   {self.skipped.total():6}" + (f"  ({reasons})" if reasons else ""),
                 f"failed    {len(self.failed):6}"]
        return "\n".join(lines + [f"  {url}: {reason}" for url, reason in self.failed])


@dataclass(frozen=True)
class Choice:
    """Which articles are wanted: of these days (YYYY-MM-DD, inclusive), and at most `limit` new ones."""

    since: str = ""
    until: str = "9999"
    limit: int | None = None

    def refuses(self, day: str) -> str | None:
        """Why an article of this day is left out; None where it is wanted."""
        return f"older than {self.since}" if day < self.since else f"newer than {self.until}" if day > self.until else None


def collect(site: Site, out: Path, report: Report, choice: Choice, *, source: str = "feed", urls: Iterable[str] = (),
            delay: float = 1.0, hosts: Iterable[str] = ()) -> None:
    """Ask for the site's articles that are not there yet, and write `out` anew from all that is kept.

    `delay` is the seconds between requests, `hosts` others that redirects may lead to. What fails is named in the
    report. ValueError where `out` is damaged or cannot be written, where the host does not answer, and where no article
    is found at all.
    """
    old = {row["id"]: row for row in read_log(out, ("id",))}
    store = Archive(out.with_suffix(".raw"))
    wanted, taken = set(old), 0
    fetcher = Fetcher(site.base_url, delay, store, hosts)
    if source == "feed":
        listed = from_feed(fetcher, site, choice.since, report)
    elif source == "sitemap":
        listed = from_sitemap(fetcher, site, report)
    else:
        listed = ((blank_article(site.article_id(url), url), "") for url in urls)
    try:
        seen = set()
        for article, version in tqdm(listed, desc="articles", unit="", disable=None):
            article_id, url = article["id"], article["url"]
            if url in seen:  # topics overlap
                continue
            seen.add(url)
            report.listed += 1
            if not site.speaks(article_id):
                report.skipped["in another language"] += 1
                continue
            if not is_complete(article):
                kept = store.latest.get(url, {})
                same = kept.get("kind") == "page" and kept["version"] == version
                if article_id in old and (same or not version):
                    continue
                if article["date"] and article["date"] < choice.since:  # it cannot be newer than its last change
                    report.skipped[choice.refuses(article["date"])] += 1
                    continue
                try:
                    page = (same and fetcher.kept(url)[1]) or fetcher.get(url, "page", version)
                except FetchError as error:
                    report.miss(url, error)
                    if fetcher.unanswered >= MAX_UNANSWERED:
                        raise ValueError(f"{site.base_url} does not answer any more ({error}); what was collected is kept: "
                                         "run the same command again to go on") from error
                    continue
                try:
                    article = parse_article(page, site, url)
                except ValueError as error:
                    report.miss(url, error)
                    continue
            if reason := choice.refuses(article["date"]):
                report.skipped[reason] += 1
                continue
            taken += article["id"] not in wanted
            wanted.add(article["id"])
            if taken == choice.limit:
                break
    finally:
        write_articles(out, old, read_kept(store, site, wanted, report), report)
    if not (report.listed and (old or wanted)):
        why = "".join(f"\n  {url}: {reason}" for url, reason in report.failed[:5])
        why += "".join(f"\n  {number} URLs {reason}" for reason, number in report.skipped.items())
        raise ValueError(f"nothing collected from {site.base_url} by --source {source}{why or ': it lists no article'}\n"
                         "Check --base-url and --site, or try another --source")


def collect_folder(folder: Path, out: Path, report: Report, choice: Choice) -> None:
    """The documents of a folder; those that `out` has of files that are gone stay. ValueError where there is none."""
    old, found = {row["id"]: row for row in read_log(out, ("id",))}, {}
    for path, article in tqdm(read_folder(folder), desc="files", unit="", disable=None):
        report.listed += 1
        if isinstance(article, ValueError):
            report.miss(str(path), article)
        elif reason := choice.refuses(article["date"]):
            report.skipped[reason] += 1
        elif choice.limit is None or len(found.keys() - old.keys()) < choice.limit:
            found[article["id"]] = article
    write_articles(out, old, found, report)
    if not (old or found):
        raise ValueError(f"{folder} gave no article; read are files that end in {', '.join(READERS)}")


def reparse(site: Site, out: Path, report: Report, choice: Choice) -> None:
    """Read all that is kept once more: the articles that `out` has, or, where there is no such file, all that are chosen."""
    old, store = {row["id"]: row for row in read_log(out, ("id",))}, Archive(out.with_suffix(".raw"))
    if not store.answers:
        raise ValueError(f"{store.folder} keeps no answers to read again; collect some first, without --reparse")
    report.listed = len(store.answers)
    found = read_kept(store, site, set(old) or None, report)
    write_articles(out, old, {i: a for i, a in found.items() if i in old or not choice.refuses(a["date"])}, report)


def read_kept(store: Archive, site: Site, wanted: set[str] | None, report: Report) -> dict[str, dict]:
    """The wanted articles (None: all in the site's language) as the kept answers tell them, by id.

    Of several tellings the one of the latest day counts, and of those the one that arrived last; what it leaves empty
    (a feed has no teaser) is taken from those before.
    """
    found: dict[str, dict] = {}
    for answer in tqdm(store.answers, desc="reading", unit="", disable=None):
        if answer["kind"] not in ("feed", "page"):
            continue
        try:
            body = store.read(answer)
        except ValueError as error:
            report.miss(answer["url"], error)
            continue
        try:
            told = ([article for article in parse_feed(body, site)[0] if is_complete(article)] if answer["kind"] == "feed" else
                    [parse_article(body, site, answer["url"])])
        except ValueError:  # reported when it was fetched
            continue
        for article in told:
            before = found.get(article["id"], article)
            of_ours = article["id"] in wanted if wanted is not None else site.speaks(article["id"])
            if of_ours and article["date"] >= before["date"]:
                found[article["id"]] = {key: value or before[key] for key, value in article.items()}
    return found


def write_articles(out: Path, old: dict[str, dict], found: dict[str, dict], report: Report) -> None:
    """Write the collection in order of date and id, and count what changed. Nothing that `out` had is lost."""
    report.new = len(found.keys() - old.keys())
    report.updated = sum(i in found and found[i] != article for i, article in old.items())
    report.unchanged = len(old) - report.updated
    rows = sorted((old | found).values(), key=lambda article: (article.get("date", ""), article["id"]))
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if rows and not (out.is_file() and out.read_bytes() == data):
        write_bytes(out, data)


def from_feed(fetcher: Fetcher, site: Site, since: str, report: Report) -> Iterator[tuple[dict, str]]:
    """The articles of every topic, newest first, page by page.

    A topic ends with a page that is missing, no feed or without anything new (some start over with page 1), or as soon
    as a whole page is older than `since`.
    """
    for topic in site.topics:
        url, seen = site.base_url + site.feed.format(topic=topic, page=1), set()
        for page in count(1):
            try:
                answer = fetcher.get(url, "feed")
            except FetchError as error:
                if page == 1 or error.status not in (404, 410):
                    report.miss(url, error)
                break
            try:
                articles, following, sound = parse_feed(answer, site)
                following = urljoin(url, following or site.feed.format(topic=topic, page=page + 1))
            except ValueError as error:
                if page == 1:
                    report.miss(url, error)
                break
            if not sound:
                report.failed.append((url, "its XML is broken: articles may be missing, and texts come from their pages"))
            found = {article["id"] or article["url"] for article in articles}
            if found <= seen:
                break
            seen |= found
            yield from ((article, "") for article in articles)
            if all(article["date"] and article["date"] < since for article in articles):
                break
            url = following


def from_sitemap(fetcher: Fetcher, site: Site, report: Report) -> Iterator[tuple[dict, str]]:
    """The article pages in the sitemaps that robots.txt declares, and in the sitemaps that those name.

    Of each only the URL is known, and when it changed last.
    """
    declared = [urljoin(site.base_url, url) for url in fetcher.robots.site_maps() or []]
    if not declared:
        raise ValueError(f"{site.base_url}/robots.txt declares no sitemap; use --source feed or give the articles' URLs")
    waiting = [url for url in declared if re.search(site.sitemaps, url)] or declared
    known = set(waiting)
    while waiting:
        url = waiting.pop(0)
        try:
            answer = fetcher.get(url, "sitemap")
        except FetchError as error:
            report.miss(url, error)
            continue
        try:
            pages, nested = parse_sitemap(answer)
        except ValueError as error:
            report.miss(url, error)
            continue
        waiting += [other for other in nested if other not in known]
        known.update(nested)
        for page, changed in pages:
            if article_id := site.article_id(page):
                day = changed[:10] if re.match(r"\d{4}-\d\d-\d\d", changed) else ""
                yield blank_article(article_id, page, date=day), changed


def is_complete(article: dict) -> bool:
    """Whether a feed's article needs no page: it has title, date and a text that does not break off with dots."""
    whole = not re.search(r"(\.\.\.|…)\s*[\])]?$|\bread more\W*$", article["text"][-40:], re.IGNORECASE)
    return bool(article["id"] and article["title"] and article["date"] and article["text"]) and whole


# ---------------------------------------------------------------- the command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="*", metavar="URL", help="article pages, or one folder of documents")
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to make or to go on with")
    parser.add_argument("--site", default="bmw", help=f"one of: {', '.join(SITES)} (default %(default)s)")
    parser.add_argument("--base-url", help="another place that serves the same site, such as a mirror")
    parser.add_argument("--source", choices=("feed", "sitemap", "urls"), help="where to look for articles (default feed)")
    parser.add_argument("--reparse", action="store_true", help="read the answers that are kept again, without the network")
    parser.add_argument("--topics", metavar="ID,ID", help="the feed's topics to read (default: all that the site has)")
    parser.add_argument("--lang", metavar="EN", help="the language wanted, as it stands in the articles' ids")
    parser.add_argument("--since", metavar="DATE", default="0001-01-01", help="no articles before this day, YYYY-MM-DD")
    parser.add_argument("--until", metavar="DATE", default="9999-12-31", help="no articles after this day")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N new articles")
    parser.add_argument("--no-tables", dest="tables", action="store_false", help="leave the rows of tables out of the text")
    parser.add_argument("--delay", type=float, default=1.0, metavar="SECONDS", help="between requests (default %(default)s)")
    parser.add_argument("--allow-host", action="append", default=[], metavar="HOST", help="another host to follow redirects to")
    args = parser.parse_args()
    if args.site not in SITES:
        raise ValueError(f"unknown --site {args.site!r}; known: {', '.join(SITES)}. A new one is a definition in pages.py")
    site = replace(SITES[args.site], base_url=(args.base_url or SITES[args.site].base_url).rstrip("/"), tables=args.tables)
    if not re.match(r"https?://[^/]", site.base_url):
        raise ValueError(f"--base-url {args.base_url!r} is no web address; give one such as https://www.example.com")
    if args.topics is not None:
        topics = tuple(filter(None, args.topics.split(",")))
        if not topics or not all(re.fullmatch(r"[\w-]+", topic) for topic in topics):
            raise ValueError(f"--topics {args.topics!r}: give ids with commas between, such as {','.join(site.topics[:2])}")
        site = replace(site, topics=topics)
    if args.lang:
        site = replace(site, language=args.lang.upper())
    folder = Path(args.urls[0]) if len(args.urls) == 1 and Path(args.urls[0]).is_dir() else None
    source = args.source or ("urls" if args.urls else "feed")
    if (source == "urls") != bool(args.urls):
        raise ValueError(f"--source {source} takes {'URLs of articles: give some' if source == 'urls' else 'no URLs'}")
    days = []
    for name, given in (("--since", args.since), ("--until", args.until)):
        try:
            days.append(date.fromisoformat(given).isoformat())
        except ValueError as error:
            raise ValueError(f"{name} {given!r} is no date; write YYYY-MM-DD, such as 2025-09-01") from error
    if (args.limit is not None and args.limit < 1) or not 0 <= args.delay <= 3600:
        raise ValueError(f"--limit must be at least 1 and --delay from 0 to 3600 s; given {args.limit} and {args.delay}")
    report, choice = Report(), Choice(*days, args.limit)
    try:
        if folder:
            collect_folder(folder, args.out, report, choice)
        elif args.reparse:
            reparse(site, args.out, report, choice)
        else:
            collect(site, args.out, report, choice, source=source, urls=args.urls, delay=args.delay, hosts=args.allow_host)
    finally:
        if report.listed:
            print(report)
    print(f"wrote {args.out}" if report.new or report.updated else f"{args.out} is up to date")


if __name__ == "__main__":
    command_line.run(main, "stopped; what was collected is kept, run the same command again to go on")
