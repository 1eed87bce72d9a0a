"""One page about a dataset: its content, what was left out, and how much of the test set stands in training
documents.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from nanoprune.data.corpus import Corpus
from nanoprune.data.dataset import SPLITS, Dataset
from nanoprune.data.duplicates import shingles
from nanoprune.data.language import words_of
from nanoprune.figures.dataset import draw_lengths
from nanoprune.io.files import write_text
from nanoprune.io.jsonl import JsonLines
from nanoprune.io.markdown import table
from nanoprune.progress import progress
from nanoprune.statistics import evenly_spaced

EXAMPLES = 5  # of each kind
RUN = 13  # words that make a leak, as in GPT-3's report (arXiv:2005.14165, appendix C)
LEAKAGE_DOCUMENTS = 1000  # test documents at most, evenly spaced


def write_dataset_page(folder: Path, meta: dict, corpus: Corpus) -> None:
    """Write report.md and lengths.png into a dataset folder."""
    dataset = Dataset(folder)
    documents = {name: JsonLines(folder / f"{name}.jsonl") for name in SPLITS}
    lengths = {name: np.diff(dataset.split(name).offsets) for name in SPLITS}
    draw_lengths(lengths, folder / "lengths.png")
    left_out = [{"reason": reason, "articles": len(names),
                 "for example": "; ".join(shortened(name, 80) for name in names[:EXAMPLES])}
                for reason, names in sorted(corpus.dropped.items())]
    lines = [
        *overview(meta, lengths), "", "![Length of the documents](lengths.png)", "",
        "## Articles left out", "", *table(left_out), "",
        "## Boilerplate", "", *boilerplate(corpus, meta["options"]["keep_boilerplate"]),
        "## Was the test set seen?", "", *leakage(documents, meta["splits"]), "",
        "## Documents", "",
        *(f"- {name}, {rows[0]['id']} ({rows[0]['date']}): {shortened(rows[0]['text'], 300)}"
          for name, rows in documents.items()), "",
        "## Questions"]
    for name, rows in dataset.questions().items():
        lines += ["", *question_set(name, rows)]
    write_text(folder / "report.md", "\n".join(lines) + "\n")


def overview(meta: dict, lengths: dict[str, np.ndarray]) -> list[str]:
    source = meta["source"]
    options = ", ".join(f"{key} {value}" for key, value in meta["options"].items())
    rows = [{"split": name, "documents": entry["documents"],
             "first day": entry["first"], "last day": entry["last"],
             "tokens": f"{entry['tokens']:,}", "median tokens": int(np.median(lengths[name])),
             "longest": lengths[name].max(), "tokens per byte": f"{entry['tokens'] / entry['bytes']:.3f}"}
            for name, entry in meta["splits"].items()]
    return [
        f"# The dataset of {source['name']}", "",
        f"{source['articles']} articles (SHA-256 {source['sha256'][:16]}...), "
        f"{sum(map(len, lengths.values()))} documents kept. Tokenizer: {meta['tokenizer']}. "
        f"Options: {options}.", "", *table(rows)]


def boilerplate(corpus: Corpus, in_documents: bool) -> list[str]:
    """The share of the text that is boilerplate, and the most frequent paragraphs of each kind."""
    documents = [document for split in corpus.splits.values() for document in split]
    removed = sum(document.boilerplate_chars for document in documents)
    chars = sum(document.chars for document in documents)
    whole, fate = chars + removed, "They were taken out, and"
    if in_documents:
        whole, fate = chars, "They stand in the documents (--keep-boilerplate); without"
    lines = [f"{fate} {whole - removed:,} of {whole:,} characters are left. See --keep-boilerplate.", ""]
    for kind, counts in sorted(corpus.removed.items()):
        lines += [f"**{kind}**: {counts.total()} paragraphs, {len(counts)} different ones", ""]
        for (beginning, _), count in counts.most_common(EXAMPLES):
            lines.append(f"- {count} x {shortened(beginning, 160)}")
        lines.append("")
    return lines


def leakage(documents: dict[str, JsonLines], entries: dict[str, dict]) -> list[str]:
    """The share of each test document's runs of words that stand in training documents."""
    tested = evenly_spaced(documents["test"], LEAKAGE_DOCUMENTS)
    runs = [set(shingles(words_of(document["text"]), RUN).tolist()) for document in tested]
    test_runs, in_training = set().union(*runs), set()
    for document in progress(documents["train"], "leakage"):
        in_training.update(test_runs.intersection(shingles(words_of(document["text"]), RUN).tolist()))
    shares = [len(own & in_training) / len(own) for own in runs]
    by_share = sorted(zip(shares, tested, strict=True), key=lambda item: (-item[0], item[1]["id"]))
    return [
        f"Of the runs of {RUN} words in {len(tested)} test documents, {np.mean(shares):.1%} on average stand "
        f"in training documents. The last day of training is {entries['train']['last']}, the first of the "
        f"test {entries['test']['first']}. The most:", "",
        *(f"- {share:.1%} of {document['id']}: {shortened(document['title'], 80)}"
          for share, document in by_share[:EXAMPLES]),
    ]


def question_set(name: str, questions: list[dict]) -> list[str]:
    positions = Counter(question["answer"] for question in questions)
    counts = ", ".join(str(positions[i]) for i in range(max(positions, default=-1) + 1))
    sources = {str(question.get("source", i)) for i, question in enumerate(questions)}
    lines = [f"**{name}**: {len(questions)} questions on {len(sources)} sources; right answers by position: "
             f"{counts}", ""]
    for question in questions[:EXAMPLES]:
        choices = list(question["choices"])
        choices[question["answer"]] = f"**{choices[question['answer']]}**"
        source = question.get("source", "no source")
        lines.append(f"- {shortened(question['question'], 250)} {'; '.join(choices)} ({source})")
    return lines


def shortened(text: str, length: int) -> str:
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " ..."
