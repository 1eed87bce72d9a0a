"""Articles to a dataset folder: cleaned, split by date, freed of near-duplicates, tokenized, with questions.

    python prepare.py data/raw/articles.jsonl --out data/bmw --tokenizer Qwen/Qwen3-0.6B-Base
    python prepare.py --pairs manual.jsonl --chat --out data/manual --tokenizer Qwen/Qwen3-0.6B

The second makes a dataset of conversations alone. What is dropped is counted, by reason. The same input and
options give the same bytes.
"""

from argparse import ArgumentTypeError
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from nanoprune import command_line
from nanoprune.command_line import option
from nanoprune.data.chat_format import chat_form
from nanoprune.data.conversations import (
    MAX_REPEATS,
    Conversation,
    balance,
    divide,
    drop_questions_of,
    hold_out,
    read_pairs,
)
from nanoprune.data.corpus import (
    CleaningOptions,
    Corpus,
    drop_near_duplicates,
    first_and_last_day,
    read_corpus,
    split_by_date,
    split_by_hash,
)
from nanoprune.data.dataset import SPLITS, read_questions
from nanoprune.data.dataset_page import write_dataset_page
from nanoprune.data.dataset_writer import DatasetWriter
from nanoprune.data.language import ANY, known_languages
from nanoprune.data.llm_questions import MOST_DOCUMENTS, write_questions
from nanoprune.data.question_check import accuracies_by_choices
from nanoprune.data.rule_questions import open_and_closed_book, training_pairs
from nanoprune.data.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from nanoprune.io.files import file_hash, write_json
from nanoprune.io.folders import replace_output
from nanoprune.io.hub import TOKENIZER_FILES, copy_tokenizer, locate
from nanoprune.io.jsonl import read_jsonl
from nanoprune.web.sites import site_of

GENERAL = Path(__file__).parent / "qa" / "general.jsonl"  # the text on which eval.py measures forgetting


def parse_shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(map(float, text.split(",")))
    except ValueError:
        shares = ()
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ArgumentTypeError(f"{text!r}: three shares above 0 that add up to 1 are needed, such as "
                                "0.8,0.1,0.1")
    return shares


@dataclass(frozen=True)
class Options(CleaningOptions):
    """The command line."""

    articles: Path | None = option("JSONL with id, title, date and text, as scrape.py writes it; leave it "
                                   "out to use --pairs alone", name="articles", nargs="?")
    out: Path = option("the dataset folder; made anew if it is there", required=True)
    tokenizer: str | None = option("hub name or folder of the model whose tokenizer is used")
    train_tokenizer: int | None = option("train a byte-level BPE of this size instead")
    split: tuple = option("shares of train, val and test", (0.8, 0.1, 0.1), type=parse_shares)
    split_by: str = option("test on the latest articles, or on a choice by hash that stays when articles are "
                           "added", "date", choices=("date", "hash"))
    report: bool = option("also write report.md, a page about the dataset, with a figure", False)
    pairs: Path | None = option("further training pairs: JSONL, a JSON array, CSV or Parquet of messages, "
                                "conversations (ShareGPT), prompt and response, or instruction, input and "
                                "output")
    chat: bool = option("write pairs by the chat template of the tokenizer's model, not plainly", False)
    conversations: bool = option("learn from pairs alone: --pairs, and those made by rule, with their "
                                 "article as context", False)
    replay: Path | None = option("general text to mix in: JSONL, lines with a `text`")
    test_pairs: Path | None = option("pairs to answer in evaluation, by task, category and difficulty, as "
                                     "JSONL; they are never trained on")
    task_prefix: bool = option("put the task in front of each question: [SPEC] ...", False)
    balance: float | None = option(f"repeat pairs of rare tasks, {MAX_REPEATS} times at most, until no task "
                                   "has over RATIO times another's pairs", least=1, metavar="RATIO")
    hold_out: float = option("share of the pairs held out", 0.0, least=0)
    max_pair_tokens: int | None = option("drop pairs that are longer; none is ever cut", least=1)
    questions: list[Path] = option("JSONL files of multiple-choice questions", (), nargs="+")
    questions_from: str | None = option(
        "have a model write questions: an OpenAI-compatible endpoint, such as http://localhost:8000/v1 (key "
        "in OPENAI_API_KEY, prompt in qa/prompt.txt)")
    questions_model: str = option("the endpoint's name of that model", "default")
    generated_documents: int = option("documents of each split, evenly spaced, from which pairs and "
                                      "questions are made by rule", 2_000, least=1)
    no_generated: bool = option("make no pairs and questions by rule", False)
    seed: int = option("seed of the choice of questions and wrong answers", 0)

    @property
    def conversations_alone(self) -> bool:
        return self.conversations or not self.articles

    def check(self) -> None:
        """ValueError if options contradict each other or are out of bounds."""
        if bool(self.tokenizer) == bool(self.train_tokenizer):
            raise ValueError("give --tokenizer NAME (the model's to be trained) or --train-tokenizer SIZE")
        if not self.articles and not self.pairs:
            raise ValueError("give ARTICLES (as scrape.py writes them), or --pairs FILE.jsonl for a dataset "
                             "of conversations")
        if self.chat and not self.tokenizer:
            raise ValueError("--chat needs --tokenizer, that of a model with a chat form")
        if self.conversations_alone:
            unusable = {"--hold-out (conversations are divided by --split)": self.hold_out,
                        "--replay": self.replay, "--report": self.report,
                        "--questions-from": self.questions_from,
                        "--train-tokenizer": self.train_tokenizer and not self.articles,
                        "--no-generated (rules make the pairs)": self.no_generated and self.articles}
            of_articles = ("split_by", "since", "until", "language", "min_chars", "keep_boilerplate",
                           "generated_documents")
            unusable |= {f"--{name.replace('_', '-')}": getattr(self, name) != getattr(Options, name)
                         for name in of_articles if not self.articles}
            if names := [name for name, value in unusable.items() if value]:
                raise ValueError(f"{', '.join(names)}: not for a dataset of conversations alone; leave it "
                                 "out")
        taken = "closed_book", "open_book", "written", "test", "general"
        names = Counter([*taken, *(path.stem for path in self.questions)])
        [(name, count)] = names.most_common(1)
        if count > 1:
            raise ValueError(f"two question sets would be named {name}; rename a file ({', '.join(taken)} "
                             "are taken)")
        if self.hold_out >= 1:
            raise ValueError(f"--hold-out must be below 1, given {self.hold_out}")
        if self.articles and self.language not in (ANY, *known_languages()):
            raise ValueError(f"--language {self.language} is unknown; give any, or one of "
                             f"{', '.join(known_languages())}")


