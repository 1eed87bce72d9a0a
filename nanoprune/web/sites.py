"""Newsrooms: where each keeps its articles, and how its feeds, pages and sitemaps are read."""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from lxml import etree

from nanoprune.web.html import decode, html_to_text, read_html

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


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
    language: str  # of the articles that are wanted
    title: str  # XPaths within an article's page
    teaser: str
    date: str
    category: str
    tags: str
    body: str
    dates: tuple[str, ...]
    months: tuple[str, ...] = MONTHS  # how the names of months begin, where dates have names
    tables: bool = True  # whether the rows of tables are text

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
MAX_SITEMAP = 50 * 2**20  # bytes unpacked, the protocol's own limit (https://www.sitemaps.org/protocol.html)
RFC_822 = r"(?P<day>\d{1,2}) (?P<month>[A-Za-z]{3}) (?P<year>\d{4})"  # Fri, 05 Dec 2025 08:34:40 +0100, in every RSS feed


def blank_article(id: str, url: str, *, title="", teaser="", date="", category="", tags=(), text="") -> dict:
    return {"id": id, "url": url, "title": title, "teaser": teaser, "date": date, "category": category,
            "tags": list(tags), "text": text}


def parse_article(html: bytes, site: Site, url: str) -> dict:
    """The article on its page, with its id from `url`; ValueError where id, title, date or body are missing."""
    root = read_html(html)

    def texts(path: str) -> list[str]:
        return [text for element in root.xpath(path) if (text := html_to_text(element, site.tables))]

    def first(path: str) -> str:
        return " ".join(next(iter(texts(path)), "").split())

    article = blank_article(site.article_id(url), url, title=first(site.title), teaser=first(site.teaser),
                            category=first(site.category), tags=[" ".join(tag.split()) for tag in texts(site.tags)],
                            text=next(iter(texts(site.body)), ""))
    # No second place to look for a body: what stands elsewhere on a page without one is no article.
    if missing := [key for key in ("id", "title", "text") if not article[key]]:
        raise ValueError(f"the page has no {' and no '.join(missing)}")
    return article | {"date": parse_date(first(site.date), site.dates, site.months)}


def parse_feed(xml: bytes, site: Site) -> tuple[list[dict], str | None, bool]:
    """(the articles of one page of an RSS feed, the link to the next page if it names one, whether its XML is whole).

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
            text = html_to_text(_inner(description), site.tables) if sound and description is not None else ""
            title = " ".join(html_to_text(item.findtext("title") or "").split())
        except ValueError:
            title = text = ""
        article_id = site.article_id(item.findtext("guid") or "") or site.article_id(link)
        if not (sound or link):
            continue
        articles.append(blank_article(article_id, link, title=title, date=day, text=text))
    following = root.find(".//{http://www.w3.org/2005/Atom}link[@rel='next']")
    return articles, None if following is None else following.get("href"), sound


def parse_sitemap(xml: bytes) -> tuple[list[tuple[str, str]], list[str]]:
    """(URL, time of the last change or "") of every page in a sitemap, and the URLs of the sitemaps it names.

    ValueError where it is no sitemap.
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
    """The day as YYYY-MM-DD, by the first pattern found, in any locale. ValueError where none fits."""
    for pattern in patterns:
        if match := re.search(pattern, text):
            month = match["month"].lower()
            try:
                number = int(month) if month.isdigit() else [month.startswith(name) for name in months].index(True) + 1
                return date(int(match["year"]), number, int(match["day"])).isoformat()
            except ValueError:
                break
    raise ValueError(f"no date that can be read: {text[:60]!r}")


def _parse_xml(xml: bytes) -> tuple[etree._Element, bool]:
    """The root, and whether the XML is sound; ValueError where nothing can be made of it."""
    text = re.sub(r"^\s*<\?xml[^>]{0,200}\?>", "", decode(xml)).strip().encode("utf-8", "replace")
    for recover in (False, True):
        parser = etree.XMLParser(recover=recover, resolve_entities=False, no_network=True, remove_comments=True,
                                 remove_pis=True, encoding="utf-8")
        try:
            if (root := etree.fromstring(text, parser)) is not None:
                return root, not recover
        except etree.LxmlError:
            pass
    raise ValueError("not XML")


def _inner(element: etree._Element) -> str:
    """The HTML inside an element: escaped, as it should be, or as elements of the feed itself."""
    return (element.text or "") + "".join(etree.tostring(child, encoding="unicode") for child in element)
