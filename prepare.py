"""Articles to a dataset folder: cleaned, de-duplicated, split by date, tokenized, with question sets.

    python prepare.py data/raw/articles.jsonl --out data/bmw --tokenizer Qwen/Qwen3-0.6B-Base

Says what it dropped and why. Same input and options, same bytes.
"""

import argparse
import hashlib
import re
import sys
from collections import Counter, defaultdict
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

from ask import write_questions
from clean import STOP_WORDS, clean, fingerprint, language_of, near_duplicates, paragraphs_of, recurring_paragraphs
from dataset import (
    SPLITS,
    end_token,
    load_tokenizer,
    read_jsonl,
    read_questions,
    tokenizer_hash,
    write_jsonl,
    write_tokens,
)
from files import TOKENIZER_FILES, copy_tokenizer, locate, make_folder, read_json, whole_folder, write_json
from instructions import MAX_REPEATS, balance, encode_pair, hold_out, read_pairs, with_task
from questions import open_and_closed_book, training_pairs
from report import write_report

# ---------------------------------------------------------------- articles to documents


def read_articles(path: Path, since: date | None, until: date | None) -> list[dict]:
    """Articles in order of date and id; ValueError names the line whose date or text is unusable."""
    articles = read_jsonl(path, ("id", "title", "date", "text"))
    for number, article in enumerate(articles, start=1):
        try:
            article["day"] = date.fromisoformat(article["date"])
            if article["day"].isoformat() != article["date"]:  # days are compared as they are written
                raise ValueError
        except (TypeError, ValueError):
            raise ValueError(f"{path}, line {number}: date {article['date']!r} is not of the form 2025-12-05") from None
        if not all(isinstance(article[key], str) for key in ("id", "title", "text")):
            raise ValueError(f"{path}, line {number}: id, title and text must be texts")
    if not articles:
        raise ValueError(f"{path} holds no articles; collect some: python scrape.py --out {path}")
    chosen = [a for a in articles if (since is None or a["day"] >= since) and (until is None or a["day"] <= until)]
    if not chosen:
        days = [a["day"] for a in articles]
        raise ValueError(f"{path} has no articles of that period; its {len(articles)} are of {min(days)} to {max(days)}")
    return sorted(chosen, key=lambda a: (a["day"], a["id"]))


def select(articles: list[dict], args: argparse.Namespace) -> tuple[list[dict], dict[str, list[dict]], dict[str, Counter]]:
    """(documents, articles dropped by reason, how often each paragraph was removed by kind), before the split."""
    dropped: dict[str, list[dict]] = {}
    def drop(reason: str, article: dict) -> None:
        dropped.setdefault(reason, []).append(article)

    ours, newest = [], {article["id"]: article for article in articles}
    for article in articles:
        suffix = re.fullmatch(r".*\d([A-Z]{2})(_[A-Z]{2})?", article["id"])
        if newest[article["id"]] is not article:
            drop("same id, older", article)
        elif suffix and suffix[1] != args.language:
            drop("other language (id)", article)
        elif suffix and suffix[2]:
            drop("other market (id)", article)
        elif language_of(article["text"]) not in (None, args.language):
            drop("other language (text)", article)
        else:
            ours.append(article)
    removed, recurring = defaultdict(Counter), set()
    if not args.keep_boilerplate:  # what versions of one article share is its text
        versions = {j for _, j in near_duplicates([article["text"] for article in ours])}
        recurring = recurring_paragraphs([article for i, article in enumerate(ours) if i not in versions])
    documents, seen = [], set()
    for article in tqdm(ours, desc="cleaning", disable=None):
        whole = "\n\n".join(paragraphs_of(article["text"]))
        text = whole if args.keep_boilerplate else clean(article["text"], recurring, removed)
        mark = fingerprint(text)
        if len(text) < args.min_chars:
            drop(f"shorter than {args.min_chars} characters", article)
        elif mark in seen:
            drop("same text", article)
        else:
            seen.add(mark)
            title = re.sub(r"\s+", " ", article["title"]).strip()
            documents.append({"id": article["id"], "title": title, "date": article["date"], "category": article.get("category"),
                              "url": article.get("url"), "text": f"{title}\n\n{text}"})
    if not documents:
        reasons = ", ".join(f"{len(found)} {reason}" for reason, found in dropped.items())
        raise ValueError(f"nothing is left of {len(articles)} articles ({reasons}); see --language and --min-chars")
    return documents, dropped, removed


def split_by_date(documents: list[dict], shares: tuple[float, ...]) -> dict[str, list[dict]]:
    """Train, val and test in order of date; a day is never divided, so no dates overlap."""
    days = [d["date"] for d in documents]
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


