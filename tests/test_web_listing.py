"""Listings that have no end, and links in them that lead nowhere or elsewhere."""

from dataclasses import replace

import pytest
from server import ok, server

from nanoprune.web import http, listing
from nanoprune.web.archive import Archive
from nanoprune.web.http import Fetcher
from nanoprune.web.listing import from_feed, from_sitemap
from nanoprune.web.sites import SITES

pytestmark = pytest.mark.usefixtures("quick")
ITEM = """<item><title>A</title><link>/T{n:07d}EN/a</link><pubDate>5 Dec 2025</pubDate>
    <description>Whole.</description></item>"""


NEXT = "<link xmlns='http://www.w3.org/2005/Atom' rel='next' href='/p{n}'/>"


class Site(dict):
    """Answers to every path, as a function of its number among all requests."""

    def __init__(self, robots: str, answer):
        super().__init__()
        self.robots, self.answer, self.asked = robots, answer, 0

    def get(self, path: str, _) -> tuple:
        if path == "/robots.txt":
            return ok(self.robots)
        self.asked += 1
        return ok(self.answer(self.asked))


def read(source, url: str, folder) -> tuple[list[str], list[str]]:
    """The ids of all articles that a source lists, and the reasons for what it misses."""
    missed = []

    def miss(url: str, error: Exception) -> None:
        missed.append(str(error))

    site = replace(SITES["bmw"], base_url=url, topics=("1",), sitemaps="")
    fetcher = Fetcher(url, Archive(folder / "a.raw"), 0)
    options = ["0001-01-01", miss] if source is from_feed else [miss]
    return [article["id"] for article, _ in source(fetcher, site, *options)], missed


@pytest.mark.parametrize("following", ["", NEXT])
def test_a_feed_without_end_ends(tmp_path, monkeypatch, following):
    monkeypatch.setattr(listing, "MAX_PAGES", 7)
    site = Site("", lambda n: f"<rss><channel>{following.format(n=n)}{ITEM.format(n=n)}</channel></rss>")
    with server(site) as (url, _):
        ids, missed = read(from_feed, url, tmp_path)
    assert len(ids) == site.asked == 7 and missed == ["has more than 7 pages; the rest is left out"]


def test_a_later_page_that_is_too_large_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(http, "MAX_BYTES", 2000)
    site = Site("", lambda n: f"<rss><channel>{NEXT.format(n=n)}{ITEM.format(n=n)}"
                              f"{' ' * 1500 * n}</channel></rss>")
    with server(site) as (url, _):
        ids, missed = read(from_feed, url, tmp_path)
    assert len(ids) == 1 and missed == ["larger than 0 MB"]


def test_a_feed_that_repeats_itself_ends(tmp_path):
    site = Site("", lambda n: f"<rss><channel>{NEXT.format(n=n)}{ITEM.format(n=n % 3)}</channel></rss>")
    with server(site) as (url, _):
        assert read(from_feed, url, tmp_path) == (["T0000001EN", "T0000002EN", "T0000000EN"], [])


def index(*urls: str) -> str:
    return f"<sitemapindex>{''.join(f'<sitemap><loc>{url}</loc></sitemap>' for url in urls)}</sitemapindex>"


def test_sitemaps_that_name_each_other_end(tmp_path):
    with server(Site("Sitemap: /a", lambda _: index(f"{url}/a", f"{url}/b", f"{url}/b"))) as (url, seen):
        assert read(from_sitemap, url, tmp_path) == ([], [])
    assert [path for path, _ in seen] == ["/robots.txt", "/a", "/b"]


@pytest.mark.parametrize("each", [1, 3, 50])
def test_sitemaps_without_end_end(tmp_path, monkeypatch, each):
    monkeypatch.setattr(listing, "MAX_SITEMAPS", 9)
    site = Site("Sitemap: /a", lambda n: index(*(f"{url}/{n}-{i}" for i in range(each))))
    with server(site) as (url, _):
        ids, missed = read(from_sitemap, url, tmp_path)
    assert (ids, missed) == ([], ["comes after 9 other sitemaps; the rest is left out"]) and site.asked == 9


@pytest.mark.parametrize("link", [
    "http://[::1", "//[::1/x", "http://169.254.169.254/x", "file:///etc/passwd", "x:y"])
def test_a_bad_link_of_a_listing_costs_itself_alone(tmp_path, link):
    robots = f"Sitemap: {link}\nSitemap: /a\n"
    pages = "<url><loc>/T0000001EN/a</loc></url>"
    with server(Site(robots, lambda _: f"<urlset>{pages}</urlset>")) as (url, _):
        ids, missed = read(from_sitemap, url, tmp_path / "robots")
    assert ids == ["T0000001EN"] and len(missed) == 1
    with server(Site("Sitemap: /a", lambda n: index(link, "/b", f"{url}/b") if n == 1 else
                     f"<urlset>{pages}</urlset>")) as (url, _):
        ids, missed = read(from_sitemap, url, tmp_path / "index")
    assert ids == ["T0000001EN"] and len(missed) == 2  # "/b" is no address: the protocol wants whole ones
    following = f"<link xmlns='http://www.w3.org/2005/Atom' rel='next' href='{link}'/>"
    feed = f"<rss><channel>{following}{ITEM.format(n=1)}</channel></rss>"
    with server(Site("", lambda _: feed)) as (url, _):
        ids, missed = read(from_feed, url, tmp_path / "feed")
    assert ids == ["T0000001EN"] and len(missed) == 1
