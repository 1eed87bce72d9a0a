"""Newsrooms' pages, feeds, sitemaps and dates, and what no parser may do."""

import gzip
import json
import re
import time
from signal import setitimer

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanoprune.web import sites
from nanoprune.web.html import html_to_text
from nanoprune.web.sites import SITES, is_complete, parse_article, parse_date, parse_feed, parse_sitemap

BMW = SITES["bmw"]


def test_the_real_page(real):
    page = (real / "bmw" / "article_page.html").read_bytes()
    found = parse_article(page, BMW, "https://www.press.bmwgroup.com/global/article/detail/T0454343EN/slug")
    assert (found["id"], found["date"], found["category"]) == ("T0454343EN", "2025-12-05", "Press Release")
    assert found["title"].startswith("BMW M Racing Academy") and found["teaser"].startswith("+++")
    assert found["tags"] == ["BMW M Motorsport", "Customer Racing"]
    assert abs(len(found["text"]) - 6587) <= 66
    assert "Corporate Communications" not in found["text"].split("\n")[0]


@pytest.mark.parametrize("article, site", [
    ({"site": "bmw", "url": "http://127.0.0.1/x"}, BMW),
    ({"site": "no-such-site", "url": BMW.base_url}, None),
    ({"url": "https://www.press.bmwgroup.com/global/article/detail/T0454343EN/slug"}, BMW),
    ({"url": "https://www.press.bmwgroup.com.example/global"}, None), ({"url": "papers/a.txt"}, None),
    ({"url": None}, None), ({}, None)])
def test_the_site_of_an_article(article, site):
    assert sites.site_of(article) is site


def test_boilerplate_and_language_belong_to_the_site():
    assert BMW.language_of("T0454343EN") == BMW.language_of("T0454343EN_US") == "EN"
    assert BMW.language_of("T0454343DE") == "DE" and BMW.language_of("PR-0001AG") is None
    for text, is_shared in (("With its four brands BMW, MINI and others, it is large.", True),
                            ("In 2024, the BMW Group sold over 2.4 million passenger vehicles.", True),
                            ("BMW Group Corporate Communications", True),
                            ("The BMW Group opens a plant.", False)):
        assert any(re.fullmatch(pattern, text) for pattern in BMW.boilerplate) == is_shared


@pytest.mark.parametrize("text, day", [
    ("Fri Dec 05 08:34:40 CET 2025", "2025-12-05"), ("05.12.2025", "2025-12-05"), ("5.3.2025", "2025-03-05"),
    ("Tue Mar 04 10:00:00 CEST 2025", "2025-03-04")])
def test_dates(text, day):
    assert parse_date(text, BMW.dates) == day
    for wrong in ("", "31.02.2025", "yesterday", "2025"):
        assert parse_date(wrong, BMW.dates) == ""


def test_a_feed():
    """Text that breaks off, an item without text, a language in the id, and what is no feed."""
    item = ("<item><title>A &amp;amp; B</title><link>http://x/{id}/s</link><guid>{id}</guid>"
            "<pubDate>Fri, 05 Dec 2025 08:34:40 +0100</pubDate><description>{text}</description></item>")
    items = [item.format(id="T0000001EN", text="&lt;p&gt;Whole CO&lt;sub&gt;2&lt;/sub&gt; text.&lt;/p&gt;"),
             item.format(id="T0000002EN_US", text="It breaks off ..."), item.format(id="T0000003DE", text="")]
    feed = f'<rss version="2.0"><channel>{"".join(items)}</channel></rss>'.encode()
    found, following, sound = parse_feed(feed, BMW)
    assert sound and following is None and [a["id"] for a in found] == ["T0000001EN", "T0000002EN_US",
                                                                        "T0000003DE"]
    assert (found[0]["title"], found[0]["text"]) == ("A & B", "Whole CO2 text.")
    assert found[0]["date"] == "2025-12-05"
    assert [is_complete(a) for a in found] == [True, False, False]
    assert [BMW.in_language(a["id"]) for a in found] == [True, True, False]
    for wrong in (b"", b"<html><body>No feed</body></html>", b"plain text", b"{}"):
        with pytest.raises(ValueError, match="not "):
            parse_feed(wrong, BMW)


ITEM = ("<item><title>Silence</title><link>http://x/T0000001EN/s</link>"
        "<pubDate>Fri, 05 Dec 2025 08:34:40 +0100</pubDate>{}</item>")


