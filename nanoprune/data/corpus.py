"""Articles to documents: cleaned, chosen, split into train, val and test, and freed of near-duplicates.

A corpus may be larger than memory: texts stay in files, and a few hundred bytes are held of each document.
"""

import hashlib
import os
import re
import signal
import zlib
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanoprune.command_line import iso_day, option
from nanoprune.data.cleaning import (
    fingerprint,
    letters_only,
    may_recur,
    paragraphs_of,
    remove_boilerplate,
)
from nanoprune.data.dataset import SPLITS
from nanoprune.data.duplicates import near_duplicates, signature
from nanoprune.data.language import ANY, language_of, words_of
from nanoprune.io.jsonl import JsonLines, json_line, parse_lines
from nanoprune.progress import progress
from nanoprune.statistics import evenly_spaced

CHUNK = 256  # articles cleaned at a time
MOST_CHARS = 10_000_000  # of an article: a shelf of books


@dataclass(frozen=True)
class CleaningOptions:
    """The articles and paragraphs that become documents."""

    since: str | None = option("first day, such as 2025-09-01", type=iso_day)
    until: str | None = option("last day", type=iso_day)
    language: str = option("language of the documents, such as DE; 'any' drops none, not even where no "
                           "language can be told", "EN", type=str.upper)
    min_chars: int = option("drop shorter texts as stubs", 450, least=0)
    keep_boilerplate: bool = option("remove no paragraphs", False)


# The newsroom of an article: its `boilerplate` (patterns of whole paragraphs) and `language_of(id)`; or None.
NewsroomOf = Callable[[dict], Any]


@dataclass(slots=True)
class Document:
    """A document without its text, which stands in a file."""

    number: int  # its line of cleaned.jsonl
    id: str
    title: str
    date: str
    chars: int = 0  # of its body
    boilerplate_chars: int = 0  # of its paragraphs of boilerplate
    body_hash: int = 0
    guessed_date: bool = False  # its day is a file's last change
    has_recurring: bool = False  # it holds paragraphs that recur in other articles and are left out

    def __str__(self) -> str:
        return f"{self.id}: {self.title[:60]}"


class CleanedArticle(NamedTuple):
    """An article's line of cleaned.jsonl and what is counted of it, or the reason why it is dropped."""

    document: Document
    reason: str | None
    line: bytes = b""
    boilerplate: Sequence[tuple[str, tuple[str, int]]] = ()  # kind and `paragraph_key` of each
    signature: bytes = b""
    paragraph_hashes: Iterable[int] = ()  # of its paragraphs of text


def paragraph_key(paragraph: str) -> tuple[str, int]:
    """The beginning and the checksum, which tell a paragraph of boilerplate from others."""
    return paragraph[:200], zlib.crc32(paragraph.encode())


