"""Articles to documents: read, cleaned, chosen, divided into train, val and test, and freed of near-duplicates.

A corpus may be larger than memory: texts stand in files, and a few hundred bytes are held of each.
"""

import argparse
import hashlib
import os
import re
import signal
import zlib
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from nanoprune.data.cleaning import (
    fingerprint,
    letters_only,
    may_recur,
    paragraphs_of,
    recurring,
    remove_boilerplate,
)
from nanoprune.data.dataset import SPLITS
from nanoprune.data.duplicates import near_duplicates, signature
from nanoprune.data.language import language_of, words_of
from nanoprune.io.jsonl import JsonLines, json_line, parse_lines


BLOCK = 256  # articles cleaned at a time


@dataclass(slots=True)
class Document:
    """What is held of a document."""

    number: int  # its line of cleaned.jsonl
    id: str
    title: str
    date: str
    length: int  # characters of its body
    boilerplate: int  # and of its paragraphs of boilerplate
    mark: int  # fingerprint of its body
    recurs: bool = False  # it holds paragraphs that recur in other articles, to be left out

    def __str__(self) -> str:
        return f"{self.id}: {self.title[:60]}"


class Cleaned(NamedTuple):
    """What becomes of an article: a reason why it is left out, or its line of cleaned.jsonl and what was found in it."""

    document: Document
    reason: str | None
    line: bytes = b""
    boilerplate: Sequence[tuple[str, str, int]] = ()  # kind, beginning and hash of the paragraph
    signature: bytes = b""
    marks: Iterable[int] = ()  # fingerprints of its paragraphs of text


def clean_article(article: dict, where: str, args: argparse.Namespace) -> Cleaned:
    """One article by itself; ValueError where its date or text is unusable."""
    if not all(isinstance(article[key], str) for key in ("id", "title", "text")):
        raise ValueError(f"{where}: id, title and text must be texts")
    try:
        day = date.fromisoformat(article["date"])
        if day.isoformat() != article["date"]:  # days are compared as they are written
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{where}: date {article['date']!r} is not of the form 2025-12-05") from None
    title, suffix = " ".join(article["title"].split()), re.fullmatch(r".*\d([A-Z]{2})(_[A-Z]{2})?", article["id"])
    document = Document(0, article["id"], title, article["date"], 0, 0, 0)
    if (args.since and day < args.since) or (args.until and day > args.until):
        return Cleaned(document, "outside the period")
    if suffix and suffix[1] != args.language:
        return Cleaned(document, "other language (id)")
    if suffix and suffix[2]:
        return Cleaned(document, "other market (id)")
    paragraphs, removed = remove_boilerplate(article["text"])
    body = "\n\n".join(paragraphs_of(article["text"]) if args.keep_boilerplate else paragraphs)
    words = words_of(f"{title}\n{body}")
    if language_of(body, words) not in (None, args.language):
        return Cleaned(document, "other language (text)")
    plainly = letters_only("\n".join(paragraphs)).split("\n")
    marks = {fingerprint(mark) for mark, paragraph in zip(plainly, paragraphs, strict=False) if may_recur(paragraph)}
    document.length, document.mark = len(body), fingerprint("".join(plainly))
    document.boilerplate = sum(len(paragraph) for _, paragraph in removed)
    removed = [(kind, paragraph[:200], zlib.crc32(paragraph.encode())) for kind, paragraph in removed]
    line = json_line({"id": article["id"], "title": title, "date": article["date"], "category": article.get("category"),
                    "url": article.get("url"), "text": body})
    return Cleaned(document, None, line.encode(), removed, signature(words).tobytes(), marks)


def clean_block(args: argparse.Namespace, block: tuple[int, int, int]) -> list[Cleaned]:
    """The articles of some lines: (number of the first, where it begins in the file, where the last ends)."""
    first, begin, end = block
    with open(args.articles, "rb") as file:
        file.seek(begin)
        data = file.read(end - begin)
        if len(data) < end - begin:
            raise ValueError(f"{args.articles} changed while it was read; run again when nothing writes to it")
        rows = parse_lines(data, args.articles, first, ("id", "title", "date", "text"))
    return [clean_article(row, f"{args.articles}, line {number}", args) for number, row in enumerate(rows, start=first)]


