"""A plain folder as a source: one article from each .html, .txt and .pdf file.

PDF text is read by pypdf (BSD licence, an optional extra). Of the usual readers it keeps columns in their
order, as PyMuPDF does, which is under the AGPL; pdfplumber, twenty times slower, read across two columns.
Pages are read by trafilatura (Apache licence, an optional extra), which finds the text of pages that nobody
described among their menus.
"""

import logging
import os
import re
from collections import Counter
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from lxml import etree

from nanoprune.web.html import Element, decode, html_to_text, one_line, outermost, read_html
from nanoprune.web.sites import MONTHS, blank_article, parse_date
from nanoprune.web.time_limit import time_limit

MAX_BYTES = 200 * 2**20
MAX_SECONDS = 600  # to read a file, and a tenth of it for trafilatura
MAX_TITLE = 150  # characters
FIRST_LINES = 10  # that may hold the title and the date
MIN_EXTRACTED = 250  # characters; of a page with less, trafilatura takes everything, menus too
DAY = r"(?<!\d)(?P<year>(?:19|20)\d\d)-?(?P<month>0[1-9]|1[0-2])-?(?P<day>0[1-9]|[12]\d|3[01])(?!\d)"

# The dates that a line may begin with, behind a word such as "Published:" or a place. Only that word allows a
# year of two digits, since 1.2.10 is a section's number. 05/12/2025 is none: it may be in May or in December.
WORD = (r"(?i:(?:(?:release|publication|publishing|issue) )?date(?: (?:published|posted))?"
        r"|date of (?:issue|publication|release)|published(?: date)?|publication|released|issued|posted|dated"
        r"|(?:veröffentlichungs|erscheinungs)?datum(?: der veröffentlichung)?|veröffentlicht|"
        r"erschienen|stand|(?:press|news|media|immediate) release|for (?:immediate )?release"
        r"|(?:presse|medien)(?:mitteilung|information|meldung))")
CAPITALISED = r"[^\W\d_a-z][\w.'()/-]*"
BEGINNING = (rf"^\W*(?:(?P<word>{WORD})(?: (?:on|at|am|vom|of))?[ :.–—|*-]*"
             rf"|(?:{CAPITALISED}[ ,]+(?:(?:am|an|de[rs]?|of|on|upon|in|im|bei) )?){{0,3}}"
             rf"{CAPITALISED}(?:,|:|(?<=\.)| [–—|(-]) *)?"
             r"(?:(?i:\w{2,8}(?:day|tag)|mittwoch|mon|tue|wed|thu|fri|sat|sun)\.?,? )?(?:den |the |on )?")
YEAR = r"(?P<year>(?:19|20)\d\d)(?!\d)"
MONTH = rf"(?P<month>(?i:{'|'.join(MONTHS)})[^\W\d_]{{0,6}})\.?"
DATES = tuple(f"{BEGINNING}{pattern}(?(word)|(?![,\\s]*[a-zäöüß]))" for pattern in (
    r"(?P<year>(?:19|20)\d\d)[-/.](?P<month>\d\d)[-/.](?P<day>\d\d)",
    r"(?P<day>\d{1,2})\. ?(?P<month>\d{1,2})\. ?(?P<year>(?:19|20)\d\d|(?(word)\d\d|(?!)))(?!\d)",
    rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th|\.)? (?:of )?{MONTH},? {YEAR}",
    rf"{MONTH} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? {YEAR}",
    rf"(?P<day>1[3-9]|2\d|3[01])/(?P<month>\d{{1,2}})/{YEAR}",
    rf"(?P<month>\d{{1,2}})/(?P<day>1[3-9]|2\d|3[01])/{YEAR}"))
LETTER = re.compile(r"[^\W\d_]")
RULE = re.compile(r"([=_*~#+.–—-] ?){3,}")  # a line of ===== or * * *
TITLE_WORD = re.compile(r"(?i)^\W*(?:title|titel|headline|überschrift|subject|betreff) ?: *")
PROSE = re.compile(r"[.,;]$|[a-zäöüß]{4}\. [A-ZÄÖÜ]")  # in what is no title
LEADERS = re.compile(r"(\. ?){5,}")  # the dots of a table of contents
PAGE_NUMBERS = [re.compile(place) for place in (
    r"^(\W*)(\d{1,4})(?!\d)", r"(^|\D)(\d{1,4})\W*$", r"(?i)\b(page |seite )(\d{1,4})(?!\d)")]