# ---------------------------------------------------------------- cleaning
def clean_article(
    article: dict, where: str, options: CleaningOptions, newsroom_of: NewsroomOf
) -> CleanedArticle:
    """One article by itself; ValueError if its date or text is unusable."""
    if len(article["text"]) > MOST_CHARS:
        raise ValueError(f"{where}: text has {len(article['text']):,} characters, at most {MOST_CHARS:,} are "
                         "read; divide it into several articles")
    day = article["date"]
    try:
        # Days are compared as texts, so only one form will do.
        is_usable = date.fromisoformat(day).isoformat() == day
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ValueError(f"{where}: date {day!r} is not of the form 2025-12-05")
    title = " ".join(article["title"].split())
    if not any(map(str.isalpha, title)):  # a rule such as =====
        title = ""
    guessed = article.get("dated_by") == "file"
    document = Document(0, article["id"], title, day, guessed_date=guessed)
    if not (options.since or "") <= day <= (options.until or "9999-12-31"):
        return CleanedArticle(document, "outside the period")
    newsroom = newsroom_of(article)
    named = newsroom and newsroom.language_of(article["id"])
    declared = re.split("[-_]", str(article.get("language") or named or ""))[0].upper()  # "en-GB" is "EN"
    if options.language != ANY and declared not in ("", options.language):
        return CleanedArticle(document, f"other language ({'id' if named else 'declared'})")
    if named and not article["id"].endswith(named):
        return CleanedArticle(document, "other market (id)")

    own_paragraphs = paragraphs_of(article["text"])
    if title and own_paragraphs and letters_only(own_paragraphs[0]) == letters_only(title):
        del own_paragraphs[0]
    paragraphs, boilerplate = remove_boilerplate(own_paragraphs, newsroom.boilerplate if newsroom else ())
    body = "\n\n".join(own_paragraphs if options.keep_boilerplate else paragraphs)
    if options.language != ANY and len(body) >= options.min_chars:  # a stub is dropped later
        language = language_of(body, declared)
        if not language:
            return CleanedArticle(document, "language cannot be told")
        if language != options.language:
            return CleanedArticle(document, "other language (text)")
    document.chars, document.body_hash = len(body), fingerprint("".join(paragraphs))
    document.boilerplate_chars = sum(len(paragraph) for _, paragraph in boilerplate)
    row = {"id": article["id"], "title": title, "date": day,
           "category": article.get("category"), "url": article.get("url"), "text": body}
    if guessed:
        row["dated_by"] = "file"
    hashes = {fingerprint(paragraph) for paragraph in paragraphs if may_recur(paragraph)}
    keys = [(kind, paragraph_key(paragraph)) for kind, paragraph in boilerplate]
    words = words_of(f"{title}\n{body}")
    return CleanedArticle(document, None, json_line(row).encode(), keys, signature(words).tobytes(), hashes)


def clean_chunk(
    articles: Path, options: CleaningOptions, newsroom_of: NewsroomOf, chunk: tuple[int, int, int]
) -> list[CleanedArticle]:
    """The articles of a chunk of lines, given as its first line's number, its first byte and its end."""
    first, begin, end = chunk
    with open(articles, "rb") as file:
        file.seek(begin)
        data = file.read(end - begin)
    if len(data) < end - begin:
        raise ValueError(f"{articles} changed while it was read; run again when nothing writes to it")
    rows = parse_lines(data, articles, first, ("id", "title", "date", "text"))
    return [clean_article(row, f"{articles}, line {i}", options, newsroom_of)
            for i, row in enumerate(rows, start=first)]