@pytest.mark.parametrize("end", [
    "[&amp;#8230;]&lt;p&gt;The post &lt;a&gt;T&lt;/a&gt; first appeared on &lt;a&gt;Elbach&lt;/a&gt;.",
    "[&amp;#8230;] Continue reading &amp;rarr;", "… Weiterlesen", "[…] [mehr]", "[...]", "…", "(more)",
    "and silent [more]", "fell. Continue reading “A new shop opens” →", "fell. Read the full story",
    "still. Mehr »", "still. Mehr lesen", "still.&lt;p&gt;Der Beitrag T erschien zuerst auf Elbach.",
    "still. Lire la suite", "still. Zum Artikel", "still. Learn more",
    "still.&lt;p&gt;View the full release", "still. Lesen Sie mehr", "silent Read more"])
def test_a_summary_needs_its_page(end):
    for text in (f"The crowd fell silent {end}", f"&lt;p&gt;The crowd fell.&lt;/p&gt;&lt;p&gt;Then {end}"):
        feed = f"<rss><channel>{ITEM.format(f'<description>{text}</description>')}</channel></rss>"
        [article], _, sound = parse_feed(feed.encode(), BMW)
        assert sound and article["text"] and not is_complete(article)


@pytest.mark.parametrize("end", [
    "We hope that you read this.", "Es wird immer mehr.", "More information: www.x.example", "nothing more",
    "Mehr Informationen stehen auf der Seite.", "She told us to keep it.", "The post first opened."])
def test_a_whole_text_needs_no_page(end):
    feed = f"<rss><channel>{ITEM.format(f'<description>{end}</description>')}</channel></rss>"
    assert is_complete(parse_feed(feed.encode(), BMW).articles[0])


def test_the_footer_below_a_whole_text_is_no_part_of_it():
    body = ("<content:encoded xmlns:content='http://purl.org/rss/1.0/modules/content/'>&lt;p&gt;Whole.&lt;/p&gt;"
            "&lt;p&gt;The post &lt;a&gt;T&lt;/a&gt; appeared first on Elbach.&lt;/p&gt;</content:encoded>")
    [article], _, _ = parse_feed(f"<rss><channel>{ITEM.format(body)}</channel></rss>".encode(), BMW)
    assert article["text"] == "Whole." and is_complete(article)


DC, RDF = "http://purl.org/dc/elements/1.1/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
FEEDS = {
    "guid": """<rss><channel><item><title>A</title><guid isPermaLink="true">http://h/T0000001EN/a</guid>
        <pubDate>Fri, 05 Dec 2025 08:34:40 +0100</pubDate><description>Whole.</description></item>
        </channel></rss>""",
    "guid is a link by default": """<rss><channel><item><title>A</title><guid>http://h/T0000001EN/a</guid><link/>
        <pubDate>05 Dec 25 08:34 GMT</pubDate><description>Whole.</description></item>
        </channel></rss>""",
    "relative link": """<rss><channel><item><title>A</title><link> ../T0000001EN/a </link>
        <pubDate>Friday, 05-Dec-25 08:34:40 GMT</pubDate><description>Whole.</description></item>
        </channel></rss>""",
    "namespace": """<rss xmlns="http://backend.userland.com/rss2" xmlns:media="http://m/"><channel><item>
        <media:title>No</media:title><title>A</title><link>/T0000001EN/a</link>
        <pubDate>Fr, 5. Dezember 2025</pubDate><description>Whole.</description></item>
        </channel></rss>""",
    "dc:date": f"""<rss xmlns:dc="{DC}"><channel><item><title>A</title><link>//h/T0000001EN/a</link>
        <dc:date>2025-12-05T08:34:40+01:00</dc:date><description>Whole.</description></item>
        </channel></rss>""",
    "RSS 1.0": f"""<rdf:RDF xmlns:rdf="{RDF}" xmlns="http://purl.org/rss/1.0/" xmlns:dc="{DC}">
        <channel><title>F</title></channel><item rdf:about="http://h/T0000001EN/a"><title>A</title><description>Whole.</description>
        <dc:date>2025-12-05</dc:date></item></rdf:RDF>""",
    "RSS 0.90": f"""<rdf:RDF xmlns:rdf="{RDF}" xmlns="http://my.netscape.com/rdf/simple/0.9/"><item>
        <title>A</title><link>http://h/T0000001EN/a</link><description>Whole.</description>
        <pubDate>5 Dec 2025</pubDate></item>
        </rdf:RDF>""",
    "Atom": """<feed xmlns="http://www.w3.org/2005/Atom" xml:base="http://h/x/"><title>F</title><entry>
        <title>A</title><link rel="self" href="no"/><link href="../T0000001EN/a"/><id>tag:T0000001EN</id>
        <summary>S.</summary>
        <published>2025-12-05T08:34:40Z</published><updated>2025-12-09T00:00:00Z</updated>
        <content type="html">&lt;p&gt;Whole.&lt;/p&gt;</content></entry></feed>""",
    "Atom with elements": """<a:feed xmlns:a="http://www.w3.org/2005/Atom"><a:entry>
        <a:title type="html">&lt;b&gt;A</a:title><a:id>http://h/T0000001EN/a</a:id><a:updated>2025-12-05T08:34:40Z</a:updated>
        <a:content type="xhtml"><div xmlns="http://www.w3.org/1999/xhtml"><p>Whole.</p></div></a:content></a:entry></a:feed>""",
}


