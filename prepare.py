"""Articles to a dataset folder: cleaned, de-duplicated, split by date, tokenized, with question sets.

    python prepare.py data/raw/articles.jsonl --out data/bmw --tokenizer Qwen/Qwen3-0.6B-Base
    python prepare.py --pairs manual.jsonl --chat --out data/manual --tokenizer Qwen/Qwen3-0.6B      (conversations alone)

Says what it dropped and why. Same input and options, same bytes.
"""

import argparse
import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import TextIO

from tokenizers import Tokenizer
from tqdm import tqdm

from nanoprune import command_line
from nanoprune.data.chat_format import ChatForm, chat_form
from nanoprune.data.conversations import (
    MAX_REPEATS,
    balance,
    divide,
    encode_pairs,
    hold_out,
    read_pairs,
    with_task,
)
from nanoprune.data.corpus import (
    Corpus,
    Document,
    drop_near_duplicates,
    evenly_spaced,
    read_corpus,
    split_by_date,
    split_by_hash,
)
from nanoprune.data.dataset import SPLITS, read_questions
from nanoprune.data.dataset_page import write_dataset_page
from nanoprune.data.language import STOP_WORDS
from nanoprune.data.llm_questions import write_questions
from nanoprune.data.rule_questions import open_and_closed_book, training_pairs
from nanoprune.data.token_file import write_documents, write_examples
from nanoprune.data.tokenizer import (
    end_token,
    first_token,
    load_tokenizer,
    tokenizer_hash,
    train_tokenizer,
    vocabulary,
)
from nanoprune.io.files import file_hash, make_folder, read_json, replace_folder, write_json
from nanoprune.io.hub import TOKENIZER_FILES, copy_tokenizer, locate
from nanoprune.io.jsonl import json_line, read_jsonl, write_jsonl

GENERAL = Path(__file__).parent / "qa" / "general.jsonl"  # what eval.py measures forgetting on
BATCH = 1024  # documents tokenized at a time


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
            lines.writelines(map(json_line, batch))
            for document, found in zip(batch, coming.result(), strict=True):
                text, tokens = document["text"], found.ids
                skipped = 0 if begins else len(first_token(tokenizer, tokens, text).encode())
                nbytes = len(text.encode()) - skipped
                tokens.append(end)
                totals.update(tokens=len(tokens), bytes=nbytes)
                yield tokens, nbytes

    with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as lines:
        write_documents(folder / f"{name}.safetensors", encoded(lines), len(documents), vocabulary(tokenizer))
    return {"documents": len(documents), "tokens": totals["tokens"], "bytes": totals["bytes"],
            "first": documents[0].date, "last": documents[-1].date}