def over_processes(function: Callable, tasks: list) -> Iterator:
    """Results in order, from several processes if there are enough tasks for them, else from this one."""
    if len(tasks) < 32:
        yield from map(function, tasks)
        return
    # Ctrl-C is for this process alone.
    pool = ProcessPoolExecutor(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield from ahead(pool, function, tasks, 2 * (os.cpu_count() or 1))
    except BrokenExecutor as error:
        raise ValueError("a process that cleaned articles was killed, perhaps for want of memory; nothing "
                         "was written, and the earlier dataset is unharmed") from error
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(pool: Executor, function: Callable, tasks: Iterable, most: int) -> Iterator:
    """The results of a pool in order; at most `most` that nobody has taken are held in memory."""
    pending = deque()
    for task in tasks:
        pending.append(pool.submit(function, task))
        if len(pending) > most:
            yield pending.popleft().result()
    for future in pending:
        yield future.result()


# ---------------------------------------------------------------- the corpus
@dataclass
class Corpus:
    """The documents in order of date and id, and what was left out on the way to them."""

    documents: list[Document]
    lines: JsonLines  # by number
    signatures: np.ndarray  # by number
    dropped: defaultdict[str, list[str]]  # articles by reason
    removed: defaultdict[str, Counter]  # `paragraph_key`s by kind of boilerplate
    articles: int
    recurring: frozenset[int] = frozenset()  # fingerprints of paragraphs
    splits: dict[str, list[Document]] = field(default_factory=dict)

    def __getitem__(self, document: Document) -> dict:
        """The document as it stands in the dataset, read from the disk."""
        row = self.lines[document.number]
        if document.has_recurring:
            paragraphs = row["text"].split("\n\n")
            row["text"] = "\n\n".join(text for text in paragraphs if not self.recurs(text))
        return row | {"text": f"{row['title']}\n\n{row['text']}"}

    def recurs(self, paragraph: str) -> bool:
        return may_recur(paragraph) and fingerprint(paragraph) in self.recurring

    def sample(self, split: str, count: int) -> list[dict]:
        """At most `count` documents of a split, evenly spaced."""
        return [self[document] for document in evenly_spaced(self.splits[split], count)]

    def near_duplicates(self, documents: list[Document]) -> list[tuple[int, int]]:
        numbers = [document.number for document in documents]
        return near_duplicates(self.signatures[numbers], lambda i: self[documents[i]]["text"])


def read_corpus(
    articles: Path, cleaned: Path, options: CleaningOptions, newsroom_of: NewsroomOf
) -> Corpus:
    """Clean every article, write the texts to `cleaned`, and choose the documents, before the split."""
    lines = JsonLines(articles)
    if not len(lines):
        raise ValueError(f"{articles} holds no articles; collect some: python scrape.py --out {articles}")
    starts = lines.starts.tolist()
    chunks = [(i + 1, starts[i], starts[min(i + CHUNK, len(lines))]) for i in range(0, len(lines), CHUNK)]
    # ---- clean the articles one by one, in several processes
    documents, dropped, removed = [], defaultdict(list), defaultdict(Counter)
    signatures = bytearray()
    hashes, numbers = array("Q"), array("q")  # of all paragraphs of text, with their documents' numbers
    with open(cleaned, "wb") as file:
        results = over_processes(partial(clean_chunk, articles, options, newsroom_of), chunks)
        for chunk in progress(results, "cleaning", len(chunks)):
            for article in chunk:
                document = article.document
                if article.reason:
                    dropped[article.reason].append(str(document))
                    continue
                document.number = len(documents)
                documents.append(document)
                file.write(article.line)
                signatures += article.signature
                hashes.extend(article.paragraph_hashes)
                numbers.extend([document.number] * len(article.paragraph_hashes))
                for kind, key in article.boilerplate:
                    removed[kind][key] += 1
    documents.sort(key=lambda document: (document.date, document.id))
    minima = np.frombuffer(signatures, np.uint32).reshape(-1, 64)
    corpus = Corpus(documents, JsonLines(cleaned), minima, dropped, removed, len(lines))

    # ---- choose the documents
    drop_older_versions(corpus)
    find_recurring(corpus, np.asarray(hashes), np.asarray(numbers), options.keep_boilerplate)
    drop_stubs_and_copies(corpus, options.min_chars)
    if not corpus.documents:
        reasons = ", ".join(f"{len(names)} {reason}" for reason, names in corpus.dropped.items())
        raise ValueError(f"nothing is left of {corpus.articles} articles ({reasons}); see --since, --until, "
                         "--language and --min-chars")
    return corpus


def drop_older_versions(corpus: Corpus) -> None:
    """Of the documents with one id, keep the newest: the last by day, and of one day the last line."""
    newest = {document.id: document for document in corpus.documents}
    for document in corpus.documents:
        if newest[document.id] is not document:
            corpus.dropped["same id, older"].append(str(document))
    corpus.documents = [document for document in corpus.documents if newest[document.id] is document]


def find_recurring(corpus: Corpus, hashes: np.ndarray, numbers: np.ndarray, keep: bool) -> None:
    """Count the paragraphs that recur in many articles; leave them out of the documents unless `keep`.

    `hashes`, `numbers`: (paragraphs,) fingerprints, and the numbers of their documents.
    """
    # What versions of one article share is its text: only the first version counts.
    versions = {j for _, j in corpus.near_duplicates(corpus.documents)}
    counted = [document.number for i, document in enumerate(corpus.documents) if i not in versions]
    fingerprints, counts = np.unique(hashes[np.isin(numbers, counted)], return_counts=True)
    frequent = fingerprints[counts >= max(5, 0.01 * len(counted))]  # in at least 1 % of all articles
    corpus.recurring = frozenset(frequent.tolist())
    holders = set(numbers[np.isin(hashes, frequent)].tolist())
    for document in corpus.documents:
        if document.number not in holders:
            continue
        body = corpus[document]["text"].split("\n\n")[1:]
        boilerplate = [paragraph for paragraph in body if corpus.recurs(paragraph)]
        corpus.removed["recurring"].update(map(paragraph_key, boilerplate))
        document.boilerplate_chars += sum(map(len, boilerplate))
        if not keep:
            document.has_recurring = True
            rest = corpus[document]["text"].partition("\n\n")[2]
            document.chars, document.body_hash = len(rest), fingerprint(rest)


def drop_stubs_and_copies(corpus: Corpus, min_chars: int) -> None:
    chosen, seen = [], set()
    for document in corpus.documents:
        if document.chars < min_chars:
            corpus.dropped[f"shorter than {min_chars} characters"].append(str(document))
        elif document.body_hash in seen:
            corpus.dropped["same text"].append(str(document))
        else:
            seen.add(document.body_hash)
            chosen.append(document)
    corpus.documents = chosen


# ---------------------------------------------------------------- the split
def split_by_date(documents: list[Document], shares: Sequence[float]) -> dict[str, list[Document]]:
    """Train, val and test in order of date; a day is never divided, so no dates overlap.

    Documents whose day is a guess have no place in time: they are for training alone.
    """
    dated = [document for document in documents if not document.guessed_date]
    days = [document.date for document in dated]
    bounds = [0]
    for share in np.cumsum(shares)[:-1]:
        before = min(max(1, round(share * len(dated))), len(dated) - 1) - 1
        bounds.append(bisect_right(days, days[before]))
    spans = pairwise([*bounds, len(dated)])
    splits = {name: dated[first:end] for name, (first, end) in zip(SPLITS, spans, strict=True)}
    splits["train"] = [document for document in documents if document.guessed_date] + splits["train"]
    return splits


def first_and_last_day(documents: list[Document]) -> tuple[str, str]:
    """The days between which the documents were published, as far as known."""
    days = [document.date for document in documents if not document.guessed_date] or ["unknown"]
    return min(days), max(days)


def split_by_hash(documents: list[Document], shares: Sequence[float]) -> dict[str, list[Document]]:
    """Train, val and test by a hash of the id.

    The sizes are about the shares, and a document stays in its split when articles are added.
    """
    splits, bounds = {name: [] for name in SPLITS}, np.cumsum(shares)[:-1]
    for document in documents:
        place = int.from_bytes(hashlib.sha256(document.id.encode()).digest()[:8], "big") / 2**64
        splits[SPLITS[int(np.searchsorted(bounds, place, side="right"))]].append(document)
    return splits


def drop_near_duplicates(corpus: Corpus) -> None:
    """Drop the later one within a split, or the earlier if the later holds far more than it, and the one on
    the training side across splits.

    So nothing in the test was seen in training. A document that resembles a dropped one is dropped, too: a
    chain of versions leaves one. ValueError if nothing is left of a split.
    """
    placed = [(name, document) for name, documents in corpus.splits.items() for document in documents]
    dropped = set()
    for i, j in corpus.near_duplicates([document for _, document in placed]):
        same_split = placed[i][0] == placed[j][0]
        is_part = placed[i][1].chars < 0.8 * placed[j][1].chars
        document = placed[j if same_split and not is_part else i][1]
        if document.number not in dropped:
            dropped.add(document.number)
            reason = "near-duplicate" if same_split else "near-duplicate across the split"
            corpus.dropped[reason].append(str(document))
    for name, documents in corpus.splits.items():
        corpus.splits[name] = [document for document in documents if document.number not in dropped]
    if empty := [name for name, documents in corpus.splits.items() if not documents]:
        days = {document.date for document in corpus.documents}
        raise ValueError(f"{len(corpus.documents)} documents of {len(days)} days, less near-duplicates, are "
                         f"too few for three splits: {', '.join(empty)} would be empty; collect more "
                         "articles, or take --split-by hash")