def split_by_hash(documents: list[dict], shares: tuple[float, ...]) -> dict[str, list[dict]]:
    """Train, val and test by a hash of the id: about the shares, and a document stays where it is when others come."""
    splits = {name: [] for name in SPLITS}
    for document in documents:
        place = int.from_bytes(hashlib.sha256(document["id"].encode()).digest()[:8], "big") / 2**64
        splits[SPLITS[int(np.searchsorted(np.cumsum(shares)[:-1], place, side="right"))]].append(document)
    if empty := [name for name, found in splits.items() if not found]:
        raise ValueError(f"{len(documents)} documents are too few: {', '.join(empty)} would be empty; collect more articles")
    return splits


def drop_near_duplicates(splits: dict[str, list[dict]], dropped: dict[str, list[dict]]) -> None:
    """Within a split the later one goes; across the split the one on the training side, so that nothing tested was seen.

    What resembles a document that goes, goes as well: a chain of versions leaves one.
    """
    where = [(name, d) for name, found in splits.items() for d in found]
    gone = set()
    for i, j in near_duplicates([d["text"] for _, d in where]):
        same = where[i][0] == where[j][0]
        loser = j if same else i
        if loser in gone:
            continue
        gone.add(loser)
        dropped.setdefault("near-duplicate" if same else "near-duplicate across the split", []).append(where[loser][1])
    lost = {id(where[i][1]) for i in gone}
    for name in splits:
        splits[name] = [d for d in splits[name] if id(d) not in lost]
        if not splits[name]:
            raise ValueError(f"without near-duplicates nothing is left of {name}; collect more articles")


# ---------------------------------------------------------------- tokens


