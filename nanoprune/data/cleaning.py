"""Boilerplate paragraphs, and paragraphs that recur over the corpus."""

import hashlib
import re

import numpy as np


# Every pattern covers a whole paragraph: nothing is cut because of a word that also stands in running text.
CONTACT_START = re.compile(
    r"((in case of|in the event of|for|(if|should) you have)( any| further| more| additional| media)*"
    r" (queries|questions|enquiries|inquiries|information|details)),? please contact:?.{0,200}"
    r"|(press|media) contacts?[.:]?|(BMW Group,? )?corporate communications", re.I)
CONTACT_LINE = re.compile(
    r".{0,160}(\b(tel|telephone|phone|mobile|cell|fax)\b[.:]? ?[+(]?\d|\be-?mail: ?\S+@|\+\d\d[- (]|\S+@\S+\.\w{2,3}\b)"
    r".{0,160}", re.I)
NUMBER_OR_ADDRESS = re.compile(r"[\d@]")  # cheap to look for, and no contact line is without
WHOLE = {
    "link": re.compile(
        r"((internet|media website|website|web|facebook|instagram|youtube|linkedin|x|tiktok|twitter|threads): ?\S+"
        r"|(https?://|www\.)\S+)( e-?mail: ?\S+)?", re.I),
    "company": re.compile(
        r"with its (three|four) brands,? BMW.*|in 20\d\d, the BMW Group (sold|delivered) .{0,40}million passenger.*"
        r"|the (economic )?success of the BMW Group has always been based on.*|the BMW Group", re.I | re.S),
    "consumption": re.compile(
        r"(official (data|information|figures) on|(power|fuel|energy|electric(ity)?) consumption and range data"
        r"|(all )?(the )?(stated |values |figures |data )+(of|on|for|regarding) (the )?(fuel|power|energy) consumption).*",
        re.I | re.S),
}
CONSUMPTION = re.compile(r"(?i)consumption|emissions?|combined|weighted|WLTP|NEDC|EnVKV|CO ?[2₂]|kWh/100 ?km|l/100 ?km|g/km|"
                         r"class(es)?|unloaded|discharged|battery|electric range|\bkm\b|[\d.,:;()/–-]+|\b[A-G]\b")


def boilerplate_kind(paragraph: str, in_contact: bool) -> str | None:
    """What kind of boilerplate a whole paragraph is, or None for text; `in_contact` says that a contact block is open."""
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
    if "km" in paragraph and "ombined" in paragraph and len(CONSUMPTION.sub("", paragraph)) < 0.4 * len(paragraph):
        return "consumption"
    return None


def remove_boilerplate(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """(an article's paragraphs of text, (kind, paragraph) of those that are boilerplate)."""
    kept, removed, in_contact = [], [], False
    for paragraph in paragraphs_of(text):
        kind = boilerplate_kind(paragraph, in_contact)
        in_contact = kind == "contact"
        if kind:
            removed.append((kind, paragraph))
        else:
            kept.append(paragraph)
    return kept, removed


def paragraphs_of(text: str) -> list[str]:
    lines = (line.strip() if line.isprintable() and "  " not in line else " ".join(line.replace("\u200b", "").split())
             for line in text.split("\n"))  # what is printable has no white space but blanks
    return [line for line in lines if line]


def letters_only(text: str) -> str:
    """The letters and digits alone, in lower case, line by line: equal for texts that differ in spacing or punctuation."""
    return text.lower().translate(NO_LETTER)


NO_LETTER = dict.fromkeys(i for i in range(0x3100) if not chr(i).isalnum() and chr(i) != "\n")  # up to Japanese punctuation


def fingerprint(plain_text: str) -> int:
    """64 bits that stand for a text."""
    return int.from_bytes(hashlib.blake2b(plain_text.encode(), digest_size=8).digest(), "little")


def may_recur(paragraph: str) -> bool:
    """Short lines (names in lists of results) and those that announce what follows ("...:") recur as text does."""
    return len(paragraph) >= 60 and paragraph[-1] != ":"


def recurring(marks: np.ndarray, articles: int) -> np.ndarray:
    """The marks that stand in at least 1 % of so many articles and in five of them, ascending."""
    found, counts = np.unique(marks, return_counts=True)
    return found[counts >= max(5, 0.01 * articles)]