class Content(NamedTuple):
    """What a file holds."""

    title: str
    day: str  # of the metadata, "" if they name none
    lines: list[str]  # as they stand in the file, where a date may be among the first
    text: str
    read_by: str


def file_name(path: Path) -> str:
    """The name in Unicode, even if the disk holds it in another charset."""
    return decode(os.fsencode(path.as_posix()))


@time_limit(MAX_SECONDS)
def read_article(path: Path, folder: Path) -> dict:
    """The article in a file; ValueError if it cannot be read or has no text.

    Its id is the file's path in the folder, its url the path as given. Its date is that of the file's name
    (2025-12-05), else of its metadata, else of its first lines, else of its last change, a guess: `dated_by`
    says which. `read_by` names the program that found the text.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MB")
        content = READERS[path.suffix.lower()](path)
        changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if not content.text:
        hint = " (a scan needs character recognition first)" if content.read_by == "pypdf" else ""
        raise ValueError(f"has no text{hint}")
    first_lines = list(filter(None, content.lines))[:FIRST_LINES]
    days = {"name": day_in(path.stem), "metadata": content.day,
            "text": next(filter(None, map(day_at_start, first_lines)), ""), "file": changed}
    dated_by = next(source for source, day in days.items() if day)
    name = file_name(path.relative_to(folder))
    article = blank_article(name, file_name(path), title=whole_characters(content.title) or Path(name).stem,
                            date=days[dated_by], text=whole_characters(content.text))
    return article | {"dated_by": dated_by, "read_by": content.read_by}


def whole_characters(text: str) -> str:
    """The text with each pair of surrogates as one character, and U+FFFD for half a pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def day_in(text: str) -> str:
    """The first day of the form 2025-12-05 or 20251205; empty if there is none."""
    return parse_date(text, [DAY])


def day_at_start(line: str) -> str:
    """The day that a line begins with, in English or German; empty if it begins with none."""
    return parse_date(line[:200], DATES)


def split_title(lines: list[str]) -> tuple[str, list[str]]:
    """The title and the other lines: the first line with letters that is no date, if that is no prose."""
    for number, line in enumerate(lines[: 2 * FIRST_LINES]):
        title = TITLE_WORD.sub("", line).strip("=-#*_~ ")
        if LETTER.search(title) and not day_at_start(line):
            before, following = lines[:number], lines[number + 1 :]
            is_prose = PROSE.search(title) or any(line[:1].islower() for line in following[:1])
            if is_prose or len(title) > MAX_TITLE or not any(before + following):
                break
            return title, [*before, "", *following]
    return "", lines


def read_page(path: Path) -> Content:
    """An HTML file, read by trafilatura, else by its elements."""
    root = read_html(path.read_bytes())
    titles = map(html_to_text, [*outermost(root.iter("h1")), *outermost(root.iter("title"))])
    title = one_line(next(filter(None, titles), ""))
    stamps = root.xpath("//meta[contains(@property, 'published') or contains(@name, 'date')]/@content")
    stamps += root.xpath("//time/@datetime")
    day = next(filter(None, map(day_in, stamps)), "")
    text, read_by = "", "trafilatura"
    try:
        from trafilatura import extract
        page = etree.tostring(root, encoding="unicode", method="html")
        with time_limit(MAX_SECONDS / 10):
            found = extract(page, output_format="html", include_comments=False, favor_recall=True)
        text = html_to_text(found or "")
        fallback = "own extractor"
    except ImportError:
        fallback = 'own extractor (pip install ".[pages]" brings trafilatura)'
    except Exception as error:  # a strange page can fail anywhere in it
        fallback = f"own extractor ({type(error).__name__} in trafilatura)"
    if len(text) < MIN_EXTRACTED:
        text, read_by = main_text(root), fallback
    return Content(title, day, text.split("\n"), text, read_by)


