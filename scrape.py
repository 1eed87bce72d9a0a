"""A newsroom's press releases, one JSON line each.

    python scrape.py --out data/raw/articles.jsonl                     # everything in the topics' feeds
    python scrape.py --out data/raw/articles.jsonl --since 2025-09-01  # only newer articles
    python scrape.py --out data/raw/articles.jsonl --source sitemap    # every page of the site's sitemaps
    python scrape.py --out data/raw/articles.jsonl URL URL             # single articles
    python scrape.py --out data/raw/articles.jsonl --reparse           # parse what is stored, offline
    python scrape.py --out data/raw/manuals.jsonl manuals/             # a folder's .html, .txt and .pdf files

A line has `id, url, title, teaser, date, category, tags, text`, and lines are in order of date and id. A
newsroom's articles also have `site` and `language`, a folder's `dated_by` and `read_by`. An empty line
separates paragraphs, list items start with "- ", " | " separates the cells of a table's row; a line break
inside a paragraph stays one. Nothing is cleaned here: prepare.py removes contact blocks and the like, since
it sees the whole corpus.

The feed carries the full text, so one request gives twenty articles. An article's own page is fetched only if
the feed's text is missing or cut short, and only pages give teaser, category and tags (empty otherwise).
Every answer is stored in data/raw/articles.raw/, and the articles are parsed from there. To resume, even
after a kill, run the same command again: nothing is fetched twice unless the site says that it changed.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanoprune import command_line
from nanoprune.command_line import iso_day, option
from nanoprune.io.files import write_bytes
from nanoprune.io.jsonl import json_line, read_log
from nanoprune.progress import progress
from nanoprune.web.archive import Archive
from nanoprune.web.http import MAX_UNANSWERED, Disallowed, Fetcher, FetchError
from nanoprune.web.listing import from_feed, from_sitemap, whole_article
from nanoprune.web.local_files import READERS, file_name, read_article
from nanoprune.web.sites import SITES, Site, blank_article, is_complete, parse_article, parse_feed


class Skipped(ValueError):
    """An article that the options leave out."""


@dataclass
class Report:
    """The outcome for every article that was listed or collected before."""

    listed: int = 0
    new: int = 0
    updated: int = 0
    unchanged: int = 0
    read_by: Counter[str] = field(default_factory=Counter)  # articles by what found their text
    skipped: Counter[str] = field(default_factory=Counter)  # by reason
    failed: list[str] = field(default_factory=list)  # "URL: reason"

    def miss(self, url: object, error: Exception) -> None:
        """Count an article that is not collected, as skipped or failed."""
        if isinstance(error, Skipped | Disallowed):
            self.skipped[str(error)] += 1
        else:
            self.failed.append(f"{url}: {error}")

    def __str__(self) -> str:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(self.skipped.items()))
        lines = [*(f"read      {number:6}  by {name}" for name, number in sorted(self.read_by.items())),
                 f"new       {self.new:6}", f"updated   {self.updated:6}", f"unchanged {self.unchanged:6}",
                 f"skipped   {self.skipped.total():6}" + (f"  ({reasons})" if reasons else ""),
                 f"failed    {len(self.failed):6}", *map("  {}".format, self.failed)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Options:
    """The command line."""

    urls: list[str] = option("article pages, or one folder of documents", name="urls", nargs="*")
    out: Path = option("the JSONL file to write or to add to", required=True)
    site: str = option("a newsroom of web/sites.py (default %(default)s)", "bmw", choices=SITES)
    base_url: str | None = option("another place that serves the same site, such as a mirror")
    source: str | None = option("where to look for articles (default feed)", choices=("feed", "sitemap"))
    reparse: bool = option("parse the stored answers again, without the network", False)
    topics: str | None = option("the feed's topics to read (default: all)", metavar="ID,ID")
    lang: str | None = option("the language to collect, as in the articles' ids, such as EN")
    since: str = option("the first day, YYYY-MM-DD", "0001-01-01", type=iso_day)
    until: str = option("the last day", "9999-12-31", type=iso_day)
    limit: int | None = option("stop after this many new articles", least=1)
    no_tables: bool = option("leave tables out of the text", False)
    delay: float = option("between requests (default %(default)s)", 1.0, least=0, metavar="SECONDS")
    allow_host: list[str] | None = option("allow redirects to this host", type=str, action="append")

    def includes(self, day: str) -> bool:
        return self.since <= day <= self.until

    def check_day(self, day: str) -> None:
        """Raise Skipped if articles of this day are left out."""
        if not self.includes(day):
            raise Skipped(f"older than {self.since}" if day < self.since else f"newer than {self.until}")


# ---------------------------------------------------------------- collecting
def collect(site: Site, options: Options, report: Report) -> None:
    """Fetch the site's articles that are not collected yet, and write --out anew from all stored answers.

    The report names each failure. ValueError if --out is damaged or cannot be written, if the host does not
    answer, or if there is no article at all.
    """
    previous, archive = read_articles(options.out), Archive(options.out.with_suffix(".raw"))
    fetcher = Fetcher(site.base_url, archive, options.delay, options.allow_host or ())
    if options.urls:
        listing = ((blank_article(site.article_id(url), url), "") for url in options.urls)
    elif options.source == "sitemap":
        listing = from_sitemap(fetcher, site, report.miss)
    else:
        listing = from_feed(fetcher, site, options.since, report.miss)
    ids, seen = set(previous), set()
    try:
        for listed, version in progress(listing, "articles"):
            url = listed["url"] or listed["id"] or listed["title"]
            if url in seen:  # topics overlap
                continue
            seen.add(url)
            report.listed += 1
            try:
                if not site.in_language(listed["id"]):
                    raise Skipped("in another language")
                up_to_date = not version or archive.has_page(url, version)
                if up_to_date and listed["id"] in previous and not is_complete(listed):
                    continue
                if "" < listed["date"] < options.since:  # no article is newer than its last change
                    options.check_day(listed["date"])
                article = whole_article(fetcher, site, listed, version)
                options.check_day(article["date"])
            except (FetchError, Skipped) as error:
                report.miss(url, error)
                if fetcher.unanswered >= MAX_UNANSWERED:
                    raise ValueError(f"{site.base_url} does not answer any more ({error}); "
                                     "what was collected is kept: run the same command again to resume"
                                     ) from error
                continue
            ids.add(article["id"])
            if len(ids) - len(previous) == options.limit:
                break
    finally:
        write_articles(options.out, previous, parse_archive(archive, site, ids.__contains__, report), report)
    if not (report.listed and ids):
        reasons = report.failed[:5] + [f"{number} URLs {reason}" for reason, number in report.skipped.items()]
        why = "".join(f"\n  {reason}" for reason in reasons) or ": it lists no article"
        raise ValueError(f"nothing collected from {site.base_url}{why}\n"
                         "Check --base-url and --site, or try another --source")


def collect_folder(folder: Path, options: Options, report: Report) -> None:
    """Write the articles of a folder's files; those of files that are gone stay. ValueError if there is none.
    """
    previous, articles = read_articles(options.out), {}
    try:
        for path in progress(sorted(filter(Path.is_file, folder.rglob("*"))), "files"):
            report.listed += 1
            try:
                if path.suffix.lower() not in READERS:
                    raise Skipped("of a kind that is not read")
                article = read_article(path, folder)
                options.check_day(article["date"])
                if article["id"] in articles:
                    raise ValueError("another file has this name, in another charset")
            except ValueError as error:
                report.miss(file_name(path), error)
                continue
            articles[article["id"]] = article
            if len(articles.keys() - previous.keys()) == options.limit:
                break
    finally:
        write_articles(options.out, previous, articles, report)
    if not (previous or articles):
        raise ValueError(f"{folder} gave no article; read are files that end in {', '.join(READERS)}")


def reparse(site: Site, options: Options, report: Report) -> None:
    """Parse all stored answers again: for the articles of --out, or for all selected ones if there is no such
    file.
    """
    previous, archive = read_articles(options.out), Archive(options.out.with_suffix(".raw"))
    if not archive.answers:
        raise ValueError(f"{archive.folder} keeps no answers to read again; "
                         "collect some first, without --reparse")
    report.listed = len(archive.answers)
    articles = parse_archive(archive, site, previous.__contains__ if previous else site.in_language, report)
    articles = {i: article for i, article in articles.items() if options.includes(article["date"])}
    write_articles(options.out, previous, articles, report)


def parse_archive(
    archive: Archive, site: Site, includes: Callable[[str], bool], report: Report
) -> dict[str, dict]:
    """The articles in the stored answers whose ids are to be included, by id.

    Of several versions the one of the latest day counts, and of those the one that arrived last; a field that
    it leaves empty (a feed has no teaser) is taken from the versions before.
    """
    articles: dict[str, dict] = {}
    for answer in progress(archive.answers, "reading"):
        if answer["kind"] not in ("feed", "page"):
            continue
        try:
            body = archive.read(answer)
        except ValueError as error:
            report.miss(answer["url"], error)
            continue
        try:
            if answer["kind"] == "feed":
                versions = filter(is_complete, parse_feed(body, site, answer["url"]).articles)
            else:
                versions = [parse_article(body, site, answer["url"])]
        except ValueError:  # reported when it was fetched
            continue
        for article in versions:
            article |= {"site": site.name, "language": site.language_of(article["id"]) or site.language}
            before = articles.get(article["id"], article)
            if includes(article["id"]) and article["date"] >= before["date"]:
                articles[article["id"]] = {key: value or before[key] for key, value in article.items()}
    return articles


def read_articles(out: Path) -> dict[str, dict]:
    """The articles that are collected already, by id; ValueError if another program wrote the file."""
    rows = read_log(out, ("id", "url", "title", "date", "text"))
    articles = {row["id"]: row for row in rows}
    if len(articles) < len(rows):
        raise ValueError(f"{out} is of another program: it holds an id twice; choose another --out")
    return articles


def write_articles(out: Path, previous: dict[str, dict], articles: dict[str, dict], report: Report) -> None:
    """Write the collection in order of date and id, and count the changes; no previous article is lost."""
    report.new = len(articles.keys() - previous.keys())
    report.updated = sum(articles.get(i, article) != article for i, article in previous.items())
    report.unchanged = len(previous) - report.updated
    report.read_by = Counter(article.get("read_by") or f"the definition of {article['site']}"
                             for article in articles.values())
    rows = sorted((previous | articles).values(), key=lambda row: (row["date"], row["id"]))
    data = "".join(map(json_line, rows)).encode()
    if rows and not (out.is_file() and out.read_bytes() == data):
        write_bytes(out, data)


# ---------------------------------------------------------------- the command
def main() -> None:
    options = command_line.parse_options(Options, __doc__)
    site = SITES[options.site]
    site = replace(
        site, name=options.site, base_url=(options.base_url or site.base_url).rstrip("/"),
        topics=options.topics.split(",") if options.topics else site.topics,
        language=(options.lang or site.language).upper(), tables=not options.no_tables)
    if not re.match(r"https?://[^/]", site.base_url):
        raise ValueError(f"--base-url {options.base_url!r} is no web address; "
                         "give one such as https://www.example.com")
    if options.source and options.urls:
        raise ValueError(f"--source {options.source} takes no URLs: leave one of them out")
    if options.delay > 3600:
        raise ValueError(f"--delay must be at most 3600 s, given {options.delay}")
    report, folder = Report(), len(options.urls) == 1 and Path(options.urls[0]).is_dir()
    for url in () if folder else options.urls:
        if not re.match("https?://", url):
            raise ValueError(f"{url} is neither a folder nor a web address such as https://www.example.com/1")
    unusable = ("reparse", "base_url", "topics", "lang", "no_tables", "allow_host") if folder else ()
    if names := [f"--{name.replace('_', '-')}" for name in unusable if getattr(options, name)]:
        raise ValueError(f"{', '.join(names)}: not for a folder of documents; leave it out")
    if options.reparse and options.urls:
        raise ValueError("--reparse reads all stored answers again and takes no URLs: leave them out")
    try:
        if folder:
            collect_folder(Path(options.urls[0]), options, report)
        elif options.reparse:
            reparse(site, options, report)
        else:
            collect(site, options, report)
    finally:
        if report.listed:
            print(report)
    written = report.new or report.updated
    print(f"wrote {options.out}" if written else f"{options.out} is up to date")


if __name__ == "__main__":
    command_line.run(main, "stopped; what was collected is kept, run the same command again to resume")
