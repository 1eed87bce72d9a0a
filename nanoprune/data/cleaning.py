"""Paragraphs: hard-wrapped lines joined, boilerplate, and those that recur over the corpus."""

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise

# Every pattern covers a whole paragraph: a word that also stands in running text cuts nothing.
CONTACT_START = re.compile(
    r"((in case of|in the event of|for|(if|should) you have)( any| further| more| additional| media)*"
    r" (queries|questions|enquiries|inquiries|information|details)),? please contact:?.{0,200}"
    r"|(press|media) contacts?[.:]?|corporate communications", re.I)
CONTACT_LINE = re.compile(
    r".{0,160}(\b(tel|telephone|phone|mobile|cell|fax)\b[.:]? ?[+(]?\d|\be-?mail: ?\S+@|\+\d\d[- (]"
    r"|\S+@\S+\.\w{2,3}\b).{0,160}", re.I)
NUMBER_OR_ADDRESS = re.compile(r"[\d@]")  # stands in every contact line and is found fast
WHOLE = {
    "link": re.compile(
        r"((internet|media website|website|web|facebook|instagram|youtube|linkedin|x|tiktok|twitter|threads)"
        r": ?\S+|(https?://|www\.)\S+)( e-?mail: ?\S+)?", re.I),
    "consumption": re.compile(
        r"(official (data|information|figures) on"
        r"|(power|fuel|energy|electric(ity)?) consumption and range data"
        r"|(all )?(the )?(stated |values |figures |data )+(of|on|for|regarding) (the )?(fuel|power|energy) "
        r"consumption).*", re.I | re.S),
}
CONSUMPTION = re.compile(
    r"(?i)consumption|emissions?|combined|weighted|WLTP|NEDC|EnVKV|CO ?[2₂]|kWh/100 ?km|l/100 ?km|g/km"
    r"|class(es)?|unloaded|discharged|battery|electric range|\bkm\b|[\d.,:;()/–-]+|\b[A-G]\b")


def boilerplate_kind(paragraph: str, in_contact: bool, patterns: Sequence[str] = ()) -> str | None:
    """The kind of boilerplate of a whole paragraph, None for text; `in_contact`: a contact block is open.

    `patterns`: of the paragraphs that the releases of its newsroom share.
    """
    may_be_contact = len(paragraph) <= 400 and paragraph[-1] != "." and NUMBER_OR_ADDRESS.search(paragraph)
    is_contact = CONTACT_START.fullmatch(paragraph) or may_be_contact and CONTACT_LINE.fullmatch(paragraph)
    # Names and job titles stand between "please contact" and the next sentence.
    goes_on = in_contact and len(paragraph) <= 120 and paragraph[-1] not in ".!?”\":"
    if is_contact or goes_on:
        return "contact"
    for kind, pattern in WHOLE.items():
        if pattern.fullmatch(paragraph):
            return kind
    if any(re.fullmatch(pattern, paragraph) for pattern in patterns):
        return "company"
    if "km" in paragraph and "ombined" in paragraph:
        rest = CONSUMPTION.sub("", paragraph)
        return "consumption" if len(rest) < 0.4 * len(paragraph) else None
    return None


def remove_boilerplate(
    paragraphs: list[str], patterns: Sequence[str] = ()
) -> tuple[list[str], list[tuple[str, str]]]:
    """(paragraphs of text, (kind, paragraph) of those that are boilerplate) of an article."""
    text_paragraphs, removed, in_contact = [], [], False
    for paragraph in paragraphs:
        kind = boilerplate_kind(paragraph, in_contact, patterns)
        in_contact = kind == "contact"
        if kind:
            removed.append((kind, paragraph))
        else:
            text_paragraphs.append(paragraph)
    return text_paragraphs, removed


def paragraphs_of(text: str) -> list[str]:
    """The paragraphs of a text, with single blanks for white space and without the marks of footnotes.

    Each line is one, unless the text is hard-wrapped. Lines of rules (=====) are none.
    """
    lines = FOOTNOTE_MARK.sub("", text).replace("\u200b", "").split("\n")
    lines = [" ".join(line.split()) for line in lines]
    return [line for line in unwrapped(lines) if HAS_CONTENT.search(line)]


# A raised number after a word or a figure, or "[3]"; but those of m², x³ and 10⁶ are exponents.
FOOTNOTE_MARK = re.compile(
    r"(?<=[\w.,;:!?%)”\"])(?:(?<!\b\w)(?<!\b[^\W\d]\w)(?<!\b10)[⁰¹²³⁴-⁹]+|¹(?![⁰¹²³⁴-⁹])"
    r"|\[\d{1,2}\](?!\w))")
HAS_CONTENT = re.compile(r"[^\W_]")
WIDTHS = range(40, 121)  # of texts that are taken for hard-wrapped
LIST_ITEM = re.compile(r"[*•▪] |[-–] [A-Z]")


def unwrapped(lines: list[str]) -> list[str]:
    """The lines, and where a text is hard-wrapped, its paragraphs in their place.

    A break is forced where the next line's first word does not fit in the width of the text. In a
    hard-wrapped text most breaks inside paragraphs are.
    """
    breaks = [(line, following) for line, following in pairwise(lines) if line and following]
    width = max((max(len(line), len(following)) for line, following in breaks), default=0)
    if len(breaks) < 4 or width not in WIDTHS:
        return lines

    def forced(line: str, following: str) -> bool:
        fits = len(line) + 1 + len(following.split(" ", 1)[0]) <= width
        return not fits and not LIST_ITEM.match(following)

    if sum(forced(*pair) for pair in breaks) < 0.7 * len(breaks):
        return lines
    paragraphs = [""]
    for line, following in pairwise([*lines, ""]):
        paragraphs[-1] += line
        if not (line and following and forced(line, following)):
            paragraphs.append("")
        elif not re.search(r"[^\W\d_]-$", line):  # a word with a hyphen goes on
            paragraphs[-1] += " "
    return paragraphs


def letters_only(text: str) -> str:
    """The letters and digits, in lower case: equal for other spacing or punctuation."""
    return text.lower().translate(NO_LETTER)


# Up to Japanese punctuation.
NO_LETTER = dict.fromkeys(i for i in range(0x3100) if not chr(i).isalnum())


def fingerprint(text: str) -> int:
    """A 64-bit hash of a text's letters and digits."""
    data = letters_only(text).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def may_recur(paragraph: str) -> bool:
    """False for paragraphs that recur in text: short lines (names in results) and announcements ("...:")."""
    return len(paragraph) >= 60 and paragraph[-1] != ":"
