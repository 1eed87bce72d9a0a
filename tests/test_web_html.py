"""The text that markup holds, whatever the page says of its charset."""

import re
import time

import pytest

from nanoprune.web import html as html_module
from nanoprune.web.html import decode, html_to_text, read_html
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


@pytest.mark.parametrize("html, text", [
    ("805<sup>1</sup> km, 45,900<sup>2)</sup> euros, 12.5<sup>a</sup> percent.",
     "805 km, 45,900 euros, 12.5 percent."),
    ("<p>805 <sup>[1]</sup> km</p><p><b>310</b><sup>1, 2</sup> kW.</p>", "805 km\n\n310 kW."),
    ("5 km<a href='#n'><sup>3</sup></a> and 7 m<sup><a href='#n'>2</a></sup> wide<sup>*</sup>.",
     "5 km and 7 m wide."),
    ("<a>24 m<sup>2</sup></a>", "24 m2"),
    ("6 l/100 km<sup>2</sup>, CO<sup>2</sup>", "6 l/100 km, CO2"),
    ("120 g/km<sup>2</sup>, 400 Nm<sup>2</sup>, in 5.9 s<sup>3</sup>", "120 g/km, 400 Nm, in 5.9 s"),
    ("10<sup>1</sup> cars, 2025<sup>12</sup>, CO<sub>2</sub><sup>1</sup>", "10 cars, 2025, CO2"),
    ("24 m<sup>2</sup>, 10<sup>3</sup> cells, 120 g CO<sub>2</sub>", "24 m2, 10³ cells, 120 g CO2"),
    ("80 cm<sup>3</sup>, 3 × 10<sup>-6</sup>, 9.8 m/s<sup>2</sup>", "80 cm3, 3 × 10⁻⁶, 9.8 m/s2"),
    ("24 m<sup>2</sup><sup>1</sup>, x<sup>2</sup>, 2<sup>n</sup>", "24 m2, x2, 2ⁿ"),
    ("1<sup>st</sup> X<sup>®</sup> with Ca<sup>2+</sup> and <sup>14</sup>C", "1st X® with Ca2+ and 14C"),
])
def test_marks_of_footnotes_go_and_exponents_stay(html, text):
    assert html_to_text(html) == text


def test_a_body_of_nested_line_breaks_is_kept_whole():
    """The trap that lost others two thirds: `<br>` inside each other in one paragraph."""
    parts = [f"Part number {i} of the text." for i in range(300)]
    assert html_to_text("<p>" + "<br><br>".join(parts) + "</p>") == "\n\n".join(parts)
    assert html_to_text("<p>" + "<div>".join(parts) + "</p>").count("Part number") == 300


@pytest.mark.parametrize("start", [
    "<div>", "<b><i>", "<ul><li>", "<blockquote>", "<table><tr><td>", "<font><p>"])
def test_deep_markup_keeps_its_text(start):
    root = read_html("".join(f"{start}w{i} " for i in range(3000)) + "<script>no</script>")
    assert max(sum(1 for _ in leaf.iterancestors()) for leaf in root.iter()) <= html_module.MAX_DEPTH
    assert re.findall(r"w\d+", html_to_text(root)) == [f"w{i}" for i in range(3000)]


def test_attributes_are_bounded():
    many = " ".join(f"a{i}=1" for i in range(200_000))
    began = time.process_time()
    root = read_html(f"<p id=x a:b=1 1=2 {many}>One</p><p class='{'c ' * 100_000}'>Two</p>")
    assert time.process_time() - began < 5  # in libxml2's own tree it is a minute
    first, second = root.iter("p")
    assert first.get("id") == "x" and len(first.attrib) <= html_module.MAX_ATTRIBUTES
    assert len(second.get("class")) == html_module.MAX_VALUE and html_to_text(root) == "One\n\nTwo"


def test_elements_are_bounded():
    assert len(read_html("<p>" * 8, max_elements=10).findall(".//p")) == 8
    with pytest.raises(ValueError, match="more than 10 elements"):
        read_html("<p>" * 9, max_elements=10)


@pytest.mark.parametrize("html, text", [
    ("<html><p>One</html><p>Two", "One\n\nTwo"), ("<!-- only -->", ""), (" ", ""), ("<?x y?>", ""),
    ("<o:p>One</o:p><x:y z:a=1>Two</x:y>", "OneTwo"), ("A\x1b[31m\x01B\0C", "A [31m BC"),
    ("One<!-- a -->Two", "OneTwo"), ("One\fTwo", "One Two"),
    ("<textarea>One\x02", "One"), ("<b title='&#xfffe;'>&#27;&#xfffe;&#xffff;One", "One")])
def test_markup_that_xml_forbids(html, text):
    assert html_to_text(html) == text


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


GERMAN = "Die Größe der Fabrik{} in München: 5 € für „neue“ Straßen."


@pytest.mark.parametrize("frame", [
    "<html><meta charset='utf-8'><p>{}</p></html>", "<?xml version='1.0' encoding='utf-8'?><p>{}</p>", "{}"])
def test_one_damaged_byte_is_one_sign(frame):
    for damage in (b"\xe9", b"\xff", b"\xe2\x82"):  # the last is a character that is cut off
        data = frame.format(GERMAN).encode().replace(b"{}", damage)
        assert html_to_text(data) == GERMAN.format("\ufffd")
    assert decode(b"<meta charset=utf-8>The caf\xe9.") == "<meta charset=utf-8>The caf\ufffd."
    assert decode(b"The caf\xe9.") == "The café."  # nobody said UTF-8, and nothing looks like it
    assert decode("genuine \ufffd".encode() + GERMAN.encode()) == "genuine \ufffd" + GERMAN


@pytest.mark.parametrize("before", [
    '<script charset="utf-8" src="a.js"></script>', "<!-- charset=koi8-r -->",
    "<script>var page = '<meta charset=koi8-r>';</script><style>p { }</style>",
    "<script>" + "x();" * 999 + "</script>"])
@pytest.mark.parametrize("charset, words", [
    ("gb2312", "新工厂"), ("iso-8859-2", "Łódź"), ("shift_jis", "新しい工場")])
def test_the_charset_is_the_pages_own(before, charset, words):
    page = f"""<html><head>{before}
        <meta http-equiv="Content-Type" content="text/html; charset={charset}"></head>
        <p>{words * 9}</p></html>"""
    assert html_to_text(page.encode(charset)) == words * 9


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16(encoding):
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    assert decode(mark + "Über uns, 5 €".encode(encoding)) == "Über uns, 5 €"
    assert decode(mark + "Über uns, 5 €".encode(encoding) + b"\0") == "Über uns, 5 €\ufffd"