@pytest.mark.parametrize("kind", FEEDS)
def test_feeds_of_every_kind(kind):
    [article], _, sound = parse_feed(FEEDS[kind].encode(), BMW, "http://h/feeds/all")
    assert sound and is_complete(article)
    assert (article["id"], article["url"]) == ("T0000001EN", "http://h/T0000001EN/a")
    assert (article["title"], article["date"], article["text"]) == ("A", "2025-12-05", "Whole.")


def test_what_a_feed_cannot_say():
    """The summary of Atom is no text, a guid that is none no link, and a bad link costs its item alone."""
    feed = """<feed xmlns="http://www.w3.org/2005/Atom"><entry><title>A</title><link href="http://[/T0000001EN"/>
        <updated>2025-12-05</updated><summary>Short.</summary></entry></feed>"""
    [article], _, _ = parse_feed(feed.encode(), BMW, "http://h/")
    assert article["text"] == "" and article["url"] == "http://[/T0000001EN"
    for guid in ("<guid>T0000001EN</guid>", '<guid isPermaLink="false">http://h/?p=T0000001EN</guid>'):
        [article], _, _ = parse_feed(f"<rss><channel><item>{guid}</item></channel></rss>".encode(), BMW)
        assert (article["id"], article["url"]) == ("T0000001EN", "")
    with pytest.raises(ValueError, match="not XML"):
        parse_feed(b'{"version": "https://jsonfeed.org/version/1.1", "items": []}', BMW)


@pytest.mark.parametrize("text, day", [
    ("Fri, 05 Dec 49 08:00", "2049-12-05"), ("05 Dec 50 08:00", "1950-12-05"), ("5. März 2025", "2025-03-05"),
    ("Fr, 05 Okt 2025", "2025-10-05"), ("05 Xyz 2025 then 06 Dec 2025", "2025-12-06")])
def test_dates_of_feeds(text, day):
    assert parse_date(text, sites.FEED_DATES) == day


def test_a_title_that_begins_the_text_leaves_it():
    def text(title: str, whole: str) -> str:
        return sites.blank_article("1", "u", title=title, text=whole)["text"]
    for whole in ("NEW  plant\n\nIt opens.", "New plant\nIt opens."):
        assert text("New plant", whole) == "It opens."
    assert text("New plant", "New plant") == "New plant" and text("", "\n\nIt opens.") == "It opens."
    assert text("New plant", "New plant opens.\n\nYes.") == "New plant opens.\n\nYes."


def test_entities_do_not_read_files(tmp_path):
    (tmp_path / "secret").write_text("secret words")
    xml = (f'<!DOCTYPE rss [<!ENTITY x SYSTEM "file://{tmp_path}/secret"> <!ENTITY a "{"a" * 1000}">]>'
           "<rss><channel><item><title>&x;</title><guid>T0000001EN</guid></item></channel></rss>").encode()
    assert "secret words" not in json.dumps(parse_feed(xml, BMW).articles)


FRAME = ("<div class='article-detail'><div class='article-info'><span class='date'>05.12.2025</span></div>"
         "<h1>T</h1><div id='article-text'><p>Text.</p></div></div>")
NESTED = {
    "tags": FRAME + "<div class=tagging-info>" + "<div class=tag>word " * 2700,
    "teasers": FRAME + "<h2 class=teaser><div>word " * 2000,
    "titles": "<div class=article-detail><h1><div>word " * 1000 + FRAME,
    "bodies": FRAME.replace("<p>", "<div id='article-text'>word " * 2500),
    "empty bodies": FRAME.replace("<p>", "<div id='article-text'>" * 2500),
    "tables": FRAME.replace("<p>", "<table><tr><td id='article-text'>word " * 1000),
}


@pytest.mark.parametrize("name", NESTED)
def test_a_page_gives_no_more_than_it_holds(name):
    began = time.process_time()
    try:
        article = parse_article(NESTED[name].encode(), BMW, "T0000001EN")
        assert len(json.dumps(article)) < len(NESTED[name]) + 1000
    except ValueError:
        pass
    assert time.process_time() - began < 3


