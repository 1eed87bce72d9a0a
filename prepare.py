"""Articles to a dataset folder: cleaned, de-duplicated, split by date, tokenized, with question sets.

    python prepare.py data/raw/articles.jsonl --out data/bmw --tokenizer Qwen/Qwen3-0.6B-Base

Says what it dropped and why. Same input and options, same bytes.
"""

import argparse
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import TextIO

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

from ask import write_questions
from clean import STOP_WORDS
from corpus import Corpus, Document, drop_near_duplicates, read_corpus, split_by_date, split_by_hash, spread
from dataset import (
    SPLITS,
    end_token,
    line_of,
    load_tokenizer,
    read_questions,
    tokenizer_hash,
    write_examples,
    write_jsonl,
    write_tokens,
)
from files import TOKENIZER_FILES, copy_tokenizer, file_hash, locate, make_folder, read_json, whole_folder, write_json
from instructions import MAX_REPEATS, balance, encode_pairs, hold_out, read_pairs, with_task
from questions import open_and_closed_book, training_pairs
from report import write_report

BATCH = 1024  # documents tokenized at a time

# ---------------------------------------------------------------- tokens


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
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


def write_split(folder: Path, name: str, documents: list[Document], corpus: Corpus, tokenizer: Tokenizer, end: int) -> dict:
    """One split's JSONL and token file; its entry of meta.json.

    `bytes` counts what the predictions of a document stand for: all of its text, less its first token where the
    tokenizer adds no begin token, as nothing predicts that one.
    """
    begins, totals = bool(tokenizer.encode("").ids), Counter()

    def batches() -> Iterator[tuple[list[dict], Future]]:
        """The next batch is tokenized while the one before it is written."""
        with ThreadPoolExecutor(1) as ahead:
            waiting = deque()
            for start in tqdm(range(0, len(documents), BATCH), desc=f"tokenizing {name}", disable=None):
                batch = [corpus[document] for document in documents[start : start + BATCH]]
                waiting.append((batch, ahead.submit(tokenizer.encode_batch_fast, [d["text"] for d in batch])))
                if len(waiting) > 2:
                    yield waiting.popleft()
            yield from waiting

    def encoded(lines: TextIO) -> Iterator[tuple[list[int], int]]:
        for batch, coming in batches():
            lines.writelines(map(line_of, batch))
            for document, found in zip(batch, coming.result(), strict=True):
                text, tokens = document["text"], found.ids
                skipped = 0 if begins else len(first_token(tokenizer, tokens, text).encode())
                nbytes = len(text.encode()) - skipped
                tokens.append(end)
                totals.update(tokens=len(tokens), bytes=nbytes)
                yield tokens, nbytes

    with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as lines:
        write_tokens(folder / f"{name}.safetensors", encoded(lines), len(documents), vocabulary(tokenizer))
    return {"documents": len(documents), "tokens": totals["tokens"], "bytes": totals["bytes"],
            "first": documents[0].date, "last": documents[-1].date}


