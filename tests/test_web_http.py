"""HTTP as a guest: robots.txt, pauses, retries, sizes and hosts."""

import gzip
import time

import pytest
from server import ok, server

from nanoprune.web import http
from nanoprune.web.archive import Archive
from nanoprune.web.http import Disallowed, Fetcher, FetchError, retry_after, web_address

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def archive(tmp_path) -> Archive:
    return Archive(tmp_path / "a.raw")


def test_manners(archive, quick):
    robots = "User-agent: *\nDisallow: /private\nCrawl-delay: 3\n"
    with server({"/robots.txt": ok(robots), "/a": ok("a"), "/b": ok("b"), "/private/c": ok("c")}) as (url,
                                                                                                      seen):
        fetcher = Fetcher(url, archive, delay=1.0)
        assert fetcher.get(url + "/a") == b"a" and fetcher.get(url + "/b") == b"b"
        with pytest.raises(Disallowed):
            fetcher.get(url + "/private/c")
    assert [path for path, _ in seen] == ["/robots.txt", "/a", "/b"]
    assert all(agent.startswith("nanoprune/") for _, agent in seen)
    # after robots.txt one second, then what it asks for
    assert 0.8 < quick[1] <= 1.25 and 2.5 < quick[2] <= 3.75


@pytest.mark.parametrize("rules, allowed, refused", [
    ("Disallow: /\nAllow: /global/article/", ["/global/article/x"], ["/", "/global/x"]),
    ("Disallow: /a\nAllow: /a/b\nDisallow: /a/b/c", ["/a/b/x", "/x"], ["/a/x", "/a/b/c"]),
    ("Allow: /page\nDisallow: /page", ["/page"], []),
    ("Disallow: /*?print=\nDisallow: /*/print/\nDisallow: /*.pdf$", ["/x", "/x.pdf?y", "/print"],
     ["/x?print=1", "/a/print/b", "/x.pdf"]),
    ("Disallow: /*.html$\nAllow: /news*/index.html$", ["/news1/index.html", "/a.html5"], ["/news/b.html"]),
    ("\nDisallow: /private\n\nDisallow: /other", ["/x"], ["/private", "/other"]),
    ("Disallow: /private", ["/x"], ["/x/%2e%2e/private", "/./private", "/%70rivate"]),
    ("\n\n# a comment\n\nUser-agent: nanoprune\n\nDisallow: /private", ["/x"], ["/private"]),
])
def test_robots_txt(archive, rules, allowed, refused):
    answers = {path: ok("page") for path in allowed + refused}
    with server(answers | {"/robots.txt": ok(f"User-agent: *\n{rules}\n")}) as (url, _):
        fetcher = Fetcher(url, archive, 0)
        for path in allowed:
            assert fetcher.get(url + path) == b"page"
        for path in refused:
            with pytest.raises(Disallowed):
                fetcher.get(url + path)


@pytest.mark.parametrize("asked, delay, said", [
    ("2.5", 2.5, False), ("0.5", 1.0, False), ("30", 30, False), ("1000000000", 30, True),
    ("86400.5", 30, True), ("1e9", 30, True), ("-5", 1.0, False), ("soon", 1.0, False)])
def test_a_crawl_delay_is_bounded(archive, capsys, asked, delay, said):
    with server({"/robots.txt": ok(f"User-agent: *\nCrawl-delay: {asked}\n")}) as (url, _):
        assert Fetcher(url, archive, 1.0).delay == delay
        assert Fetcher(url, archive, 90.0).delay == 90  # asked for by the user
    assert ("robots.txt asks for" in capsys.readouterr().out) == said


def test_no_robots_txt_allows_all_and_a_broken_one_stops(archive):
    with server({"/a": ok("a")}) as (url, _):
        assert Fetcher(url, archive, 0).get(url + "/a") == b"a"
    with server({"/robots.txt": (503, {}, b"")}) as (url, _), pytest.raises(ValueError,
                                                                            match="cannot read "
                                                                                  ".*robots.txt: 503"):
        Fetcher(url, archive, 0)
    with pytest.raises(ValueError, match="cannot read .*robots.txt.*Check the network"):
        Fetcher(url, archive, 0)  # nobody listens there any more


def test_retries(archive, quick):
    answers = {"/busy": [(503, {}, b""), (429, {"Retry-After": "7"}, b""), ok("now")],
               "/closed": [(0, {}, None), ok("again")],
               "/never": (500, {}, b""), "/later": (429, {"Retry-After": "9999"}, b""),
               "/gone": (410, {}, b"")}
    with server(answers) as (url, seen):
        fetcher = Fetcher(url, archive, 0)
        quick.clear()
        assert fetcher.get(url + "/busy") == b"now" and [w for w in quick if w] == [1, 7]
        assert fetcher.get(url + "/closed") == b"again"
        for path, message, tries in (("/never", "500 .*4 times", 4),
                                     ("/later", "asks to come back in 9999 s", 1),
                                     ("/gone", "410", 1)):
            with pytest.raises(FetchError, match=message):
                fetcher.get(url + path)
            assert [p for p, _ in seen].count(path) == tries
        fetcher._get_once = timeout
        with pytest.raises(FetchError, match="no answer in time"):
            fetcher.get(url + "/never")


def timeout(url, headers):
    raise http.requests.ReadTimeout("slow")


def test_retry_after():
    assert retry_after("12") == 12 and retry_after("") == retry_after("soon") == retry_after("-1") == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Fri, 31 Dec 9999 23:59:59 GMT") > 1e9
    assert retry_after("1 Jan 99999999999999999999 00:00:00 GMT") == 0