class Inputs(NamedTuple):
    """The user's files beside the articles."""

    pairs: list[dict]
    test_pairs: list[dict]
    questions: dict[str, list[dict]]
    replay: list[dict]


def prepare(options: Options, folder: Path) -> dict:
    """Make the dataset in an empty folder; return the content of its meta.json."""
    inputs = Inputs(
        pairs=read_pairs(options.pairs) if options.pairs else [],
        questions={path.stem: read_questions(path) for path in options.questions},
        test_pairs=read_pairs(options.test_pairs) if options.test_pairs else [],
        replay=read_replay(options.replay) if options.replay else [],
    )
    form = None
    if options.tokenizer:
        model = locate(options.tokenizer, files=TOKENIZER_FILES)
        tokenizer = load_tokenizer(model)  # before the articles are read: it may be missing or damaged
        copy_tokenizer(model, folder)
        form = chat_form(model, tokenizer) if options.chat else None

    # ---- read, clean and split the articles
    corpus, cleaned = None, folder / "cleaned.jsonl"
    if options.articles:
        corpus = read_corpus(options.articles, cleaned, options, site_of)
        guesses = sum(document.guessed_date for document in corpus.documents)
        if options.split_by == "date" and guesses:
            taker = "only training"
            if guesses == len(corpus.documents):
                options, taker = replace(options, split_by="hash"), "--split-by hash"
            print(f"{guesses} documents have no known day, only that of their file's last change: "
                  f"{taker} takes them")
        split = split_by_date if options.split_by == "date" else split_by_hash
        corpus.splits = split(corpus.documents, options.split)
        drop_near_duplicates(corpus)
        print_counts(corpus, options.keep_boilerplate)

    # ---- tokenize and write documents, conversations and questions
    if options.train_tokenizer:
        texts = (corpus[document]["text"] for document in corpus.splits["train"])
        train_tokenizer(texts, options.train_tokenizer, folder)
    writer = DatasetWriter(folder, form, options.task_prefix, options.max_pair_tokens)
    if options.conversations_alone:
        meta = write_conversation_dataset(writer, corpus, inputs, options)
    else:
        meta = write_document_dataset(writer, corpus, inputs, options)
    source = options.articles or options.pairs
    size = {"articles": corpus.articles} if corpus else {"conversations": len(inputs.pairs)}
    meta = {"source": {"name": source.name} | size | {"sha256": file_hash(source)}} | meta
    write_json(folder / "meta.json", meta)

    # ---- report
    if options.report:
        write_dataset_page(folder, meta, corpus)
    cleaned.unlink(missing_ok=True)
    return meta


