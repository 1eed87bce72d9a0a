"""Newsrooms: the places of their articles, and the parsers of their feeds, pages and sitemaps.

Another newsroom is one more entry of SITES, a dozen lines; scraping it changes nothing else.
"""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple
from urllib.parse import urljoin

from lxml import etree

from nanoprune.web.html import decode, html_to_text, read_html

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
NOWHERE = "/.."  # XPath that matches nothing


def _by_class(name: str) -> str:
    """XPath's condition that an element has this class."""
    return f"contains(concat(' ', normalize-space(@class), ' '), ' {name} ')"


@dataclass(frozen=True)
class Site:
    """All that is particular to one newsroom. What has a default may be left out."""

    base_url: str
    feed: str  # path of one page of a topic's RSS feed, with {topic} and {page}
    topics: tuple[str, ...]
    # pattern of an article's id in its URL, such as (?<=/releases/)\d+, a group `language` if ids have one
    id: str
    title: str  # XPath within an article's page, as are date, body, teaser, category and tags
    date: str
    body: str
    dates: tuple[str, ...]  # patterns of its dates, with the groups `day`, `month` and `year`
    teaser: str = NOWHERE
    category: str = NOWHERE
    tags: str = NOWHERE
    language: str = ""  # of the articles to collect, as in their ids
    sitemaps: str = ""  # pattern of the sitemaps in robots.txt that hold its articles
    months: tuple[str, ...] = MONTHS  # how the names of months in its dates begin
    boilerplate: tuple[str, ...] = ()  # patterns of whole paragraphs that its releases share; (?i) if need be
    tables: bool = True  # False leaves out tables of several columns

    def article_id(self, text: str) -> str:
        """The id in a URL or in a feed's guid; empty if there is none."""
        match = re.search(rf"(?<![A-Za-z0-9])(?:{self.id})(?![A-Za-z0-9])", text)
        return match[0] if match else ""

    def language_of(self, article_id: str) -> str | None:
        """The language that an article's id names, in upper case; None if it names none."""
        match = re.fullmatch(self.id, article_id)
        return match and match.groupdict().get("language")

    def in_language(self, article_id: str) -> bool:
        """False if the id is one of an article in another language."""
        return self.language_of(article_id) in (None, self.language)


SITES = {
    "bmw": Site(
        base_url="https://www.press.bmwgroup.com",
        feed="/global/rss2/topic/{topic}?page={page}",
        # corporate, brands, bmw, mini, technology, people; heritage, shows, motorrad, bmw i, bmw m, sports
        topics=("803", "4099", "4100", "5127", "5236", "5249",
                "5254", "4098", "6629", "6728", "7309", "10837"),
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
            # Fri Dec 05 08:34:40 CET 2025
            r"(?P<month>[A-Z][a-z]{2}) (?P<day>\d{1,2}) \d\d:\d\d:\d\d \S+ (?P<year>\d{4})",
            r"(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.(?P<year>\d{4})",  # 05.12.2025
        ),
        boilerplate=(
            r"(?is)with its (three|four) brands,? BMW.*|the BMW Group",
            r"(?is)in 20\d\d, the BMW Group (sold|delivered) .{0,40}million passenger.*",
            r"(?is)the (economic )?success of the BMW Group has always been based on.*",
            r"(?i)BMW Group,? corporate communications",
        ),
    ),
}


def site_of(article: dict) -> Site | None:
    """The newsroom that an article comes from: its `site`, else the one of its url; None if none is known."""
    if name := article.get("site"):
        return SITES.get(name)
    url = f"{article.get('url')}/"
    return next((site for site in SITES.values() if url.startswith(f"{site.base_url}/")), None)


MAX_SITEMAP = 50 * 2**20  # bytes unpacked, the protocol's own limit (https://www.sitemaps.org/protocol.html)
# Fri, 05 Dec 2025 08:34:40 +0100: the dates of every RSS feed
RFC_822 = r"(?P<day>\d{1,2}) (?P<month>[A-Za-z]{3}) (?P<year>\d{4})"


def blank_article(article_id: str, url: str, **fields) -> dict:
    """An article with every key; those that are not given are empty."""
    blank = {"title": "", "teaser": "", "date": "", "category": "", "tags": [], "text": ""}
    return {"id": article_id, "url": url} | blank | fields


def parse_article(html: bytes, site: Site, url: str) -> dict:
    """The article on its page, with its id from `url`; ValueError if id, title, date or text are missing."""
    root = read_html(html)

    def texts(path: str) -> list[str]:
        return [text for element in root.xpath(path) if (text := html_to_text(element, site.tables))]

    def first(path: str) -> str:
        return next(iter(texts(path)), "")

    def line(text: str) -> str:
        return " ".join(text.split())

    # The text is in the site's body or nowhere: other text on a page without a body is no article.
    article = blank_article(
        site.article_id(url), url, title=line(first(site.title)), teaser=line(first(site.teaser)),
        category=line(first(site.category)), tags=list(map(line, texts(site.tags))), text=first(site.body))
    if missing := [key for key in ("id", "title", "text") if not article[key]]:
        raise ValueError(f"the page has no {' and no '.join(missing)}")
    return article | {"date": parse_date(line(first(site.date)), site.dates, site.months)}


