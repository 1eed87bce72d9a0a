"""HTML to plain text with its paragraphs, lists and tables."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from lxml import etree

Element = etree._Element
SKIPPED_TAGS = {"script", "style", "noscript", "template"}
ITEM_TAGS = {"li", "tr", "dt", "dd"}  # each on a line of its own
BLOCK_TAGS = set((
    "p div h1 h2 h3 h4 h5 h6 ul ol dl table thead tbody tfoot caption blockquote pre hr section article "
    "aside header footer figure figcaption address main nav form fieldset center").split())
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad\0"))  # zero-width, soft hyphen
CELL = "\0"  # separates cells until a line is complete; no text holds it
MAX_ELEMENTS, MAX_DEPTH = 1_000_000, 256  # of a page; browsers end at a depth of 512
CHUNK = 2**16  # bytes parsed at a time
MAX_OPEN = 10_000  # elements around another in the source: at each </p> without a <p> libxml2 looks at all
MAX_ATTRIBUTES, MAX_VALUE = 64, 1024  # of an element, and characters of one
NAME = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
FORBIDDEN = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # in XML, and so in the tree


class _Text:
    """A text as it grows: pieces become lines, lines become paragraphs."""

    def __init__(self):
        self.paragraphs, self.lines, self.pieces = [], [], []
        self.bullet = ""  # waits for the first text of a list's item

    def end_line(self) -> bool:
        """Turn the pieces into a line; False if they hold no text."""
        cells = map(one_line, "".join(self.pieces).split(CELL))
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


def html_to_text(html: str | bytes | Element, tables: bool = True) -> str:
    """All text of a piece of HTML in its order; an empty line separates paragraphs.

    Two `<br>` end a paragraph, one ends a line; items of lists and rows of tables are lines. Inline elements
    add nothing (`CO<sub>2</sub>` is CO2), and the source's own white space is one space. Without `tables`,
    those with several cells in a row are left out. ValueError as by `read_html`.
    """
    root = html if isinstance(html, Element) else read_html(html)
    text, list_depth, rows = _Text(), 0, []  # rows: of each open row, True if it has several cells
    # The end of an element is followed by text outside of it, its tail; the root's own belongs to the page.
    walk = etree.iterwalk(root, events=("start", "end"))
    for event, element in walk:
        starts, tag = event == "start", element.tag
        left_out = tag == "table" and not tables and any(map(_has_columns, element.iter("tr")))
        if starts and (tag in SKIPPED_TAGS or left_out):
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
            rows.append(_has_columns(element))
        piece = element.text if starts else element.tail if element is not root else None
        if piece:
            text.pieces.append(piece.translate(INVISIBLE))
    text.end_paragraph()
    return "\n\n".join(text.paragraphs)


def _has_columns(row: Element) -> bool:
    return sum(child.tag in ("td", "th") for child in row) > 1


def one_line(text: str) -> str:
    """The text with single spaces for its white space."""
    return " ".join(text.split())


class _Builder(etree.TreeBuilder):
    """A tree of bounded depth and size; the time to build it is linear in the size of the HTML."""

    def __init__(self, max_elements: int):
        super().__init__()
        self.elements, self.max_elements = 0, max_elements
        self.around = []  # names of the elements around, "" for one that is too deep

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.elements += 1
        if self.elements > self.max_elements:
            raise ValueError(f"more than {self.max_elements} elements")
        if len(self.around) > MAX_OPEN:
            raise ValueError(f"more than {MAX_OPEN} elements inside each other")
        name = tag if NAME.fullmatch(tag) else "span"
        super().start(name, {key: FORBIDDEN.sub(" ", value[:MAX_VALUE]) for key, value in
                             islice(attributes.items(), MAX_ATTRIBUTES) if NAME.fullmatch(key)})
        if len(self.around) >= MAX_DEPTH and name not in ("script", "style"):  # those hold no element
            super().end(name)
            name = ""
        self.around.append(name)

    def end(self, _: str) -> None:
        if len(self.around) > 1 and (name := self.around.pop()):  # what follows </html> belongs to the page
            super().end(name)

    def data(self, text: str) -> None:
        super().data(FORBIDDEN.sub(" ", text))

    def close(self) -> Element:
        for name in filter(None, reversed(self.around)):
            super().end(name)
        return super().close() if self.elements else etree.Element("html")


def read_html(html: str | bytes, max_elements: int = MAX_ELEMENTS) -> Element:
    """The root of a page or of a piece of one; ValueError if it is too large.

    An element that is nested too deeply stands empty before its content, as browsers do it.
    """
    text = html if isinstance(html, str) else decode(html)
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True,
                              target=_Builder(max_elements))
    try:
        data = text.replace("\0", "").encode("utf-8", "replace") or b" "
        for first in range(0, len(data), CHUNK):  # an error ends a chunk, not the whole
            parser.feed(data[first : first + CHUNK])
        root = parser.close()
    except etree.LxmlError as error:
        raise ValueError(f"not HTML: {error}") from error
    if root.find(".//sup") is not None:
        resolve_superscripts(root)
    return root


def outermost(elements: Iterable[Element | str]) -> Iterator[Element | str]:
    """Elements in the order of the document without those inside another: no text counts twice."""
    outer = None
    for element in elements:
        if isinstance(element, str) or outer not in element.iterancestors():  # XPath gives attributes, too
            outer = element
            yield element


# The mark of a footnote, such as 1, 2), [3], a, * or 1, 2: no ordinal (st, e), ion (2+) or sign (-1).
NOTE = r"(\d{1,3}|[a-df-h]|[*†‡§¶]+)"
MARK = re.compile(rf"[\[(]?{NOTE}(\s*[,;–-]\s*{NOTE})*[\])]?|[\[(]?[a-z][\])]|[,;]")
# A power of ten, of a unit or of a variable, and CO² for CO₂. A footnote is likelier after the km of g/km and
# of l/100 km, and after the s of 5 s.
POWER = re.compile(r"(?<![\d.,])10\^(?!1$)\d+$|(?<![^\W\d_])"
                   r"([cdmµ]?m|(?<!/)(?<!/100.)km|in|ft|yd|mi|(?<=/)s|mc|CO|[xyzrncR])\^[23]$")
RAISED = str.maketrans("0123456789+-−–n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻ⁿ")


def resolve_superscripts(root: Element) -> None:
    """Remove the marks of footnotes: 805<sup>1</sup> km is 805 km. Raise the exponents of numbers: 10³.

    Other superscripts stay as they are, such as the 2 of m2.
    """
    before = ""  # the end of the text so far
    for event, element in etree.iterwalk(root, events=("start", "end")):
        if element.tag in BLOCK_TAGS:
            before = ""
        if event == "start" and element.tag == "sup":
            mark = "".join(islice(element.itertext(), 9)).strip()[:20]
            is_power = POWER.search(f"{before}^{mark}") and not element.xpath(".//a | parent::a[not(text())]")
            attached = before and not before[-1].isspace()
            if MARK.fullmatch(mark) and not is_power and (attached or not (element.tail or " ")[0].isalnum()):
                element.clear(keep_tail=True)
            elif before[-1:].isdigit() and re.fullmatch(r"[+−–-]?\d+|n", mark):
                element.clear(keep_tail=True)
                element.text = mark.translate(RAISED)
        before = (before + ((element.text if event == "start" else element.tail) or ""))[-40:]


HIDDEN = re.compile(rb"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1|\Z)", re.IGNORECASE | re.DOTALL)
CHARSET = re.compile(
    rb"""<(?:\?xml|meta)\b[^>]{0,300}?(?:charset|encoding)\s*=\s*["']?\s*([\w-]{2,20})""", re.IGNORECASE)
# ISO 8859-1 is not among them: browsers read it as windows-1252, as they read all that is unknown.
CHARSETS = re.compile(
    r"iso-?8859-([2-9]|1[013-6])|(windows-|cp)125[0-8]|koi8-[ru]|gb(k|18030)|big5|shift_jis|euc-(jp|kr)")


def decode(data: bytes) -> str:
    """The text of a page, feed or file, even if it declares a wrong charset or some of its bytes are damaged.

    UTF-8 is hardly ever valid by accident: it is tried before the declared charset, and stands if at least
    half of its characters beyond ASCII are sound. A damaged character is U+FFFD. The last is windows-1252
    (https://encoding.spec.whatwg.org/#names-and-labels).
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    text = data.decode("utf-8-sig", "replace")
    damaged = text.count("\ufffd") - data.count("\ufffd".encode())
    sound = len(text) - len(text.encode("ascii", "ignore")) - damaged
    match = CHARSET.search(HIDDEN.sub(b"", data[: 2**14])) if damaged else None
    declared = match[1].decode().lower().replace("gb2312", "gbk") if match else ""
    if damaged <= sound + (declared == "utf-8"):
        return text
    return data.decode(declared if CHARSETS.fullmatch(declared) else "cp1252", "replace")