# ---------------------------------------------------------------- inputs
def read_replay(path: Path) -> list[dict]:
    """General text to mix in; ValueError if it is text on which eval.py measures forgetting."""
    rows = read_jsonl(path, ("text",))
    if not rows or not all(row["text"].strip() for row in rows):
        raise ValueError(f"--replay {path}: every line must have a text, and there must be one")
    measured = {row["text"] for row in read_jsonl(GENERAL, ("text",))}
    for number, row in enumerate(rows, start=1):
        if row["text"] in measured:
            raise ValueError(f"--replay {path}, line {number}: this text stands in {GENERAL.name}, which "
                             "eval.py measures forgetting on; train on other text")
    return rows


def listed(counts: Counter) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"


def print_counts(corpus: Corpus, keep_boilerplate: bool) -> None:
    print(f"{corpus.articles} articles, {sum(map(len, corpus.splits.values()))} kept")
    for reason, articles in sorted(corpus.dropped.items(), key=lambda item: -len(item[1])):
        print(f"  {len(articles):6d}  {reason:34s} such as {articles[0]}")
    counts = Counter({kind: paragraphs.total() for kind, paragraphs in corpus.removed.items()})
    print(f"{counts.total()} paragraphs of boilerplate {'kept' if keep_boilerplate else 'removed'}: "
          f"{listed(counts)}")
    for name, documents in corpus.splits.items():
        first, last = first_and_last_day(documents)
        print(f"  {name:5s}  {len(documents):6d} documents  {first} to {last}")


# ---------------------------------------------------------------- a dataset of documents
def write_document_dataset(writer: DatasetWriter, corpus: Corpus, inputs: Inputs, options: Options) -> dict:
    """Write documents, with pairs and questions made from them; return the content of meta.json."""
    entries = {name: writer.write_split(name, corpus) for name in SPLITS}

    pairs, questions, quality = inputs.pairs, inputs.questions, {}
    if not options.no_generated:
        chosen = {name: corpus.sample(name, options.generated_documents) for name in SPLITS}
        pairs = training_pairs(chosen["train"], options.seed) + pairs
        generated, refused = open_and_closed_book(chosen, options.seed)
        questions = {name: rows for name, rows in generated.items() if rows} | questions
        quality = describe_quality([row for rows in generated.values() for row in rows], refused)
    if options.questions_from:
        chosen = corpus.sample("train", MOST_DOCUMENTS)
        endpoint = options.questions_from, options.questions_model
        rows, rejected = write_questions(*endpoint, chosen, options.seed)
        questions = questions | {"written": rows}
        print(f"{len(rows)} questions written on {len(chosen)} documents; refused: {listed(rejected)}")
    writer.write_questions(questions)

    encoded = writer.encode(drop_questions_of(inputs.test_pairs, pairs))
    training, held_out = hold_out(encoded, options.hold_out, options.seed)
    held_out += writer.encode(inputs.test_pairs)
    if options.balance:
        training = balance(training, options.balance)
    writer.write_conversations("pairs", training)
    if held_out:
        writer.write_conversations("pairs_test", held_out)
    if inputs.replay:
        tokens = writer.write_replay([row["text"] for row in inputs.replay])
        print(f"{len(inputs.replay)} general documents to mix in, {tokens:,} tokens")

    return describe(questions, training, held_out, writer, options) | quality | {
        "dropped": {reason: len(articles) for reason, articles in corpus.dropped.items()},
        "paragraphs_removed": {kind: counts.total() for kind, counts in sorted(corpus.removed.items())},
        "splits": entries,
    }


def describe_quality(questions: list[dict], refused: Counter) -> dict:
    """Candidates for questions that were refused, and what the choices of the others give away."""
    reasons = "".join(f"\n  {count:6d}  {reason}" for reason, count in refused.most_common())
    print(f"{len(questions)} questions made by rule; candidates refused: {refused.total()}{reasons}")
    accuracies = accuracies_by_choices(questions) if questions else {}
    for name, entry in accuracies.items():
        low, high = entry["interval"]
        verdict = "as chance, 25 %" if low <= 0.25 <= high else "not chance, 25 %: the choices tell"
        print(f"  the {name} choice is right in {entry['accuracy']:.1%} [{low:.1%}, {high:.1%}]: {verdict}")
    return {"questions_refused": dict(sorted(refused.items())), "choices_alone": accuracies}


