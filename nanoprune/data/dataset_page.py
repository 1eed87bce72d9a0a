"""One page about a dataset: what is in it, what was left out, and whether the test set was seen in training."""

from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nanoprune.data.corpus import Corpus, evenly_spaced
from nanoprune.data.dataset import Dataset, SPLITS
from nanoprune.data.duplicates import shingles
from nanoprune.data.language import words_of
from nanoprune.figures.dataset import draw_lengths
from nanoprune.io.files import write_text
from nanoprune.io.jsonl import JsonLines


EXAMPLES = 5  # of each kind


def write_dataset_page(folder: Path, meta: dict, corpus: Corpus) -> None:
    """Write report.md and lengths.png into a dataset folder, on what is in it and what was left out."""
    dataset = Dataset(folder)
    splits = {name: dataset.split(name) for name in SPLITS}
    documents = {name: JsonLines(folder / f"{name}.jsonl") for name in SPLITS}
    draw_lengths({name: np.diff(split.offsets).tolist() for name, split in splits.items()}, folder / "lengths.png")
    lines = [f"# The dataset of {meta['source']['name']}", "",
             f"{meta['source']['articles']} articles (SHA-256 {meta['source']['sha256'][:16]}...), "
             f"{sum(map(len, documents.values()))} documents kept. Tokenizer: {meta['tokenizer']}. "
             f"Options: {', '.join(f'{key} {value}' for key, value in meta['options'].items())}.", "",
             *_table("split | documents | first day | last day | tokens | median tokens | longest | tokens per byte", [
                 (name, len(split), meta["splits"][name]["first"], meta["splits"][name]["last"], f"{len(split.tokens):,}",
                  int(np.median(np.diff(split.offsets))), int(np.diff(split.offsets).max()),
                  f"{len(split.tokens) / split.bytes.sum():.3f}") for name, split in splits.items()]),
             "", "![Length of the documents](lengths.png)", "", "## Articles left out", "",
             *_table("reason | articles | for example", [
                 (reason, len(found), "; ".join(_short(article, 80) for article in found[:EXAMPLES]))
                 for reason, found in sorted(corpus.dropped.items())]),
             "", "## Boilerplate", "", _share(meta, corpus), ""]
    for kind, found in sorted(corpus.removed.items()):
        lines += [f"**{kind}**: {found.total()} paragraphs, {len(found)} different ones", ""]
        often = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:EXAMPLES]
        lines += [*(f"- {n} x {_short(text, 160)}" for (text, _), n in often), ""]
    lines += ["## Was the test set seen?", "", *_leakage(documents), "", "## Documents", ""]
    for name, found in documents.items():
        lines += [f"- {name}, {found[0]['id']} ({found[0]['date']}): {_short(found[0]['text'], 300)}"]
    lines += ["", "## Questions", ""]
    for name, questions in dataset.questions().items():
        positions, sources = Counter(q["answer"] for q in questions), {str(q.get("source", i)) for i, q in enumerate(questions)}
        lines += [f"**{name}**: {len(questions)} questions on {len(sources)} sources; right answers by position: "
                  f"{', '.join(str(positions[i]) for i in range(max(positions, default=-1) + 1))}", ""]
        for q in questions[:EXAMPLES]:
            choices = "; ".join(f"**{c}**" if i == q["answer"] else c for i, c in enumerate(q["choices"]))
            lines.append(f"- {_short(q['question'], 250)} {choices} ({q.get('source', 'no source')})")
        lines.append("")
    write_text(folder / "report.md", "\n".join(lines).rstrip() + "\n")


def _share(meta: dict, corpus: Corpus) -> str:
    found = sum(document.boilerplate for document in corpus.documents)
    left = sum(document.length for document in corpus.documents)
    if meta["options"]["keep_boilerplate"]:
        return f"They stand in the documents (--keep-boilerplate); without, {left - found:,} of {left:,} characters are left."
    return f"They were taken out, and {left:,} of {left + found:,} characters are left (see --keep-boilerplate)."


def _leakage(documents: dict[str, JsonLines], n: int = 13, most: int = 1000) -> list[str]:
    """How much of each test document (of 1,000, evenly, where there are more) stands in the training documents, in runs of
    13 words (as GPT-3's authors counted, arXiv:2005.14165, appendix C)."""
    chosen = evenly_spaced(documents["test"], most)
    runs = [np.unique(shingles(words_of(d["text"]), n)) for d in chosen]
    wanted = np.unique(np.concatenate(runs))
    seen = np.zeros(len(wanted), bool)
    for document in tqdm(documents["train"], "leakage", disable=None):
        found = shingles(words_of(document["text"]), n)
        place = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
        seen[place[wanted[place] == found]] = True
    shares = sorted(((seen[np.searchsorted(wanted, found)].mean(), d) for found, d in zip(runs, chosen, strict=True)),
                    key=lambda item: (-item[0], item[1]["id"]))
    mean = sum(share for share, _ in shares) / len(shares)
    days = documents["train"][-1]["date"], documents["test"][0]["date"]
    return [f"Of the runs of {n} words in {len(chosen)} test documents, {mean:.1%} on average stand in training documents. "
            f"The last day of training is {days[0]}, the first of the test {days[1]}. The most:", "",
            *(f"- {share:.1%} of {d['id']}: {_short(d['title'], 80)}" for share, d in shares[:EXAMPLES])]


def _short(text: str, length: int) -> str:
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " ..."


def _table(head: str, rows: list[tuple]) -> list[str]:
    width = head.count("|") + 1
    return [f"| {head} |", "|" + "---|" * width, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]