def test_a_feed_gives_no_more_than_it_holds():
    """An item inside an item is part of that one's text alone; a long base is not written into every link."""
    nested = "<item><title>A</title><link>/T0000001EN</link><description>word " * 80
    closed = f"<rss><channel>{nested}{'</description></item>' * 80}</channel></rss>"
    feed = parse_feed(closed.encode(), BMW, "http://h/")
    assert feed.sound and len(feed.articles) == 1 and len(json.dumps(feed.articles)) < len(closed) + 500
    based = (f"<rss xml:base='http://h/{'b' * 100_000}/'><channel>"
             f"{'<item><link>T0000001EN</link></item>' * 1000}</channel></rss>")
    feed = parse_feed(based.encode(), BMW, "http://h/")
    assert len(feed.articles) == 1000 and {article["url"] for article in feed.articles} == {"T0000001EN"}


@pytest.mark.parametrize("part", [
    "<div class=tagging-info><i class=tag>w</i></div>", "<div class=article-detail><h1></h1></div>",
    "<p class=article-info><span class=date></span></p>"])
def test_many_elements_take_linear_time(part):
    began = time.process_time()
    page = FRAME + part * 40_000
    assert parse_article(page.encode(), BMW, "T0000001EN")["title"] == "T"
    assert time.process_time() - began < 8  # //outer//inner takes a quarter of a minute
    with pytest.raises(ValueError, match="more than 100000 elements"):
        parse_article((page + part * 20_000).encode(), BMW, "T0000001EN")


def test_a_page_has_a_limit_of_time(monkeypatch):
    def forever(*_) -> str:
        while True:
            pass

    monkeypatch.setattr(sites, "html_to_text", forever)
    monkeypatch.setattr("signal.setitimer", lambda which, _, *more: setitimer(which, 0.2 if not more else 0))
    with pytest.raises(ValueError, match="takes more than 60 s"):
        parse_article(FRAME.encode(), BMW, "T0000001EN")


def test_a_packed_sitemap_is_unpacked_within_bounds(monkeypatch):
    monkeypatch.setattr(sites, "MAX_SITEMAP", 2**16)
    sizes, parse_xml = [], sites._parse_xml
    monkeypatch.setattr(sites, "_parse_xml", lambda xml: sizes.append(len(xml)) or parse_xml(xml))
    bomb = gzip.compress(b"<urlset><url><loc>http://h/a</loc></url>" + b" " * 2**24)
    assert parse_sitemap(bomb) == ([("http://h/a", "")], []) and sizes == [2**16]


@given(st.one_of(st.binary(max_size=300), st.text("<>/abp &;=\"'\x00-!?[]", max_size=200).map(str.encode)))
@settings(max_examples=300, deadline=None)
def test_parsers_only_ever_raise_value_errors(data):
    for parse in (html_to_text, lambda d: parse_feed(d, BMW), parse_sitemap,
                  lambda d: parse_article(d, BMW, "T0000001EN")):
        try:
            parse(data)
        except ValueError:
            pass


SNIPPETS = ["<table><tr><td>", "<td>a</td>", "</tr>", "<li>", "<ul>", "</ul>", "<br>", "<p>", "</p>", "<div>",
            "</div>", "<b>x",
            "&amp;", "&#", "<!--", "-->", "<![CDATA[", "]]>", "word ", " ", "\n", '"', "<a href='", "<item>",
            "</item>",
            "<item><guid>T0000001EN</guid>", "<description>", "</description>", "<loc>http://a/</loc>",
            "<url>",
            "</url>", "<?x", "\u00e4", "\0", "read more ", "<sup>1</sup>", "<entry>", "The post ",
            " first appeared on ", "Weiterlesen ", "5 December 2025 "]

PARSERS = {
    "text": html_to_text, "text without tables": lambda d: html_to_text(d, tables=False),
    "article": lambda d: parse_article(b"<h1>x</h1><div id='article-text'>" + d, BMW, "T0000001EN"),
    "feed": lambda d: parse_feed(b"<rss><channel>" + d, BMW),
    "sitemap": lambda d: parse_sitemap(b"<urlset>" + d),
    "date": lambda d: parse_date(d.decode("utf-8", "replace"), BMW.dates),
}


@pytest.mark.parametrize("name", PARSERS)
@given(unit=st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=4).map("".join))
@example(unit="<b>x</p></p>")  # an end without a start, ever deeper
@settings(max_examples=15, deadline=None)
def test_no_input_takes_more_than_linear_time(name, unit):
    """Sixteen times as much of anything takes some sixteen times as long; 256 times would be quadratic.

    At an end without a start libxml2 looks at all open elements, up to MAX_OPEN: that is between the two.
    """
    def seconds(size: int) -> float:
        data, found = (unit * (size // len(unit))).encode(), []
        for _ in range(3):
            began = time.process_time()
            try:
                PARSERS[name](data)
            except ValueError:
                pass
            found.append(time.process_time() - began)
        return min(found)

    assert seconds(160_000) < 150 * max(seconds(10_000), 5e-5)