# ---------------------------------------------------------------- a dataset of conversations alone
FILES = {"train": ["pairs"], "val": ["val"], "test": ["test", "pairs_test"]}


def write_conversation_dataset(
    writer: DatasetWriter, corpus: Corpus | None, inputs: Inputs, options: Options
) -> dict:
    """Write conversations to learn from, to validate on and to answer; return the content of meta.json."""
    if corpus:
        chosen = {name: corpus.sample(name, options.generated_documents) for name in SPLITS}
        sides = {name: training_pairs(chosen[name], options.seed, context=True) for name in SPLITS}
        sides["train"] += inputs.pairs
    else:
        sides = divide(inputs.pairs, options.split, options.seed)
    if inputs.test_pairs:
        sides["train"] = drop_questions_of(inputs.test_pairs, sides["train"] + sides["test"])
        sides["val"] = drop_questions_of(inputs.test_pairs, sides["val"])
        sides["test"] = inputs.test_pairs

    encoded, entries = {}, {}
    for side, pairs in sides.items():
        conversations = writer.encode(pairs)
        if not conversations:
            raise ValueError(f"no conversation is left for {side}: its share of "
                             f"{sum(map(len, sides.values()))} is {len(pairs)}"
                             f"{', all of them too long' if pairs else ''}; give more of them")
        if side != "train":
            conversations = [pair.as_document(f"{side}{i}") for i, pair in enumerate(conversations)]
        elif options.balance:
            conversations = balance(conversations, options.balance)
        encoded[side] = conversations
        nbytes = [conversation.answer_bytes for conversation in conversations]
        for name in FILES[side]:
            writer.write_conversations(name, conversations, nbytes)
        tokens = sum(len(conversation.example) for conversation in conversations)
        entries[side] = {"documents": len(conversations), "tokens": tokens, "bytes": sum(nbytes)}
    writer.write_questions(inputs.questions)
    meta = describe(inputs.questions, encoded["train"], encoded["test"], writer, options)
    return meta | {"conversations": True, "splits": entries}


# ---------------------------------------------------------------- meta.json
RECORDED = ("since", "until", "language", "min_chars", "split", "split_by", "keep_boilerplate", "seed")


def describe(questions: dict[str, list[dict]], pairs: list[Conversation],
             held_out: list[Conversation], writer: DatasetWriter, options: Options) -> dict:
    """The part of meta.json that every dataset has."""
    tasks = Counter(pair.task or "none" for pair in pairs)
    if pairs:
        print(f"{len(pairs)} training pairs by task: {listed(tasks)}; {len(held_out)} held out; "
              f"{writer.too_long.total()} dropped as too long")
    tokenizer = Path(options.tokenizer).name if options.tokenizer else f"trained, {options.train_tokenizer}"
    return {
        "tokenizer": tokenizer, "tokenizer_hash": tokenizer_hash(writer.folder),
        "vocab_size": writer.vocab_size, "end_token": writer.end, "begins": writer.begins,
        "chat": options.chat, **({"chat_date": writer.form.date} if writer.form else {}),
        "pairs": len(pairs), "pairs_held_out": len(held_out), "pairs_too_long": writer.too_long.total(),
        "pairs_answer_too_long": writer.too_long["answer alone too long"],
        "tasks": dict(sorted(tasks.items())),
        "questions": {name: len(rows) for name, rows in questions.items()},
        "options": {name: getattr(options, name) for name in RECORDED},
    }


def main() -> None:
    options = command_line.parse_options(Options, __doc__)
    options.check()
    inputs = (options.articles, options.pairs, options.test_pairs, options.replay, options.tokenizer)
    with replace_output(options.out, "dataset", [*inputs, *options.questions]) as folder:
        meta = prepare(options, folder)
    tokens = sum(entry["tokens"] for entry in meta["splits"].values())
    counts = ", ".join(f"{count} {name}" for name, count in meta["questions"].items())
    print(f"wrote {options.out}: {tokens:,} tokens, {meta['pairs']} training pairs, questions: "
          f"{counts or 'none'}")


if __name__ == "__main__":
    command_line.run(main)
