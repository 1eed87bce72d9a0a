"""A plain folder as a source: one article from each .html, .txt and .pdf file.

PDF text is read by pypdf (BSD licence, an optional extra: `pip install pypdf`). Of the usual readers it keeps columns in
their order, as PyMuPDF does, which is under the AGPL; pdfplumber, twenty times slower, read across two columns.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

from lxml import etree

from nanoprune.web.html import html_to_text, read_html
from nanoprune.web.sites import blank_article

MAX_BYTES = 200 * 2**20
DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])(?!\d)")


def read_folder(folder: Path) -> Iterator[tuple[Path, dict | ValueError]]:
    """(file, article) of every file in order of names, or what is wrong with it.

    An article's id is the file's path in the folder, its url the path as given. Its date is that of the file's name
    (2025-12-05), else of its metadata, else of its last change; `dated_by` says which.
    """
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in READERS and path.is_file()):
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"larger than {MAX_BYTES >> 20} MB")
            title, day, text = READERS[path.suffix.lower()](path)
            if not text:
                raise ValueError("has no text (a scan needs character recognition first)")
            named, changed = day_in(path.stem), datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
            dated_by = "name" if named else "metadata" if day else "file"
            yield path, blank_article(path.relative_to(folder).as_posix(), path.as_posix(), title=title or path.stem,
                                      date=named or day or changed, text=text) | {"dated_by": dated_by}
        except OSError as error:
            yield path, ValueError(error.strerror or str(error))
        except ValueError as error:
            yield path, error


def day_in(text: str) -> str:
    """The first day of the form 2025-12-05 or 20251205 that exists; empty where there is none."""
    for match in DAY.finditer(text):
        try:
            return date(*map(int, match.groups())).isoformat()
        except ValueError:
            continue
    return ""


def read_page(path: Path) -> tuple[str, str, str]:
    """Title, day and text of an HTML file: of its <article> or <main> where it has just one, else of its body."""
    root = read_html(path.read_bytes())
    etree.strip_elements(root, "nav", "aside", "footer", "form", with_tail=False)
    parts = [found for name in ("article", "main", "body") if len(found := root.xpath(f"//{name}")) == 1]
    title = next((t for path in ("//h1", "//title") for e in root.xpath(path) if (t := " ".join(html_to_text(e).split()))), "")
    marks = root.xpath("//meta[contains(@property, 'published') or contains(@name, 'date')]/@content | //time/@datetime")
    return title, next(filter(None, map(day_in, marks)), ""), html_to_text(parts[0][0] if parts else root)


def read_plain(path: Path) -> tuple[str, str, str]:
    """Title (the first line, where it is short), no day, and the text of a plain file; an empty line ends a paragraph."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    lines = [" ".join(line.replace("\0", "").split()) for line in text.splitlines()]
    return _titled("\n".join(lines))


def read_pdf(path: Path) -> tuple[str, str, str]:
    """Title, day of creation and text of a PDF file, without running headers and page numbers, its paragraphs joined."""
    try:
        import pypdf
    except ImportError:
        raise ValueError("PDF files need pypdf: pip install pypdf") from None
    try:
        logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what is wrong is said below, once
        reader = pypdf.PdfReader(path)
        pages = [page.extract_text().splitlines() for page in reader.pages]
        told = reader.metadata or {}
        title, made = str(told.get("/Title") or ""), str(told.get("/CreationDate") or "")
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise ValueError(f"not a PDF that can be read ({type(error).__name__}: {error})") from error
    first, _, text = _titled(join_lines(without_running_lines(pages)))
    title = "" if title.strip("()").lower() in ("anonymous", "untitled", "unspecified") else " ".join(title.split())
    return title or first, day_in(made[2:10]), text


def without_running_lines(pages: list[list[str]], edge: int = 2) -> list[str]:
    """The lines of all pages, without those that recur (but for numbers) at the edges of at least half of them."""
    pages = [[line for line in map(str.strip, page) if line] for page in pages]

    def mark(line: str) -> str:
        return re.sub(r"\d+", "#", line)

    counts = Counter(m for page in pages for m in {mark(line) for line in page[:edge] + page[-edge:]})
    running = {m for m, n in counts.items() if n >= max(2, len(pages) / 2)}
    return [line for page in pages for i, line in enumerate(page)
            if not (mark(line) in running and (i < edge or i >= len(page) - edge))]


def join_lines(lines: list[str]) -> str:
    """Paragraphs from lines as they were set: one ends with a sentence on a line that is not full, or before a bullet."""
    full = 0.75 * max(map(len, lines), default=0)
    text = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        if re.search(r"[^\W\d_]-$", line) and following[:1].islower():
            text += line[:-1]  # a word was divided
            continue
        ends = len(line) < full and (line[-1] in ".!?:;" or not following[:1].islower())
        text += line + ("\n\n" if ends or re.match(r"[•▪–-] ", following) else " ")
    return text.strip()


def _titled(text: str) -> tuple[str, str, str]:
    """(first line where it is short, no day, paragraphs): what stands between empty lines is a paragraph, in one line."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    paragraphs = [part for part in paragraphs if part]
    first = text.strip().split("\n", 1)[0].strip()
    return first if len(first) <= 150 else "", "", "\n\n".join(paragraphs)


READERS = {".html": read_page, ".htm": read_page, ".txt": read_plain, ".pdf": read_pdf}