def over_processes(function: Callable, tasks: list) -> Iterator:
    """`map`, in order, over several processes where there is enough to do for them, else in this one."""
    if len(tasks) < 32:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))  # Ctrl-C is for this one
    try:
        waiting = deque()
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > 2 * (os.cpu_count() or 1):  # what is ready and not yet taken is held in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenExecutor as error:
        raise ValueError("a process that cleaned articles was killed, perhaps for want of memory; nothing was written, and "
                         "what was there before is unharmed") from error
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass
class Corpus:
    """The documents in order of date and id, and what was left out on the way to them."""

    documents: list[Document]
    lines: JsonLines  # by number
    signatures: np.ndarray  # by number
    dropped: dict[str, list[str]]  # articles by reason
    removed: dict[str, Counter]  # beginnings and hashes of paragraphs, by kind
    articles: int
    recurring: frozenset[int] = frozenset()

    def __getitem__(self, document: Document) -> dict:
        """The document as it stands in the dataset, read from the disk."""
        found = self.lines[document.number]
        if document.recurs:
            found["text"] = "\n\n".join(p for p in found["text"].split("\n\n") if not self.recurs(p))
        return found | {"text": f"{found['title']}\n\n{found['text']}"}

    def recurs(self, paragraph: str) -> bool:
        return may_recur(paragraph) and fingerprint(letters_only(paragraph)) in self.recurring

    def near_duplicates(self, documents: list[Document]) -> list[tuple[int, int]]:
        numbers = [document.number for document in documents]
        return near_duplicates(self.signatures[numbers], lambda i: self[documents[i]]["text"])


def read_corpus(args: argparse.Namespace, path: Path) -> Corpus:
    """Clean every article, write what is left of it to `path`, and choose the documents, before the split."""
    articles = JsonLines(args.articles)
    if not len(articles):
        raise ValueError(f"{args.articles} holds no articles; collect some: python scrape.py --out {args.articles}")
    starts = articles.starts.tolist()
    blocks = [(i + 1, starts[i], starts[min(i + BLOCK, len(articles))]) for i in range(0, len(articles), BLOCK)]
    documents, dropped, removed, days = [], defaultdict(list), defaultdict(Counter), set()
    signatures, marks, owners = bytearray(), array("Q"), array("Q")  # a paragraph's mark, and whose it is
    with open(path, "wb") as file:
        for found in tqdm(over_processes(partial(clean_block, args), blocks), "cleaning", len(blocks), disable=None):
            for document, reason, line, boilerplate, signed, its_marks in found:
                days.add(document.date)
                if reason:
                    dropped[reason].append(str(document))
                    continue
                document.number = len(documents)
                documents.append(document)
                file.write(line)
                signatures += signed
                marks.extend(its_marks)
                owners.extend([document.number] * len(its_marks))
                for kind, *paragraph in boilerplate:
                    removed[kind][tuple(paragraph)] += 1
    if len(dropped["outside the period"]) == len(articles):
        raise ValueError(f"{args.articles} has no articles of that period; its {len(articles)} are of {min(days)} to "
                         f"{max(days)}")

    documents.sort(key=lambda d: (d.date, d.id))
    newest = {d.id: d for d in documents}
    dropped["same id, older"] = [str(d) for d in documents if newest[d.id] is not d]
    corpus = Corpus([d for d in documents if newest[d.id] is d], JsonLines(path),
                    np.frombuffer(signatures, np.uint64).reshape(-1, 16), dropped, removed, len(articles))
    find_recurring(corpus, np.frombuffer(marks, np.uint64), np.frombuffer(owners, np.uint64), args.keep_boilerplate)
    seen, found, corpus.documents = set(), corpus.documents, []
    for document in found:
        if document.length < args.min_chars:
            dropped[f"shorter than {args.min_chars} characters"].append(str(document))
        elif document.mark in seen:
            dropped["same text"].append(str(document))
        else:
            seen.add(document.mark)
            corpus.documents.append(document)
    corpus.dropped = {reason: found for reason, found in dropped.items() if found}
    if not corpus.documents:
        reasons = ", ".join(f"{len(found)} {reason}" for reason, found in corpus.dropped.items())
        raise ValueError(f"nothing is left of {len(articles)} articles ({reasons}); see --language and --min-chars")
    return corpus


