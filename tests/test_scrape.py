"""scrape.py against servers on this machine: a whole newsroom, what is kept of it, and one that answers
badly.
"""

import gzip
import json
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from threading import Thread

import pytest
from server import ok, server
from small import ROOT, run_main

from nanoprune.demo import site
from nanoprune.demo.newsroom import invent, oddities, releases
from nanoprune.demo.site import SITEMAP, article_path, serve
from nanoprune.io.jsonl import read_jsonl, write_jsonl
from nanoprune.web import archive, html, http, sites
from nanoprune.web.archive import Archive
from nanoprune.web.sites import SITES, Site

BMW = SITES["bmw"]


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def articles() -> list[dict]:
    company = invent(3, companies=1, models=6, first_day=date(2024, 1, 1))[0]
    found = releases(company, 50, 7, date(2024, 1, 1))
    return found + oddities(company, 7, found[0])


# ---------------------------------------------------------------- a whole newsroom


@pytest.mark.parametrize("source", ["feed", "sitemap"])
def test_a_whole_newsroom(articles, tmp_path, monkeypatch, capsys, source):
    """Every article once with its whole text, in both ends of a feed and both forms of markup; the second run
    fetches none.
    """
    out = tmp_path / "raw" / "articles.jsonl"
    with serve(articles) as url:
        arguments = ["--base-url", url, "--delay", "0", "--source", source, "--out", out]
        code, text, _ = run_main(monkeypatch, capsys, "scrape.py", *arguments)
        assert code == 0 and f"wrote {out}" in text and "(1 in another language)" in text
        before = out.read_bytes()
        asked = []
        monkeypatch.setattr(http.requests.Session, "get", record(asked, http.requests.Session.get))
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
    with serve(articles) as url:
        arguments = ["--base-url", url, "--delay", "0", "--out", out, "--since", "2025-01-01"]
        assert run_main(monkeypatch, capsys, "scrape.py", *arguments, "--limit", "7")[0] == 0
        assert len(read_jsonl(out)) == 7
        with open(out, "ab") as file:
            file.write(b'{"id": "T00')  # a kill in the middle of a line
        code, text, err = run_main(monkeypatch, capsys, "scrape.py", *arguments)
    assert code == 0 and "line 8: a half line at the end is dropped" in err
    assert {a["id"] for a in read_jsonl(out)} == {a["id"] for a in articles if a["date"] >= "2025-01-01"
                                                  and a["lang"] == "en"}


HERZOG = Site(  # another newsroom, built in another way: another language, markup, dates, ids and feed
    base_url="https://presse.example",
    feed="/presse/feed/{topic}/?paged={page}",
    topics=("alle",),
    sitemaps="post-sitemap",
    id=r"\d{4}/\d\d/[\w-]+",
    language="DE",
    title="//article/header/h1",
    teaser="//p[@class='lead']",
    date="//article//time",
    category="//a[@rel='category']",
    tags="//a[@rel='tag']",
    body="//div[@class='entry']",
    dates=(r"(?P<day>\d{1,2})\. (?P<month>\w+) (?P<year>\d{4})",),
    months=("jan", "feb", "mär", "apr", "mai", "jun", "jul", "aug", "sep", "okt", "nov", "dez"),
)