def test_sizes_and_hosts(archive, monkeypatch):
    monkeypatch.setattr(http, "MAX_BYTES", 2**16)
    bomb = gzip.compress(b"0" * 2**24)
    answers = {"/bomb": ok(bomb, **{"Content-Encoding": "gzip"}),
               "/away": (302, {"Location": "http://example.com/x"}, b""),
               "/there": (301, {"Location": "/here"}, b""), "/here": ok("here"),
               "/round": (302, {"Location": "/round"}, b""),
               "/file": (302, {"Location": "file:///etc/passwd"}, b""),
               "/half": ok("half", **{"Content-Length": "99"})}
    with server(answers) as (url, seen):
        fetcher = Fetcher(url, archive, 0)
        assert fetcher.get(url + "/there") == b"here"
        for path, message in (("/bomb", "larger than"), ("/away", "is on another host"),
                              ("/round", "redirects"),
                              ("/file", "is on another host"), ("/half", "4 times")):
            with pytest.raises(FetchError, match=message):
                fetcher.get(url + path)
        with pytest.raises(FetchError, match="is on another host"):
            fetcher.get("http://example.com/")
    assert [path for path, _ in seen].count("/round") == http.MAX_REDIRECTS + 1


@pytest.mark.parametrize("location", [
    r"http://{other}\@{site}/x", r"http://{site}\@{other}/x", "http://{site}@{other}/x", "http://{other}#@{site}/x",
    "http://{other}?@{site}/x", "//{other}/x", "///{other}/x", r"http:\\{other}\x", r"\\{other}/x",
    "ht\ttp://{other}/x", "http://{other}\t/x", "http:{other}/x", "http://user:word@{site}/good",
    "http://[::1", "//[::1", "http://{other}:x/", "http://{site}:99999/", "http://", "https:///x", "%zz",
    "\xff", "http://169.254.169.254/latest/meta-data", "http://localhost/x", "http://2130706433/x", "http://0x7f.1/x",
    "http://ｅｘａｍｐｌｅ.com/x", "http://" + "a" * 99 + ".example/x", "http://.../x",
    "file:///etc/passwd", "ftp://{site}/x", "javascript:x", "data:text/plain,x"])
def test_a_redirect_never_leads_to_another_host_nor_ends_the_collection(archive, location):
    answers = {"/good": ok("good")}
    with server({"/x": ok("wrong")}) as (other, other_seen), server(answers) as (url, _):
        names = {"other": other.removeprefix("http://"), "site": url.removeprefix("http://")}
        header = location.format(**names).encode("latin1" if location == "\xff" else "utf8").decode("latin1")
        answers["/"] = 302, {"Location": header}, b""
        fetcher = Fetcher(url, archive, 0)
        with pytest.raises(FetchError):
            fetcher.get(url + "/")
        assert fetcher.get(url + "/good") == b"good"
    assert not other_seen


@pytest.mark.parametrize("url, same", [
    ("http://EXAMPLE.com/a", "http://example.com:80/a"), ("https://example.com.:443/a", "https://example.com/a"),
    ("http://Bücher.example/a", "http://xn--bcher-kva.example/a"), ("http://example.com/b/%2e%2E/a#x", "http://example.com/a"),
    ("http://example.com/%61", "http://example.com/./a")])
def test_a_url_has_one_form(url, same):
    one, other = web_address(url), web_address(same)
    assert http._host(one) == http._host(other) and one.request_uri == other.request_uri == "/a"
    assert web_address(one.url) == one


def test_another_host_is_allowed_by_name(archive):
    with server({"/x": ok("there")}) as (other, _):
        elsewhere = other.replace("127.0.0.1", "LocalHost.")
        with server({"/": (302, {"Location": f"{elsewhere}/x"}, b"")}) as (url, _):
            assert Fetcher(url, archive, 0, ["LOCALHOST"]).get(url + "/") == b"there"
            with pytest.raises(ValueError, match="cannot read .*not a URL"):
                Fetcher(url, archive, 0, ["[::1"])
    with pytest.raises(ValueError, match="names a user"):
        Fetcher("http://user:word@127.0.0.1", archive, 0)


def drip(start: bytes):
    """A start, and then a byte now and then for ever."""
    def parts(_):
        yield start
        while True:
            time.sleep(0.05)
            yield b"1"
    return parts


@pytest.mark.parametrize("start", [
    b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-A: ",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n", b"HTTP/1.1 2"])
def test_a_slow_answer_has_a_limit(archive, monkeypatch, start):
    monkeypatch.setattr(http, "MAX_SECONDS", 0.3)
    with server({"/slow": drip(start), "/a": ok("a")}) as (url, seen):
        fetcher = Fetcher(url, archive, 0)
        began = time.monotonic()
        with pytest.raises(FetchError, match=r"takes more than 0\.3 s"):
            fetcher.get(url + "/slow")
        assert time.monotonic() - began < 3 and fetcher.get(url + "/a") == b"a"
    assert [path for path, _ in seen].count("/slow") == 1


def test_answers_that_break_off_are_answers(archive):
    """They end no collection, as a host that is gone does."""
    with server({"/half": ok("half", **{"Content-Length": "99"})}) as (url, _):
        fetcher = Fetcher(url, archive, 0)
        for _ in range(http.MAX_UNANSWERED):
            with pytest.raises(FetchError, match="4 times"):
                fetcher.get(url + "/half")
        assert fetcher.unanswered == 0
    for number in range(1, 4):
        with pytest.raises(FetchError):
            fetcher.get(url + "/half")
        assert fetcher.unanswered == number
