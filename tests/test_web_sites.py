"""Newsrooms' pages, feeds, sitemaps and dates, and what no parser may do."""

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoprune.web.html import html_to_text
from nanoprune.web.sites import SITES, is_complete, parse_article, parse_date, parse_feed, parse_sitemap, site_of

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
    ({"site": "bmw", "url": "http://127.0.0.1/x"}, BMW), ({"site": "no-such-site", "url": BMW.base_url}, None),
    ({"url": "https://www.press.bmwgroup.com/global/article/detail/T0454343EN/slug"}, BMW),
    ({"url": "https://www.press.bmwgroup.com.example/global"}, None), ({"url": "papers/a.txt"}, None),
    ({"url": None}, None), ({}, None)])
def test_the_site_of_an_article(article, site):
    assert site_of(article) is site


def test_boilerplate_and_language_belong_to_the_site():
    assert BMW.language_of("T0454343EN") == BMW.language_of("T0454343EN_US") == "EN"
    assert BMW.language_of("T0454343DE") == "DE" and BMW.language_of("PR-0001AG") is None
    for text, is_shared in (("With its four brands BMW, MINI and others, it is large.", True),
                            ("In 2024, the BMW Group sold over 2.4 million passenger vehicles.", True),
                            ("BMW Group Corporate Communications", True), ("The BMW Group opens a plant.", False)):
        assert any(re.fullmatch(pattern, text) for pattern in BMW.boilerplate) == is_shared


@pytest.mark.parametrize("text, day", [
    ("Fri Dec 05 08:34:40 CET 2025", "2025-12-05"), ("05.12.2025", "2025-12-05"), ("5.3.2025", "2025-03-05"),
    ("Tue Mar 04 10:00:00 CEST 2025", "2025-03-04")])
def test_dates(text, day):
    assert parse_date(text, BMW.dates) == day
    for wrong in ("", "31.02.2025", "yesterday", "2025"):
        with pytest.raises(ValueError, match="no date that can be read"):
            parse_date(wrong, BMW.dates)


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


def test_entities_do_not_read_files(tmp_path):
    (tmp_path / "secret").write_text("secret words")
    xml = (f'<!DOCTYPE rss [<!ENTITY x SYSTEM "file://{tmp_path}/secret"> <!ENTITY a "{"a" * 1000}">]>'
           "<rss><channel><item><title>&x;</title><guid>T0000001EN</guid></item></channel></rss>").encode()
    assert "secret words" not in json.dumps(parse_feed(xml, BMW).articles)


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
            "</url>", "<?x", "\u00e4", "\0", "read more "]

PARSERS = {
    "text": html_to_text, "text without tables": lambda d: html_to_text(d, tables=False),
    "article": lambda d: parse_article(b"<h1>x</h1><div id='article-text'>" + d, BMW, "T0000001EN"),
    "feed": lambda d: parse_feed(b"<rss><channel>" + d, BMW),
    "sitemap": lambda d: parse_sitemap(b"<urlset>" + d),
    "date": lambda d: parse_date(d.decode("utf-8", "replace"), BMW.dates),
}


@pytest.mark.parametrize("name", PARSERS)
@given(unit=st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=4).map("".join))
@settings(max_examples=15, deadline=None)
def test_no_input_takes_more_than_linear_time(name, unit):
    """Sixteen times as much of anything takes some sixteen times as long; 256 times would be quadratic."""
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

    assert seconds(160_000) < 80 * max(seconds(10_000), 5e-5)