@pytest.mark.parametrize("source", ["feed", "sitemap"])
def test_another_newsroom_is_a_definition(tmp_path, monkeypatch, capsys, source):
    monkeypatch.setitem(SITES, "herzog", HERZOG)
    answers, items, entries = {"/robots.txt": None}, [], []
    with server(answers) as (url, _):
        for n in range(1, 6):
            path = f"/presse/2025/{n:02}/meldung-{n}"
            html = f"<p>Die Größe von Nr. {n} &ndash; CO<sub>2</sub>.</p><ul><li>eins</li><li>zwei</li></ul>"
            answers[path] = ok(f"<html><article><header><h1>Meldung &amp; {n}</h1><time>{n}. März "
                               f"2025</time></header>"
                               f"<p class=lead>Kurz.</p><div class=entry>{html}</div><a rel=tag>Auto</a>"
                               f"</article></html>")
            items.append(f"<item><title>Meldung &amp;amp; {n}</title><link>{url}{path}</link><guid>"
                         f"{url}/?p={n}</guid>"
                         f"<pubDate>Mon, {n:02} Mar 2025 10:00:00 +0000</pubDate><description>"
                         f"Kurz.</description>"
                         f"<content:encoded><![CDATA[{html}]]></content:encoded></item>")
            entries.append(f"<url><loc>{url}{path}</loc></url>")
        for page in (1, 2):
            part = "".join(items[3 * page - 3 : 3 * page])
            answers[f"/presse/feed/alle/?paged={page}"] = ok(
                f'<rss xmlns:content="http://purl.org/rss/1.0/modules/content/"><channel>{part}</channel>'
                f'</rss>')
        answers["/robots.txt"] = ok(f"Sitemap: {url}/index.xml\n")
        answers["/index.xml"] = ok(f"<sitemapindex><sitemap><loc>{url}/post-sitemap1.xml.gz</loc></sitemap>"
                                   f"</sitemapindex>")
        answers["/post-sitemap1.xml.gz"] = ok(gzip.compress(f"<urlset>{''.join(entries)}</urlset>".encode()))
        code, _, err = run_main(monkeypatch, capsys, "scrape.py", "--site", "herzog", "--base-url", url,
                                "--delay", "0",
                                "--source", source, "--out", tmp_path / "a.jsonl")
    assert code == 0, err
    found = read_jsonl(tmp_path / "a.jsonl")
    assert [(a["id"], a["date"], a["title"]) for a in found] == [
        (f"2025/{n:02}/meldung-{n}", f"2025-03-{n:02}", f"Meldung & {n}") for n in range(1, 6)]
    assert found[2]["text"] == "Die Größe von Nr. 3 – CO2.\n\n- eins\n- zwei"
    assert found[2]["tags"] == (["Auto"] if source == "sitemap" else [])


def test_tables_and_other_hosts(tmp_path, monkeypatch, capsys):
    table = ("<table><tr><td>Power</td><td>250 kW</td></tr></table>after "
             "<table><tr><td><p>Layout stays.</p></td></tr></table>")
    pages_of = {n: f"/global/article/detail/T000000{n}EN/slug" for n in (1, 2)}
    answers = {pages_of[1]: ok(PAGE.format(n=1, date="05.12.2025").replace("<p>Text", f"{table}<p>Text"))}
    with server(answers) as (url, _), server({pages_of[2]: ok(PAGE.format(n=2,
                                                                          date="06.12.2025"))}) as (other, _):
        elsewhere = other.replace("127.0.0.1", "localhost")
        answers[pages_of[2]] = (302, {"Location": elsewhere + pages_of[2]}, b"")
        arguments = ["--base-url", url, "--delay", "0", *(url + path for path in pages_of.values())]
        code, text, _ = run_main(monkeypatch, capsys, "scrape.py", "--out", tmp_path / "a.jsonl", *arguments,
                                 "--no-tables")
        assert code == 0 and "is on another host; --allow-host would allow it" in text
        whole = "after\n\nLayout stays.\n\nText of article 1, which is whole."
        assert [a["text"] for a in read_jsonl(tmp_path / "a.jsonl")] == [whole]
        run_main(monkeypatch, capsys, "scrape.py", "--out", tmp_path / "b.jsonl", *arguments, "--allow-host",
                 "localhost")
    found = read_jsonl(tmp_path / "b.jsonl")
    assert [a["id"] for a in found] == ["T0000001EN",
                                        "T0000002EN"] and found[0]["text"].startswith("Power | 250 kW")