# ---------------------------------------------------------------- the whole
def prepare(args: argparse.Namespace, folder: Path) -> dict:
    """Make the dataset in an empty folder; its meta.json's content."""
    pairs = read_pairs(args.pairs) if args.pairs else []
    sets = {path.stem: read_questions(path) for path in args.questions}
    asked = read_pairs(args.test_pairs) if args.test_pairs else []
    general = read_replay(args.replay) if args.replay else []
    if args.tokenizer:
        copy_tokenizer(source := locate(args.tokenizer, files=TOKENIZER_FILES), folder)
    chat = chat_form(source, load_tokenizer(folder)) if args.chat else None
    if not args.articles:
        return prepare_conversations(args, folder, divide(pairs, args.split, args.seed), asked, sets, {
            "name": args.pairs.name, "conversations": len(pairs), "sha256": file_hash(args.pairs)})
    corpus = read_corpus(args, folder / "cleaned.jsonl")
    splits = {"date": split_by_date, "hash": split_by_hash}[args.split_by](corpus.documents, args.split)
    drop_near_duplicates(splits, corpus)
    print_report(corpus, splits, args)

    if args.train_tokenizer:
        train_tokenizer((corpus[d]["text"] for d in splits["train"]), args.train_tokenizer, folder)
    tokenizer = load_tokenizer(folder)
    end = end_token(tokenizer, folder)
    if args.conversations:
        chosen = {name: [corpus[d] for d in evenly_spaced(found, args.generated_documents)] for name, found in splits.items()}
        (folder / "cleaned.jsonl").unlink()
        return prepare_conversations(args, folder, {
            name: training_pairs(found, args.seed, context=True) + (pairs if name == "train" else [])
            for name, found in chosen.items()}, asked, sets, source_of(args, corpus))
    entries = {name: write_split(folder, name, found, corpus, tokenizer, end) for name, found in splits.items()}

    if args.generated:
        chosen = {name: [corpus[d] for d in evenly_spaced(found, args.generated_documents)] for name, found in splits.items()}
        pairs = training_pairs(chosen["train"], args.seed) + pairs
        sets = {name: found for name, found in open_and_closed_book(chosen, args.seed).items() if found} | sets
    if args.questions_from:
        chosen = [corpus[d] for d in evenly_spaced(splits["train"], args.questions_documents)]
        sets["written"], refused = write_questions(args.questions_from, args.questions_model, chosen, args.seed)
        print(f"{len(sets['written'])} questions written on {len(chosen)} documents; refused: "
              + (", ".join(f"{n} {reason}" for reason, n in refused.most_common()) or "none"))
    pairs, encoded, dropped = encode_whole(args, not_asked(pairs, asked), tokenizer, end, chat)
    pairs, held_out = hold_out(pairs, args.hold_out, args.seed)
    asked, more, too_long = encode_whole(args, asked, tokenizer, end, chat)
    held_out, encoded, dropped = held_out + asked, encoded | more, dropped + too_long
    if args.balance:
        pairs = balance(pairs, args.balance)
    for name, chosen in ({"pairs": pairs} | ({"pairs_test": held_out} if held_out else {})).items():
        write_jsonl(folder / f"{name}.jsonl", chosen)
        write_examples(folder / f"{name}.safetensors", [encoded[id(p)] for p in chosen], vocabulary(tokenizer))
    if general:
        documents = [([*found.ids, end], 0) for found in tokenizer.encode_batch([row["text"] for row in general])]
        write_documents(folder / "replay.safetensors", documents, len(documents), vocabulary(tokenizer))
        print(f"{len(documents)} general documents to mix in, {sum(len(tokens) for tokens, _ in documents):,} tokens")
    meta = describe(args, folder, source_of(args, corpus), sets, pairs, held_out, dropped) | {
        "dropped": {reason: len(found) for reason, found in corpus.dropped.items()},
        "paragraphs_removed": {kind: found.total() for kind, found in sorted(corpus.removed.items())},
        "splits": entries,
    }
    write_json(folder / "meta.json", meta)
    if args.report:
        write_dataset_page(folder, meta, corpus)
    (folder / "cleaned.jsonl").unlink()
    return meta


def prepare_conversations(
    args, folder: Path, sides: dict[str, list[dict]], asked: list[dict], sets: dict, source: dict
) -> dict:
    """A dataset of conversations alone: those of each side, trained on, validated on, and both predicted and answered.

    Where pairs to be `asked` are given, these are the test side.
    """
    if asked:
        sides = {"train": not_asked(sides["train"] + sides["test"], asked), "val": not_asked(sides["val"], asked)}
        sides["test"] = asked
    tokenizer = load_tokenizer(folder)
    end, form = end_token(tokenizer, folder), chat_form(folder, tokenizer) if args.chat else None
    dropped, entries, whole = Counter(), {}, {}
    for side, pairs in sides.items():
        whole[side], encoded, found = encode_whole(args, pairs, tokenizer, end, form)
        dropped += found
        if not whole[side]:
            raise ValueError(f"no conversation is left for {side}: its share of {sum(map(len, sides.values()))} is {len(pairs)}"
                             f"{', all of them too long' if found else ''}; give more of them")
        if side == "train" and args.balance:
            whole[side] = balance(whole[side], args.balance)
        chosen = whole[side]
        answers = [[turn["content"] for turn in pair["messages"] if turn["role"] == "assistant"] for pair in chosen]
        said = [len("".join(texts).encode()) for texts in answers]
        names = ["pairs"] if side == "train" else ["test", "pairs_test"] if side == "test" else ["val"]
        for name in names:
            lines = chosen if name == "pairs" else [
                {"id": f"{side}{i}", "text": "\n\n".join(turn["content"] for turn in pair["messages"])} | pair
                for i, pair in enumerate(chosen)]
            write_jsonl(folder / f"{name}.jsonl", lines)
            examples = [encoded[id(pair)] for pair in chosen]
            write_examples(folder / f"{name}.safetensors", examples, vocabulary(tokenizer), said)
        entries[side] = {"documents": len(chosen), "tokens": sum(len(tokens) for tokens, _ in examples), "bytes": sum(said)}
    meta = describe(args, folder, source, sets, whole["train"], whole["test"], dropped)
    meta |= {"conversations": True, "splits": entries}
    write_json(folder / "meta.json", meta)
    return meta


