"""The fictional newsroom's web site, on localhost: robots.txt, a sitemap, feeds by topic and article pages.

It has the shape of a real one, and its traps: feeds that end in a page of HTML or start over with page 1,
texts that the feed breaks off, two forms of dates, paragraphs that are only line breaks, a sidebar and a
consumption box beside the text. Every answer is a function of the articles.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta, timezone
from email.utils import format_datetime
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

FEED_PAGE = 20  # articles
CUT_EVERY = 15  # every 15th text breaks off in the feed: its page has to be read
SITEMAP = "/sitemaps/sitemap_text_pcgl_en.xml"
CET = timezone(timedelta(hours=1), "CET")


@contextmanager
def serve(articles: list[dict]) -> Iterator[str]:
    """The base URL of the site, on a free port of this machine, until the block ends."""
    articles = sorted(articles, key=lambda article: (article["date"], article["id"]), reverse=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = answer(articles, f"http://127.0.0.1:{server.server_port}", self.path)
            kind, body = page or ("text/plain", "not found")
            body = body.encode()
            self.send_response(200 if page else 404)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:  # the scraper reports; a line for each request would hide it
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def answer(articles: list[dict], base: str, path: str) -> tuple[str, str] | None:
    """Content type and body of a path; None if there is no such page."""
    place = urlsplit(path)
    if place.path == "/robots.txt":
        return "text/plain", f"User-agent: *\nDisallow: /global/search\n\nSitemap: {base}{SITEMAP}\n"
    if place.path == SITEMAP:
        entries = "".join(f"<url><loc>{base}{article_path(a)}</loc><lastmod>{a['date']}</lastmod></url>"
                          for a in articles)
        return "application/xml", f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</urlset>'
    if place.path.startswith("/global/rss2/topic/"):
        topic, page = place.path.rsplit("/", 1)[1], int(parse_qs(place.query).get("page", ["1"])[0])
        return feed([a for a in articles if topic in a["topics"]], base, topic, page)
    for article in articles:
        if place.path == article_path(article):
            return "text/html", article_page(article)
    return None


def feed(articles: list[dict], base: str, topic: str, page: int) -> tuple[str, str]:
    """One page of a topic's RSS feed, with the text as escaped HTML.

    Behind the last page is one of the two known ends: a page of HTML, or page 1 again.
    """
    start = (page - 1) * FEED_PAGE
    if start >= len(articles) > 0:
        if int(topic) % 2:
            return "text/html", "<!doctype html><title>Error</title><p>Nothing here &nbsp; any more<br>"
        start = 0
    items = []
    for i, article in enumerate(articles[start : start + FEED_PAGE], start):
        text = article_body(article)
        if i % CUT_EVERY == CUT_EVERY - 1:
            text = text[: len(text) // 3].rsplit(" ", 1)[0] + " ..."
        published = format_datetime(datetime.combine(date.fromisoformat(article["date"]), _hour(article),
                                                     CET))
        items.append(f"<item><title>{escape(article['title'])}</title><link>"
                     f"{base}{article_path(article)}</link>"
                     f"<guid isPermaLink=\"false\">{article['id']}</guid><pubDate>{published}</pubDate>"
                     f"<description>{escape(text)}</description></item>")
    following = f"{base}/global/rss2/topic/{topic}?page={page + 1}"
    return "application/rss+xml", ('<rss version="2.0" xmlns:atom="http://www.w3.org/2005/Atom"><channel>'
                                   f'<title>Topic {topic}</title><atom:link rel="next" '
                                   f'href="{escape(following)}"/>'
                                   f"{''.join(items)}</channel></rss>")


def article_page(article: dict) -> str:
    """The page of an article, with everything that surrounds the text of a real one."""
    day, number = date.fromisoformat(article["date"]), _number(article)
    moment = datetime.combine(day, _hour(article), CET)
    shown = f"{day:%d.%m.%Y}" if number % 2 else f"{moment:%a %b %d %H:%M:%S %Z %Y}"
    teaser = "+++ " + " +++ ".join(article["teaser"]) + " +++" if article["teaser"] else ""
    tags = "".join(f'<a class="tag" href="/global/search?tag={escape(tag)}">{escape(tag)}</a>'
                   for tag in article["tags"])
    return f"""<!doctype html>
<html lang="{article['lang']}"><head><meta charset="utf-8"><title>{escape(article['title'])}</title>
<script>var page = "<p>not text</p>";</script></head>
<body><nav><ul><li><a href="/global/">Home</a></li><li><a href="/global/search">Search</a></li></ul></nav>
<div class="article-detail"><div class="article-info"><span class="date">{shown}</span>
<span class="category">{escape(article['category'])}</span></div>
<h1>{escape(article['title'])}</h1><h2 class="teaser">{escape(teaser)}</h2>
<div id="article-text">{article_body(article)}</div>
<div class="text co2_summary"><p>CO2 emissions and consumption of all models: see the price list.</p></div>
<div class="tagging-info">{tags}</div></div>
<aside class="contact"><p>Press office</p><p>Telephone: +49-000-000-0001</p></aside></body></html>
"""


def article_body(article: dict) -> str:
    """The text as HTML: some articles have paragraphs, others one paragraph of line breaks."""
    paragraphs = [escape(text).replace("CO2", "CO<sub>2</sub>") for text in article["paragraphs"]]
    if _number(article) % 3:
        return "".join(f"<p>{text}</p>\n" for text in paragraphs)
    return f"<p>{'<br><br>'.join(paragraphs)}</p>"


def article_path(article: dict) -> str:
    slug = "-".join(article["title"].lower().replace("'", "").split()[:6])
    return f"/global/article/detail/{article['id']}/{''.join(c for c in slug if c.isalnum() or c == '-')}"


def _number(article: dict) -> int:
    return int("".join(c for c in article["id"] if c.isdigit()))


def _hour(article: dict) -> time:
    return time(8 + _number(article) % 9, 30)
