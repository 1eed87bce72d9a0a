"""The text that markup holds, whatever the page says of its charset."""

import pytest

from nanoprune.web.html import html_to_text
from nanoprune.web.sites import SITES, parse_feed


@pytest.mark.parametrize("html, text", [
    ("<p>One.</p><p>Two.</p>", "One.\n\nTwo."),
    ("<p>One.<br><br>Two.<br/>Line.</p>", "One.\n\nTwo.\nLine."),
    ("<p>One.<br>\n<br>\nTwo.", "One.\n\nTwo."),
    ("CO<sub>2</sub> and m<sup>2</sup>", "CO2 and m2"),
    ("A&nbsp;b &amp; M&uuml;nchen &#8211; x", "A b & München – x"),
    ("<ul><li>One</li><li>Two <b>bold</b></li></ul>After", "- One\n- Two bold\n\nAfter"),
    ("<table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td><p>2</p></td></tr></table>", "A | B\n1 | 2"),
    ("<script>x()</script><style>p{}</style>Text<!-- no -->", "Text"),
    ("<div>One<div>Two</div>Three</div>", "One\n\nTwo\n\nThree"),
    ("soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
    ("<p>  many \n\t spaces  </p>", "many spaces"),
    ("<p>One<p>Two", "One\n\nTwo"),
    ("", ""),
])
def test_html_to_text(html, text):
    assert html_to_text(html) == text


def test_a_body_of_nested_line_breaks_is_kept_whole():
    """The trap that lost others two thirds: `<br>` inside each other in one paragraph."""
    parts = [f"Part number {i} of the text." for i in range(300)]
    assert html_to_text("<p>" + "<br><br>".join(parts) + "</p>") == "\n\n".join(parts)
    assert html_to_text("<p>" + "<div>".join(parts) + "</p>").count("Part number") == 300


@pytest.mark.parametrize("said, encoding", [
    ("utf-8", "cp1252"), ("iso-8859-1", "utf-8"), ("iso-8859-1", "cp1252"), ("windows-1252", "cp1252"),
    ("", "cp1252"),
    ("nonsense", "cp1252"),
    ("iso-8859-12", "cp1252"), ("utf-16", "cp1252"),
    ("utf-8", "utf-16"), ("punycode", "utf-8"), ("utf-16", "utf-8"), ("koi8-r", "koi8-r")])
def test_a_page_that_is_wrong_about_its_charset(said, encoding):
    words = "Größe “neu” für 5 €" if encoding != "koi8-r" else "Новый завод"
    page = f"<html><head><meta charset='{said}'></head><body><p>{words}</p></body></html>".encode(encoding)
    assert html_to_text(page) == words
    feed = f"""<?xml version="1.0" encoding="{said}"?><rss><channel><item><guid>T0000001EN</guid>
        <title>{words}</title>
        <description>{words}</description></item></channel></rss>""".encode(encoding)
    [article], _, sound = parse_feed(feed, SITES["bmw"])
    assert sound and article["title"] == article["text"] == words