def encode_whole(args: argparse.Namespace, pairs: list[dict], tokenizer: Tokenizer, end: int, form: ChatForm | None
                 ) -> tuple[list[dict], dict[int, tuple], Counter]:
    """(the examples that are short enough, all their tokens by id(), how many were too long and why); none is ever cut."""
    if args.task_prefix:
        pairs = [with_task(pair) for pair in pairs]
    encoded = {id(pair): found for pair, found in zip(pairs, encode_pairs(pairs, tokenizer, end, form), strict=True)}
    longest, dropped = args.max_pair_tokens or sys.maxsize, Counter()
    for pair in pairs:
        tokens, learned = encoded[id(pair)]
        if sum(learned) > longest:
            dropped["answer alone too long"] += 1
            print(f"warning: the answers to “{pair['messages'][-2]['content'][:60]}” alone have {sum(learned)} tokens, more "
                  f"than --max-pair-tokens {longest}; left out")
        elif len(tokens) > longest:
            dropped["too long"] += 1
    return [pair for pair in pairs if len(encoded[id(pair)][0]) <= longest], encoded, dropped


def describe(args, folder: Path, source: dict, sets: dict, pairs: list[dict], held_out: list[dict], dropped: Counter) -> dict:
    """Write the question sets; what meta.json says of every dataset."""
    tokenizer, tasks = load_tokenizer(folder), Counter(pair.get("task") or "none" for pair in pairs)
    if pairs:
        print(f"{len(pairs)} training pairs by task: {', '.join(f'{n} {task}' for task, n in tasks.most_common())}; "
              f"{len(held_out)} held out; {dropped.total()} dropped as too long")
    for name, questions in sets.items():
        write_jsonl(make_folder(folder / "qa") / f"{name}.jsonl", questions)
    return {
        "source": source,
        "tokenizer": Path(args.tokenizer).name if args.tokenizer else f"trained, {args.train_tokenizer}",
        "tokenizer_hash": tokenizer_hash(folder),
        "vocab_size": vocabulary(tokenizer),
        "end_token": end_token(tokenizer, folder), "begins": bool(tokenizer.encode("").ids), "chat": args.chat,
        "pairs": len(pairs), "pairs_held_out": len(held_out), "pairs_too_long": dropped.total(),
        "pairs_answer_too_long": dropped["answer alone too long"], "tasks": dict(sorted(tasks.items())),
        "questions": {name: len(found) for name, found in sets.items()},
        "options": {key: str(value) if isinstance(value, date) else value for key, value in vars(args).items()
                    if key in ("since", "until", "language", "min_chars", "split", "split_by", "keep_boilerplate", "seed")},
    }


def not_asked(pairs: list[dict], asked: list[dict]) -> list[dict]:
    """The pairs that do not ask what is asked in the test."""
    known = {json_line(pair["messages"][:-1]) for pair in asked}
    left = [pair for pair in pairs if json_line(pair["messages"][:-1]) not in known]
    if len(left) < len(pairs):
        print(f"{len(pairs) - len(left)} pairs left out of training: they stand among the test's")
    return left