class FeedPage(NamedTuple):
    """One page of an RSS feed. Its articles have every key; what the feed lacks is empty."""

    articles: list[dict]
    next_url: str | None
    sound: bool  # False: its XML is broken, so that articles may be missing


def parse_feed(xml: bytes, site: Site, url: str = "") -> FeedPage:
    """The page of an RSS feed at `url`; ValueError if it is none."""
    root, sound = _parse_xml(xml)
    if root.tag != "rss":
        raise ValueError(f"not an RSS feed: its first element is <{root.tag}>")
    articles = []
    for item in root.iter("item"):
        link = (item.findtext("link") or "").strip()
        if not (sound or link):
            continue
        content = item.find("{http://purl.org/rss/1.0/modules/content/}encoded")
        description = item.find("description") if content is None else content
        try:
            day = parse_date(item.findtext("pubDate") or "", (RFC_822, *site.dates))
        except ValueError:
            day = ""
        try:  # broken XML may lack any part of a text, which then comes from the article's page
            text = html_to_text(_inner(description), site.tables) if sound and description is not None else ""
            title = " ".join(html_to_text(item.findtext("title") or "").split())
        except ValueError:
            title = text = ""
        article_id = site.article_id(item.findtext("guid") or "") or site.article_id(link)
        articles.append(blank_article(article_id, link, title=title, date=day, text=text))
    next_page = root.find(".//{http://www.w3.org/2005/Atom}link[@rel='next']")
    link = None if next_page is None else next_page.get("href")
    return FeedPage(articles, link and urljoin(url, link), sound)


def is_complete(article: dict) -> bool:
    """True if a feed's article needs no page: it has title, date and a text that does not break off with
    dots.
    """
    cut = re.search(r"(\.\.\.|…)\s*[\])]?$|\bread more\W*$", article["text"][-40:], re.IGNORECASE)
    return bool(article["id"] and article["title"] and article["date"] and article["text"]) and not cut


def parse_sitemap(xml: bytes) -> tuple[list[tuple[str, str]], list[str]]:
    """The pages in a sitemap, as (URL, time of the last change or ""), and the URLs of sitemaps that it
    names.

    ValueError if it is no sitemap.
    """
    if xml.startswith(b"\x1f\x8b"):  # a .xml.gz
        try:
            xml = zlib.decompressobj(31).decompress(xml, MAX_SITEMAP)
        except zlib.error as error:
            raise ValueError(f"not a sitemap: {error}") from error
    root, _ = _parse_xml(xml)
    if etree.QName(root).localname not in ("urlset", "sitemapindex"):
        raise ValueError(f"not a sitemap: its first element is <{root.tag}>")
    pages, nested = [], []
    for entry in root:
        if place := (entry.findtext("{*}loc") or "").strip():
            if etree.QName(entry).localname == "sitemap":
                nested.append(place)
            else:
                pages.append((place, (entry.findtext("{*}lastmod") or "").strip()))
    return pages, nested


def parse_date(text: str, patterns: Iterable[str], months: tuple[str, ...] = MONTHS) -> str:
    """The day as YYYY-MM-DD by the first pattern that matches, in any locale; ValueError if there is none."""
    for pattern in patterns:
        if match := re.search(pattern, text):
            month = match["month"].lower()
            begins = [month.startswith(name) for name in months]
            try:
                number = int(month) if month.isdigit() else begins.index(True) + 1
                return date(int(match["year"]), number, int(match["day"])).isoformat()
            except ValueError:
                break
    raise ValueError(f"no date that can be read: {text[:60]!r}")


def _parse_xml(xml: bytes) -> tuple[etree._Element, bool]:
    """The root, and True if the XML is sound; of broken XML what can be read; ValueError if that is nothing.
    """
    text = re.sub(r"^\s*<\?xml[^>]{0,200}\?>", "", decode(xml)).strip().encode("utf-8", "replace")
    for recover in (False, True):
        parser = etree.XMLParser(recover=recover, resolve_entities=False, no_network=True,
                                 remove_comments=True, remove_pis=True, encoding="utf-8")
        try:
            if (root := etree.fromstring(text, parser)) is not None:
                return root, not recover
        except etree.LxmlError:
            pass
    raise ValueError("not XML")


def _inner(element: etree._Element) -> str:
    """The HTML inside an element: escaped, as it should be, or as elements of the feed itself."""
    return (element.text or "") + "".join(etree.tostring(child, encoding="unicode") for child in element)