def vocabulary(tokenizer: Tokenizer) -> int:
    """One more than the largest id: some vocabularies have holes."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def first_token(tokenizer: Tokenizer, tokens: list[int], text: str) -> str:
    """The part of the text that its first token stands for."""
    plain = tokenizer.decode(tokens[:1])
    if not tokens or (plain and text.startswith(plain)):
        return plain
    return text[: tokenizer.encode(text).offsets[0][1]]  # part of a character, or of a text that was normalised


# ---------------------------------------------------------------- the whole


def prepare(args: argparse.Namespace, folder: Path) -> dict:
    """Make the dataset in an empty folder; its meta.json's content."""
    pairs = read_pairs(args.pairs) if args.pairs else []
    sets = {path.stem: read_questions(path) for path in args.questions}
    if args.tokenizer:
        copy_tokenizer(locate(args.tokenizer, files=TOKENIZER_FILES), folder)
    corpus = read_corpus(args, folder / "cleaned.jsonl")
    splits = {"date": split_by_date, "hash": split_by_hash}[args.split_by](corpus.documents, args.split)
    drop_near_duplicates(splits, corpus)
    print_report(corpus, splits, args)

    if args.train_tokenizer:
        train_tokenizer((corpus[d]["text"] for d in splits["train"]), args.train_tokenizer, folder)
    tokenizer = load_tokenizer(folder)
    end = end_token(tokenizer, folder)
    entries = {name: write_split(folder, name, found, corpus, tokenizer, end) for name, found in splits.items()}

    if args.generated:
        chosen = {name: [corpus[d] for d in spread(found, args.generated_documents)] for name, found in splits.items()}
        pairs = training_pairs(chosen["train"], args.seed) + pairs
        sets = {name: found for name, found in open_and_closed_book(chosen, args.seed).items() if found} | sets
    if args.questions_from:
        chosen = [corpus[d] for d in spread(splits["train"], args.questions_documents)]
        sets["written"], refused = write_questions(args.questions_from, args.questions_model, chosen, args.seed)
        print(f"{len(sets['written'])} questions written on {len(chosen)} documents; refused: "
              + (", ".join(f"{n} {reason}" for reason, n in refused.most_common()) or "none"))
    if args.task_prefix:
        pairs = [with_task(pair) for pair in pairs]
    encoded = {id(pair): found for pair, found in zip(pairs, encode_pairs(pairs, tokenizer, end), strict=True)}
    longest = args.max_pair_tokens or sys.maxsize
    whole = [pair for pair in pairs if len(encoded[id(pair)][0]) <= longest]  # none is ever cut
    too_long = len(pairs) - len(whole)
    pairs, held_out = hold_out(whole, args.hold_out, args.seed)
    if args.balance:
        pairs = balance(pairs, args.balance)
    for name, chosen in ({"pairs": pairs} | ({"pairs_test": held_out} if held_out else {})).items():
        write_jsonl(folder / f"{name}.jsonl", chosen)
        write_examples(folder / f"{name}.safetensors", [encoded[id(p)] for p in chosen], vocabulary(tokenizer))
    tasks = Counter(pair.get("task") or "none" for pair in pairs)
    if pairs:
        print(f"{len(pairs)} training pairs by task: {', '.join(f'{n} {task}' for task, n in tasks.most_common())}; "
              f"{len(held_out)} held out; {too_long} dropped as too long")
    for name, questions in sets.items():
        write_jsonl(make_folder(folder / "qa") / f"{name}.jsonl", questions)
    meta = {
        "source": {"name": args.articles.name, "articles": corpus.articles, "sha256": file_hash(args.articles)},
        "tokenizer": Path(args.tokenizer).name if args.tokenizer else f"trained, {args.train_tokenizer}",
        "tokenizer_hash": tokenizer_hash(folder),
        "vocab_size": vocabulary(tokenizer),
        "end_token": end, "begins": bool(tokenizer.encode("").ids),
        "dropped": {reason: len(found) for reason, found in corpus.dropped.items()},
        "paragraphs_removed": {kind: found.total() for kind, found in sorted(corpus.removed.items())},
        "splits": entries, "pairs": len(pairs), "pairs_held_out": len(held_out), "pairs_too_long": too_long,
        "tasks": dict(sorted(tasks.items())), "questions": {name: len(found) for name, found in sets.items()},
        "options": {key: str(value) if isinstance(value, date) else value for key, value in vars(args).items()
                    if key in ("since", "until", "language", "min_chars", "split", "split_by", "keep_boilerplate", "seed")},
    }
    write_json(folder / "meta.json", meta)
    if args.report:
        write_report(folder, meta, corpus)
    (folder / "cleaned.jsonl").unlink()
    return meta


def print_report(corpus: Corpus, splits: dict[str, list[Document]], args: argparse.Namespace) -> None:
    print(f"{corpus.articles} articles, {sum(map(len, splits.values()))} kept")
    for reason, found in sorted(corpus.dropped.items(), key=lambda item: -len(item[1])):
        print(f"  {len(found):6d}  {reason:34s} such as {found[0]}")
    kinds = sorted(corpus.removed.items(), key=lambda item: -item[1].total())
    done = "kept" if args.keep_boilerplate else "removed"
    print(f"{sum(found.total() for _, found in kinds)} paragraphs of boilerplate {done}: "
          + (", ".join(f"{found.total()} {kind}" for kind, found in kinds) or "none"))
    for name, found in splits.items():
        print(f"  {name:5s}  {len(found):6d} documents  {found[0].date} to {found[-1].date}")


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
    parser.add_argument("--generated-documents", type=int, default=2_000, metavar="N",
                        help="documents of a split that pairs and questions are made from by rule, evenly spaced")
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
    if min(args.questions_documents, args.generated_documents) < 1:
        raise ValueError("--questions-documents and --generated-documents must be at least 1, given "
                         f"{args.questions_documents} and {args.generated_documents}")
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