def test_single_urls(articles, tmp_path, monkeypatch, capsys):
    out = tmp_path / "articles.jsonl"
    with serve(articles) as url:
        pages = [url + article_path(a) for a in articles[:2]]
        code, text, _ = run_main(monkeypatch, capsys, "scrape.py", "--base-url", url, "--delay", "0", "--out",
                                 out, *pages,
                                 url + "/global/article/detail/T9999999EN/nothing")
    assert code == 0 and [a["id"] for a in read_jsonl(out)] == [a["id"] for a in articles[:2]]
    assert "failed         1" in text and "T9999999EN/nothing: 404" in text


# ---------------------------------------------------------------- what is kept


def test_reparsing_gives_the_same_bytes_and_a_better_parser_other_text(articles, tmp_path, monkeypatch,
                                                                       capsys):
    out = tmp_path / "a.jsonl"
    with serve(articles) as url:
        arguments = ["--base-url", url, "--delay", "0", "--out", out]
        run_main(monkeypatch, capsys, "scrape.py", *arguments, "--source", "sitemap")
        run_main(monkeypatch, capsys, "scrape.py", *arguments)  # a feed has no tags, and takes none away
    before = out.read_bytes()
    assert sum(bool(a["tags"]) for a in read_jsonl(out)) >= 40
    for gone in (False, True):  # nobody listens any more
        if gone:
            out.unlink()
        code, text, _ = run_main(monkeypatch, capsys, "scrape.py", *arguments, "--reparse")
        assert code == 0 and out.read_bytes() == before
    monkeypatch.setattr(sites, "parse_date", no_date)  # a parser that is worse
    assert run_main(monkeypatch, capsys, "scrape.py", *arguments,
                    "--reparse")[0] == 0 and out.read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setattr(html, "INVISIBLE", dict.fromkeys(map(ord, "aeiou")))
    code, text, _ = run_main(monkeypatch, capsys, "scrape.py", *arguments, "--reparse")
    assert code == 0 and f"updated     {len(read_jsonl(out)):4}" in text
    assert "e" not in read_jsonl(out)[0]["text"]
    (tmp_path / "b.raw").mkdir()
    code, _, err = run_main(monkeypatch, capsys, "scrape.py", "--out", tmp_path / "b.jsonl", "--reparse")
    assert code == 2 and "keeps no answers to read again" in err


def no_date(*_):
    raise ValueError("no date that can be read")


@pytest.mark.parametrize("source", ["feed", "sitemap"])
def test_killed_at_any_moment_it_loses_nothing_and_fetches_nothing_twice(articles, tmp_path, source):
    answers, asked = {}, []

    def answer_and_kill(path: str):
        def reply(_):
            asked.append(path)
            # the answer is sent, and the scraper killed while it reads or writes it
            if len(asked) in (3, 17, 18, 30):
                Thread(target=kill, args=[0.02 * (len(asked) % 3)]).start()
            kind, body = site.answer(articles, base, path)
            return 200, {"Content-Type": kind}, body.encode()
        return reply

    def kill(after: float) -> None:
        time.sleep(after)
        running[-1].kill()

    running, out, pages_asked = [], tmp_path / "a.jsonl", "/global/article/"
    with server(answers) as (base, _):
        for article in articles:
            answers[article_path(article)] = answer_and_kill(article_path(article))
        for path in ["/robots.txt", SITEMAP] + [site_feed(topic, page) for topic in BMW.topics
                                                for page in range(1, 5)]:
            if site.answer(articles, base, path):
                answers[path] = answer_and_kill(path)
        for _ in range(8):
            running.append(subprocess.Popen([sys.executable, "scrape.py", "--base-url", base, "--delay", "0",
                                             "--out", out,
                                             "--source", source], cwd=ROOT, stdout=subprocess.DEVNULL))
            if running[-1].wait(60) == 0:
                break
    assert 2 <= len(running) <= 6 and running[-1].returncode == 0
    assert {a["id"] for a in read_jsonl(out)} == {a["id"] for a in articles if a["lang"] == "en"}
    # Only an answer that was on its way when the scraper died is asked for again.
    again = Counter(path for path in asked if path.startswith(pages_asked))
    assert sum(n - 1 for n in again.values()) <= len(running) - 1


def site_feed(topic: str, page: int) -> str:
    return BMW.feed.format(topic=topic, page=page)


