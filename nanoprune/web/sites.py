"""Newsrooms: the places of their articles, and the parsers of their feeds, pages and sitemaps.

Another newsroom is one more entry of SITES, a dozen lines; scraping it changes nothing else.
"""

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import chain
from typing import NamedTuple
from urllib.parse import urljoin

from lxml import etree

from nanoprune.web.html import Element, decode, html_to_text, one_line, outermost, read_html
from nanoprune.web.time_limit import time_limit

MONTHS = ("jan|jän", "feb", "mar|mär|mrz", "apr", "may|mai", "jun", "jul", "aug", "sep", "oct|okt", "nov",
          "dec|dez")  # patterns of how the names of months begin, in English and German
NOWHERE = "/.."  # XPath that matches nothing
MAX_SECONDS = 60  # to parse an answer
MAX_ELEMENTS = 100_000  # of an article's page: no time limit stops XPath
MAX_URL = 8192  # characters; one long base makes every link of a feed long


def _by_class(name: str) -> str:
    """XPath's condition that an element has this class."""
    return f"contains(concat(' ', normalize-space(@class), ' '), ' {name} ')"


def _within(name: str) -> str:
    """XPath's condition that an element is inside one of this class; //outer//inner takes quadratic time."""
    return f"ancestor::*[{_by_class(name)}]"


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
    name: str = ""  # in SITES; scrape.py fills it in
    teaser: str = NOWHERE
    category: str = NOWHERE
    tags: str = NOWHERE
    language: str = ""  # of the articles to collect, as in their ids
    sitemaps: str = ""  # pattern of the sitemaps in robots.txt that hold its articles
    months: tuple[str, ...] = MONTHS  # patterns of how the names of months in its dates begin
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
        title=f"//h1[{_within('article-detail')}]",
        teaser=f"//h2[{_by_class('teaser')}]",
        date=f"//span[{_by_class('date')}][{_within('article-info')}]",
        category=f"//span[{_by_class('category')}][{_within('article-info')}]",
        tags=f"//*[{_by_class('tag')}][{_within('tagging-info')}]",
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
FEED_DATES = (
    # Fri, 05 Dec 2025 08:34:40 +0100, in old feeds 05-Dec-25
    r"(?P<day>\d{1,2})\.?[ -](?P<month>[^\W\d]+)\.?[ -](?P<year>\d{4}|\d\d)\b",
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)",  # 2025-12-05T08:34:40Z
)
RDF_ABOUT = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}about"
DUBLIN_CORE_DATE = "{http://purl.org/dc/elements/1.1/}date"
WHOLE_TEXT = "{http://purl.org/rss/1.0/modules/content/}encoded"
# What WordPress writes below an item, in the language of the site.
FOOTER = re.compile(
    r"\s*\b(The post .{1,250} (appeared first|first appeared) on|Der Beitrag .{1,250} erschien zuerst auf"
    r"|L.article .{1,250} est apparu en premier sur|La entrada .{1,250} se publicó primero en"
    r"|L.articolo .{1,250} proviene da|Het bericht .{1,250} verscheen eerst op) .{1,150}$", re.DOTALL)
# The end of a summary: dots, or the words of a link to the page, which may hold the page's title.
SUMMARY_END = re.compile(r"""(?ix) (\.\.\.|…) \s* [\])]? \W* $
    | \b (read \ (more|on) | (continue|keep) \ reading | weiterlesen | lire \ la \ suite | leer \ más
        | seguir \ leyendo | leggi \ tutto | continua \ a \ leggere | lees \ (meer|verder)) \W* $
    | (^ | [\n.!?…:|()\[\]}"”»>]) \W* (
        ((find \ out|learn|see) \ )? more | (full|whole) \ (story|article|release|text) | view \ .{0,100}
        | mehr (\ lesen | \ erfahren | \ dazu)? | weiter | lesen \ sie \ (mehr|weiter)
        | (zum|den) \ (\w+ \ )? artikel (\ lesen)?
        | ((to \ )? read \ (more|on|the|full) | (continue|keep) \ reading | weiterlesen | lire \ la \ suite)
          \b [^\n]{0,150}) \W* $""")


def blank_article(article_id: str, url: str, **fields) -> dict:
    """An article with every key; those that are not given are empty. A title that begins the text leaves it.
    """
    blank = {"title": "", "teaser": "", "date": "", "category": "", "tags": [], "text": ""}
    article = {"id": article_id, "url": url} | blank | fields
    first_line, _, rest = article["text"].partition("\n")
    if rest and one_line(first_line).casefold() == article["title"].casefold():
        article["text"] = rest.lstrip("\n")
    return article