def main_text(root: Element) -> str:
    """The text of a page: of its one <article> or <main>, if that holds at least a quarter of its body's."""
    etree.strip_elements(
        root, "nav", "aside", "footer", "button", "select", "textarea", "label", with_tail=False)
    text = ""
    for name in ("body", "main", "article"):
        parts = list(islice(filter(None, map(html_to_text, root.iter(name))), 2))
        if len(parts) == 1 and 4 * len(parts[0]) >= len(text):
            text = parts[0]
    return text


def read_plain(path: Path) -> Content:
    """A plain file; an empty line or a rule ends a paragraph."""
    lines = list(map(one_line, decode(path.read_bytes()).replace("\0", "").splitlines()))
    lines = ["" if RULE.fullmatch(line) else line for line in lines]
    title, others = split_title(lines)
    paragraphs = map(one_line, re.split(r"\n\n+", "\n".join(others)))
    return Content(title, "", lines, "\n\n".join(filter(None, paragraphs)), "plain text")


def read_pdf(path: Path) -> Content:
    """A PDF file, without running headers and page numbers."""
    try:
        import pypdf
    except ImportError:
        raise ValueError("PDF files need pypdf: pip install pypdf") from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # one message a file is enough: the one below
    try:
        reader = pypdf.PdfReader(path)
        pages = [page.extract_text().splitlines() for page in reader.pages]
        metadata = reader.metadata or {}
        title, created = str(metadata.get("/Title") or ""), str(metadata.get("/CreationDate") or "")
    except pypdf.errors.DependencyError as error:
        raise ValueError(f'encrypted; pip install "pypdf[crypto]" ({error})') from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise ValueError(f"not a PDF that can be read ({type(error).__name__}: {error})") from error
    lines = without_running_lines(pages)
    paragraphs, title = join_lines(lines).split("\n\n"), one_line(title)
    if not LETTER.search(title) or title.strip("()").lower() in ("anonymous", "untitled", "unspecified"):
        title, paragraphs = split_title(paragraphs)  # those are programs' defaults
    return Content(title, day_in(created[2:10]), lines, "\n\n".join(filter(None, paragraphs)), "pypdf")


def without_running_lines(pages: list[list[str]]) -> list[str]:
    """The lines of all pages without running headers and footers.

    Those are lines that recur, but for the page's number, among the first or last two lines of at least half
    of the pages.
    """
    pages = [[line for line in map(str.strip, page) if line] for page in pages]

    def forms(line: str, number: int) -> set[str]:
        """The line, and the line with what may be the page's number as its distance to `number`."""
        return {line} | {place.sub(lambda match: f"{match[1]}#{int(match[2]) - number}", line)
                         for place in PAGE_NUMBERS}

    counts = Counter()
    for number, page in enumerate(pages):
        counts.update(set().union(*(forms(line, number) for line in page[:2] + page[-2:])))
    running = {form for form, pages_with_it in counts.items() if pages_with_it >= max(2, len(pages) / 2)}
    return [line for number, page in enumerate(pages) for i, line in enumerate(page)
            if 2 <= i < len(page) - 2 or running.isdisjoint(forms(line, number))]


def join_lines(lines: list[str]) -> str:
    """Paragraphs from typeset lines: one ends with a sentence on a line that is not full, or before a bullet.

    A line is full if the next word would not have fitted in. Lines that go on in lower case are wrapped for
    certain, so that they tell the width.
    """
    pairs = list(pairwise([*lines, ""]))
    wrapped = [len(line) for line, following in pairs if following[:1].islower()]
    width = median(wrapped) if wrapped else max(map(len, lines), default=0)
    text = ""
    for line, following in pairs:
        if re.search(r"[^\W\d_]-$", line) and following[:1].islower():
            text += line[:-1]  # a divided word
            continue
        is_full = len(line) + min(len(following.split(" ")[0]), width / 4) >= 0.85 * width
        ends = not is_full and (line[-1] in ".!?:;" or not following[:1].islower())
        is_odd = len(line) > 1.4 * width or LEADERS.search(line)  # such as a table's row
        ends = ends or is_odd or re.match(r"[•▪–-] ", following)
        text += line + ("\n\n" if ends else " ")
    return text.strip()


READERS = {".html": read_page, ".htm": read_page, ".txt": read_plain, ".pdf": read_pdf}
