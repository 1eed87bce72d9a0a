"""scrape.py, fetch.py and pages.py against servers on this machine: a whole newsroom, and one that answers badly."""

import gzip
import json
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import run_main

import fetch
import scrape
from dataset import read_jsonl
from demo import newsroom, site
from fetch import Disallowed, Fetcher, FetchError, retry_after
from pages import SITES, html_to_text, parse_article, parse_date, parse_feed, parse_sitemap

BMW = SITES["bmw"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting; what would have been waited is kept."""
    waited = []
    monkeypatch.setattr(fetch.time, "sleep", waited.append)
    return waited


@pytest.fixture(scope="module")
def articles() -> list[dict]:
    company = newsroom.invent(3, companies=1, models=6, first_day=date(2024, 1, 1))[0]
    found = newsroom.releases(company, 50, 7, date(2024, 1, 1))
    return found + newsroom.oddities(company, 7, found[0])


@contextmanager
def server(answers: dict):
    """A server's base URL; `answers` maps a path to (status, headers, body), or to a list of them, used in turn.

    A body of None closes the connection without an answer. Yields (url, requests seen).
    """
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["User-Agent"]))
            found = answers.get(self.path, (404, {}, b""))
            if isinstance(found, list):
                found = found.pop(0) if len(found) > 1 else found[0]
            status, headers, body = found
            if body is None:
                return self.connection.close()
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", seen
    finally:
        http.shutdown()
        http.server_close()


def ok(body: str | bytes, **headers) -> tuple:
    return 200, headers, body if isinstance(body, bytes) else body.encode()


# ---------------------------------------------------------------- a whole newsroom


@pytest.mark.parametrize("source", ["feed", "sitemap"])
def test_a_whole_newsroom(articles, tmp_path, monkeypatch, capsys, source):
    """Every article once with its whole text, in both ends of a feed and both forms of markup; the second run fetches none."""
    out = tmp_path / "raw" / "articles.jsonl"
    with site.serve(articles) as url:
        arguments = ["--base-url", url, "--delay", "0", "--source", source, "--out", out]
        code, text, _ = run_main(monkeypatch, capsys, "scrape.py", *arguments)
        assert code == 0 and f"wrote {out}" in text and "(1 in another language)" in text
        before = out.read_bytes()
        asked = []
        monkeypatch.setattr(fetch.requests.Session, "get", record(asked, fetch.requests.Session.get))
        code, text, _ = run_main(monkeypatch, capsys, "scrape.py", *arguments)
        assert code == 0 and "up to date" in text and out.read_bytes() == before
        assert asked and not any("/article/" in path for path in asked)
    found = {a["id"]: a for a in read_jsonl(out)}
    english = {a["id"]: a for a in articles if a["lang"] == "en"}
    assert len(read_jsonl(out)) == len(found) == len(english)
    for number, expected in english.items():
        assert found[number]["text"] == "\n\n".join(expected["paragraphs"])
        assert (found[number]["title"], found[number]["date"]) == (expected["title"], expected["date"])
        if source == "sitemap":
            assert found[number]["category"] == "Press Release" and found[number]["tags"] == expected["tags"]
            assert all(bullet in found[number]["teaser"] for bullet in expected["teaser"])


def record(asked: list, get):
    def recorded(self, url, **options):
        asked.append(url)
        return get(self, url, **options)
    return recorded


def test_since_limit_and_going_on(articles, tmp_path, monkeypatch, capsys):
    out = tmp_path / "articles.jsonl"
    with site.serve(articles) as url:
        arguments = ["--base-url", url, "--delay", "0", "--out", out, "--since", "2025-01-01"]
        assert run_main(monkeypatch, capsys, "scrape.py", *arguments, "--limit", "7")[0] == 0
        assert len(read_jsonl(out)) == 7
        with open(out, "ab") as file:
            file.write(b'{"id": "T00')  # a kill in the middle of a line
        code, text, err = run_main(monkeypatch, capsys, "scrape.py", *arguments)
    assert code == 0 and "line 8: a half line at the end is dropped" in err
    assert {a["id"] for a in read_jsonl(out)} == {a["id"] for a in articles if a["date"] >= "2025-01-01" and a["lang"] == "en"}


def test_single_urls(articles, tmp_path, monkeypatch, capsys):
    out = tmp_path / "articles.jsonl"
    with site.serve(articles) as url:
        pages = [url + site._path(a) for a in articles[:2]]
        code, text, _ = run_main(monkeypatch, capsys, "scrape.py", "--base-url", url, "--delay", "0", "--out", out, *pages,
                                 url + "/global/article/detail/T9999999EN/nothing")
    assert code == 0 and [a["id"] for a in read_jsonl(out)] == [a["id"] for a in articles[:2]]
    assert "failed           1" in text and "T9999999EN/nothing: 404" in text


def test_the_real_page(real):
    page = (real / "bmw" / "article_page.html").read_bytes()
    found = parse_article(page, BMW, "https://www.press.bmwgroup.com/global/article/detail/T0454343EN/slug")
    assert found["id"] == "T0454343EN" and found["date"] == "2025-12-05" and found["category"] == "Press Release"
    assert found["title"].startswith("BMW M Racing Academy") and found["teaser"].startswith("+++")
    assert found["tags"] == ["BMW M Motorsport", "Customer Racing"]
    assert abs(len(found["text"]) - 6587) <= 66
    assert "Corporate Communications" not in found["text"].split("\n")[0]


# ---------------------------------------------------------------- manners


def test_manners(quick):
    robots = "User-agent: *\nDisallow: /private\nCrawl-delay: 3\n"
    with server({"/robots.txt": ok(robots), "/a": ok("a"), "/b": ok("b"), "/private/c": ok("c")}) as (url, seen):
        fetcher = Fetcher(url, delay=1.0)
        assert fetcher.get(url + "/a") == b"a" and fetcher.get(url + "/b") == b"b"
        with pytest.raises(Disallowed):
            fetcher.get(url + "/private/c")
    assert [path for path, _ in seen] == ["/robots.txt", "/a", "/b"]
    assert all(agent.startswith("nanoprune/") for _, agent in seen)
    assert 0.8 < quick[1] <= 1 and 2.5 < quick[2] <= 3  # after robots.txt one second, then what it asks for


def test_no_robots_txt_allows_all_and_a_broken_one_stops():
    with server({"/a": ok("a")}) as (url, _):
        assert Fetcher(url, 0).get(url + "/a") == b"a"
    with server({"/robots.txt": (503, {}, b"")}) as (url, _), pytest.raises(ValueError, match="cannot read .*robots.txt: 503"):
        Fetcher(url, 0)
    with pytest.raises(ValueError, match="cannot read .*robots.txt.*Check the network"):
        Fetcher(url, 0)  # nobody listens there any more


def test_retries(quick):
    answers = {"/busy": [(503, {}, b""), (429, {"Retry-After": "7"}, b""), ok("now")], "/closed": [(0, {}, None), ok("again")],
               "/never": (500, {}, b""), "/later": (429, {"Retry-After": "9999"}, b""), "/gone": (410, {}, b"")}
    with server(answers) as (url, seen):
        fetcher = Fetcher(url, 0)
        quick.clear()
        assert fetcher.get(url + "/busy") == b"now" and [w for w in quick if w] == [1, 7]
        assert fetcher.get(url + "/closed") == b"again"
        for path, message, tries in (("/never", "500 .*4 times", 4), ("/later", "asks to come back in 9999 s", 1),
                                     ("/gone", "410", 1)):
            with pytest.raises(FetchError, match=message):
                fetcher.get(url + path)
            assert [p for p, _ in seen].count(path) == tries
        fetcher._once = timeout
        with pytest.raises(FetchError, match="no answer in time"):
            fetcher.get(url + "/never")


def timeout(url):
    raise fetch.requests.ReadTimeout("slow")


def test_retry_after():
    assert retry_after("12") == 12 and retry_after("") == retry_after("soon") == retry_after("-1") == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Fri, 31 Dec 9999 23:59:59 GMT") > 1e9


def test_sizes_and_hosts(monkeypatch):
    monkeypatch.setattr(fetch, "MAX_BYTES", 2**16)
    bomb = gzip.compress(b"0" * 2**24)
    answers = {"/bomb": ok(bomb, **{"Content-Encoding": "gzip"}), "/away": (302, {"Location": "http://example.com/x"}, b""),
               "/there": (301, {"Location": "/here"}, b""), "/here": ok("here"), "/round": (302, {"Location": "/round"}, b""),
               "/file": (302, {"Location": "file:///etc/passwd"}, b""), "/half": ok("half", **{"Content-Length": "99"})}
    with server(answers) as (url, _):
        fetcher = Fetcher(url, 0)
        assert fetcher.get(url + "/there") == b"here"
        for path, message in (("/bomb", "larger than"), ("/away", "is on another host"), ("/round", "redirects"),
                              ("/file", "is on another host"), ("/half", "4 times")):
            with pytest.raises(FetchError, match=message):
                fetcher.get(url + path)
        with pytest.raises(FetchError, match="is on another host"):
            fetcher.get("http://example.com/")


# ---------------------------------------------------------------- bad answers


PAGE = """<html><body><div class="article-detail"><div class="article-info"><span class="date">{date}</span></div>
<h1>Title {n}</h1><div id="article-text"><p>Text of article {n}, which is whole.</p></div></div>
<p>A sidebar is no article.</p></body></html>"""


def test_bad_articles_are_counted_and_the_rest_comes(tmp_path, monkeypatch, capsys):
    def path(n: int) -> str:
        return f"/global/article/detail/T{n:07d}EN/slug"
    entries = "".join(f"<url><loc>{{url}}{path(n)}</loc></url>" for n in range(8)) + "<url><loc>{url}/other</loc></url>"
    answers = {path(0): ok(PAGE.format(n=0, date="05.12.2025")), path(1): (404, {}, b""),
               path(2): ok("<html><h1>x</h1><p>No body here.</p></html>"), path(3): ok(PAGE.format(n=3, date="some day")),
               path(4): ok(b""), path(5): (500, {}, b""), path(6): ok(b"\xff\xfe\x00<"),
               path(7): ok(PAGE.format(n=7, date="Fri Dec 05 08:34:40 CET 2025"))}
    with server(answers) as (url, _):
        sitemap = "/sitemaps/sitemap_text_pcgl_en.xml"
        answers["/robots.txt"] = ok(f"Sitemap: {url}{sitemap}\nSitemap: {url}/sitemaps/other_de.xml\n")
        answers[sitemap] = ok(f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries.format(url=url)}</urlset>')
        arguments = ["--base-url", url, "--source", "sitemap", "--out", tmp_path / "a.jsonl"]
        code, out, _ = run_main(monkeypatch, capsys, "scrape.py", *arguments)
    assert code == 0 and "failed           6" in out
    for reason in ("404", "the page has no title and no text", "no date that can be read: 'some day'", "500"):
        assert reason in out
    found = read_jsonl(tmp_path / "a.jsonl")
    assert [(a["title"], a["date"]) for a in found] == [("Title 0", "2025-12-05"), ("Title 7", "2025-12-05")]
    assert found[0]["text"] == "Text of article 0, which is whole."


@pytest.mark.parametrize("arguments, message", [
    (["--source", "sitemap"], "declares no sitemap"), (["--source", "urls"], "takes URLs of articles"),
    ([], "nothing collected"),
    (["--site", "audi"], "unknown --site 'audi'; known: bmw"), (["--since", "2025"], "--since '2025' is no date"),
    (["--limit", "0"], "--limit must be at least 1"), (["--delay", "-1"], "--delay from 0"),
    (["--base-url", "ftp://x"], "is no web address"), (["--out", "/dev/null/a.jsonl"], "choose another --out"),
])
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, message):
    with server({"/robots.txt": ok("")}) as (url, _):
        arguments = ["--base-url", url, "--out", tmp_path / "a.jsonl", *arguments]
        code, _, err = run_main(monkeypatch, capsys, "scrape.py", *arguments)
    assert code == 2 and message in err and "Traceback" not in err and not (tmp_path / "a.jsonl").exists()


def test_a_damaged_collection_is_left_alone(articles, tmp_path, monkeypatch, capsys):
    out = tmp_path / "a.jsonl"
    out.write_text('{"id": "T0000001EN"}\n{"id": \n{"id": "T0000002EN"}\n')
    with site.serve(articles) as url:
        code, _, err = run_main(monkeypatch, capsys, "scrape.py", "--base-url", url, "--out", out)
    assert code == 2 and "a.jsonl, line 2: not an article" in err
    assert out.read_text() == '{"id": "T0000001EN"}\n{"id": \n{"id": "T0000002EN"}\n'


def test_a_full_disk_keeps_what_was_collected(tmp_path, monkeypatch):
    with scrape.open_collection(tmp_path / "a.jsonl") as (_, append):
        append({"id": "T1"})
    with pytest.raises(ValueError, match="No space left.*the articles before are kept"):
        with scrape.open_collection(tmp_path / "a.jsonl") as (have, append):
            assert have == {"T1"}
            monkeypatch.setattr(scrape.json, "dumps", full_disk)
            append({"id": "T2"})
    monkeypatch.undo()
    assert [a["id"] for a in read_jsonl(tmp_path / "a.jsonl")] == ["T1"]


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


# ---------------------------------------------------------------- markup


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
    found, following = parse_feed(feed, BMW)
    assert following is None and [a["id"] for a in found] == ["T0000001EN", "T0000002EN_US", "T0000003DE"]
    assert found[0]["text"] == "Whole CO2 text." and found[0]["title"] == "A & B" and found[0]["date"] == "2025-12-05"
    assert [scrape.is_complete(a) for a in found] == [True, False, False]
    assert [BMW.speaks(a["id"]) for a in found] == [True, True, False]
    for wrong in (b"", b"<html><body>No feed</body></html>", b"plain text", b"{}"):
        with pytest.raises(ValueError, match="not "):
            parse_feed(wrong, BMW)


def test_entities_do_not_read_files(tmp_path):
    (tmp_path / "secret").write_text("secret words")
    xml = (f'<!DOCTYPE rss [<!ENTITY x SYSTEM "file://{tmp_path}/secret"> <!ENTITY a "{"a" * 1000}">]>'
           "<rss><channel><item><title>&x;</title><guid>T0000001EN</guid></item></channel></rss>").encode()
    assert "secret words" not in json.dumps(parse_feed(xml, BMW)[0])


@given(st.one_of(st.binary(max_size=300), st.text("<>/abp &;=\"'\x00-!?[]", max_size=200).map(str.encode)))
@settings(max_examples=300, deadline=None)
def test_parsers_only_ever_raise_value_errors(data):
    for parse in (html_to_text, lambda d: parse_feed(d, BMW), parse_sitemap, lambda d: parse_article(d, BMW, "T0000001EN")):
        try:
            parse(data)
        except ValueError:
            pass