def find_recurring(corpus: Corpus, marks: np.ndarray, owners: np.ndarray, keep: bool) -> None:
    """Count the paragraphs that recur in many articles and take them out of the documents, unless they are to be kept."""
    versions = {j for _, j in corpus.near_duplicates(corpus.documents)}  # what versions of one article share is its text
    counted = [d.number for i, d in enumerate(corpus.documents) if i not in versions]
    often = recurring(marks[np.isin(owners, np.array(counted, np.uint64))], len(counted))
    corpus.recurring = frozenset(often.tolist())
    holders = set(owners[np.isin(marks, often)].tolist())
    for document in corpus.documents:
        if document.number in holders:
            body = corpus[document]["text"].split("\n\n")[1:]
            found = [paragraph for paragraph in body if corpus.recurs(paragraph)]
            corpus.removed["recurring"].update((paragraph[:200], zlib.crc32(paragraph.encode())) for paragraph in found)
            document.boilerplate += sum(map(len, found))
            if not keep:
                document.recurs = True
                rest = [paragraph for paragraph in body if not corpus.recurs(paragraph)]
                document.length, document.mark = len("\n\n".join(rest)), fingerprint(letters_only("".join(rest)))


def split_by_date(documents: list[Document], shares: tuple[float, ...]) -> dict[str, list[Document]]:
    """Train, val and test in order of date; a day is never divided, so no dates overlap."""
    days = [d.date for d in documents]
    bounds = [0]
    for share in np.cumsum(shares)[:-1]:
        at = min(max(1, round(share * len(documents))), len(documents) - 1)
        while at < len(documents) and days[at] == days[at - 1]:
            at += 1
        bounds.append(at)
    splits = {name: documents[i:j] for name, (i, j) in zip(SPLITS, pairwise([*bounds, len(documents)]), strict=True)}
    if empty := [name for name, found in splits.items() if not found]:
        raise ValueError(f"{len(documents)} documents of {len(set(days))} days are too few for three splits: "
                         f"{', '.join(empty)} would be empty; collect more articles")
    return splits


def split_by_hash(documents: list[Document], shares: tuple[float, ...]) -> dict[str, list[Document]]:
    """Train, val and test by a hash of the id: about the shares, and a document stays where it is when others come."""
    splits = {name: [] for name in SPLITS}
    for document in documents:
        place = int.from_bytes(hashlib.sha256(document.id.encode()).digest()[:8], "big") / 2**64
        splits[SPLITS[int(np.searchsorted(np.cumsum(shares)[:-1], place, side="right"))]].append(document)
    if empty := [name for name, found in splits.items() if not found]:
        raise ValueError(f"{len(documents)} documents are too few: {', '.join(empty)} would be empty; collect more articles")
    return splits


def drop_near_duplicates(splits: dict[str, list[Document]], corpus: Corpus) -> None:
    """Within a split the later one goes; across the split the one on the training side, so that nothing tested was seen.

    What resembles a document that goes, goes as well: a chain of versions leaves one.
    """
    where = [(name, d) for name, found in splits.items() for d in found]
    gone = set()
    for i, j in corpus.near_duplicates([d for _, d in where]):
        same = where[i][0] == where[j][0]
        loser = j if same else i
        if loser not in gone:
            gone.add(loser)
            reason = "near-duplicate" if same else "near-duplicate across the split"
            corpus.dropped.setdefault(reason, []).append(str(where[loser][1]))
    lost = {where[i][1].number for i in gone}
    for name in splits:
        splits[name] = [d for d in splits[name] if d.number not in lost]
        if not splits[name]:
            raise ValueError(f"without near-duplicates nothing is left of {name}; collect more articles")


def evenly_spaced(documents: Sequence, count: int) -> list:
    """So many of the documents, evenly."""
    return [documents[i * len(documents) // count] for i in range(count)] if count < len(documents) else list(documents)
