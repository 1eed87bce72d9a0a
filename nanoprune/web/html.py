"""HTML to plain text with its paragraphs, lists and tables."""

import re

from lxml import etree

SKIPPED_TAGS = {"script", "style", "noscript", "template"}
ITEM_TAGS = {"li", "tr", "dt", "dd"}  # each on a line of its own
BLOCK_TAGS = {"p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "thead",
              "tbody", "tfoot", "caption", "blockquote", "pre", "hr", "section", "article", "aside", "header",
              "footer", "figure", "figcaption", "address", "main", "nav", "form", "fieldset", "center"}
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad\0"))  # zero-width, soft hyphen
CELL = "\0"  # separates cells until a line is complete; no text holds it


class _Text:
    """A text as it grows: pieces become lines, lines become paragraphs."""

    def __init__(self):
        self.paragraphs, self.lines, self.pieces = [], [], []
        self.bullet = ""  # waits for the first text of a list's item

    def end_line(self) -> bool:
        """Turn the pieces into a line; False if they hold no text."""
        cells = [" ".join(cell.split()) for cell in "".join(self.pieces).split(CELL)]
        self.pieces.clear()
        line = " | ".join(filter(None, cells))
        if line:
            self.lines.append(self.bullet + line)
            self.bullet = ""
        return bool(line)

    def end_paragraph(self) -> None:
        self.end_line()
        if self.lines:
            self.paragraphs.append("\n".join(self.lines))
            self.lines.clear()


def html_to_text(html: str | bytes | etree._Element, tables: bool = True) -> str:
    """All text of a piece of HTML in its order; an empty line separates paragraphs.

    Two `<br>` end a paragraph, one ends a line; items of lists and rows of tables are lines. Inline elements
    add nothing (`CO<sub>2</sub>` is CO2), and the source's own white space is one space. Without `tables`,
    those with several cells in a row are left out. ValueError if the HTML is nested too deeply to be read
    whole.
    """
    root = html if isinstance(html, etree._Element) else read_html(html)
    text, list_depth, rows = _Text(), 0, []  # rows: of each open row, True if it has several cells
    # A loop instead of recursion, since markup may be nested deeper than Python's stack. Every event but a
    # start is followed by text outside the element, its tail; the root's own tail belongs to the page.
    walk = etree.iterwalk(root, events=("start", "end", "comment", "pi"))
    for event, element in walk:
        starts, tag = event == "start", element.tag if isinstance(element.tag, str) else ""
        if starts and (tag in SKIPPED_TAGS or (tag == "table" and not tables and _has_columns(element))):
            walk.skip_subtree()
            continue
        if tag == "tr" and not starts:
            rows.pop()
        if any(rows):  # a row of several cells is one line; a single cell is layout and keeps its paragraphs
            if tag in ("td", "th"):
                text.pieces.append(CELL)
            elif tag == "br" or tag in ITEM_TAGS or tag in BLOCK_TAGS:
                text.pieces.append(" ")
        elif tag == "br":
            if starts and not text.end_line():
                text.end_paragraph()
        elif tag in ITEM_TAGS:
            text.end_line()
            text.bullet = "- " if tag == "li" and starts else ""
        elif tag in BLOCK_TAGS:
            is_list = tag in ("ul", "ol")
            if is_list and not starts:
                list_depth -= 1
            if list_depth:
                text.end_line()
            else:
                text.end_paragraph()
            if is_list and starts:
                list_depth += 1
        if tag == "tr" and starts:
            rows.append(_columns(element) > 1)
        piece = element.text if starts else element.tail if element is not root else None
        if piece:
            text.pieces.append(piece.translate(INVISIBLE))
    text.end_paragraph()
    return "\n\n".join(text.paragraphs)


def _columns(row: etree._Element) -> int:
    return sum(child.tag in ("td", "th") for child in row)


def _has_columns(table: etree._Element) -> bool:
    return any(_columns(row) > 1 for row in table.iter("tr"))


def read_html(html: str | bytes) -> etree._Element:
    """The root of a page or of a piece of one; ValueError if it cannot be read whole."""
    text = html if isinstance(html, str) else decode(html)
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True)
    try:
        root = etree.fromstring(text.replace("\0", "").encode("utf-8", "replace"), parser)
    except etree.LxmlError as error:
        raise ValueError(f"not HTML: {error}") from error
    if any(entry.level_name == "FATAL" for entry in parser.error_log):
        raise ValueError(f"the HTML cannot be read whole: {parser.error_log.last_error.message}")
    return etree.Element("html") if root is None else root


CHARSET = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?([\w-]{2,20})""", re.IGNORECASE)
CHARSETS = re.compile(
    r"iso-?8859-?\d+|(windows-?|cp)125\d|koi8-[ru]|gb(2312|k|18030)|big5|shift_jis|euc-\w\w")


def decode(data: bytes) -> str:
    """The text of a page or feed, even if it declares a wrong charset.

    UTF-8 is never valid by accident, so it is tried before the declared charset. The last is windows-1252,
    which browsers read ISO 8859-1 as, too (https://encoding.spec.whatwg.org/#names-and-labels).
    """
    encodings = ["utf-8-sig", "cp1252"]
    match = CHARSET.search(data[:2048])
    declared = match[1].decode().lower() if match else ""
    if CHARSETS.fullmatch(declared) and not declared.endswith("8859-1"):
        encodings.insert(1, declared)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings.insert(0, "utf-16")
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except (ValueError, LookupError):
            pass
    return data.decode("latin-1")