def train_tokenizer(texts: list[str], vocab_size: int, folder: Path) -> None:
    """A byte-level BPE with Qwen's special tokens, trained on these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(specials) + len(alphabet):
        raise ValueError(f"--train-tokenizer {vocab_size} is too small: the bytes and special tokens alone are "
                         f"{len(specials) + len(alphabet)}")
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False))
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": specials[0],
                                                  "pad_token": specials[0]})


def write_split(folder: Path, name: str, documents: list[dict], tokenizer: Tokenizer, end: int, begins: bool) -> dict:
    """One split's JSONL and token file; its entry of meta.json.

    `bytes` counts what the predictions of a document stand for: all of its text, less its first token where the
    tokenizer adds no begin token, as nothing predicts that one.
    """
    tokens, nbytes = [], []
    for start in tqdm(range(0, len(documents), 256), desc=f"tokenizing {name}", disable=None):
        part = documents[start : start + 256]
        for document, encoded in zip(part, tokenizer.encode_batch([d["text"] for d in part]), strict=True):
            given = 0 if begins else encoded.offsets[0][1]
            tokens.append(np.array([*encoded.ids, end], np.uint32))  # a list would take ten times as much
            nbytes.append(len(document["text"][given:].encode()))
    write_jsonl(folder / f"{name}.jsonl", documents)
    write_tokens(folder / f"{name}.safetensors", tokens, tokenizer.get_vocab_size(), nbytes=nbytes)
    return {"documents": len(documents), "tokens": sum(map(len, tokens)), "bytes": sum(nbytes),
            "first": documents[0]["date"], "last": documents[-1]["date"]}


def write_pairs(folder: Path, name: str, pairs: list[dict], tokenizer: Tokenizer, end: int) -> None:
    """Examples as text and as tokens; only the answers and the end are learned."""
    found = [encode_pair(pair["messages"], tokenizer, end) for pair in pairs]
    write_jsonl(folder / f"{name}.jsonl", pairs)
    write_tokens(folder / f"{name}.safetensors", [tokens for tokens, _ in found], tokenizer.get_vocab_size(),
                 learned=[mask for _, mask in found])


# ---------------------------------------------------------------- the whole


def prepare(args: argparse.Namespace, folder: Path) -> dict:
    """Make the dataset in an empty folder; its meta.json's content."""
    articles = read_articles(args.articles, args.since, args.until)
    pairs = read_pairs(args.pairs) if args.pairs else []
    sets = {path.stem: read_questions(path) for path in args.questions}
    if args.tokenizer:
        copy_tokenizer(locate(args.tokenizer, files=TOKENIZER_FILES), folder)
    documents, dropped, removed = select(articles, args)
    splits = {"date": split_by_date, "hash": split_by_hash}[args.split_by](documents, args.split)
    drop_near_duplicates(splits, dropped)
    print_report(len(articles), splits, dropped, removed)

    if args.train_tokenizer:
        train_tokenizer([d["text"] for d in splits["train"]], args.train_tokenizer, folder)
    tokenizer = load_tokenizer(folder)
    end, begins = end_token(tokenizer, folder), bool(tokenizer.encode("").ids)
    entries = {name: write_split(folder, name, found, tokenizer, end, begins) for name, found in splits.items()}

    if args.generated:
        pairs = training_pairs(splits["train"], args.seed) + pairs
        sets = {name: found for name, found in open_and_closed_book(splits, args.seed).items() if found} | sets
    if args.questions_from:
        chosen = splits["train"][:: max(1, len(splits["train"]) // args.questions_documents)][: args.questions_documents]
        sets["written"], refused = write_questions(args.questions_from, args.questions_model, chosen, args.seed)
        print(f"{len(sets['written'])} questions written on {len(chosen)} documents; refused: "
              + (", ".join(f"{n} {reason}" for reason, n in refused.most_common()) or "none"))
    if args.task_prefix:
        pairs = [with_task(pair) for pair in pairs]
    longest = args.max_pair_tokens or sys.maxsize
    whole = [pair for pair in pairs if len(encode_pair(pair["messages"], tokenizer, end)[0]) <= longest]  # none is ever cut
    too_long = len(pairs) - len(whole)
    pairs, held_out = hold_out(whole, args.hold_out, args.seed)
    if args.balance:
        pairs = balance(pairs, args.balance)
    write_pairs(folder, "pairs", pairs, tokenizer, end)
    if held_out:
        write_pairs(folder, "pairs_test", held_out, tokenizer, end)
    tasks = Counter(pair.get("task") or "none" for pair in pairs)
    if pairs:
        print(f"{len(pairs)} training pairs by task: {', '.join(f'{n} {task}' for task, n in tasks.most_common())}; "
              f"{len(held_out)} held out; {too_long} dropped as too long")
    for name, questions in sets.items():
        write_jsonl(make_folder(folder / "qa") / f"{name}.jsonl", questions)
    meta = {
        "source": {"name": args.articles.name, "articles": len(articles),
                   "sha256": hashlib.sha256(args.articles.read_bytes()).hexdigest()},
        "tokenizer": Path(args.tokenizer).name if args.tokenizer else f"trained, {args.train_tokenizer}",
        "tokenizer_hash": tokenizer_hash(folder),
        "vocab_size": max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        "end_token": end, "begins": begins,
        "dropped": {reason: len(found) for reason, found in dropped.items()},
        "paragraphs_removed": {kind: found.total() for kind, found in sorted(removed.items())},
        "splits": entries, "pairs": len(pairs), "pairs_held_out": len(held_out), "pairs_too_long": too_long,
        "tasks": dict(sorted(tasks.items())), "questions": {name: len(found) for name, found in sets.items()},
        "options": {key: str(value) if isinstance(value, date) else value for key, value in vars(args).items()
                    if key in ("since", "until", "language", "min_chars", "split", "split_by", "keep_boilerplate", "seed")},
    }
    write_json(folder / "meta.json", meta)
    if args.report:
        write_report(folder, meta, dropped, removed)
    return meta


def print_report(total: int, splits: dict, dropped: dict[str, list[dict]], removed: dict[str, Counter]) -> None:
    print(f"{total} articles, {sum(map(len, splits.values()))} kept")
    for reason, found in sorted(dropped.items(), key=lambda item: -len(item[1])):
        print(f"  {len(found):6d}  {reason:34s} such as {found[0]['id']}: {found[0]['title'][:60]}")
    kinds = sorted(removed.items(), key=lambda item: -item[1].total())
    print(f"{sum(found.total() for found in removed.values())} paragraphs of boilerplate removed: "
          + (", ".join(f"{found.total()} {kind}" for kind, found in kinds) or "none"))
    for name, found in splits.items():
        print(f"  {name:5s}  {len(found):6d} documents  {found[0]['date']} to {found[-1]['date']}")


def foreign_files(folder: Path) -> list[str]:
    """What stands in a folder besides a dataset that prepare.py wrote: the user's own files, above all question sets."""
    if not folder.is_dir():
        return [folder.name] if folder.exists() else []
    ours = {"meta.json", "qa", "report.md", "lengths.png", *TOKENIZER_FILES}
    ours |= {f"{name}.{kind}" for name in (*SPLITS, "pairs", "pairs_test") for kind in ("jsonl", "safetensors")}
    meta = folder / "meta.json"
    questions = {f"{name}.jsonl" for name in read_json(meta).get("questions", {})} if meta.is_file() else set()
    found = [path.name for path in folder.iterdir() if path.name not in ours]
    return sorted(found + [f"qa/{path.name}" for path in (folder / "qa").glob("*") if path.name not in questions])


def parse_date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date of the form 2025-09-01") from None


def parse_shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text!r}: three shares above 0 that add up to 1 are needed, such as 0.8,0.1,0.1")
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("articles", type=Path, help="JSONL with id, title, date and text, as scrape.py writes it")
    parser.add_argument("--out", type=Path, required=True, help="the dataset folder; made anew if it is there")
    parser.add_argument("--tokenizer", help="hub name or folder of the model whose tokenizer is used")
    parser.add_argument("--train-tokenizer", type=int, metavar="SIZE", help="train a byte-level BPE of this size instead")
    parser.add_argument("--since", type=parse_date, help="first day kept")
    parser.add_argument("--until", type=parse_date, help="last day kept")
    parser.add_argument("--language", default="EN", choices=sorted(STOP_WORDS), help="language kept")
    parser.add_argument("--min-chars", type=int, default=450, help="shorter texts are stubs")
    parser.add_argument("--split", type=parse_shares, default=(0.8, 0.1, 0.1), help="shares of train, val and test")
    parser.add_argument("--split-by", choices=("date", "hash"), default="date",
                        help="test on the latest articles, or on a choice that stays when articles are added")
    parser.add_argument("--report", action="store_true", help="also write report.md, a page about the dataset, with a figure")
    parser.add_argument("--keep-boilerplate", action="store_true", help="remove no paragraphs")
    parser.add_argument("--pairs", type=Path, help="JSONL of further training pairs (messages, or prompt and response)")
    parser.add_argument("--task-prefix", action="store_true", help="put each pair's task in front of its question: [SPEC] ...")
    parser.add_argument("--balance", type=float, metavar="RATIO",
                        help=f"repeat rare tasks, {MAX_REPEATS} times at most, until none has over RATIO times another's pairs")
    parser.add_argument("--hold-out", type=float, default=0.0, metavar="SHARE", help="share of the pairs kept for pairs_test")
    parser.add_argument("--max-pair-tokens", type=int, metavar="N", help="drop pairs that are longer, rather than cut them")
    parser.add_argument("--questions", type=Path, nargs="+", default=[], help="JSONL files of multiple-choice questions to add")
    parser.add_argument("--questions-from", metavar="URL", help="have a model write questions: an OpenAI-compatible endpoint, "
                        "such as http://localhost:8000/v1 (key in OPENAI_API_KEY, prompt in qa/prompt.txt)")
    parser.add_argument("--questions-model", default="default", metavar="NAME", help="the model to ask for there")
    parser.add_argument("--questions-documents", type=int, default=100, metavar="N", help="training documents to ask about")
    parser.add_argument("--no-generated", dest="generated", action="store_false", help="make no pairs and questions by rule")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of questions and distractors")
    args = parser.parse_args()
    if bool(args.tokenizer) == bool(args.train_tokenizer):
        raise ValueError("give --tokenizer NAME (the model's to be trained) or --train-tokenizer SIZE")
    names = [path.stem for path in args.questions] + ["closed_book", "open_book"] * args.generated
    names += ["written"] * bool(args.questions_from)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two question sets would be named {twice[0]}; rename a file (closed_book, open_book and written are "
                         "the names of the sets that are made here)")
    if args.questions_documents < 1:
        raise ValueError(f"--questions-documents must be at least 1, given {args.questions_documents}")
    if not 0 <= args.hold_out < 1 or (args.balance or 1) < 1 or (args.max_pair_tokens or 1) < 1:
        raise ValueError("--hold-out must be from 0 to below 1, --balance and --max-pair-tokens at least 1; given "
                         f"{args.hold_out}, {args.balance} and {args.max_pair_tokens}")
    if args.min_chars < 0:
        raise ValueError(f"--min-chars must be 0 or more, given {args.min_chars}")
    if strange := foreign_files(args.out):
        raise ValueError(f"{args.out} holds what prepare.py did not write ({', '.join(strange[:3])}) and would be lost; "
                         "move it elsewhere or choose another --out")
    with whole_folder(args.out) as beside:
        meta = prepare(args, beside)
    tokens = sum(entry["tokens"] for entry in meta["splits"].values())
    print(f"wrote {args.out}: {tokens:,} tokens, {meta['pairs']} training pairs, questions: "
          + (", ".join(f"{n} {name}" for name, n in meta["questions"].items()) or "none"))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nprepare.py: stopped", file=sys.stderr)
        sys.exit(130)
