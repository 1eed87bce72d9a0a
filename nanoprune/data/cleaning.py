"""Boilerplate paragraphs, and paragraphs that recur over the corpus."""

import hashlib
import re

import numpy as np

# Every pattern covers a whole paragraph: a word that also stands in running text cuts nothing.
CONTACT_START = re.compile(
    r"((in case of|in the event of|for|(if|should) you have)( any| further| more| additional| media)*"
    r" (queries|questions|enquiries|inquiries|information|details)),? please contact:?.{0,200}"
    r"|(press|media) contacts?[.:]?|(BMW Group,? )?corporate communications", re.I)
CONTACT_LINE = re.compile(
    r".{0,160}(\b(tel|telephone|phone|mobile|cell|fax)\b[.:]? ?[+(]?\d|\be-?mail: ?\S+@|\+\d\d[- (]"
    r"|\S+@\S+\.\w{2,3}\b).{0,160}", re.I)
NUMBER_OR_ADDRESS = re.compile(r"[\d@]")  # stands in every contact line and is found fast
WHOLE = {
    "link": re.compile(
        r"((internet|media website|website|web|facebook|instagram|youtube|linkedin|x|tiktok|twitter|threads)"
        r": ?\S+|(https?://|www\.)\S+)( e-?mail: ?\S+)?", re.I),
    "company": re.compile(
        r"with its (three|four) brands,? BMW.*|the BMW Group"
        r"|in 20\d\d, the BMW Group (sold|delivered) .{0,40}million passenger.*"
        r"|the (economic )?success of the BMW Group has always been based on.*", re.I | re.S),
    "consumption": re.compile(
        r"(official (data|information|figures) on"
        r"|(power|fuel|energy|electric(ity)?) consumption and range data"
        r"|(all )?(the )?(stated |values |figures |data )+(of|on|for|regarding) (the )?(fuel|power|energy) "
        r"consumption).*", re.I | re.S),
}
CONSUMPTION = re.compile(
    r"(?i)consumption|emissions?|combined|weighted|WLTP|NEDC|EnVKV|CO ?[2₂]|kWh/100 ?km|l/100 ?km|g/km"
    r"|class(es)?|unloaded|discharged|battery|electric range|\bkm\b|[\d.,:;()/–-]+|\b[A-G]\b")


def boilerplate_kind(paragraph: str, in_contact: bool) -> str | None:
    """The kind of boilerplate of a whole paragraph, None for text; `in_contact`: a contact block is open."""
    if CONTACT_START.fullmatch(paragraph):
        return "contact"
    may_be_contact = len(paragraph) <= 400 and paragraph[-1] != "." and NUMBER_OR_ADDRESS.search(paragraph)
    if may_be_contact and CONTACT_LINE.fullmatch(paragraph):
        return "contact"
    if in_contact and len(paragraph) <= 120 and paragraph[-1] not in ".!?”\":":
        return "contact"  # names and job titles between "please contact" and the next sentence
    for kind, pattern in WHOLE.items():
        if pattern.fullmatch(paragraph):
            return kind
    if "km" in paragraph and "ombined" in paragraph:
        rest = CONSUMPTION.sub("", paragraph)
        return "consumption" if len(rest) < 0.4 * len(paragraph) else None
    return None


def remove_boilerplate(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """(paragraphs of text, (kind, paragraph) of those that are boilerplate) of an article."""
    text_paragraphs, removed, in_contact = [], [], False
    for paragraph in paragraphs_of(text):
        kind = boilerplate_kind(paragraph, in_contact)
        in_contact = kind == "contact"
        if kind:
            removed.append((kind, paragraph))
        else:
            text_paragraphs.append(paragraph)
    return text_paragraphs, removed


def paragraphs_of(text: str) -> list[str]:
    """The lines of a text that are not empty, with single blanks for white space."""
    lines = []
    for line in text.split("\n"):
        if line.isprintable() and "  " not in line:  # the usual line: its white space is single blanks
            lines.append(line.strip())
        else:
            lines.append(" ".join(line.replace("\u200b", "").split()))
    return [line for line in lines if line]


def letters_only(text: str) -> str:
    """The letters and digits of each line, in lower case: equal for other spacing or punctuation."""
    return text.lower().translate(NO_LETTER)


# Up to Japanese punctuation.
NO_LETTER = dict.fromkeys(i for i in range(0x3100) if not chr(i).isalnum() and chr(i) != "\n")


def fingerprint(plain_text: str) -> int:
    """A 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(plain_text.encode(), digest_size=8).digest(), "little")


def may_recur(paragraph: str) -> bool:
    """False for paragraphs that recur in text: short lines (names in results) and announcements ("...:")."""
    return len(paragraph) >= 60 and paragraph[-1] != ":"


def recurring(hashes: np.ndarray, articles: int) -> np.ndarray:
    """The paragraphs, by hash, that stand in five articles and in at least 1 % of all; ascending."""
    hashes, counts = np.unique(hashes, return_counts=True)
    return hashes[counts >= max(5, 0.01 * articles)]
