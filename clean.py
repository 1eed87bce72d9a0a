"""What is no text of its own: boilerplate, other languages, and the same text again."""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Callable

import numpy as np

# ---------------------------------------------------------------- boilerplate
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


def clean(text: str) -> tuple[list[str], list[tuple[str, str]]]:
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


def plain(text: str) -> str:
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


# ---------------------------------------------------------------- language and duplicates

STOP_WORDS = {
    "EN": "the and of to in is for with that on as are from this by at has was it its be will".split(),
    "DE": "der die das und ist mit von für auf den dem ein eine im zu nicht sich auch wird als".split(),
    "ES": "el la los las de que en y del con por para una un se es su al como más".split(),
    "FR": "le la les des du et est une dans pour que sur avec par au ce qui en un pas".split(),
    "IT": "il la di che e del della per con un una sono nel dei le al da si gli più".split(),
    "NL": "de het een en van in is op te dat met voor zijn niet aan er om ook als bij".split(),
}


SCRIPTS = {  # letters of their own; Japanese before Chinese, whose characters it uses too
    "JA": "\u3040-\u30ff", "ZH": "\u4e00-\u9fff", "KO": "\uac00-\ud7af", "RU": "\u0400-\u04ff", "EL": "\u0370-\u03ff",
    "AR": "\u0600-\u06ff", "HE": "\u0590-\u05ff", "TH": "\u0e00-\u0e7f", "HI": "\u0900-\u097f",
}


LANGUAGES_OF = {word: [language for language, words in STOP_WORDS.items() if word in words]
                for word in sum(STOP_WORDS.values(), [])}


def words_of(text: str) -> list[str]:
    return text.lower().translate(TO_SPACE).split()


TO_SPACE = dict.fromkeys((i for i in range(0x3100) if not (chr(i).isalnum() or chr(i) == "_")), " ")


def language_of(text: str, words: list[str]) -> str | None:
    """The language whose script has a fifth of the letters, else whose stop words are most of a text's words; None where
    there are too few to tell."""
    if not text.isascii():
        letters = sum(map(str.isalpha, text))
        for language, span in SCRIPTS.items():
            if len(re.findall(f"[{span}]", text)) > 0.2 * letters:
                return language
    found = dict.fromkeys(STOP_WORDS, 0)
    for word, times in Counter(filter(LANGUAGES_OF.__contains__, words)).items():
        for language in LANGUAGES_OF[word]:
            found[language] += times
    best = max(found, key=found.get)
    return best if found[best] >= 5 else None


def signature(words: list[str]) -> np.ndarray:
    """(16,) uint64: bands of the MinHash of a text's words (Broder 1997), 64 permutations in bands of 4.

    Texts whose shingles have a Jaccard similarity of s share a band with probability 1 - (1 - s^4)^16.
    """
    minima = (PERMUTATIONS * (shingles(words) >> np.uint64(32)).astype(np.uint32)).min(1)  # wraps modulo 2^32
    return (minima.reshape(16, 4) * BAND_MIX).sum(1)


_RNG = np.random.default_rng(1)
PERMUTATIONS = _RNG.integers(1, 2**32, (64, 1), dtype=np.uint32) | np.uint32(1)
BAND_MIX = _RNG.integers(1, 2**61, 4, dtype=np.uint64) | np.uint64(1)


def near_duplicates(signatures: np.ndarray, text: Callable[[int], str], threshold: float = 0.8) -> list[tuple[int, int]]:
    """Pairs (i < j) of texts whose sets of five-word shingles have a Jaccard similarity of at least `threshold`.

    Of the texts that share a band, each is compared exactly with the first and with the one before, so that time and
    memory grow linearly. `signatures` are of shape (texts, 16), `text(i)` gives the i-th.
    """
    candidates, n = [np.empty(0, np.int64)], len(signatures)
    for column in np.ascontiguousarray(signatures.T):
        order = np.argsort(column, kind="stable")
        same = column[order[1:]] == column[order[:-1]]
        starts = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(n), 0))
        for other in (order[:-1], order[starts][1:]):
            candidates.append(other[same] * n + order[1:][same])

    def jaccard(i: int, j: int) -> float:
        first, second = np.unique(shingles(words_of(text(i)))), np.unique(shingles(words_of(text(j))))
        common = len(np.intersect1d(first, second, assume_unique=True))
        return common / (len(first) + len(second) - common)

    pairs = (divmod(pair, n) for pair in np.unique(np.concatenate(candidates)).tolist())
    return [(i, j) for i, j in pairs if jaccard(i, j) >= threshold]


def shingles(words: list[str], size: int = 5) -> np.ndarray:
    """Hashes of the runs of `size` words (of all the words, where they are fewer), in order."""
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in words or [""]), np.uint64)
    weights = np.cumprod(np.full(min(size, len(hashes)), 0x9E3779B97F4A7C15, np.uint64))
    return np.convolve(hashes, weights, "valid")  # wraps modulo 2^64