def test_what_did_not_change_is_not_sent_again_and_what_did_is_updated(tmp_path, monkeypatch, capsys):
    path, sent = "/global/article/detail/T0000001EN/slug", []
    state = {"day": "2025-12-05", "text": "The first text, which is whole."}

    def page(headers):
        tag = f'"{hash(state["text"])}"'
        sent.append(headers["If-None-Match"] != tag)
        body = PAGE.format(n=1, date="05.12.2025").replace("Text of article 1, which is whole.",
                                                           state["text"]).encode()
        return (200, {"ETag": tag}, body) if sent[-1] else (304, {"ETag": tag}, b"")

    answers = {path: page}
    answers["/sitemap_pcgl_en.xml"] = lambda _: ok(f"<urlset><url><loc>{url}{path}</loc><lastmod>"
                                                   f"{state['day']}</lastmod></url>"
                                                   "</urlset>")
    with server(answers) as (url, _):
        answers["/robots.txt"] = ok(f"Sitemap: {url}/sitemap_pcgl_en.xml\n")
        arguments = ["--base-url", url, "--delay", "0", "--source", "sitemap", "--out", tmp_path / "a.jsonl"]
        for day, text, was_sent, line in (("2025-12-05", "The first text, which is whole.", [True],
                                           "new            1"),
                                          ("2025-12-05", "The first text, which is whole.", [],
                                           "unchanged      1"),
                                          ("2025-12-06", "The first text, which is whole.", [False],
                                           "unchanged      1"),
                                          ("2025-12-07", "The second text, also whole.", [True],
                                           "updated        1")):
            state.update(day=day, text=text)
            sent.clear()
            code, found, _ = run_main(monkeypatch, capsys, "scrape.py", *arguments)
            assert code == 0 and line in found and sent == was_sent
            assert [a["text"] for a in read_jsonl(tmp_path / "a.jsonl")] == [text]
        kept = Archive(tmp_path / "a.raw")
        kept._path(kept.latest[url + path]["sha256"]).write_bytes(b"damaged")
        state["day"] = "2025-12-08"
        sent.clear()
        assert run_main(monkeypatch, capsys, "scrape.py", *arguments)[0] == 0 and sent == [True]
    kept = Archive(tmp_path / "a.raw")
    assert sum("first text" in kept.read(a).decode() for a in kept.answers) == 2  # under two dates of change
    assert sum("second text" in kept.read(a).decode() for a in kept.answers) == 2


def test_a_damaged_answer_is_asked_for_again(articles, tmp_path, monkeypatch, capsys):
    out = tmp_path / "a.jsonl"
    with serve(articles) as url:
        arguments = ["--base-url", url, "--delay", "0", "--source", "sitemap", "--out", out]
        run_main(monkeypatch, capsys, "scrape.py", *arguments)
        before = out.read_bytes()
        kept = Archive(tmp_path / "a.raw")
        kept._path(next(a for a in kept.answers if a["kind"] == "page")["sha256"]).write_bytes(b"not gzip")
        code, text, _ = run_main(monkeypatch, capsys, "scrape.py", *arguments)
        # the article itself is not lost
        assert code == 0 and "cannot be read" in text and out.read_bytes() == before
        out.unlink()
        assert run_main(monkeypatch, capsys, "scrape.py", *arguments)[0] == 0 and out.read_bytes() == before


def test_an_id_used_twice(tmp_path, monkeypatch, capsys):
    """The newest telling wins, whichever comes first; both are kept."""
    item = ("<item><title>A</title><link>{url}/x/T0000001EN/{n}</link><guid>T0000001EN</guid>"
            "<pubDate>{day} Dec 2025 08:00:00 +0100</pubDate><description>Text number {n}, "
            "whole.</description></item>")
    answers = {"/robots.txt": ok("")}
    with server(answers) as (url, _):
        items = [item.format(url=url, n=n, day=day) for n, day in ((1, 5), (2, 9), (3, 7))]
        answers[site_feed("803", 1)] = ok(f'<rss version="2.0"><channel>{"".join(items)}</channel></rss>')
        arguments = ["--base-url", url, "--out", tmp_path / "a.jsonl", "--topics", "803"]
        assert run_main(monkeypatch, capsys, "scrape.py", *arguments)[0] == 0
    assert [(a["text"], a["date"]) for a in read_jsonl(tmp_path / "a.jsonl")] == [("Text number 2, whole.",
                                                                                   "2025-12-09")]


