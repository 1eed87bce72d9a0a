"""HTML to plain text with its paragraphs, lists and tables."""

import re

from lxml import etree

SKIPPED_TAGS = {"script", "style", "noscript", "template"}
ITEM_TAGS = {"li", "tr", "dt", "dd"}  # each on a line of its own
BLOCK_TAGS = {"p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "thead", "tbody", "tfoot", "caption",
              "blockquote", "pre", "hr", "section", "article", "aside", "header", "footer", "figure", "figcaption", "address",
              "main", "nav", "form", "fieldset", "center"}
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad\0"))  # zero-width spaces, byte order mark, soft hyphen
CELL = "\0"  # between cells until a line is complete; no text has it


def html_to_text(html: str | bytes | etree._Element, tables: bool = True) -> str:
    """All text of a piece of HTML in its order; paragraphs are separated by an empty line.

    Two `<br>` end a paragraph, one ends a line; items of lists and rows of tables are lines. Inline elements add
    nothing (`CO<sub>2</sub>` is CO2), and the source's own white space is one space. Without `tables`, those with several
    cells in a row are left out. ValueError where the HTML is nested too deeply to be read whole.
    """
    root = html if isinstance(html, etree._Element) else read_html(html)
    paragraphs, lines, line = [], [], []
    bullet, lists, rows = "", 0, []  # rows: for each open row, whether it has several cells

    def end_line() -> bool:
        nonlocal bullet
        cells = [" ".join(cell.split()) for cell in "".join(line).split(CELL)]
        line.clear()
        if text := " | ".join(filter(None, cells)):
            lines.append(bullet + text)
            bullet = ""
        return bool(text)

    def end_paragraph() -> None:
        end_line()
        if lines:
            paragraphs.append("\n".join(lines))
            lines.clear()

    # A loop instead of recursion, since markup may be nested deeper than Python's stack. Everything that is no start
    # (ends, comments) is followed by text outside it, its tail; the root's own tail belongs to somebody else.
    walk = etree.iterwalk(root, events=("start", "end", "comment", "pi"))
    for event, element in walk:
        starts, tag = event == "start", element.tag if isinstance(element.tag, str) else ""
        if starts and (tag in SKIPPED_TAGS or (tag == "table" and not tables and _has_columns(element))):
            walk.skip_subtree()
            continue
        if tag == "tr" and not starts:
            rows.pop()
        if any(rows):  # within a row of several cells all is one line; a single cell is layout and keeps its paragraphs
            if tag in ("td", "th"):
                line.append(CELL)
            elif tag == "br" or tag in ITEM_TAGS or tag in BLOCK_TAGS:
                line.append(" ")
        elif tag == "br":
            if starts and not end_line():
                end_paragraph()
        elif tag in ITEM_TAGS:
            end_line()
            bullet = "- " if tag == "li" and starts else ""  # waits for the item's first text
        elif tag in BLOCK_TAGS:
            if tag in ("ul", "ol") and not starts:
                lists -= 1
            end_line() if lists else end_paragraph()
            if tag in ("ul", "ol") and starts:
                lists += 1
        if tag == "tr" and starts:
            rows.append(_columns(element) > 1)
        text = element.text if starts else element.tail if element is not root else None
        if text:
            line.append(text.translate(INVISIBLE))
    end_paragraph()
    return "\n\n".join(paragraphs)


def _columns(row: etree._Element) -> int:
    return sum(child.tag in ("td", "th") for child in row)


def _has_columns(table: etree._Element) -> bool:
    return any(_columns(row) > 1 for row in table.iter("tr"))


def read_html(html: str | bytes) -> etree._Element:
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
CHARSETS = re.compile(r"iso-?8859-?\d+|(windows-?|cp)125\d|koi8-[ru]|gb(2312|k|18030)|big5|shift_jis|euc-\w\w")


def decode(data: bytes) -> str:
    """The text of a page or feed, even where it is wrong about its charset.

    UTF-8 is never valid by accident, so it comes before what the page says; what fits neither is windows-1252, which
    browsers take ISO 8859-1 for as well (https://encoding.spec.whatwg.org/#names-and-labels).
    """
    said = CHARSET.search(data[:2048])
    said = said[1].decode().lower() if said else ""
    order = ["utf-8-sig", said if CHARSETS.fullmatch(said) and "8859-1" not in said[-6:] else "cp1252", "cp1252"]
    for encoding in (["utf-16"] if data[:2] in (b"\xff\xfe", b"\xfe\xff") else []) + order:
        try:
            return data.decode(encoding)
        except (ValueError, LookupError):
            pass
    return data.decode("latin-1")
