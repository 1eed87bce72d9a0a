"""The articles that a newsroom lists, by its feeds or its sitemaps, and the page of each.

A listed article comes with a version, the time of its last change, which is empty if the listing does not
name it. What cannot be listed is passed to `miss`, with the reason.
"""

import re
from collections.abc import Callable, Iterator
from itertools import count

from nanoprune.web.http import Fetcher, FetchError
from nanoprune.web.sites import (
    Site,
    blank_article,
    is_complete,
    join,
    parse_article,
    parse_feed,
    parse_sitemap,
)

Miss = Callable[[str, Exception], None]  # takes the URL and the reason
MAX_PAGES = 1000  # of one topic's feed: an endless one always has a next page
MAX_SITEMAPS = 1000


def from_feed(fetcher: Fetcher, site: Site, since: str, miss: Miss) -> Iterator[tuple[dict, str]]:
    """The articles of every topic, newest first, page by page, each with "" as its version.

    A topic ends with a page that is missing, no feed or without anything new (some start over with page 1),
    as soon as a whole page is older than `since`, or after MAX_PAGES.
    """
    for topic in site.topics:
        url, seen = site.base_url + site.feed.format(topic=topic, page=1), set()
        for page in count(1):
            try:
                feed = _parse(parse_feed, fetcher.get(url, "feed"), site, url)
            except FetchError as error:
                if page == 1 or error.status not in (200, 404, 410):
                    miss(url, error)
                break
            if not feed.sound:
                miss(url, ValueError("its XML is broken: articles may be missing, "
                                     "and texts come from their pages"))
            ids = {article["id"] or article["url"] for article in feed.articles}
            if ids <= seen:
                break
            seen |= ids
            yield from ((article, "") for article in feed.articles)
            if all(article["date"] and article["date"] < since for article in feed.articles):
                break
            if page == MAX_PAGES:
                miss(url, ValueError(f"has more than {MAX_PAGES} pages; the rest is left out"))
                break
            url = feed.next_url or join(url, site.feed.format(topic=topic, page=page + 1))


def from_sitemap(fetcher: Fetcher, site: Site, miss: Miss) -> Iterator[tuple[dict, str]]:
    """The articles in the sitemaps that robots.txt declares, and in the sitemaps that those name.

    Of each only its URL is known, and the time of its last change, which is its version.
    """
    declared = [join(site.base_url, url) for url in fetcher.robots.sitemaps]
    if not declared:
        raise ValueError(f"{site.base_url}/robots.txt declares no sitemap; "
                         "use --source feed or give the articles' URLs")
    queue = [url for url in declared if re.search(site.sitemaps, url)] or declared
    seen = set(queue)
    for number, url in enumerate(queue):  # it grows meanwhile
        if number == MAX_SITEMAPS:
            miss(url, ValueError(f"comes after {MAX_SITEMAPS} other sitemaps; the rest is left out"))
            break
        try:
            pages, nested = _parse(parse_sitemap, fetcher.get(url, "sitemap"))
        except FetchError as error:
            miss(url, error)
            continue
        for other in nested[:MAX_SITEMAPS]:
            if other not in seen:
                seen.add(other)
                queue.append(other)
        for page, changed in pages:
            if article_id := site.article_id(page):
                day = changed[:10] if re.match(r"\d{4}-\d\d-\d\d", changed) else ""
                yield blank_article(article_id, page, date=day), changed


def whole_article(fetcher: Fetcher, site: Site, listed: dict, version: str) -> dict:
    """A listed article with its text: from its page unless the listing has it whole, and the page from the
    archive if that holds this version.

    FetchError if the page cannot be fetched or holds no article.
    """
    url = listed["url"]
    if is_complete(listed):
        return listed
    if not url:
        raise FetchError("the feed gives neither a link nor the whole text with title, date and id")
    stored = fetcher.archive.find(url)[1] if fetcher.archive.has_page(url, version) else None
    return _parse(parse_article, stored or fetcher.get(url, "page", version), site, url)


def _parse(parser: Callable, body: bytes, *arguments):
    """parser(body, *arguments); for a body that it cannot read, FetchError with status 200."""
    try:
        return parser(body, *arguments)
    except ValueError as error:
        raise FetchError(str(error), 200) from error
