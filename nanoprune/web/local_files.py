"""A plain folder as a source: one article from each .html, .txt and .pdf file.

PDF text is read by pypdf (BSD licence, an optional extra: `pip install pypdf`). Of the usual readers it keeps
columns in their order, as PyMuPDF does, which is under the AGPL; pdfplumber, twenty times slower, read across
two columns.
"""

import logging
import re
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path

from lxml import etree

from nanoprune.web.html import html_to_text, read_html
from nanoprune.web.sites import blank_article

MAX_BYTES = 200 * 2**20
DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])(?!\d)")


def readable_files(folder: Path) -> list[Path]:
    """The files below a folder that can be read, in order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in READERS and path.is_file())


def read_article(path: Path, folder: Path) -> dict:
    """The article in a file; ValueError if it cannot be read or has no text.

    Its id is the file's path in the folder, its url the path as given. Its date is that of the file's name
    (2025-12-05), else of its metadata, else of its last change; `dated_by` says which.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MB")
        title, metadata_day, text = READERS[path.suffix.lower()](path)
        changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if not text:
        raise ValueError("has no text (a scan needs character recognition first)")
    days = {"name": day_in(path.stem), "metadata": metadata_day, "file": changed}
    dated_by = next(source for source, day in days.items() if day)
    return blank_article(path.relative_to(folder).as_posix(), path.as_posix(), title=title or path.stem,
                         date=days[dated_by], text=text) | {"dated_by": dated_by}


def day_in(text: str) -> str:
    """The first day of the form 2025-12-05 or 20251205 that exists; empty if there is none."""
    for match in DAY.finditer(text):
        try:
            return date(*map(int, match.groups())).isoformat()
        except ValueError:
            continue
    return ""


def read_page(path: Path) -> tuple[str, str, str]:
    """Title, day and text of an HTML file: of its one <article>, else its one <main>, else its body."""
    root = read_html(path.read_bytes())
    etree.strip_elements(root, "nav", "aside", "footer", "form", with_tail=False)
    main = root
    for name in ("body", "main", "article"):
        elements = root.xpath(f"//{name}")
        if len(elements) == 1:
            main = elements[0]
    titles = map(html_to_text, root.xpath("//h1") + root.xpath("//title"))
    title = " ".join(next(filter(None, titles), "").split())
    stamps = root.xpath(
        "//meta[contains(@property, 'published') or contains(@name, 'date')]/@content | //time/@datetime")
    return title, next(filter(None, map(day_in, stamps)), ""), html_to_text(main)


def read_plain(path: Path) -> tuple[str, str, str]:
    """Title, no day, and text of a plain file; an empty line ends a paragraph."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    lines = [" ".join(line.replace("\0", "").split()) for line in text.splitlines()]
    return _titled("\n".join(lines))


def read_pdf(path: Path) -> tuple[str, str, str]:
    """Title, day of creation and text of a PDF file, without running headers and page numbers."""
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
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise ValueError(f"not a PDF that can be read ({type(error).__name__}: {error})") from error
    first_line, _, text = _titled(join_lines(without_running_lines(pages)))
    title = " ".join(title.split())
    if title.strip("()").lower() in ("anonymous", "untitled", "unspecified"):  # programs' defaults
        title = ""
    return title or first_line, day_in(created[2:10]), text


def without_running_lines(pages: list[list[str]], edge: int = 2) -> list[str]:
    """The lines of all pages without running headers and footers.

    Those are lines that recur, but for numbers, among the first or last `edge` lines of at least half of the
    pages.
    """
    pages = [[line for line in map(str.strip, page) if line] for page in pages]

    def mark(line: str) -> str:
        return re.sub(r"\d+", "#", line)

    counts = Counter()
    for page in pages:
        counts.update(set(map(mark, page[:edge] + page[-edge:])))
    running = {line for line, pages_with_it in counts.items() if pages_with_it >= max(2, len(pages) / 2)}
    return [line for page in pages for i, line in enumerate(page)
            if not (mark(line) in running and (i < edge or i >= len(page) - edge))]


def join_lines(lines: list[str]) -> str:
    """Paragraphs from typeset lines: one ends with a sentence on a line that is not full, or before a bullet.
    """
    full = 0.75 * max(map(len, lines), default=0)
    text = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        if re.search(r"[^\W\d_]-$", line) and following[:1].islower():
            text += line[:-1]  # a divided word
            continue
        ends = len(line) < full and (line[-1] in ".!?:;" or not following[:1].islower())
        text += line + ("\n\n" if ends or re.match(r"[•▪–-] ", following) else " ")
    return text.strip()


def _titled(text: str) -> tuple[str, str, str]:
    """The first line if it is short, no day, and the text with each paragraph on one line."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    first_line = text.strip().split("\n", 1)[0].strip()
    return first_line if len(first_line) <= 150 else "", "", "\n\n".join(filter(None, paragraphs))


READERS = {".html": read_page, ".htm": read_page, ".txt": read_plain, ".pdf": read_pdf}
