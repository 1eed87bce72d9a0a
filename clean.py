"""What is no text of its own: boilerplate, other languages, and the same text again."""

import hashlib
import re
import zlib
from collections import Counter

import numpy as np
from tqdm import tqdm

# ---------------------------------------------------------------- boilerplate
# Every pattern covers a whole paragraph: nothing is cut because of a word that also stands in running text.

CONTACT_START = re.compile(
    r"((in case of|in the event of|for|(if|should) you have)( any| further| more| additional| media)*"
    r" (queries|questions|enquiries|inquiries|information|details)),? please contact:?.{0,200}"
    r"|(press|media) contacts?[.:]?|(BMW Group,? )?corporate communications", re.I)
CONTACT_LINE = re.compile(
    r".{0,160}(\b(tel|telephone|phone|mobile|cell|fax)\b[.:]? ?[+(]?\d|\be-?mail: ?\S+@|\+\d\d[- (]|\S+@\S+\.\w{2,3}\b)"
    r".{0,160}", re.I)
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
    if CONTACT_START.fullmatch(paragraph) or (paragraph[-1] != "." and CONTACT_LINE.fullmatch(paragraph)):
        return "contact"
    if in_contact and len(paragraph) <= 120 and paragraph[-1] not in ".!?”\":":
        return "contact"  # names and job titles between "please contact" and the next sentence
    for kind, pattern in WHOLE.items():
        if pattern.fullmatch(paragraph):
            return kind
    rest = CONSUMPTION.sub("", paragraph)
    if "km" in paragraph and "ombined" in paragraph and len(rest) < 0.4 * len(paragraph):
        return "consumption"
    return None


def clean(text: str, recurring: set[str], removed: dict[str, Counter]) -> str:
    """An article's text without boilerplate, one paragraph a block; what was removed is counted, by kind and paragraph."""
    kept, in_contact = [], False
    for paragraph in paragraphs_of(text):
        kind = boilerplate_kind(paragraph, in_contact)
        if kind is None and fingerprint(paragraph) in recurring:
            kind = "recurring"
        in_contact = kind == "contact"
        if kind:
            removed[kind][paragraph] += 1
        else:
            kept.append(paragraph)
    return "\n\n".join(kept)


def paragraphs_of(text: str) -> list[str]:
    lines = (re.sub(r"\s+", " ", line.replace("\u200b", "")).strip() for line in text.split("\n"))
    return [line for line in lines if line]


def fingerprint(text: str) -> str:
    """A hash of the letters and digits alone: equal for texts that differ in spacing, case or punctuation."""
    return hashlib.sha256(re.sub(r"[\W_]+", "", text.lower()).encode()).hexdigest()


def recurring_paragraphs(articles: list[dict], shortest: int = 60) -> set[str]:
    """Fingerprints of paragraphs that stand in at least 1 % of the articles and in five of them.

    Short lines (names in lists of results) and those that announce what follows ("...:") recur as text does.
    """
    counts = Counter()
    for article in articles:
        counts.update({fingerprint(p) for p in paragraphs_of(article["text"]) if len(p) >= shortest and p[-1] != ":"})
    return {mark for mark, n in counts.items() if n >= max(5, 0.01 * len(articles))}


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


def language_of(text: str) -> str | None:
    """The language whose script has a fifth of the letters, else whose stop words stand in a text most often; None where
    there are too few to tell."""
    letters = len(re.findall(r"[^\W\d_]", text))
    for language, span in SCRIPTS.items():
        if len(re.findall(f"[{span}]", text)) > 0.2 * letters:
            return language
    words = Counter(re.findall(r"[^\W\d_]+", text.lower()))
    found = {language: sum(words[word] for word in stop) for language, stop in STOP_WORDS.items()}
    best = max(found, key=found.get)
    return best if found[best] >= 5 else None


def near_duplicates(texts: list[str], threshold: float = 0.8) -> list[tuple[int, int]]:
    """Pairs (i < j) whose sets of five-word shingles have a Jaccard similarity of at least `threshold`.

    MinHash (Broder 1997): 64 permutations in 16 bands of 4. Of the documents that share a band, each is compared exactly
    with the first and with the one before, so that time and memory (128 bytes a document) grow linearly.
    """
    rng = np.random.default_rng(1)
    a, b = rng.integers(1, 2**61, (2, 64, 1), dtype=np.uint64) | np.uint64(1)
    mix = rng.integers(1, 2**61, 4, dtype=np.uint64) | np.uint64(1)
    bands = np.empty((len(texts), 16), np.uint64)
    for i, text in enumerate(tqdm(texts, desc="duplicates", disable=None)):
        minima = (a * shingles(text) + b).min(1)  # wraps modulo 2^64, here and below
        bands[i] = (minima.reshape(16, 4) * mix).sum(1)
    candidates = []
    for column in bands.T:
        order = np.argsort(column, kind="stable")
        same = column[order[1:]] == column[order[:-1]]
        starts = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(len(order)), 0))
        for other in (order[:-1], order[starts][1:]):
            candidates.append(np.stack([other[same], order[1:][same]], 1))
    pairs = np.unique(np.concatenate(candidates), axis=0)

    def jaccard(i: int, j: int) -> float:
        first, second = shingles(texts[i]), shingles(texts[j])
        common = len(np.intersect1d(first, second, assume_unique=True))
        return common / (len(first) + len(second) - common)

    return [(i, j) for i, j in pairs.tolist() if jaccard(i, j) >= threshold]


def shingles(text: str) -> np.ndarray:
    """Hashes of the runs of five words (of all the words, where they are fewer), each once."""
    words = np.fromiter((zlib.crc32(word.encode()) for word in re.findall(r"\w+", text.lower())), np.uint64)
    size = min(5, max(1, len(words)))
    found = np.zeros(max(1, len(words) - size + 1), np.uint64)
    for k in range(min(size, len(words))):
        found = found * np.uint64(0x9E3779B97F4A7C15) + words[k : len(words) - size + 1 + k] + np.uint64(1)
    return np.unique(found)