@time_limit(MAX_SECONDS)
def parse_article(html: bytes, site: Site, url: str) -> dict:
    """The article on its page, with its id from `url`; ValueError if id, title, date or text are missing."""
    root = read_html(html, MAX_ELEMENTS)

    def texts(path: str) -> Iterator[str]:
        texts_of_all = (html_to_text(element, site.tables) for element in outermost(root.xpath(path)))
        return filter(None, texts_of_all)

    def first(path: str) -> str:
        return next(texts(path), "")

    lines = {name: one_line(first(getattr(site, name))) for name in ("title", "teaser", "date", "category")}
    stamp, lines["date"] = lines["date"], parse_date(lines["date"], site.dates, site.months)
    # The text is in the site's body or nowhere: other text on a page without a body is no article.
    article = blank_article(
        site.article_id(url), url, **lines, tags=list(map(one_line, texts(site.tags))), text=first(site.body))
    if missing := [key for key in ("id", "title", "text") if not article[key]]:
        raise ValueError(f"the page has no {' and no '.join(missing)}")
    if not article["date"]:
        raise ValueError(f"no date that can be read: {stamp[:60]!r}")
    return article


class FeedPage(NamedTuple):
    """One page of a feed. Its articles have every key; what the feed lacks is empty."""

    articles: list[dict]
    next_url: str | None
    sound: bool  # False: its XML is broken, so that articles may be missing


@time_limit(MAX_SECONDS)
def parse_feed(xml: bytes, site: Site, url: str = "") -> FeedPage:
    """The page of an RSS or Atom feed at `url`; ValueError if it is none."""
    root, sound = _parse_xml(xml)
    if etree.QName(root).localname not in ("rss", "RDF", "feed"):
        raise ValueError(f"not an RSS or Atom feed: its first element is <{root.tag}>")
    items = root.iter("{*}item", "{*}entry")
    articles = [_parse_item(item, site, url, sound) for item in (outermost(items) if sound else items)]
    next_page = root.find(".//{http://www.w3.org/2005/Atom}link[@rel='next']")
    link = None if next_page is None else next_page.get("href")
    return FeedPage([article for article in articles if sound or article["url"]], link and join(url, link),
                    sound)


def _parse_item(item: Element, site: Site, url: str, sound: bool) -> dict:
    """The article of an item of RSS or an entry of Atom."""
    fields = {}  # the first of each name; names of the item's own namespace without it
    for child in item.iterchildren("*"):
        name = etree.QName(child)
        if child.get("rel", "alternate") == "alternate":  # of Atom's links, the one to the page
            own = name.namespace == etree.QName(item).namespace
            fields.setdefault(name.localname if own else name.text, child)

    def value(name: str, attribute: str = "href") -> str:
        child = fields.get(name)
        return "" if child is None else (child.get(attribute) or child.text or "").strip()

    def text_of(name: str) -> str:
        try:  # broken XML may lack any part of a text, which then comes from the article's page
            return html_to_text(_inner(fields[name]), site.tables) if sound and name in fields else ""
        except ValueError:
            return ""

    identity = value("guid") or value("id") or item.get(RDF_ABOUT, "")
    link = value("link")
    if not link and re.match(r"https?:|[\w./-]*/", identity) and value("guid", "isPermaLink") != "false":
        link = identity
    stamps = map(value, ("pubDate", "published", "issued", DUBLIN_CORE_DATE, "updated", "modified"))
    text = text_of(WHOLE_TEXT)
    text = text[:-500] + FOOTER.sub("", text[-500:])  # below a description it shows a summary, and stays
    text = text or text_of("content") or text_of("description")  # the `summary` of Atom is none
    place = link and join(join(url, item.base or ""), link)
    return blank_article(site.article_id(identity) or site.article_id(link), place, text=text,
                         date=parse_date("\n".join(stamps), (*FEED_DATES, *site.dates)),
                         title=one_line(text_of("title")))


def join(url: str, link: str) -> str:
    """The link in full; as it stands if it is none or would be too long, which shows when it is fetched."""
    try:
        full = urljoin(url, link)
        return full if len(full) <= MAX_URL else link
    except ValueError:
        return link


def is_complete(article: dict) -> bool:
    """True if a feed's article needs no page: it has title, date and a text that is no summary by its end."""
    end = article["text"][-500:]
    is_cut = SUMMARY_END.search(end[-200:]) or FOOTER.search(end)
    return all((article["id"], article["title"], article["date"], end)) and not is_cut


@time_limit(MAX_SECONDS)
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
    """The first day that exists by the first pattern that gives one, as YYYY-MM-DD; empty if there is none.
    """
    for match in chain.from_iterable(re.finditer(pattern, text) for pattern in patterns):
        month, year = match["month"].lower(), int(match["year"])
        begins = [bool(re.match(name, month)) for name in months]
        if year < 100:  # two digits, as RFC 2822 reads them
            year += 2000 if year < 50 else 1900
        try:
            number = int(month) if month.isdigit() else begins.index(True) + 1
            return date(year, number, int(match["day"])).isoformat()
        except ValueError:
            continue
    return ""


def _parse_xml(xml: bytes) -> tuple[Element, bool]:
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
    raise ValueError(f"not XML: it begins with {text[:30]!r}")


def _inner(element: Element) -> str:
    """The HTML inside an element: escaped, as it should be, or as elements of the feed itself."""
    return (element.text or "") + "".join(etree.tostring(child, encoding="unicode") for child in element)