def test_choices(articles, tmp_path, monkeypatch, capsys):
    with serve(articles) as url:
        def chosen(*options) -> list[dict]:
            out = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
            code, _, err = run_main(monkeypatch, capsys, "scrape.py", "--base-url", url, "--delay", "0",
                                    "--out", out, *options)
            assert code == 0, err
            return read_jsonl(out)

        everything = chosen()
        days = [a["date"] for a in everything]
        assert days == sorted(days)
        middle = days[len(days) // 2]
        assert [a["date"] for a in chosen("--until", middle)] == [day for day in days if day <= middle]
        assert [a["date"] for a in chosen("--since", middle, "--until", middle)] == [day for day in days
                                                                                     if day == middle]
        topic = articles[0]["topics"][0]
        assert {a["id"] for a in chosen("--topics", topic)} == {
            a["id"] for a in articles if topic in a["topics"] and a["lang"] == "en"} != {a["id"]
                                                                                         for a in everything}
        assert {a["id"] for a in chosen("--lang", "de")} == {a["id"] for a in articles
                                                             if a["lang"] == "de"} != set()


# ---------------------------------------------------------------- bad answers


PAGE = """<html><body><div class="article-detail">
<div class="article-info"><span class="date">{date}</span></div>
<h1>Title {n}</h1><div id="article-text"><p>Text of article {n}, which is whole.</p></div></div>
<p>A sidebar is no article.</p></body></html>"""


def test_bad_articles_are_counted_and_the_rest_comes(tmp_path, monkeypatch, capsys):
    def path(n: int) -> str:
        return f"/global/article/detail/T{n:07d}EN/slug"
    entries = "".join(f"<url><loc>{{url}}{path(n)}</loc></url>"
                      for n in range(8)) + "<url><loc>{url}/other</loc></url>"
    answers = {path(0): ok(PAGE.format(n=0, date="05.12.2025")), path(1): (404, {}, b""),
               path(2): ok("<html><h1>x</h1><p>No body here.</p></html>"),
               path(3): ok(PAGE.format(n=3, date="some day")),
               path(4): ok(b""), path(5): (500, {}, b""), path(6): ok(b"\xff\xfe\x00<"),
               path(7): ok(PAGE.format(n=7, date="Fri Dec 05 08:34:40 CET 2025"))}
    with server(answers) as (url, _):
        sitemap = "/sitemaps/sitemap_text_pcgl_en.xml"
        answers["/robots.txt"] = ok(f"Sitemap: {url}{sitemap}\nSitemap: {url}/sitemaps/other_de.xml\n")
        answers[sitemap] = ok(f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
                              f'{entries.format(url=url)}</urlset>')
        arguments = ["--base-url", url, "--source", "sitemap", "--out", tmp_path / "a.jsonl"]
        code, out, _ = run_main(monkeypatch, capsys, "scrape.py", *arguments)
    assert code == 0 and "failed         6" in out
    for reason in ("404", "the page has no title and no text", "no date that can be read: 'some day'", "500"):
        assert reason in out
    found = read_jsonl(tmp_path / "a.jsonl")
    assert [(a["title"], a["date"]) for a in found] == [("Title 0", "2025-12-05"), ("Title 7", "2025-12-05")]
    assert found[0]["text"] == "Text of article 0, which is whole."


def test_a_feed_that_breaks_in_the_middle_is_named(tmp_path, monkeypatch, capsys):
    """What stands before the break is taken, from its page as its text may be cut; the pages that follow
    come, too.
    """
    item = ("<item><title>Title {n}</title><link>{url}/global/article/detail/T{n:07d}EN/slug</link><guid>"
            "T{n:07d}EN</guid>"
            "<pubDate>Fri, 05 Dec 2025 08:34:40 +0100</pubDate><description>Text of {n}, "
            "whole.</description></item>")
    answers = {"/robots.txt": ok("")}
    with server(answers) as (url, _):
        items = [item.format(url=url, n=n) for n in range(6)]
        broken = f'<rss version="2.0"><channel>{"".join(items[:3])}<item><title>Title & <b'
        answers[site_feed("803", 1)] = ok(broken)
        answers[site_feed("803", 2)] = ok(f"<rss><channel>{''.join(items[4:])}</channel></rss>")
        answers |= {f"/global/article/detail/T{n:07d}EN/slug": ok(PAGE.format(n=n, date="05.12.2025"))
                    for n in range(3)}
        code, out, _ = run_main(monkeypatch, capsys, "scrape.py", "--base-url", url, "--out",
                                tmp_path / "a.jsonl",
                                "--topics", "803", "--delay", "0")
    assert code == 0 and f"{url}{site_feed('803', 1)}: its XML is broken" in out and "failed         1" in out
    assert {a["id"]: a["text"] for a in read_jsonl(tmp_path / "a.jsonl")} == {
        f"T{n:07d}EN": f"Text of article {n}, which is whole." if n < 3 else f"Text of {n}, whole."
        for n in (0, 1, 2, 4, 5)}


def test_items_without_a_link(tmp_path, monkeypatch, capsys):
    """Items that only a guid names are items; one that nothing names is named by its title."""
    item = ("<item><title>Release {n}</title>{guid}<pubDate>Fri, {n:02} Dec 2025 08:00:00 +0100</pubDate>"
            "<description>Text {n}, whole.</description></item>")
    answers = {"/robots.txt": ok("")}
    with server(answers) as (url, _):
        guids = [f'<guid isPermaLink="true">{url}/global/article/detail/T{n:07d}EN/slug</guid>'
                 for n in range(1, 7)]
        guids += ["<guid>T0000007EN</guid>", "<guid isPermaLink='false'>T0000008EN</guid>", "",
                  "<guid>x-9</guid>"]
        items = [item.format(n=n, guid=guid) for n, guid in enumerate(guids, start=1)]
        answers[site_feed("803", 1)] = ok(f"<rss><channel>{''.join(items)}</channel></rss>")
        code, out, _ = run_main(monkeypatch, capsys, "scrape.py", "--base-url", url, "--topics", "803",
                                "--delay", "0", "--out", tmp_path / "a.jsonl")
    found = read_jsonl(tmp_path / "a.jsonl")
    assert code == 0 and [a["id"] for a in found] == [f"T{n:07d}EN" for n in range(1, 9)]
    assert len({a["url"] for a in found[:6]}) == 6
    assert all((a["site"], a["language"]) == ("bmw", "EN") for a in found)
    assert "failed         2" in out and "Release 9: the feed gives neither" in out
    assert "read           8  by the definition of bmw" in out


@pytest.mark.parametrize("end", ["[…]", "Continue reading", "[mehr]"])
def test_the_page_of_a_summary_is_fetched(tmp_path, monkeypatch, capsys, end):
    path = "/global/article/detail/T0000001EN/slug"
    answers = {"/robots.txt": ok(""), path: ok(PAGE.format(n=1, date="05.12.2025"))}
    with server(answers) as (url, seen):
        answers[site_feed("803", 1)] = ok(f"""<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
            xmlns="http://purl.org/rss/1.0/"><item><title>Title 1</title><link>{path}</link><description>
            Text of article 1 {end}</description><pubDate>5 Dec 25</pubDate></item></rdf:RDF>""")
        code, out, _ = run_main(monkeypatch, capsys, "scrape.py", "--base-url", url, "--topics", "803",
                                "--delay", "0", "--out", tmp_path / "a.jsonl")
    assert code == 0 and path in [asked for asked, _ in seen]
    assert [a["text"] for a in read_jsonl(tmp_path / "a.jsonl")] == ["Text of article 1, which is whole."]


@pytest.mark.parametrize("arguments, message", [
    (["--source", "sitemap"], "declares no sitemap"), (["--source", "feed", "http://x"], "takes no URLs"),
    ([], "nothing collected"),
    (["--site", "no-such-site"], "--site: invalid choice: 'no-such-site' (choose from "),
    (["--since", "2025"], "--since: '2025' is no date; write one such as 2025-09-01"),
    (["--topics", "no-such"], "/topic/no-such?page=1: 404"),
    (["--limit", "0"], "--limit must be at least 1"), (["--delay", "-1"], "--delay must be at least 0"),
    (["--base-url", "ftp://x"], "is no web address"),
    (["manualz/"], "manualz/ is neither a folder nor a web address"),
    (["--no-tables", "."], "--base-url, --no-tables: not for a folder of documents"),
    (["--reparse", "http://x"], "--reparse reads all stored answers again and takes no URLs"),
    (["--out", "/dev/null/a.jsonl"], "choose another --out"),
])
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, message):
    with server({"/robots.txt": ok("")}) as (url, _):
        arguments = ["--base-url", url, "--out", tmp_path / "a.jsonl", *arguments]
        code, _, err = run_main(monkeypatch, capsys, "scrape.py", *arguments)
    assert code == 2 and message in err and "Traceback" not in err and not (tmp_path / "a.jsonl").exists()