def source_of(args: argparse.Namespace, corpus: Corpus) -> dict:
    return {"name": args.articles.name, "articles": corpus.articles, "sha256": file_hash(args.articles)}


def read_replay(path: Path) -> list[dict]:
    """General text to mix in; ValueError where it is what eval.py measures forgetting on."""
    rows = read_jsonl(path, ("text",))
    if not rows or not all(isinstance(row["text"], str) and row["text"].strip() for row in rows):
        raise ValueError(f"--replay {path}: every line must have a text, and there must be one")
    measured = {row["text"] for row in read_jsonl(GENERAL, ("text",))}
    if shared := [number for number, row in enumerate(rows, start=1) if row["text"] in measured]:
        raise ValueError(f"--replay {path}, line {shared[0]}: this text stands in {GENERAL.name}, which eval.py measures "
                         "forgetting on; train on other text")
    return rows


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
    ours = {"meta.json", "qa", "report.md", "lengths.png", "replay.safetensors", *TOKENIZER_FILES}
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
    parser.add_argument("articles", type=Path, nargs="?", help="JSONL with id, title, date and text, as scrape.py writes it; "
                        "without it a dataset of --pairs alone is made")
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
    parser.add_argument("--chat", action="store_true", help="write pairs in the chat form of the tokenizer's model (ChatML or "
                        "Llama 3's) instead of plainly")
    parser.add_argument("--conversations", action="store_true", help="learn from pairs alone: those made by rule from each "
                        "side's articles, with their article as context, and --pairs")
    parser.add_argument("--replay", type=Path, metavar="JSONL", help="general text (lines with a `text`) to mix in")
    parser.add_argument("--test-pairs", type=Path, metavar="JSONL", help="pairs that are never trained on, to be answered in "
                        "evaluation; their task, category and difficulty tell the answers apart")
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
    if not args.articles and not args.pairs:
        raise ValueError("give ARTICLES (as scrape.py writes them), or --pairs FILE.jsonl for a dataset of conversations")
    alone = not args.articles or args.conversations
    args.generated = args.generated and not alone
    if args.chat and not args.tokenizer:
        raise ValueError("--chat needs --tokenizer, that of a model with a chat form")
    idle = {"--hold-out (conversations are divided by --split)": alone and args.hold_out, "--replay": alone and args.replay,
            "--report": alone and args.report, "--questions-from": alone and args.questions_from,
            "--train-tokenizer": not args.articles and args.train_tokenizer}
    if idle := [name for name, given in idle.items() if given]:
        raise ValueError(f"{', '.join(idle)}: not for a dataset of conversations alone; leave it out")
    names = [path.stem for path in args.questions] + ["closed_book", "open_book"] * args.generated
    names += ["written"] * bool(args.questions_from)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two question sets would be named {twice[0]}; rename a file (closed_book, open_book and written are "
                         "the names of the sets that are made here)")
    if min(args.questions_documents, args.generated_documents) < 1:
        raise ValueError("--questions-documents and --generated-documents must be at least 1, given "
                         f"{args.questions_documents} and {args.generated_documents}")
    if not 0 <= args.hold_out < 1:
        raise ValueError(f"--hold-out must be from 0 to below 1, given {args.hold_out}")
    for name in ("balance", "max_pair_tokens"):
        if (value := getattr(args, name)) is not None and not value >= 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, given {value}")
    if args.min_chars < 0:
        raise ValueError(f"--min-chars must be 0 or more, given {args.min_chars}")
    if strange := foreign_files(args.out):
        raise ValueError(f"{args.out} holds what prepare.py did not write ({', '.join(strange[:3])}) and would be lost; "
                         "move it elsewhere or choose another --out")
    with replace_folder(args.out) as beside:
        meta = prepare(args, beside)
    tokens = sum(entry["tokens"] for entry in meta["splits"].values())
    print(f"wrote {args.out}: {tokens:,} tokens, {meta['pairs']} training pairs, questions: "
          + (", ".join(f"{n} {name}" for name, n in meta["questions"].items()) or "none"))


if __name__ == "__main__":
    command_line.run(main)