def test_a_damaged_collection_is_left_alone(articles, tmp_path, monkeypatch, capsys):
    out = tmp_path / "a.jsonl"
    out.write_text('{"id": "T0000001EN", "url": "", "title": "", "date": "", "text": ""}\n{"id": \n')
    with serve(articles) as url:
        code, _, err = run_main(monkeypatch, capsys, "scrape.py", "--base-url", url, "--out", out)
    assert code == 2 and "a.jsonl, line 2: not valid JSON" in err
    assert out.read_text().endswith('"text": ""}\n{"id": \n')


@pytest.mark.parametrize("rows, message", [
    ([{"id": "a", "note": "mine"}], "line 1: lacks url, title, date, text"),
    ([{"id": "a", "url": "", "title": "t", "date": "", "text": "x"}] * 2, "holds an id twice"),
])
def test_another_programs_file_is_left_alone(articles, tmp_path, monkeypatch, capsys, rows, message):
    out = tmp_path / "a.jsonl"
    write_jsonl(out, rows)
    before = out.read_bytes()
    with serve(articles) as url:
        code, _, err = run_main(monkeypatch, capsys, "scrape.py", "--base-url", url, "--out", out)
    assert code == 2 and message in err and out.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("broken", ["write_bytes", "append_line"])
def test_a_full_disk_keeps_what_was_collected(articles, tmp_path, monkeypatch, capsys, broken):
    out = tmp_path / "a.jsonl"
    with serve(articles) as url:
        arguments = ["--base-url", url, "--delay", "0", "--out", out]
        run_main(monkeypatch, capsys, "scrape.py", *arguments, "--limit", "5")
        before, write, calls = out.read_bytes(), getattr(archive, broken), []

        def fill_up(path, data):
            calls.append(path)
            if len(calls) > 1:
                raise ValueError(f"cannot write {path}: No space left on device; what was collected before "
                                 f"is kept")
            write(path, data)

        monkeypatch.setattr(archive, broken, fill_up)
        code, _, err = run_main(monkeypatch, capsys, "scrape.py", *arguments)
        assert code == 2 and "No space left" in err
        kept = read_jsonl(out)
        assert len(kept) >= 5 and {json.dumps(a)
                                   for a in map(json.loads, before.splitlines())} <= set(map(json.dumps,
                                                                                             kept))
        monkeypatch.undo()
        assert run_main(monkeypatch, capsys, "scrape.py", *arguments)[0] == 0
    assert len(read_jsonl(out)) == sum(a["lang"] == "en" for a in articles)
